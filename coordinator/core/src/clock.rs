//! The machine's monotonic time, used for deadlines. It differs from the shell's wall clock in two
//! ways. It never goes back, as a wall clock does when a user or NTP sets it. And it does not jump
//! forward: if the machine is woken much later than requested (the clock was set forward, the shell
//! was busy saving, the computer slept), the excess time does not count towards any deadline,
//! because reports may be waiting to be read.

use crate::record::Millis;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    /// The wall clock at the last input.
    wall: Millis,
    /// Monotonic time minus the wall clock.
    offset: i64,
}

impl Clock {
    pub(crate) fn new(wall: Millis) -> Self {
        Self { wall, offset: 0 }
    }

    /// Updates the wall clock and returns the monotonic time. `due` is the requested deadline. If
    /// that has passed by more than `patience_ms`, the machine was suspended; the time is then set
    /// to `patience_ms` before `due`.
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

    /// The monotonic time at `wall`, without updating the clock.
    pub(crate) fn at(&self, wall: Millis) -> Millis {
        wall.saturating_add_signed(self.offset).max(self.now())
    }

    pub(crate) fn now(&self) -> Millis {
        self.wall.saturating_add_signed(self.offset)
    }

    /// Converts a monotonic time to the shell's wall clock.
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
