//! Collects the effects of the inputs of one call and orders them at the end. Saves come first, so
//! that no visible effect depends on state that a restart would lose (law 7). Other modules can
//! only add effects.

use crate::event::{Effect, Event, Reply, RequestId};
use crate::record::{Member, Millis, Record};
use proto::checkpoint::{CheckpointManifest, CheckpointRef};
use proto::id::{JobId, WorkerId};
use proto::message::{DesiredState, Successor};
use std::collections::BTreeSet;

#[derive(Debug)]
pub(crate) struct Outbox {
    /// The number of the input, starting at 1.
    pub(crate) input: u64,
    /// Monotonic time, used for deadlines; see [`crate::clock`].
    pub(crate) now: Millis,
    /// Wall-clock time, used in records.
    pub(crate) wall: Millis,
    /// Jobs whose records changed.
    pub(crate) save: BTreeSet<JobId>,
    pub(crate) save_counters: bool,
    pub(crate) save_drained: bool,
    /// New ledger entries.
    pub(crate) ledger_entries: Vec<Record>,
    /// Jobs that are archived or deleted.
    pub(crate) removed: Vec<Record>,
    /// Names of workers to send the desired state to: it may have changed, or they sent a report.
    pub(crate) send: BTreeSet<String>,
    /// Workers that reported and must leave, because others took their places.
    pub(crate) leave: Vec<(WorkerId, Successor)>,
    manifests: Vec<CheckpointManifest>,
    scores: Vec<Effect>,
    replies: Vec<Effect>,
    /// Requests to answer with the job's phase after the input was handled.
    pub(crate) phase_replies: Vec<(RequestId, JobId)>,
    deletions: Vec<Effect>,
    events: Vec<Effect>,
}

impl Outbox {
    pub(crate) fn new(now: Millis, wall: Millis, input: u64) -> Self {
        Self {
            input,
            now,
            wall,
            save: BTreeSet::new(),
            save_counters: false,
            save_drained: false,
            ledger_entries: Vec::new(),
            removed: Vec::new(),
            send: BTreeSet::new(),
            leave: Vec::new(),
            manifests: Vec::new(),
            scores: Vec::new(),
            replies: Vec::new(),
            phase_replies: Vec::new(),
            deletions: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Sends the desired state to the workers of these members.
    pub(crate) fn send_to_all(&mut self, members: &[Member]) {
        let names = members.iter().map(|member| member.worker.name.clone());
        self.send.extend(names);
    }

    pub(crate) fn write_manifest(&mut self, manifest: CheckpointManifest) {
        self.manifests.push(manifest);
    }

    pub(crate) fn read_scores(&mut self, evaluation: JobId) {
        self.scores.push(Effect::ReadScores { evaluation });
    }

    pub(crate) fn reply(&mut self, request: RequestId, reply: Reply) {
        self.replies.push(Effect::Reply { request, reply });
    }

    pub(crate) fn delete(&mut self, job: JobId, checkpoint: CheckpointRef) {
        self.deletions
            .push(Effect::DeleteCheckpoint { job, checkpoint });
    }

    pub(crate) fn emit(&mut self, event: Event) {
        self.events.push(Effect::Emit(event));
    }

    /// Returns the effects in order. `records` are those requested by `save` and `save_counters`,
    /// `states` those requested by `send`.
    pub(crate) fn into_effects(
        self,
        records: Vec<Record>,
        states: Vec<DesiredState>,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        if !records.is_empty() {
            effects.push(Effect::Save(records));
        }
        let manifests = self.manifests.into_iter().map(Box::new);
        effects.extend(manifests.map(|manifest| Effect::WriteManifest { manifest }));
        effects.extend(self.scores);
        effects.extend(self.replies);
        effects.extend(states.into_iter().map(|state| Effect::Send {
            worker: state.worker.clone(),
            state,
        }));
        effects.extend(self.deletions);
        effects.extend(self.events);
        effects
    }
}
