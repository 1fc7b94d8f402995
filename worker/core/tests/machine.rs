//! The worker daemon's machine by events and effects.

#![allow(clippy::unwrap_used)]

use proto::checkpoint::ShardEntry;
use proto::id::{Generation, JobId, Rank, Step, WorkerId};
use proto::message::{
    Assignment, DesiredState, PhaseSeconds, RankPhase, RankReport, ShardReport, StepReport, Work,
    WorkerReport,
};
use proto::spec::DeviceKind;
use worker_core::event::{Effect, Event, Fact, RankKey};
use worker_core::{Config, GRACE, Worker};

const DETECT_WITHIN_MS: u64 = 900;

/// A node with two devices, connected.
struct Desk {
    machine: Worker,
    now: u64,
}

impl Desk {
    fn new() -> Self {
        let config = Config {
            worker: id(7),
            device: DeviceKind::Cpu,
            devices: 2,
        };
        let mut desk = Self {
            machine: Worker::new(config, 5_000),
            now: 5_000,
        };
        desk.handle(Event::Connected);
        desk
    }

    fn handle(&mut self, event: Event) -> Vec<Effect> {
        self.machine.handle(self.now, event)
    }

    /// Lives through this time, awake at every deadline.
    fn wait(&mut self, ms: u64) -> Vec<Effect> {
        let end = self.now + ms;
        let mut effects = Vec::new();
        while self.now < end {
            self.now = self.machine.next_deadline().unwrap_or(end).min(end);
            effects.extend(self.handle(Event::Deadline));
            assert!(
                self.machine
                    .next_deadline()
                    .is_none_or(|deadline| self.now < deadline)
            );
        }
        effects
    }

    fn desire(&mut self, assignments: Vec<Assignment>) -> Vec<Effect> {
        self.handle(Event::Desired(DesiredState {
            worker: id(7),
            assignments,
            detect_within_ms: DETECT_WITHIN_MS,
        }))
    }

    fn say(&mut self, key: &RankKey, phase: RankPhase) -> Vec<Effect> {
        self.handle(Event::RankSaid {
            process: key.clone(),
            report: said(key, phase),
        })
    }

    fn exit(&mut self, key: &RankKey, success: bool, outcome: &str) -> Vec<Effect> {
        self.handle(Event::RankExited {
            key: key.clone(),
            success,
            outcome: outcome.to_owned(),
        })
    }

    /// What the rank is reported as.
    fn phase(&self, key: &RankKey) -> RankPhase {
        let view = self.machine.view();
        view.ranks
            .iter()
            .find(|rank| rank.key == key)
            .expect("the rank is known")
            .report
            .phase
            .clone()
    }
}

fn id(boot: u64) -> WorkerId {
    WorkerId {
        name: "w1".to_owned(),
        boot,
    }
}

fn job() -> JobId {
    JobId("toy-1".to_owned())
}

fn key(generation: u64, rank: u32) -> RankKey {
    RankKey {
        job: job(),
        generation: Generation(generation),
        rank: Rank(rank),
    }
}

fn assignment(generation: u64, first_rank: u32, ranks: u32) -> Assignment {
    Assignment {
        job: job(),
        generation: Generation(generation),
        work: Work::Train,
        job_toml: String::new(),
        dataset_version: String::new(),
        first_rank: Rank(first_rank),
        ranks,
        world: 4,
        store_address: None,
        resume: None,
        store_url: String::new(),
        acknowledged_step: Step(0),
        committed_step: Step(0),
        halt: None,
        detect_within_ms: DETECT_WITHIN_MS,
    }
}

fn said(key: &RankKey, phase: RankPhase) -> RankReport {
    let RankKey {
        job,
        generation,
        rank,
    } = key.clone();
    RankReport {
        job,
        generation,
        rank,
        phase,
        store_address: None,
        steps: vec![],
        shards: vec![],
        digests: vec![],
    }
}

fn step(step: u64) -> StepReport {
    StepReport {
        step: Step(step),
        loss: 1.0,
        loss_target: 1.0,
        loss_face: 0.0,
        gradient_norm: 1.0,
        learning_rate: 0.1,
        samples: 1,
        seconds: PhaseSeconds::default(),
        peak_memory_bytes: 0,
        skipped_steps: 0,
        loss_scale: 1.0,
    }
}

fn shard(step: u64) -> ShardReport {
    let shard = ShardEntry {
        path: "rank-0.safetensors".to_owned(),
        size_bytes: 1,
        sha256: "00".to_owned(),
    };
    ShardReport {
        step: Step(step),
        shard,
        init_digest: None,
        environment: String::new(),
    }
}

fn error(text: &str) -> RankPhase {
    RankPhase::Failed {
        error: text.to_owned(),
        permanent: false,
    }
}

fn reports(effects: &[Effect]) -> Vec<WorkerReport> {
    let report = |effect: &Effect| match effect {
        Effect::Report(report) => Some(report.clone()),
        _ => None,
    };
    effects.iter().filter_map(report).collect()
}

fn spawned(effects: &[Effect]) -> Vec<(RankKey, u32)> {
    let spawn = |effect: &Effect| match effect {
        Effect::Spawn { key, device, .. } => Some((key.clone(), *device)),
        _ => None,
    };
    effects.iter().filter_map(spawn).collect()
}

#[test]
fn each_assigned_rank_gets_a_process_on_a_device_of_its_own() {
    let mut desk = Desk::new();
    let effects = desk.desire(vec![assignment(1, 2, 2)]);
    assert_eq!(spawned(&effects), [(key(1, 2), 0), (key(1, 3), 1)]);
    assert_eq!(reports(&effects)[0].ranks.len(), 2, "it is told at once");
    assert_eq!(
        desk.desire(vec![assignment(1, 2, 2)]),
        [],
        "the same again changes nothing"
    );
}

#[test]
fn a_changed_assignment_is_handed_on() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 0, 1)]);
    let changed = Assignment {
        store_address: Some("host:1".to_owned()),
        ..assignment(1, 0, 1)
    };
    let effects = desk.desire(vec![changed.clone()]);
    assert_eq!(
        effects,
        [Effect::Update {
            key: key(1, 0),
            rank: Rank(0),
            device: 0,
            assignment: Box::new(changed)
        }]
    );
}

#[test]
fn a_running_process_becomes_a_rank_of_the_next_generation() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 2, 2)]);
    desk.say(&key(1, 2), RankPhase::Training);
    desk.say(&key(1, 3), RankPhase::Training);
    let effects = desk.desire(vec![assignment(2, 0, 1)]);
    // One place is left for two: the first keeps its process, under its new number, and the other is sent away.
    assert!(effects.contains(&Effect::Update {
        key: key(1, 2),
        rank: Rank(0),
        device: 0,
        assignment: Box::new(assignment(2, 0, 1))
    }));
    assert!(effects.contains(&Effect::Stop { key: key(1, 3) }));
    assert_eq!(spawned(&effects), []);
    assert_eq!(desk.phase(&key(2, 0)), RankPhase::Joining);

    // What it still says of the older generation only shows that it lives.
    desk.say(&key(1, 2), RankPhase::Finished);
    assert_eq!(desk.phase(&key(2, 0)), RankPhase::Joining);
    let broken = RankPhase::Broken {
        error: "a peer closed".to_owned(),
    };
    let report = said(&key(2, 0), broken.clone());
    let process = key(1, 2);
    desk.handle(Event::RankSaid { process, report });
    assert_eq!(desk.phase(&key(2, 0)), broken);
    desk.exit(&key(1, 2), false, "killed by signal 9");
    assert_eq!(desk.phase(&key(2, 0)), error("killed by signal 9"));
}

#[test]
fn a_process_that_does_not_leave_an_older_generation_is_killed() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 0, 1)]);
    desk.say(&key(1, 0), RankPhase::Training);
    desk.desire(vec![assignment(2, 0, 1)]);
    for _ in 0..19 {
        assert!(
            !desk
                .wait(DETECT_WITHIN_MS / 2)
                .contains(&Effect::Kill { key: key(1, 0) })
        );
        desk.say(&key(1, 0), RankPhase::Training);
    }
    assert!(
        desk.wait(DETECT_WITHIN_MS / 2)
            .contains(&Effect::Kill { key: key(1, 0) })
    );
    assert_eq!(
        desk.phase(&key(2, 0)),
        error("did not leave the older generation in time; killed by its daemon")
    );
}

#[test]
fn what_cannot_go_on_is_replaced_when_it_is_gone() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 0, 2)]);
    desk.say(&key(1, 0), error("out of memory"));
    let effects = desk.desire(vec![assignment(2, 0, 2)]);
    // Rank 1's process becomes rank 0 of the next generation; rank 0's is on its way out and holds its device.
    assert!(effects.contains(&Effect::Stop { key: key(1, 0) }));
    assert_eq!(spawned(&effects), []);
    assert!(
        !desk
            .wait(DETECT_WITHIN_MS - 1)
            .contains(&Effect::Kill { key: key(1, 0) })
    );
    assert!(
        desk.wait(1).contains(&Effect::Kill { key: key(1, 0) }),
        "its grace is over"
    );
    assert_eq!(
        spawned(&desk.exit(&key(1, 0), false, "killed by signal 9")),
        [(key(2, 1), 0)]
    );
}

#[test]
fn a_silent_rank_is_killed_and_reported() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 0, 1)]);
    assert!(
        !desk
            .wait(9 * DETECT_WITHIN_MS)
            .contains(&Effect::Kill { key: key(1, 0) }),
        "starting takes long"
    );
    desk.say(&key(1, 0), RankPhase::Training);
    assert!(
        !desk
            .wait(DETECT_WITHIN_MS - 1)
            .contains(&Effect::Kill { key: key(1, 0) })
    );
    let effects = desk.wait(1);
    assert!(effects.contains(&Effect::Kill { key: key(1, 0) }));
    assert!(effects.contains(&Effect::Note(Fact::RankSilent {
        key: key(1, 0),
        silent_ms: 900
    })));
    assert_eq!(
        reports(&effects).last().unwrap().ranks[0].phase,
        error("silent for 900 ms while training; killed by its daemon")
    );
    desk.exit(&key(1, 0), false, "killed by signal 9");
    assert_eq!(
        desk.phase(&key(1, 0)),
        error("silent for 900 ms while training; killed by its daemon"),
        "the cause, not the effect"
    );
}

#[test]
fn what_ranks_said_while_the_daemon_slept_is_heard_before_they_are_judged() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 0, 1)]);
    desk.say(&key(1, 0), RankPhase::Training);
    desk.now += 100 * DETECT_WITHIN_MS;
    assert!(
        !desk
            .handle(Event::Deadline)
            .contains(&Effect::Kill { key: key(1, 0) })
    );
    desk.say(&key(1, 0), RankPhase::Training);
    assert!(
        !desk
            .wait(DETECT_WITHIN_MS - 1)
            .contains(&Effect::Kill { key: key(1, 0) })
    );
    assert!(desk.wait(1).contains(&Effect::Kill { key: key(1, 0) }));
}

#[test]
fn a_rank_that_never_starts_to_speak_is_killed() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 0, 1)]);
    assert!(
        desk.wait(10 * DETECT_WITHIN_MS)
            .contains(&Effect::Kill { key: key(1, 0) })
    );
}

#[test]
fn how_a_rank_ends_is_told_in_its_own_words_where_it_had_some() {
    let cases: [(Option<RankPhase>, bool, &str, RankPhase); 5] = [
        (None, false, "killed by signal 9", error("killed by signal 9")),
        (
            Some(error("loss is NaN in step 3")),
            false,
            "exit status 1",
            error("loss is NaN in step 3"),
        ),
        (
            Some(RankPhase::Finished),
            true,
            "exit status 0",
            RankPhase::Finished,
        ),
        (
            Some(RankPhase::Finished),
            false,
            "exit status 139",
            RankPhase::Finished,
        ),
        (
            Some(RankPhase::Training),
            true,
            "exit status 0",
            error("left before its work was done (exit status 0)"),
        ),
    ];
    for (last_words, success, outcome, expected) in cases {
        let mut desk = Desk::new();
        desk.desire(vec![assignment(1, 0, 1)]);
        if let Some(phase) = last_words {
            desk.say(&key(1, 0), phase);
        }
        desk.exit(&key(1, 0), success, outcome);
        assert_eq!(desk.phase(&key(1, 0)), expected);
        let again = desk.desire(vec![assignment(1, 0, 1)]);
        assert_eq!(spawned(&again), [], "a rank lives once");
    }
}

#[test]
fn steps_and_shards_are_kept_until_the_coordinator_has_them() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 0, 1)]);
    for number in 1..=3 {
        let mut report = said(&key(1, 0), RankPhase::Training);
        report.steps.push(step(number));
        report.shards.push(shard(number));
        let effects = desk.handle(Event::RankSaid {
            process: key(1, 0),
            report,
        });
        assert_eq!(reports(&effects)[0].ranks[0].steps.len(), number as usize);
    }
    desk.desire(vec![Assignment {
        acknowledged_step: Step(2),
        committed_step: Step(1),
        ..assignment(1, 0, 1)
    }]);
    let rank = reports(&desk.wait(DETECT_WITHIN_MS / 3))[0].ranks[0].clone();
    assert_eq!(rank.steps.iter().map(|step| step.step.0).collect::<Vec<_>>(), [3]);
    assert_eq!(
        rank.shards.iter().map(|shard| shard.step.0).collect::<Vec<_>>(),
        [2, 3]
    );
    let mut late = said(&key(1, 0), RankPhase::Training);
    late.steps.push(step(2));
    late.shards.push(shard(1));
    desk.handle(Event::RankSaid {
        process: key(1, 0),
        report: late,
    });
    let rank = desk.machine.view().ranks[0].report.clone();
    assert_eq!(
        (rank.steps.len(), rank.shards.len()),
        (1, 2),
        "what the coordinator has does not come back"
    );
}

#[test]
fn reports_repeat_themselves_and_cease_without_a_stream() {
    let mut desk = Desk::new();
    assert_eq!(
        desk.machine.next_deadline(),
        Some(desk.now + DETECT_WITHIN_MS / 3)
    );
    assert_eq!(reports(&desk.wait(DETECT_WITHIN_MS / 3 - 1)), []);
    assert_eq!(reports(&desk.wait(1)).len(), 1);
    desk.desire(vec![assignment(1, 0, 1)]);
    desk.handle(Event::Disconnected);
    let effects = desk.say(&key(1, 0), RankPhase::Training);
    assert_eq!(effects, [], "ranks go on; nobody is there to tell");
    assert_eq!(
        reports(&desk.handle(Event::Connected))[0].ranks[0].phase,
        RankPhase::Training
    );
}

#[test]
fn orders_for_another_boot_are_not_ours() {
    let mut desk = Desk::new();
    let state = DesiredState {
        worker: id(6),
        assignments: vec![assignment(1, 0, 1)],
        detect_within_ms: DETECT_WITHIN_MS,
    };
    let effects = desk.handle(Event::Desired(state));
    assert_eq!(spawned(&effects), []);
    assert!(
        matches!(&effects[0], Effect::Note(Fact::Ignored { what, .. }) if what == "orders for w1#6; this is w1#7")
    );
}

#[test]
fn an_overtaken_state_neither_brings_back_an_old_generation_nor_ends_the_new() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 0, 1)]);
    desk.say(&key(1, 0), RankPhase::Training);
    desk.desire(vec![assignment(2, 0, 1)]);
    let effects = desk.desire(vec![assignment(1, 0, 1)]);
    assert!(
        !effects
            .iter()
            .any(|effect| matches!(effect, Effect::Stop { .. } | Effect::Spawn { .. })),
        "{effects:?}"
    );
    assert_eq!(desk.phase(&key(2, 0)), RankPhase::Joining);
}

#[test]
fn a_rank_that_was_taken_away_is_not_started_again() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 0, 1)]);
    assert!(desk.desire(vec![]).contains(&Effect::Stop { key: key(1, 0) }));
    let effects = desk.exit(&key(1, 0), true, "exit status 0");
    assert_eq!(reports(&effects)[0].ranks, [], "nobody asks about it any more");
    let effects = desk.desire(vec![assignment(1, 0, 1)]);
    assert_eq!(spawned(&effects), []);
    let phase = desk.phase(&key(1, 0));
    assert_eq!(
        phase,
        error("this worker was taken off this generation and does not go back")
    );
    assert_eq!(spawned(&desk.desire(vec![assignment(2, 0, 1)])), [(key(2, 0), 0)]);
}

#[test]
fn a_shutdown_waits_for_the_ranks_and_offers_nothing_meanwhile() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 0, 1)]);
    desk.say(&key(1, 0), RankPhase::Training);
    let effects = desk.handle(Event::Shutdown);
    assert!(!effects.contains(&Effect::Stop { key: key(1, 0) }));
    let report = &reports(&effects)[0];
    assert_eq!(
        (report.devices, &report.ranks[0].phase),
        (0, &RankPhase::Training),
        "its rank goes on, and nothing new comes"
    );
    // A generation that was on its way is still served; no process starts for it.
    assert_eq!(spawned(&desk.desire(vec![assignment(2, 0, 2)])), []);
    assert_eq!(desk.phase(&key(2, 0)), RankPhase::Joining);
    assert_eq!(desk.phase(&key(2, 1)), error("the worker is shutting down"));
    // The coordinator has taken its place away: others have what it held.
    let effects = desk.desire(vec![]);
    assert!(effects.contains(&Effect::Stop { key: key(1, 0) }));
    let effects = desk.exit(&key(1, 0), true, "exit status 0");
    assert_eq!(effects.last(), Some(&Effect::Exit));
    assert!(!desk.wait(1).contains(&Effect::Exit), "once");
}

#[test]
fn a_shutdown_ends_with_its_grace_or_when_it_is_asked_for_again() {
    let stops = |effects: &[Effect]| effects.contains(&Effect::Stop { key: key(1, 0) });
    let leaving = || {
        let mut desk = Desk::new();
        desk.desire(vec![assignment(1, 0, 1)]);
        desk.say(&key(1, 0), RankPhase::Training);
        desk.handle(Event::Shutdown);
        desk
    };
    let mut desk = leaving();
    for _ in 0..2 * GRACE - 1 {
        assert!(!stops(&desk.wait(DETECT_WITHIN_MS / 2)));
        desk.say(&key(1, 0), RankPhase::Training);
    }
    assert!(stops(&desk.wait(DETECT_WITHIN_MS / 2)), "the grace is over");
    assert_eq!(desk.phase(&key(1, 0)), error("the worker is shutting down"));
    let mut desk = leaving();
    assert!(stops(&desk.handle(Event::Shutdown)));
    let effects = desk.exit(&key(1, 0), true, "exit status 0");
    assert_eq!(effects.last(), Some(&Effect::Exit));
}

#[test]
fn a_reserve_gets_ready_and_takes_its_place_in_the_next_generation() {
    let mut desk = Desk::new();
    // The world has four ranks; this is a fifth.
    let effects = desk.desire(vec![assignment(1, 4, 1)]);
    assert_eq!(spawned(&effects), [(key(1, 4), 0)]);
    desk.say(&key(1, 4), RankPhase::Ready);
    assert_eq!(desk.phase(&key(1, 4)), RankPhase::Ready);
    let effects = desk.desire(vec![assignment(2, 1, 1)]);
    assert_eq!(spawned(&effects), []);
    assert!(effects.contains(&Effect::Update {
        key: key(1, 4),
        rank: Rank(1),
        device: 0,
        assignment: Box::new(assignment(2, 1, 1))
    }));
    // Out of it, and under another number in reserve of the same generation: it did nothing there that could be repeated.
    assert!(desk.desire(vec![]).contains(&Effect::Stop { key: key(1, 4) }));
    desk.exit(&key(1, 4), true, "exit status 0");
    assert_eq!(spawned(&desk.desire(vec![assignment(2, 5, 1)])), [(key(2, 5), 0)]);
}

#[test]
fn no_process_gets_the_name_of_one_that_has_not_ended() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 4, 1)]);
    desk.desire(vec![assignment(2, 1, 1)]);
    assert!(desk.desire(vec![]).contains(&Effect::Stop { key: key(1, 4) }));
    // An overtaken order names it again, while it is on its way out as a rank of the newer generation; a device is free.
    assert_eq!(spawned(&desk.desire(vec![assignment(1, 4, 1)])), []);
    assert_eq!(
        spawned(&desk.exit(&key(1, 4), true, "exit status 0")),
        [(key(1, 4), 0)]
    );
}

#[test]
fn a_process_that_still_loads_is_not_hurried_by_a_newer_generation() {
    let mut desk = Desk::new();
    desk.desire(vec![assignment(1, 0, 1)]);
    desk.desire(vec![assignment(2, 0, 1)]);
    assert_eq!(desk.phase(&key(2, 0)), RankPhase::Starting);
    for _ in 0..40 {
        let effects = desk.wait(DETECT_WITHIN_MS / 2);
        assert!(!effects.contains(&Effect::Kill { key: key(1, 0) }));
        desk.say(&key(1, 0), RankPhase::Starting);
    }
}

#[test]
fn what_an_unknown_rank_says_is_ignored() {
    let mut desk = Desk::new();
    let effects = desk.say(&key(1, 0), RankPhase::Training);
    assert!(
        matches!(&effects[..], [Effect::Note(Fact::Ignored { .. })]),
        "{effects:?}"
    );
    assert_eq!(desk.exit(&key(1, 0), true, "exit status 0"), []);
    assert_eq!(
        spawned(&desk.desire(vec![assignment(1, u32::MAX, u32::MAX)])).len(),
        1,
        "strange orders do no harm"
    );
}
