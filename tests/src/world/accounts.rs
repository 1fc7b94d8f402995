//! The oracle of the jobs' accounts of device-time. It knows nothing of phases and reports: it adds
//! up, from the saved records alone, for how long each job held how many devices, and the buckets
//! must be that to the millisecond, whatever crashes and whatever is done to the clock.

use super::oracle::Oracle;
use coordinator_core::event::{JobPhase, JobRecord, Member};

/// Devices that a job holds by its record.
fn devices(record: &JobRecord) -> u64 {
    let members = match &record.phase {
        JobPhase::Running { members } => &members[..],
        _ => &[],
    };
    let ranks = |member: &Member| u64::from(member.ranks);
    members.iter().chain(&record.standbys).map(ranks).sum()
}

impl Oracle {
    /// `wall`: the coordinator's clock when it saved the record `new` after `old`; `latest`: the
    /// latest that it showed since the coordinator started.
    pub(crate) fn on_account(
        &mut self,
        old: Option<&JobRecord>,
        new: &JobRecord,
        wall: u64,
        latest: u64,
    ) {
        let id = &new.id;
        let (before, after) = (old.map(|old| &old.account), &new.account);
        let since = before.map_or(wall, |before| before.until_ms);
        // A clock that was set back in between has shown a later time.
        let ends = since.max(wall)..=since.max(latest);
        self.require(ends.contains(&after.until_ms), || {
            let until = after.until_ms;
            format!("{id}: its account ends at {until}, not within {ends:?}")
        });
        let passed = after.until_ms.saturating_sub(since);
        let held = before.map_or(0, |before| before.held_ms()) + old.map_or(0, devices) * passed;
        self.require(after.held_ms() == held, || {
            format!(
                "{id}: its buckets add up to {} device-ms, and it held {held}: {after:?}",
                after.held_ms()
            )
        });
        let days: u64 = after.days.iter().map(|day| day.device_ms).sum();
        self.require(days == held, || {
            format!("{id}: its days add up to {days} device-ms, and it held {held}")
        });
        let waited = before.map_or(0, |before| before.waited_ms);
        let waits = old.is_some_and(|old| matches!(old.phase, JobPhase::Queued { .. }));
        let waited = waited + if waits { passed } else { 0 };
        self.require(after.waited_ms == waited, || {
            format!("{id}: it waited {} ms, not {waited}", after.waited_ms)
        });
        let shrunk = before
            .into_iter()
            .flat_map(|before| &before.spent)
            .find(|(bucket, ms)| after.of(**bucket) < **ms);
        self.require(shrunk.is_none(), || format!("{id}: {shrunk:?} became less"));
    }
}
