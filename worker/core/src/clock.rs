//! The time by which deadlines are kept: the time that the machine lived through. When it is woken
//! much later than it asked for (the daemon got no processor, the computer slept), that time does
//! not count against its ranks, because their signs of life may be waiting to be read.

use crate::event::Millis;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    now: Millis,
    /// How much of the shell's time was slept through in all.
    away: u64,
}

impl Clock {
    pub(crate) fn new(shell: Millis) -> Self {
        Self {
            now: shell,
            away: 0,
        }
    }

    /// Takes the shell's clock; gives our time. `due` is the deadline that was asked for. Later
    /// than that by more than `patience_ms` means that the machine was away; it then has
    /// `patience_ms` left until `due`.
    pub(crate) fn advance(
        &mut self,
        shell: Millis,
        due: Option<Millis>,
        patience_ms: u64,
    ) -> Millis {
        let mut now = shell.saturating_sub(self.away).max(self.now);
        if let Some(due) = due
            && due.saturating_add(patience_ms) < now
        {
            now = due.saturating_sub(patience_ms).max(self.now);
            self.away = shell.saturating_sub(now);
        }
        self.now = now;
        now
    }

    /// A moment of our time as the shell's clock will show it.
    pub(crate) fn shell_of(&self, moment: Millis) -> Millis {
        moment.saturating_add(self.away)
    }
}
