//! Where the model's thread is in a step (or which unit it is at), and whether it has been there for too long. The thread marks every piece that it
//! begins ([`Marks`]); the line to the daemon looks at each beat ([`Watch`]). A process whose thread hangs in a piece that is
//! all its own ends itself, and the others go on without it: nobody else can tell it from one that waits for them.

use crate::deadline::Deadlines;
use proto::id::Step;
use proto::message::{Doing, HANGS, Piece};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The model thread's end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Marks(Arc<Mutex<Book>>);

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
    piece: Piece,
    since: Instant,
    /// In the middle of it the thread waits for the object store, which may be away for long.
    waits: bool,
}

impl At {
    fn doing(self, so_far: Duration) -> Doing {
        Doing {
            step: self.step,
            piece: self.piece,
            for_ms: u64::try_from(so_far.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl Marks {
    /// The piece before is over.
    pub(crate) fn begin(&self, step: u64, piece: Piece) {
        self.turn(Instant::now(), Some((Step(step), piece)));
    }

    /// A unit is begun, or gone on with; it belongs to no step.
    pub(crate) fn unit(&self, number: u64) {
        self.turn(Instant::now(), Some((Step(0), Piece::Unit(number))));
    }

    /// The piece that is under way waits for the object store from here on.
    pub(crate) fn waits(&self) {
        if let Some(at) = &mut self.book().at {
            at.waits = true;
        }
    }

    /// The backward that is under way only waits for others from here on. Called on whichever thread computed the last
    /// gradient.
    pub(crate) fn own_gradients_ready(&self) {
        self.reduces(Instant::now());
    }

    fn reduces(&self, now: Instant) {
        let at = self.book().at;
        if let Some(At { step, piece, .. }) = at
            && matches!(piece, Piece::MicroBatch(_))
        {
            self.turn(now, Some((step, Piece::Reduction)));
        }
    }

    /// No step is under way.
    pub(crate) fn leave(&self) {
        self.turn(Instant::now(), None);
    }

    fn turn(&self, now: Instant, next: Option<(Step, Piece)>) {
        let mut book = self.book();
        if let Some(at) = book.at.take() {
            let longest = book.longest.entry(kind(at.piece)).or_default();
            *longest = (*longest).max(now - at.since);
        }
        book.begun += 1;
        book.at = next.map(|(step, piece)| At {
            step,
            piece,
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
pub(crate) struct Watch {
    marks: Marks,
    deadlines: Deadlines,
    looked: Instant,
    /// The piece that it saw last, by its number, and for how long it has seen it.
    seen: u64,
    seen_for: Duration,
}

impl Watch {
    pub(crate) fn new(marks: Marks, deadlines: Deadlines, now: Instant) -> Self {
        Self {
            marks,
            deadlines,
            looked: now,
            seen: 0,
            seen_for: Duration::ZERO,
        }
    }

    pub(crate) fn doing(&self, now: Instant) -> Option<Doing> {
        let at = self.marks.book().at?;
        let so_far = now.saturating_duration_since(at.since);
        Some(at.doing(so_far))
    }

    /// What is wrong, once the thread hangs. A look that comes late (the whole process was stopped, or the machine) counts
    /// as no more than two beats.
    pub(crate) fn look(&mut self, now: Instant) -> Option<String> {
        let passed = now.saturating_duration_since(self.looked);
        self.looked = now;
        let book = self.marks.book();
        if self.seen != book.begun {
            (self.seen, self.seen_for) = (book.begun, Duration::ZERO);
            return None;
        }
        self.seen_for += passed.min(self.deadlines.heartbeat() * 2);
        let at = book.at.filter(|at| at.piece.is_own() && !at.waits)?;
        let longest = book.longest.get(kind(at.piece)).copied();
        (self.deadlines.own_piece(longest) <= self.seen_for).then(|| hangs(at, self.seen_for, longest))
    }
}

fn hangs(at: At, so_far: Duration, longest: Option<Duration>) -> String {
    let kind = kind(at.piece);
    let before = match longest {
        Some(longest) => format!("no {kind} before took longer than {:.1} s", longest.as_secs_f64()),
        None => format!("it is the first {kind}"),
    };
    format!(
        "{HANGS} {}: for {:.1} s, and {before}; it ends itself",
        at.doing(so_far),
        so_far.as_secs_f64()
    )
}

/// Pieces of one kind take about as long.
fn kind(piece: Piece) -> &'static str {
    match piece {
        Piece::Samples => "wait for samples",
        Piece::MicroBatch(_) => "micro-batch",
        Piece::Reduction => "reduction",
        Piece::Update => "update",
        Piece::Digest => "digest",
        Piece::Checkpoint => "checkpoint",
        Piece::Unit(_) => "unit",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEAT: Duration = Duration::from_secs(1);

    /// A thread, who looks at it, and a clock; `detect_within` is three beats.
    struct Bench {
        marks: Marks,
        watch: Watch,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let (marks, now) = (Marks::default(), Instant::now());
            let watch = Watch::new(marks.clone(), Deadlines::new(3000), now);
            Self { marks, watch, now }
        }

        fn begin(&self, piece: Piece) {
            self.marks.turn(self.now, Some((Step(12), piece)));
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
        bench.begin(Piece::MicroBatch(1));
        assert_eq!(bench.beats(5), None);
        bench.begin(Piece::Update);
        assert_eq!(bench.beats(2), None);
        bench.begin(Piece::MicroBatch(2));
        // The first look finds that it is a new piece; 36 s and 20 s after that.
        let (beats, verdict) = bench.beats(100).unwrap();
        assert_eq!(beats, 1 + 36 + 4 * 5);
        assert_eq!(
            verdict,
            "hangs in micro-batch 2 of step 12: for 56.0 s, and no micro-batch before took longer than 5.0 s; \
             it ends itself"
        );
    }

    #[test]
    fn a_micro_batch_turns_into_the_reduction_and_is_as_long_as_it_was_its_own() {
        let mut bench = Bench::new();
        bench.marks.own_gradients_ready();
        assert_eq!(bench.watch.doing(bench.now), None);
        bench.begin(Piece::MicroBatch(2));
        assert_eq!(bench.beats(5), None);
        bench.marks.reduces(bench.now);
        let doing = bench.watch.doing(bench.now).unwrap();
        assert_eq!((doing.step, doing.piece), (Step(12), Piece::Reduction));
        assert_eq!(bench.beats(1000), None);
        bench.begin(Piece::Update);
        bench.marks.reduces(bench.now);
        assert_eq!(bench.watch.doing(bench.now).unwrap().piece, Piece::Update);
        bench.begin(Piece::MicroBatch(1));
        assert_eq!(bench.beats(100).unwrap().0, 1 + 36 + 4 * 5);
    }

    #[test]
    fn a_unit_that_never_ends_is_named() {
        let mut bench = Bench::new();
        let draw = |bench: &Bench, number| {
            let unit = (Step(0), Piece::Unit(number));
            bench.marks.turn(bench.now, Some(unit));
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
        bench.begin(Piece::Unit(7));
        bench.marks.waits();
        assert_eq!(bench.beats(1000), None);
        assert_eq!(bench.watch.doing(bench.now).unwrap().piece, Piece::Unit(7));
        bench.begin(Piece::Unit(7));
        assert!(bench.beats(10_000).is_some());
    }

    #[test]
    fn the_first_of_a_kind_may_take_long() {
        let mut bench = Bench::new();
        bench.begin(Piece::Update);
        let (beats, verdict) = bench.beats(1000).unwrap();
        assert_eq!(beats, 1 + 300);
        assert!(verdict.contains("and it is the first update"), "{verdict}");
    }

    #[test]
    fn who_waits_for_others_does_not_hang() {
        let mut bench = Bench::new();
        for piece in [Piece::Samples, Piece::Reduction, Piece::Checkpoint] {
            bench.begin(piece);
            assert_eq!(bench.beats(1000), None, "{piece}");
        }
        bench.marks.turn(bench.now, None);
        assert_eq!(bench.beats(1000), None);
        assert_eq!(bench.watch.doing(bench.now), None);
    }

    #[test]
    fn a_process_that_was_away_is_not_blamed_for_it() {
        let mut bench = Bench::new();
        bench.begin(Piece::Digest);
        bench.begin(Piece::Digest);
        assert_eq!(bench.beats(1), None);
        bench.now += Duration::from_hours(1);
        assert_eq!(bench.watch.look(bench.now), None);
        let doing = bench.watch.doing(bench.now).unwrap();
        assert_eq!((doing.piece, doing.for_ms), (Piece::Digest, 3_601_000));
        let (beats, _) = bench.beats(100).unwrap();
        assert_eq!(beats, 36 - 2);
    }
}
