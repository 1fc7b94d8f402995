//! The ledger by events and effects: what is written, when it is acknowledged, and what it says of
//! steps that were lost.

#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with others, which together use all of it")]
mod desk;

use coordinator_core::event::{Effect, JobPhase, Record};
use desk::{DETECT_WITHIN_MS, Desk, failed, id, ignored, rank, told, with_step};
use proto::id::{JobId, Step};
use proto::ledger::{Entry, Replay, Tip};
use proto::message::{RankPhase, RankReport, WeightDigest};

/// Reads what is saved as `coordinator audit` does.
struct Book {
    replay: Replay,
    entries: Vec<Entry>,
}

impl Book {
    fn new(job: &JobId) -> Self {
        let toml = proto::job::to_toml(&desk::spec(2, 2));
        let begin = Tip::begin(job, "version", &toml);
        Self {
            replay: Replay::new(begin, 8),
            entries: vec![],
        }
    }

    fn read(&mut self, effects: &[Effect]) {
        for effect in effects {
            let Effect::Save(records) = effect else {
                continue;
            };
            for record in records {
                let Record::Ledger { entries, .. } = record else {
                    continue;
                };
                entries
                    .iter()
                    .for_each(|entry| self.replay.take(entry).unwrap());
                self.entries.extend(entries.clone());
            }
        }
    }

    /// First and last step, generation, and whether they were lost.
    fn done(&self) -> Vec<(u64, u64, u64, bool)> {
        let one = |done: &proto::ledger::Done| {
            (
                done.first.0,
                done.last.0,
                done.generation.0,
                done.superseded,
            )
        };
        self.replay.done().iter().map(one).collect()
    }
}

fn steps(job: &JobId, generation: u64, steps: &[u64]) -> RankReport {
    steps.iter().fold(
        rank(job, generation, 0, RankPhase::Training),
        |report, step| with_step(report, *step),
    )
}

fn with_digest(mut report: RankReport, step: u64, sha256: &str) -> RankReport {
    let sha256 = sha256.to_owned();
    report.digests.push(WeightDigest {
        step: Step(step),
        sha256,
    });
    report
}

#[test]
fn a_step_is_acknowledged_when_its_entry_is_saved_and_quick_steps_share_a_save() {
    let (mut desk, job) = Desk::training();
    let mut book = Book::new(&job);
    let effects = desk.receive("w1", vec![steps(&job, 1, &[1])]);
    book.read(&effects);
    assert_eq!(
        told(&effects, "w1").gang().unwrap().acknowledged_step,
        Step(1)
    );
    let effects = desk.receive("w1", vec![steps(&job, 1, &[1, 2])]);
    assert!(
        !effects
            .iter()
            .any(|effect| matches!(effect, Effect::Save(_))),
        "{effects:?}"
    );
    assert_eq!(
        told(&effects, "w1").gang().unwrap().acknowledged_step,
        Step(1),
        "not before it is saved"
    );
    let effects = desk.receive("w1", vec![steps(&job, 1, &[2, 3])]);
    book.read(&effects);
    let effects = desk.wait(DETECT_WITHIN_MS / 6);
    book.read(&effects);
    assert_eq!(
        told(&effects, "w1").gang().unwrap().acknowledged_step,
        Step(3),
        "two in one save"
    );
    assert_eq!(book.done(), [(1, 3, 1, false)]);
    book.replay.ends_at(&desk.job(&job).ledger).unwrap();
}

#[test]
fn a_restart_forgets_no_step_and_writes_none_twice() {
    let (mut desk, job) = Desk::training();
    let mut book = Book::new(&job);
    book.read(&desk.receive("w1", vec![steps(&job, 1, &[1])]));
    desk.receive("w1", vec![steps(&job, 1, &[1, 2])]);
    desk.restart();
    // Step 2 was not saved, so its rank still tells of it.
    book.read(&desk.receive("w1", vec![steps(&job, 1, &[1, 2])]));
    book.read(&desk.wait(DETECT_WITHIN_MS / 6));
    assert_eq!(book.done(), [(1, 2, 1, false)]);
    book.replay.ends_at(&desk.job(&job).ledger).unwrap();
}

#[test]
fn steps_that_are_lost_with_their_generation_are_superseded() {
    let (mut desk, job) = Desk::training();
    let mut book = Book::new(&job);
    book.read(&desk.receive("w1", vec![steps(&job, 1, &[1, 2])]));
    book.read(&desk.commit(&job, 2));
    book.read(&desk.receive("w1", vec![steps(&job, 1, &[3])]));
    book.read(&desk.receive("w1", vec![rank(&job, 1, 0, failed("boom"))]));
    assert_eq!(desk.generation(&job), 2);
    book.read(&desk.receive("w1", vec![steps(&job, 2, &[3, 4])]));
    book.read(&desk.wait(DETECT_WITHIN_MS / 6));
    assert_eq!(
        book.done(),
        [(1, 2, 1, false), (3, 3, 1, true), (3, 4, 2, false)]
    );
}

#[test]
fn what_a_commit_proves_is_written_although_nobody_heard_of_it() {
    let (mut desk, job) = Desk::training();
    let mut book = Book::new(&job);
    let effects = desk.commit(&job, 2);
    book.read(&effects);
    assert_eq!(book.done(), [(1, 2, 1, false)]);
    assert_eq!(book.replay.unheard(), 2);
    book.read(&desk.receive("w1", vec![steps(&job, 1, &[1, 2, 4])]));
    book.read(&desk.wait(DETECT_WITHIN_MS / 6));
    assert_eq!(
        book.done(),
        [(1, 4, 1, false)],
        "and what a later step proves"
    );
    assert_eq!(book.replay.unheard(), 3);
}

#[test]
fn ranks_that_agree_are_written_down_once_and_one_that_is_alone_stops_the_job() {
    let (mut desk, job) = Desk::training();
    let mut book = Book::new(&job);
    let first = with_digest(steps(&job, 1, &[1]), 1, "aa");
    let second = |sha256| with_digest(rank(&job, 1, 1, RankPhase::Training), 1, sha256);
    book.read(&desk.receive("w1", vec![first.clone()]));
    for _ in 0..2 {
        book.read(&desk.receive("w2", vec![second("aa")]));
        book.read(&desk.wait(DETECT_WITHIN_MS / 6));
    }
    assert_eq!(book.replay.digests(), [(Step(1), "aa".to_owned())]);
    let (mut desk, job) = Desk::training();
    desk.receive("w1", vec![first]);
    desk.receive("w2", vec![second("bb")]);
    assert!(matches!(desk.job(&job).phase, JobPhase::Failed { .. }));
    let reason = desk.reason(&job);
    let says = "the ranks' weights after step 1 differ, and nobody can tell whose are right: rank \
    0 on w1 aa, rank 1 on w2 bb";
    assert!(reason.starts_with(says), "{reason}");
}

#[test]
fn a_digest_of_a_step_that_cannot_be_is_ignored_and_noted_once_and_pushes_no_other_out() {
    let (mut desk, job) = Desk::training();
    let mut strange = steps(&job, 1, &[1]);
    for step in 100..200 {
        strange = with_digest(strange, step, "aa");
    }
    desk.receive("w1", vec![with_digest(steps(&job, 1, &[1]), 1, "aa")]);
    assert_eq!(
        ignored(&desk.receive("w1", vec![strange.clone()])),
        ["reports step 100 of a job that has steps 1 to 4"]
    );
    assert_eq!(
        ignored(&desk.receive("w1", vec![strange])),
        Vec::<String>::new()
    );
    // The other rank's word on step 1 still finds the first one's.
    let other = with_digest(rank(&job, 1, 1, RankPhase::Training), 1, "bb");
    desk.receive("w2", vec![other]);
    let reason = desk.reason(&job);
    assert!(
        reason.starts_with("the ranks' weights after step 1 differ"),
        "{reason}"
    );
}

#[test]
fn of_three_ranks_the_one_that_is_alone_is_named() {
    let mut desk = Desk::new();
    for worker in ["w1", "w2", "w3"] {
        desk.receive(worker, vec![]);
    }
    let mut spec = desk::spec(3, 3);
    desk::training(&mut spec).train.global_batch = 12;
    let job = desk.submit(spec);
    for (number, sha256) in [(0, "aa"), (1, "bb"), (2, "aa")] {
        let report = with_digest(rank(&job, 1, number, RankPhase::Training), 4, sha256);
        desk.receive(&id(&format!("w{}", number + 1)).name, vec![report]);
    }
    let says =
        "rank 1 on w2 is alone: its weights after step 4 are bb, those of the other 2 ranks aa";
    assert!(desk.reason(&job).starts_with(says), "{}", desk.reason(&job));
}
