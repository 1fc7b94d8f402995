//! Where the model's thread is in a step (or which unit it is at), and whether it has been there
//! for too long. The thread marks every piece that it begins ([`Progress`]); the line to the daemon
//! looks at each beat ([`Watchdog`]). A process whose thread hangs in a piece that is all its own
//! ends itself, and the others go on without it: nobody else can tell it from one that waits for
//! them.

use crate::deadline::Deadlines;
use proto::id::Step;
use proto::message::{Activity, HANGS, Stage};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The model thread's end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress(Arc<Mutex<Book>>);

#[derive(Debug, Default)]
struct Book {
    at: Option<At>,
    /// Pieces begun so far: tells one from the next of the same name.
    begun: u64,
    /// How long a piece of each kind took at most.
    longest: BTreeMap<&'static str, Duration>,
}

#[derive(Debug, Clone, Copy)]
struct At {
    step: Step,
    stage: Stage,
    since: Instant,
    /// In the middle of it the thread waits for the object store, which may be away for long.
    waits: bool,
}

impl At {
    fn activity(self, so_far: Duration) -> Activity {
        Activity {
            step: self.step,
            stage: self.stage,
            for_ms: u64::try_from(so_far.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl Progress {
    /// The piece before is over.
    pub(crate) fn begin(&self, step: u64, stage: Stage) {
        self.turn(Instant::now(), Some((Step(step), stage)));
    }

    /// A unit is begun, or gone on with; it belongs to no step.
    pub(crate) fn unit(&self, number: u64) {
        self.turn(Instant::now(), Some((Step(0), Stage::Unit(number))));
    }

    /// The piece that is under way waits for the object store from here on.
    pub(crate) fn waits(&self) {
        if let Some(at) = &mut self.book().at {
            at.waits = true;
        }
    }

    /// The backward that is under way only waits for others from here on. Called on whichever
    /// thread computed the last gradient.
    pub(crate) fn own_gradients_ready(&self) {
        self.reduces(Instant::now());
    }

    fn reduces(&self, now: Instant) {
        let at = self.book().at;
        if let Some(At { step, stage, .. }) = at
            && matches!(stage, Stage::MicroBatch(_))
        {
            self.turn(now, Some((step, Stage::Reduction)));
        }
    }

    /// No step is under way.
    pub(crate) fn leave(&self) {
        self.turn(Instant::now(), None);
    }

    fn turn(&self, now: Instant, next: Option<(Step, Stage)>) {
        let mut book = self.book();
        if let Some(at) = book.at.take() {
            let longest = book.longest.entry(kind(at.stage)).or_default();
            *longest = (*longest).max(now - at.since);
        }
        book.begun += 1;
        book.at = next.map(|(step, stage)| At {
            step,
            stage,
            since: now,
            waits: false,
        });
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The other end: looks at each beat.
#[derive(Debug)]
pub(crate) struct Watchdog {
    progress: Progress,
    deadlines: Deadlines,
    looked: Instant,
    /// The piece that it saw last, by its number, and for how long it has seen it.
    seen: u64,
    seen_for: Duration,
}

impl Watchdog {
    pub(crate) fn new(progress: Progress, deadlines: Deadlines, now: Instant) -> Self {
        Self {
            progress,
            deadlines,
            looked: now,
            seen: 0,
            seen_for: Duration::ZERO,
        }
    }

    pub(crate) fn activity(&self, now: Instant) -> Option<Activity> {
        let at = self.progress.book().at?;
        let so_far = now.saturating_duration_since(at.since);
        Some(at.activity(so_far))
    }

    /// What is wrong, once the thread hangs. A look that comes late (the whole process was stopped,
    /// or the machine) counts as no more than two beats.
    pub(crate) fn look(&mut self, now: Instant) -> Option<String> {
        let passed = now.saturating_duration_since(self.looked);
        self.looked = now;
        let book = self.progress.book();
        if self.seen != book.begun {
            (self.seen, self.seen_for) = (book.begun, Duration::ZERO);
            return None;
        }
        self.seen_for += passed.min(self.deadlines.heartbeat() * 2);
        let at = book.at.filter(|at| at.stage.is_own() && !at.waits)?;
        let longest = book.longest.get(kind(at.stage)).copied();
        (self.deadlines.own_chunk(longest) <= self.seen_for)
            .then(|| hangs(at, self.seen_for, longest))
    }
}

fn hangs(at: At, so_far: Duration, longest: Option<Duration>) -> String {
    let kind = kind(at.stage);
    let before = match longest {
        Some(longest) => format!(
            "no {kind} before took longer than {:.1} s",
            longest.as_secs_f64()
        ),
        None => format!("it is the first {kind}"),
    };
    format!(
        "{HANGS} {}: for {:.1} s, and {before}; it ends itself",
        at.activity(so_far),
        so_far.as_secs_f64()
    )
}

/// Pieces of one kind take about as long.
fn kind(stage: Stage) -> &'static str {
    match stage {
        Stage::Samples => "wait for samples",
        Stage::MicroBatch(_) => "micro-batch",
        Stage::Reduction => "reduction",
        Stage::Update => "update",
        Stage::Digest => "digest",
        Stage::Checkpoint => "checkpoint",
        Stage::Unit(_) => "unit",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEAT: Duration = Duration::from_secs(1);

    /// A thread, who looks at it, and a clock; `detect_within` is three beats.
    struct Bench {
        progress: Progress,
        watch: Watchdog,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let (progress, now) = (Progress::default(), Instant::now());
            let watch = Watchdog::new(progress.clone(), Deadlines::new(3000), now);
            Self {
                progress,
                watch,
                now,
            }
        }

        fn begin(&self, stage: Stage) {
            self.progress.turn(self.now, Some((Step(12), stage)));
        }

        /// Looks after each of so many beats: the first verdict, and after how many beats it came.
        fn beats(&mut self, count: u32) -> Option<(u32, String)> {
            (1..=count).find_map(|beat| {
                self.now += BEAT;
                self.watch.look(self.now).map(|verdict| (beat, verdict))
            })
        }
    }

    #[test]
    fn a_piece_may_take_twelve_detect_within_and_four_times_the_longest_of_its_kind() {
        let mut bench = Bench::new();
        bench.begin(Stage::MicroBatch(1));
        assert_eq!(bench.beats(5), None);
        bench.begin(Stage::Update);
        assert_eq!(bench.beats(2), None);
        bench.begin(Stage::MicroBatch(2));
        // The first look finds that it is a new piece; 36 s and 20 s after that.
        let (beats, verdict) = bench.beats(100).unwrap();
        assert_eq!(beats, 1 + 36 + 4 * 5);
        assert_eq!(
            verdict,
            "hangs in micro-batch 2 of step 12: for 56.0 s, and no micro-batch before took longer \
            than 5.0 s; \
             it ends itself"
        );
    }

    #[test]
    fn a_micro_batch_turns_into_the_reduction_and_is_as_long_as_it_was_its_own() {
        let mut bench = Bench::new();
        bench.progress.own_gradients_ready();
        assert_eq!(bench.watch.activity(bench.now), None);
        bench.begin(Stage::MicroBatch(2));
        assert_eq!(bench.beats(5), None);
        bench.progress.reduces(bench.now);
        let activity = bench.watch.activity(bench.now).unwrap();
        assert_eq!(
            (activity.step, activity.stage),
            (Step(12), Stage::Reduction)
        );
        assert_eq!(bench.beats(1000), None);
        bench.begin(Stage::Update);
        bench.progress.reduces(bench.now);
        assert_eq!(
            bench.watch.activity(bench.now).unwrap().stage,
            Stage::Update
        );
        bench.begin(Stage::MicroBatch(1));
        assert_eq!(bench.beats(100).unwrap().0, 1 + 36 + 4 * 5);
    }

    #[test]
    fn a_unit_that_never_ends_is_named() {
        let mut bench = Bench::new();
        let draw = |bench: &Bench, number| {
            let unit = (Step(0), Stage::Unit(number));
            bench.progress.turn(bench.now, Some(unit));
        };
        draw(&bench, 1);
        bench.beats(2);
        draw(&bench, 2);
        let (_, told) = bench.beats(60).unwrap();
        let before = "no unit before took longer than 2.0 s; it ends itself";
        assert!(
            told.starts_with("hangs in unit 2: for ") && told.ends_with(before),
            "{told}"
        );
    }

    #[test]
    fn a_unit_that_waits_for_the_object_store_does_not_hang() {
        let mut bench = Bench::new();
        bench.begin(Stage::Unit(7));
        bench.progress.waits();
        assert_eq!(bench.beats(1000), None);
        assert_eq!(
            bench.watch.activity(bench.now).unwrap().stage,
            Stage::Unit(7)
        );
        bench.begin(Stage::Unit(7));
        assert!(bench.beats(10_000).is_some());
    }

    #[test]
    fn the_first_of_a_kind_may_take_long() {
        let mut bench = Bench::new();
        bench.begin(Stage::Update);
        let (beats, verdict) = bench.beats(1000).unwrap();
        assert_eq!(beats, 1 + 300);
        assert!(verdict.contains("and it is the first update"), "{verdict}");
    }

    #[test]
    fn who_waits_for_others_does_not_hang() {
        let mut bench = Bench::new();
        for stage in [Stage::Samples, Stage::Reduction, Stage::Checkpoint] {
            bench.begin(stage);
            assert_eq!(bench.beats(1000), None, "{stage}");
        }
        bench.progress.turn(bench.now, None);
        assert_eq!(bench.beats(1000), None);
        assert_eq!(bench.watch.activity(bench.now), None);
    }

    #[test]
    fn a_process_that_was_away_is_not_blamed_for_it() {
        let mut bench = Bench::new();
        bench.begin(Stage::Digest);
        bench.begin(Stage::Digest);
        assert_eq!(bench.beats(1), None);
        bench.now += Duration::from_hours(1);
        assert_eq!(bench.watch.look(bench.now), None);
        let activity = bench.watch.activity(bench.now).unwrap();
        assert_eq!(
            (activity.stage, activity.for_ms),
            (Stage::Digest, 3_601_000)
        );
        let (beats, _) = bench.beats(100).unwrap();
        assert_eq!(beats, 36 - 2);
    }
}
