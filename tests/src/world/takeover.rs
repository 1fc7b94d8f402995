//! Two coordinators at a time: a second one starts on the same store while the first still runs and
//! half of the nodes are still connected to it. The store refuses the first one's next write, and
//! the first exits.

use super::World;
use super::agenda::SimEvent;
use super::coordinator::CoordinatorHost;

impl World {
    /// A fault: a second coordinator is started.
    pub(crate) fn take_over(&mut self, for_ms: u64) {
        if !self.coordinator.is_up() || self.former.is_some() {
            return;
        }
        self.trace.line(self.now, || {
            format!("a second coordinator starts; the first runs on for {for_ms} ms")
        });
        let boot = self.coordinator.boot;
        let next = CoordinatorHost::after(&self.coordinator);
        self.former = Some(std::mem::replace(&mut self.coordinator, next));
        self.requests.clear();
        self.start_coordinator();
        for node in 0..self.nodes.len() {
            if self.rng.chance(500) {
                let delay = self.rng.between(1, 200);
                self.break_link(node, delay);
            }
        }
        let at = (self.now + for_ms).min(self.plan.heal_at.max(self.now));
        self.agenda.put(at, SimEvent::FormerDies { boot });
    }

    /// Runs `act` as the coordinator of this boot: the current one, the former one, or neither.
    pub(crate) fn as_coordinator(&mut self, boot: u64, act: impl FnOnce(&mut Self)) {
        if boot == self.coordinator.boot {
            return act(self);
        }
        let Some(former) = self.former.take_if(|former| former.boot == boot) else {
            return;
        };
        let current = std::mem::replace(&mut self.coordinator, former);
        self.former_acts = true;
        act(self);
        self.former_acts = false;
        let former = std::mem::replace(&mut self.coordinator, current);
        if former.is_up() {
            self.former = Some(former);
        } else {
            self.on_former_exit(former.boot);
        }
    }

    /// The former coordinator's process ends, fenced off or not.
    pub(crate) fn former_dies(&mut self, boot: u64) {
        if self.former.take_if(|former| former.boot == boot).is_some() {
            self.on_former_exit(boot);
        }
    }

    fn on_former_exit(&mut self, boot: u64) {
        self.trace
            .line(self.now, || "the first coordinator has exited".to_owned());
        for node in 0..self.nodes.len() {
            if self.nodes[node].linked_to == boot {
                self.break_link(node, 1);
            }
        }
    }
}
