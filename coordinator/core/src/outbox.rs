//! What one event leads to, gathered while it is handled and put into the one safe order at the
//! end: saves first, so that nothing visible tells of a state that a restart could forget (law 7).
//! The machine's parts can only add here.

use crate::event::{Effect, Event, Reply, RequestId};
use crate::record::{Member, Millis, Record};
use proto::checkpoint::{CheckpointManifest, CheckpointRef};
use proto::id::JobId;
use proto::message::DesiredState;
use std::collections::BTreeSet;

#[derive(Debug)]
pub(crate) struct Outbox {
    /// The number of the event, from 1 on.
    pub(crate) event: u64,
    /// Time by which deadlines are kept.
    pub(crate) now: Millis,
    /// Time as people read it, for records.
    pub(crate) wall: Millis,
    /// Jobs whose record changed.
    pub(crate) save: BTreeSet<JobId>,
    pub(crate) save_counters: bool,
    pub(crate) save_drained: bool,
    /// New entries of ledgers.
    pub(crate) ledgers: Vec<Record>,
    /// Names of workers whose desired state may have changed, or who reported and are answered.
    pub(crate) tell: BTreeSet<String>,
    manifests: Vec<CheckpointManifest>,
    replies: Vec<Effect>,
    /// Who is to be told the phase of which job, as it is at the end.
    pub(crate) phases: Vec<(RequestId, JobId)>,
    deletions: Vec<Effect>,
    facts: Vec<Effect>,
}

impl Outbox {
    pub(crate) fn new(now: Millis, wall: Millis, event: u64) -> Self {
        Self {
            event,
            now,
            wall,
            save: BTreeSet::new(),
            save_counters: false,
            save_drained: false,
            ledgers: Vec::new(),
            tell: BTreeSet::new(),
            manifests: Vec::new(),
            replies: Vec::new(),
            phases: Vec::new(),
            deletions: Vec::new(),
            facts: Vec::new(),
        }
    }

    /// The workers of these members are to be told what should be.
    pub(crate) fn send_to_all(&mut self, members: &[Member]) {
        let names = members.iter().map(|member| member.worker.name.clone());
        self.tell.extend(names);
    }

    pub(crate) fn write_manifest(&mut self, manifest: CheckpointManifest) {
        self.manifests.push(manifest);
    }

    pub(crate) fn reply(&mut self, request: RequestId, reply: Reply) {
        self.replies.push(Effect::Reply { request, reply });
    }

    pub(crate) fn delete(&mut self, job: JobId, checkpoint: CheckpointRef) {
        self.deletions
            .push(Effect::DeleteCheckpoint { job, checkpoint });
    }

    pub(crate) fn emit(&mut self, event: Event) {
        self.facts.push(Effect::Emit(event));
    }

    /// The effects in order: `records` are what `save` and `save_counters` asked for, `states` what
    /// `tell` asked for.
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
        effects.extend(self.replies);
        effects.extend(states.into_iter().map(|state| Effect::Send {
            worker: state.worker.clone(),
            state,
        }));
        effects.extend(self.deletions);
        effects.extend(self.facts);
        effects
    }
}
