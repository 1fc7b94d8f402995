//! The machine's own clock for deadlines. If the machine is woken much later than it asked for (the
//! daemon was not scheduled, or the computer was suspended), the delay does not count against its
//! ranks, because their reports may still be waiting to be read.

use crate::event::Millis;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    now: Millis,
    /// Total time of the shell's clock that does not count, in ms.
    skipped_ms: u64,
}

impl Clock {
    pub(crate) fn new(shell_now: Millis) -> Self {
        Self {
            now: shell_now,
            skipped_ms: 0,
        }
    }

    /// Converts the shell's time to the machine's time. `due` is the requested deadline. If it is
    /// overdue by more than `patience_ms`, the machine was woken late. Its time then continues
    /// `patience_ms` before `due`.
    pub(crate) fn advance(
        &mut self,
        shell_now: Millis,
        due: Option<Millis>,
        patience_ms: u64,
    ) -> Millis {
        let mut now = shell_now.saturating_sub(self.skipped_ms).max(self.now);
        if let Some(due) = due
            && due.saturating_add(patience_ms) < now
        {
            now = due.saturating_sub(patience_ms).max(self.now);
            self.skipped_ms = shell_now.saturating_sub(now);
        }
        self.now = now;
        now
    }

    /// Converts a time of the machine to the shell's time.
    pub(crate) fn to_shell(self, time: Millis) -> Millis {
        time.saturating_add(self.skipped_ms)
    }
}
