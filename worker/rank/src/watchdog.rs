//! The progress of the model thread within a step (or unit), and a watchdog over it. The thread
//! records every stage that it begins ([`Progress`]); the connection task checks it at each
//! heartbeat ([`Watchdog`]). A process whose thread hangs in a local stage ends itself, and the
//! other ranks go on without it: from outside it cannot be distinguished from a rank that waits for
//! its peers.

use crate::deadline::Deadlines;
use crate::spans::Spans;
use proto::id::Step;
use proto::message::{Activity, Stage};
use proto::probe::Lane;
use proto::reason::{RankFailure, stage_kind};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The current stage, as recorded by the model thread.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress(Arc<Mutex<StageLog>>);

#[derive(Debug, Default)]
struct StageLog {
    current: Option<CurrentStage>,
    /// Number of transitions so far; distinguishes consecutive stages of the same name.
    transitions: u64,
    /// The longest duration of each kind of stage.
    longest: BTreeMap<&'static str, Duration>,
    /// Every stage that has ended.
    spans: Spans,
}

#[derive(Debug, Clone, Copy)]
struct CurrentStage {
    step: Step,
    stage: Stage,
    since: Instant,
    /// The thread waits for the object store, which may have a long outage.
    waits_for_store: bool,
}

impl CurrentStage {
    fn activity(self, elapsed: Duration) -> Activity {
        Activity {
            step: self.step,
            stage: self.stage,
            for_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl Progress {
    /// Begins a stage, which ends the previous one.
    pub(crate) fn begin(&self, step: u64, stage: Stage) {
        self.transition(Instant::now(), Some((Step(step), stage)));
    }

    /// Begins or continues a unit, which belongs to no step.
    pub(crate) fn begin_unit(&self, number: u64) {
        self.transition(Instant::now(), Some((Step(0), Stage::Unit(number))));
    }

    /// From now on the current stage waits for the object store.
    pub(crate) fn wait_for_store(&self) {
        if let Some(current) = &mut self.log().current {
            current.waits_for_store = true;
        }
    }

    /// From now on the current backward only waits for other ranks. Called on the thread that
    /// computed the last gradient.
    pub(crate) fn local_gradients_ready(&self) {
        self.begin_reduction(Instant::now());
    }

    fn begin_reduction(&self, now: Instant) {
        let current = self.log().current;
        if let Some(CurrentStage { step, stage, .. }) = current
            && matches!(stage, Stage::MicroBatch(_))
        {
            self.transition(now, Some((step, Stage::Reduction)));
        }
    }

    /// The current stage, and for how long.
    pub(crate) fn activity(&self, now: Instant) -> Option<Activity> {
        let current = self.log().current?;
        let elapsed = now.saturating_duration_since(current.since);
        Some(current.activity(elapsed))
    }

    /// What the process did lately.
    pub(crate) fn spans(&self) -> Spans {
        self.log().spans.clone()
    }

    /// Ends the current stage; none follows.
    pub(crate) fn end(&self) {
        self.transition(Instant::now(), None);
    }

    fn transition(&self, now: Instant, next: Option<(Step, Stage)>) {
        let mut log = self.log();
        if let Some(ended) = log.current.take() {
            let number = match ended.stage {
                Stage::Unit(number) => number,
                _ => ended.step.0,
            };
            let name = stage_kind(ended.stage);
            log.spans.add(Lane::Model, name, number, (ended.since, now));
            let longest = log.longest.entry(stage_kind(ended.stage)).or_default();
            *longest = (*longest).max(now - ended.since);
        }
        log.transitions += 1;
        log.current = next.map(|(step, stage)| CurrentStage {
            step,
            stage,
            since: now,
            waits_for_store: false,
        });
    }

    fn log(&self) -> MutexGuard<'_, StageLog> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks [`Progress`] at each heartbeat.
#[derive(Debug)]
pub(crate) struct Watchdog {
    progress: Progress,
    deadlines: Deadlines,
    last_check: Instant,
    /// The number of transitions at the last check, and for how long it has not changed.
    transitions: u64,
    unchanged_for: Duration,
}

impl Watchdog {
    pub(crate) fn new(progress: Progress, deadlines: Deadlines, now: Instant) -> Self {
        Self {
            progress,
            deadlines,
            last_check: now,
            transitions: 0,
            unchanged_for: Duration::ZERO,
        }
    }

    pub(crate) fn activity(&self, now: Instant) -> Option<Activity> {
        self.progress.activity(now)
    }

    /// Returns the failure if the thread hangs. A late check (the process or the machine was
    /// suspended) counts as at most two heartbeats.
    pub(crate) fn check(&mut self, now: Instant) -> Option<RankFailure> {
        let passed = now.saturating_duration_since(self.last_check);
        self.last_check = now;
        let log = self.progress.log();
        if self.transitions != log.transitions {
            (self.transitions, self.unchanged_for) = (log.transitions, Duration::ZERO);
            return None;
        }
        self.unchanged_for += passed.min(self.deadlines.heartbeat() * 2);
        let current = log
            .current
            .filter(|current| current.stage.is_own() && !current.waits_for_store)?;
        let longest = log.longest.get(stage_kind(current.stage)).copied();
        (self.deadlines.local_stage(longest) <= self.unchanged_for)
            .then(|| hang_failure(current, self.unchanged_for, longest))
    }
}

fn hang_failure(
    current: CurrentStage,
    elapsed: Duration,
    longest: Option<Duration>,
) -> RankFailure {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    RankFailure::Hangs {
        activity: current.activity(elapsed),
        longest_ms: longest.map(ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARTBEAT: Duration = Duration::from_secs(1);

    /// A thread's progress, its watchdog and a clock. `detect_within` is three heartbeats.
    struct Fixture {
        progress: Progress,
        watchdog: Watchdog,
        now: Instant,
    }

    impl Fixture {
        fn new() -> Self {
            let (progress, now) = (Progress::default(), Instant::now());
            let watchdog = Watchdog::new(progress.clone(), Deadlines::new(3000), now);
            Self {
                progress,
                watchdog,
                now,
            }
        }

        fn begin(&self, stage: Stage) {
            self.progress.transition(self.now, Some((Step(12), stage)));
        }

        /// Checks at each of `count` heartbeats. Returns the first error and the number of its
        /// heartbeat.
        fn heartbeats(&mut self, count: u32) -> Option<(u32, RankFailure)> {
            (1..=count).find_map(|beat| {
                self.now += HEARTBEAT;
                self.watchdog.check(self.now).map(|error| (beat, error))
            })
        }
    }

    #[test]
    fn a_stage_may_take_twelve_detect_within_and_four_times_the_longest_of_its_kind() {
        let mut fixture = Fixture::new();
        fixture.begin(Stage::MicroBatch(1));
        assert_eq!(fixture.heartbeats(5), None);
        fixture.begin(Stage::Update);
        assert_eq!(fixture.heartbeats(2), None);
        fixture.begin(Stage::MicroBatch(2));
        // The first check sees a new stage; the error comes 36 s + 20 s later.
        let (beats, error) = fixture.heartbeats(100).unwrap();
        assert_eq!(beats, 1 + 36 + 4 * 5);
        let expected = RankFailure::Hangs {
            activity: Activity {
                step: Step(12),
                stage: Stage::MicroBatch(2),
                for_ms: 56_000,
            },
            longest_ms: Some(5_000),
        };
        assert_eq!(error, expected);
    }

    #[test]
    fn a_micro_batch_becomes_the_reduction_and_only_its_local_part_counts() {
        let mut fixture = Fixture::new();
        fixture.progress.local_gradients_ready();
        assert_eq!(fixture.watchdog.activity(fixture.now), None);
        fixture.begin(Stage::MicroBatch(2));
        assert_eq!(fixture.heartbeats(5), None);
        fixture.progress.begin_reduction(fixture.now);
        let activity = fixture.watchdog.activity(fixture.now).unwrap();
        assert_eq!(
            (activity.step, activity.stage),
            (Step(12), Stage::Reduction)
        );
        assert_eq!(fixture.heartbeats(1000), None);
        fixture.begin(Stage::Update);
        fixture.progress.begin_reduction(fixture.now);
        assert_eq!(
            fixture.watchdog.activity(fixture.now).unwrap().stage,
            Stage::Update
        );
        fixture.begin(Stage::MicroBatch(1));
        assert_eq!(fixture.heartbeats(100).unwrap().0, 1 + 36 + 4 * 5);
    }

    #[test]
    fn a_unit_that_never_ends_is_named() {
        let mut fixture = Fixture::new();
        let begin = |fixture: &Fixture, number| {
            let unit = (Step(0), Stage::Unit(number));
            fixture.progress.transition(fixture.now, Some(unit));
        };
        begin(&fixture, 1);
        fixture.heartbeats(2);
        begin(&fixture, 2);
        let (_, error) = fixture.heartbeats(60).unwrap();
        let RankFailure::Hangs {
            activity,
            longest_ms,
        } = error
        else {
            panic!("{error}")
        };
        assert_eq!((activity.stage, longest_ms), (Stage::Unit(2), Some(2_000)));
    }

    #[test]
    fn a_unit_that_waits_for_the_object_store_does_not_hang() {
        let mut fixture = Fixture::new();
        fixture.begin(Stage::Unit(7));
        fixture.progress.wait_for_store();
        assert_eq!(fixture.heartbeats(1000), None);
        assert_eq!(
            fixture.watchdog.activity(fixture.now).unwrap().stage,
            Stage::Unit(7)
        );
        fixture.begin(Stage::Unit(7));
        assert!(fixture.heartbeats(10_000).is_some());
    }

    #[test]
    fn the_first_of_a_kind_may_take_long() {
        let mut fixture = Fixture::new();
        fixture.begin(Stage::Update);
        let (beats, error) = fixture.heartbeats(1000).unwrap();
        assert_eq!(beats, 1 + 300);
        assert!(
            matches!(
                error,
                RankFailure::Hangs {
                    longest_ms: None,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn a_thread_that_waits_for_other_ranks_does_not_hang() {
        let mut fixture = Fixture::new();
        for stage in [Stage::Samples, Stage::Reduction, Stage::Checkpoint] {
            fixture.begin(stage);
            assert_eq!(fixture.heartbeats(1000), None, "{stage}");
        }
        fixture.progress.transition(fixture.now, None);
        assert_eq!(fixture.heartbeats(1000), None);
        assert_eq!(fixture.watchdog.activity(fixture.now), None);
    }

    #[test]
    fn a_suspended_process_is_not_reported_as_hanging() {
        let mut fixture = Fixture::new();
        fixture.begin(Stage::Digest);
        fixture.begin(Stage::Digest);
        assert_eq!(fixture.heartbeats(1), None);
        fixture.now += Duration::from_hours(1);
        assert_eq!(fixture.watchdog.check(fixture.now), None);
        let activity = fixture.watchdog.activity(fixture.now).unwrap();
        assert_eq!(
            (activity.stage, activity.for_ms),
            (Stage::Digest, 3_601_000)
        );
        let (beats, _) = fixture.heartbeats(100).unwrap();
        assert_eq!(beats, 36 - 2);
    }
}
