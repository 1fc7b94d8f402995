//! Time that only goes forward. The shell's clock is the wall clock, which people and NTP set back; deadlines are kept
//! in a time of our own, so that a clock set back by an hour does not put every lease an hour away. A clock set forward
//! ends leases at once, and the workers come back with their next report.

use crate::event::Millis;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    /// The wall clock at the last event.
    wall: Millis,
    /// How far the wall clock was set back in all.
    behind: u64,
}

impl Clock {
    pub(crate) fn new(wall: Millis) -> Self {
        Self { wall, behind: 0 }
    }

    /// Takes the wall clock; gives the time by which deadlines are kept.
    pub(crate) fn advance(&mut self, wall: Millis) -> Millis {
        self.behind = self.behind.saturating_add(self.wall.saturating_sub(wall));
        self.wall = wall;
        self.now()
    }

    pub(crate) fn now(&self) -> Millis {
        self.wall.saturating_add(self.behind)
    }

    /// A deadline as the shell's clock will show it.
    pub(crate) fn wall_of(&self, deadline: Millis) -> Millis {
        deadline.saturating_sub(self.behind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_set_back_does_not_move_deadlines_away() {
        let mut clock = Clock::new(10_000);
        let deadline = clock.advance(11_000) + 500;
        assert_eq!(clock.advance(3_000), 11_000);
        assert_eq!(clock.wall_of(deadline), 3_500);
        assert_eq!(clock.advance(3_500), deadline);
    }
}
