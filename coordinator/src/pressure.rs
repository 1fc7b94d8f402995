//! What senders send too much of: counted where it is refused or held back, by kind and address,
//! and read by `coordinator why` and `describe`, so that a job's user is told about a flood that
//! others cause. Memory is bounded whatever arrives: counts of the last ten seconds, of the first
//! senders.

use proto::limits::cut;
use proto::reason::{Excess, Pressure};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Counts are kept for so many seconds.
const SECONDS: usize = 10;
/// Senders that are counted apart; the others are counted together.
const SENDERS_MAX: usize = 64;
/// Bytes of what the last one was told.
const WORDS_BYTES: usize = 300;
/// Entries that are shown.
const SHOWN_MAX: usize = 5;
/// So much work within the last seconds for one sender deserves to be named.
const BUSY: Duration = Duration::from_secs(5);

/// So many of a kind within the last seconds deserve to be named: more than people and well-behaved
/// programs cause.
fn deserves(excess: Excess) -> u64 {
    match excess {
        // Whoever waits has used seconds of a processor at once.
        Excess::Connections | Excess::Lines | Excess::Delays => 1,
        Excess::Work => 3,
        Excess::Requests => 20,
        Excess::Strays | Excess::Workers => 100,
        Excess::Reports => 500,
    }
}

/// Cheap to clone; all clones share the counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pressures(Arc<Mutex<Counts>>);

type Counts = BTreeMap<(Excess, Option<IpAddr>), Recent>;

/// Counts of the last seconds.
#[derive(Debug)]
struct Recent {
    /// The time that seconds are counted from.
    start: Instant,
    seconds: [Second; SECONDS],
    last: String,
}

#[derive(Debug, Clone, Copy, Default)]
struct Second {
    /// The number of the second, from `start`.
    number: u64,
    count: u64,
    busy: Duration,
}

impl Recent {
    fn new(start: Instant) -> Self {
        Self {
            start,
            seconds: [Second::default(); SECONDS],
            last: String::new(),
        }
    }

    fn number(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_secs()
    }

    fn add(&mut self, count: u64, busy: Duration, now: Instant) {
        let number = self.number(now);
        let index = usize::try_from(number % SECONDS as u64).unwrap_or(0);
        let second = &mut self.seconds[index];
        if second.number != number {
            *second = Second {
                number,
                ..Second::default()
            };
        }
        second.count += count;
        second.busy += busy;
    }

    /// The sums, and the time since the first of them.
    fn sums(&self, now: Instant) -> (u64, Duration, Duration) {
        let number = self.number(now);
        let recent = self
            .seconds
            .iter()
            .filter(|it| 0 < it.count && number < it.number + SECONDS as u64);
        let (mut count, mut busy, mut first) = (0, Duration::ZERO, number);
        for second in recent {
            count += second.count;
            busy += second.busy;
            first = first.min(second.number);
        }
        let since = self.start + Duration::from_secs(first);
        let within = now.saturating_duration_since(since);
        // The first second counts whole, or a rate would be immense at its beginning.
        (count, busy, within.max(Duration::from_secs(1)))
    }
}

impl Pressures {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One was refused or held back. `words`: what its sender was told, or ""
    pub(crate) fn count(&self, excess: Excess, address: IpAddr, words: &str) {
        self.add(
            (excess, address),
            (1, Duration::ZERO),
            words,
            Instant::now(),
        );
    }

    /// So many at once.
    pub(crate) fn count_many(&self, excess: Excess, address: IpAddr, count: usize, words: &str) {
        let counted = (count as u64, Duration::ZERO);
        self.add((excess, address), counted, words, Instant::now());
    }

    /// A request was answered, which took so long.
    pub(crate) fn worked(&self, address: IpAddr, busy: Duration) {
        self.add((Excess::Work, address), (1, busy), "", Instant::now());
    }

    fn add(
        &self,
        (excess, address): (Excess, IpAddr),
        (count, busy): (u64, Duration),
        words: &str,
        now: Instant,
    ) {
        let mut counts = self.lock();
        let mut key = (excess, Some(address));
        if !counts.contains_key(&key) && SENDERS_MAX <= counts.len() {
            counts.retain(|_, recent| 0 < recent.sums(now).0);
            if SENDERS_MAX <= counts.len() {
                key = (excess, None);
            }
        }
        let recent = counts.entry(key).or_insert_with(|| Recent::new(now));
        recent.add(count, busy, now);
        if !words.is_empty() {
            recent.last = cut(words, WORDS_BYTES);
        }
    }

    /// What there is too much of now, the most frequent first.
    pub(crate) fn now(&self) -> Vec<Pressure> {
        self.at(Instant::now())
    }

    fn at(&self, now: Instant) -> Vec<Pressure> {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let counts = self.lock();
        let all = counts.iter().filter_map(|((excess, address), recent)| {
            let (count, busy, within) = recent.sums(now);
            let is_named = deserves(*excess) <= count && (*excess != Excess::Work || BUSY <= busy);
            is_named.then(|| Pressure {
                excess: *excess,
                address: *address,
                count,
                within_ms: ms(within),
                busy_ms: ms(busy),
                last: recent.last.clone(),
            })
        });
        let mut all: Vec<Pressure> = all.collect();
        drop(counts);
        all.sort_by_key(|it| std::cmp::Reverse(it.count));
        all.truncate(SHOWN_MAX);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn a_flood_is_named_while_it_goes_on_and_single_refusals_are_not() {
        let pressures = Pressures::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let once = (1, Duration::ZERO);
        for ms in (0..1_900).step_by(100) {
            pressures.add((Excess::Requests, address(9)), once, "no", at(ms));
        }
        assert_eq!(pressures.at(at(1_900)), [], "19 are no flood");
        for ms in (1_900..20_000).step_by(100) {
            let words = format!("no {}", "x".repeat(1 << 20));
            pressures.add((Excess::Requests, address(9)), once, &words, at(ms));
        }
        let named = pressures.at(at(20_000));
        let [flood] = named.as_slice() else {
            panic!("{named:?}")
        };
        assert_eq!(flood.address, Some(address(9)));
        assert!((9.0..11.0).contains(&flood.per_second()), "{flood:?}");
        assert!(flood.last.starts_with("no xx") && flood.last.len() <= WORDS_BYTES);
        assert_eq!(pressures.at(at(31_000)), [], "it is over");
    }

    #[test]
    fn work_is_named_if_it_takes_most_of_the_time() {
        let pressures = Pressures::default();
        let start = Instant::now();
        for second in 0..10 {
            let now = start + Duration::from_secs(second);
            let work = |ms| (1, Duration::from_millis(ms));
            pressures.add((Excess::Work, address(1)), work(100), "", now);
            pressures.add((Excess::Work, address(2)), work(900), "", now);
        }
        let named = pressures.at(start + Duration::from_secs(9));
        let busy: Vec<_> = named.iter().map(|it| (it.address, it.busy_ms)).collect();
        assert_eq!(busy, [(Some(address(2)), 9_000)]);
    }

    #[test]
    fn senders_without_number_take_no_memory_and_old_ones_make_room() {
        let pressures = Pressures::default();
        let start = Instant::now();
        let once = (1, Duration::ZERO);
        for number in 0..1000u32 {
            let address = IpAddr::from(number.to_be_bytes());
            pressures.add((Excess::Connections, address), once, "", start);
        }
        assert_eq!(pressures.lock().len(), SENDERS_MAX + 1);
        let first = &pressures.at(start)[0];
        assert_eq!((first.address, first.count), (None, 936));
        let later = start + Duration::from_secs(60);
        pressures.add((Excess::Connections, address(1)), once, "", later);
        assert_eq!(pressures.lock().len(), 1);
        assert_eq!(pressures.at(later)[0].address, Some(address(1)));
    }
}
