//! The ledger by inputs and effects: what is written, when it is acknowledged, and how lost steps
//! appear.

#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with others, which together use all of it")]
mod harness;

use coordinator_core::event::{Effect, JobPhase, Record};
use harness::{DETECT_WITHIN_MS, Harness, assigned, failed, id, ignored, rank, rank_on, with_step};
use proto::id::{JobId, Step};
use proto::ledger::{Entry, Replay, Tip};
use proto::message::{RankPhase, RankReport, WeightDigest};
use proto::reason::{Cause, Ending, Fault, Violation, WeightDisagreement};

/// Reads saved ledger entries like `coordinator audit`.
struct LedgerReader {
    replay: Replay,
    entries: Vec<Entry>,
}

impl LedgerReader {
    fn new(job: &JobId) -> Self {
        let toml = proto::job::to_toml(&harness::spec(2, 2));
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

/// How the last generation of a failed job ended.
fn ending(harness: &Harness, job: &JobId) -> Ending {
    match harness.cause(job) {
        Cause::Fault {
            fault: Fault::Generation { ending, .. },
            ..
        } => ending.clone(),
        cause => panic!("{cause:?}"),
    }
}

/// After step 1 the weights of two ranks differ.
fn two_disagree() -> Ending {
    let ranks = vec![
        (rank_on(0, "w1"), "aa".to_owned()),
        (rank_on(1, "w2"), "bb".to_owned()),
    ];
    Ending::WeightsDisagree {
        step: Step(1),
        weights: WeightDisagreement::Many { ranks },
    }
}

#[test]
fn a_step_is_acknowledged_when_its_entry_is_saved_and_quick_steps_share_a_save() {
    let (mut harness, job) = Harness::training();
    let mut reader = LedgerReader::new(&job);
    let effects = harness.receive("w1", vec![steps(&job, 1, &[1])]);
    reader.read(&effects);
    assert_eq!(
        assigned(&effects, "w1").gang().unwrap().acknowledged_step,
        Step(1)
    );
    let effects = harness.receive("w1", vec![steps(&job, 1, &[1, 2])]);
    assert!(
        !effects
            .iter()
            .any(|effect| matches!(effect, Effect::Save(_))),
        "{effects:?}"
    );
    assert_eq!(
        assigned(&effects, "w1").gang().unwrap().acknowledged_step,
        Step(1),
        "it is not saved yet"
    );
    let effects = harness.receive("w1", vec![steps(&job, 1, &[2, 3])]);
    reader.read(&effects);
    let effects = harness.wait(DETECT_WITHIN_MS / 6);
    reader.read(&effects);
    assert_eq!(
        assigned(&effects, "w1").gang().unwrap().acknowledged_step,
        Step(3),
        "two in one save"
    );
    assert_eq!(reader.done(), [(1, 3, 1, false)]);
    reader.replay.ends_at(&harness.job(&job).ledger).unwrap();
}

#[test]
fn a_restart_loses_no_step_and_writes_none_twice() {
    let (mut harness, job) = Harness::training();
    let mut reader = LedgerReader::new(&job);
    reader.read(&harness.receive("w1", vec![steps(&job, 1, &[1])]));
    harness.receive("w1", vec![steps(&job, 1, &[1, 2])]);
    harness.restart();
    // Step 2 was not saved, so its rank still reports it.
    reader.read(&harness.receive("w1", vec![steps(&job, 1, &[1, 2])]));
    reader.read(&harness.wait(DETECT_WITHIN_MS / 6));
    assert_eq!(reader.done(), [(1, 2, 1, false)]);
    reader.replay.ends_at(&harness.job(&job).ledger).unwrap();
}

#[test]
fn steps_that_are_lost_with_their_generation_are_superseded() {
    let (mut harness, job) = Harness::training();
    let mut reader = LedgerReader::new(&job);
    reader.read(&harness.receive("w1", vec![steps(&job, 1, &[1, 2])]));
    reader.read(&harness.commit(&job, 2));
    reader.read(&harness.receive("w1", vec![steps(&job, 1, &[3])]));
    reader.read(&harness.receive("w1", vec![rank(&job, 1, 0, failed("boom"))]));
    assert_eq!(harness.generation(&job), 2);
    reader.read(&harness.receive("w1", vec![steps(&job, 2, &[3, 4])]));
    reader.read(&harness.wait(DETECT_WITHIN_MS / 6));
    assert_eq!(
        reader.done(),
        [(1, 2, 1, false), (3, 3, 1, true), (3, 4, 2, false)]
    );
}

#[test]
fn steps_that_a_commit_proves_are_written_although_they_were_not_reported() {
    let (mut harness, job) = Harness::training();
    let mut reader = LedgerReader::new(&job);
    let effects = harness.commit(&job, 2);
    reader.read(&effects);
    assert_eq!(reader.done(), [(1, 2, 1, false)]);
    assert_eq!(reader.replay.unheard(), 2);
    reader.read(&harness.receive("w1", vec![steps(&job, 1, &[1, 2, 4])]));
    reader.read(&harness.wait(DETECT_WITHIN_MS / 6));
    assert_eq!(
        reader.done(),
        [(1, 4, 1, false)],
        "a later step proves them too"
    );
    assert_eq!(reader.replay.unheard(), 3);
}

#[test]
fn an_agreed_digest_is_written_once_and_a_disagreement_ends_the_job() {
    let (mut harness, job) = Harness::training();
    let mut reader = LedgerReader::new(&job);
    let first = with_digest(steps(&job, 1, &[1]), 1, "aa");
    let second = |sha256| with_digest(rank(&job, 1, 1, RankPhase::Training), 1, sha256);
    reader.read(&harness.receive("w1", vec![first.clone()]));
    for _ in 0..2 {
        reader.read(&harness.receive("w2", vec![second("aa")]));
        reader.read(&harness.wait(DETECT_WITHIN_MS / 6));
    }
    assert_eq!(reader.replay.digests(), [(Step(1), "aa".to_owned())]);
    let (mut harness, job) = Harness::training();
    harness.receive("w1", vec![first]);
    harness.receive("w2", vec![second("bb")]);
    assert!(matches!(harness.job(&job).phase, JobPhase::Failed { .. }));
    assert_eq!(ending(&harness, &job), two_disagree());
}

#[test]
fn a_digest_of_an_impossible_step_is_ignored_logged_once_and_evicts_no_other() {
    let (mut harness, job) = Harness::training();
    let mut strange = steps(&job, 1, &[1]);
    for step in 100..200 {
        strange = with_digest(strange, step, "aa");
    }
    harness.receive("w1", vec![with_digest(steps(&job, 1, &[1]), 1, "aa")]);
    assert_eq!(
        ignored(&harness.receive("w1", vec![strange.clone()])),
        [Violation::StepOutside {
            step: Step(100),
            steps_max: Step(4),
        }]
    );
    assert_eq!(ignored(&harness.receive("w1", vec![strange])), []);
    // The other rank's digest of step 1 is still compared with the first rank's.
    let other = with_digest(rank(&job, 1, 1, RankPhase::Training), 1, "bb");
    harness.receive("w2", vec![other]);
    assert_eq!(ending(&harness, &job), two_disagree());
}

#[test]
fn of_three_ranks_the_one_that_diverged_is_named() {
    let mut harness = Harness::new();
    for worker in ["w1", "w2", "w3"] {
        harness.receive(worker, vec![]);
    }
    let mut spec = harness::spec(3, 3);
    harness::training(&mut spec).train.global_batch = 12;
    let job = harness.submit(spec);
    for (number, sha256) in [(0, "aa"), (1, "bb"), (2, "aa")] {
        let report = with_digest(rank(&job, 1, number, RankPhase::Training), 4, sha256);
        harness.receive(&id(&format!("w{}", number + 1)).name, vec![report]);
    }
    let weights = WeightDisagreement::One {
        rank: rank_on(1, "w2"),
        sha256: "bb".to_owned(),
        others: 2,
        others_sha256: "aa".to_owned(),
    };
    let step = Step(4);
    let expected = Ending::WeightsDisagree { step, weights };
    assert_eq!(ending(&harness, &job), expected);
}
