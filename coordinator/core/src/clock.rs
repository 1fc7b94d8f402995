//! The time by which deadlines are kept: the time that the machine lived through. It differs from
//! the shell's wall clock in two ways. It never goes back, as wall clocks do when people or NTP set
//! them. And it does not leap: when the machine is woken much later than it asked for (the clock
//! was set forward, the shell was busy saving, the computer slept), that time does not count
//! against anybody, because reports may be waiting to be read.

use crate::record::Millis;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    /// The wall clock at the last event.
    wall: Millis,
    /// Our time less the wall clock.
    offset: i64,
}

impl Clock {
    pub(crate) fn new(wall: Millis) -> Self {
        Self { wall, offset: 0 }
    }

    /// Takes the wall clock; gives our time. `due` is the deadline that was asked for. Later than
    /// that by more than `patience_ms` means that the machine was away; it then has `patience_ms`
    /// left until `due`.
    pub(crate) fn advance(
        &mut self,
        wall: Millis,
        due: Option<Millis>,
        patience_ms: u64,
    ) -> Millis {
        let before = self.now();
        self.wall = wall;
        self.set(self.now().max(before));
        if let Some(due) = due
            && due.saturating_add(patience_ms) < self.now()
        {
            self.set(due.saturating_sub(patience_ms).max(before));
        }
        self.now()
    }

    /// What our time is when the shell's clock shows `wall`, without taking note of it.
    pub(crate) fn at(&self, wall: Millis) -> Millis {
        wall.saturating_add_signed(self.offset).max(self.now())
    }

    pub(crate) fn now(&self) -> Millis {
        self.wall.saturating_add_signed(self.offset)
    }

    /// A moment of our time as the shell's clock will show it.
    pub(crate) fn wall_of(&self, moment: Millis) -> Millis {
        moment.saturating_add_signed(self.offset.saturating_neg())
    }

    fn set(&mut self, now: Millis) {
        let offset = i128::from(now) - i128::from(self.wall);
        self.offset = i64::try_from(offset).unwrap_or(if offset < 0 { i64::MIN } else { i64::MAX });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_set_back_does_not_move_deadlines_away() {
        let mut clock = Clock::new(10_000);
        let deadline = clock.advance(11_000, None, 100) + 500;
        assert_eq!(clock.advance(3_000, Some(deadline), 100), 11_000);
        assert_eq!(clock.wall_of(deadline), 3_500);
        assert_eq!(clock.advance(3_500, Some(deadline), 100), deadline);
    }

    #[test]
    fn time_away_does_not_count() {
        let mut clock = Clock::new(10_000);
        let deadline = 10_500;
        assert_eq!(
            clock.advance(10_600, Some(deadline), 100),
            10_600,
            "a little late is late"
        );
        let deadline = 11_000;
        assert_eq!(clock.advance(99_000, Some(deadline), 100), 10_900);
        assert_eq!(clock.wall_of(deadline), 99_100);
        assert_eq!(clock.advance(99_100, Some(deadline), 100), deadline);
    }

    #[test]
    fn no_clock_breaks_it() {
        let mut clock = Clock::new(5);
        for wall in [u64::MAX, 0, u64::MAX, 7] {
            let before = clock.now();
            assert!(before <= clock.advance(wall, Some(before), 100));
            clock.wall_of(u64::MAX);
        }
    }
}
