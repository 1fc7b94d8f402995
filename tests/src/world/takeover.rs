//! Two coordinators at a time: a second one starts on the same store while the first still lives
//! and half of the nodes still talk to it. Whatever the first then writes is refused, and that is
//! the end of it.

use super::World;
use super::agenda::SimEvent;
use super::coordinator::CoordinatorHost;

impl World {
    /// A fault: somebody starts a second coordinator.
    pub(crate) fn take_over(&mut self, for_ms: u64) {
        if !self.coordinator.is_up() || self.former.is_some() {
            return;
        }
        self.trace.line(self.now, || {
            format!("a second coordinator is started; the first lives on for {for_ms} ms")
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

    /// Lets the coordinator of that start do something, be it the present one, the former one, or
    /// neither.
    pub(crate) fn as_coordinator(&mut self, boot: u64, act: impl FnOnce(&mut Self)) {
        if boot == self.coordinator.boot {
            return act(self);
        }
        let Some(former) = self.former.take_if(|former| former.boot == boot) else {
            return;
        };
        let present = std::mem::replace(&mut self.coordinator, former);
        self.fenced = true;
        act(self);
        self.fenced = false;
        let former = std::mem::replace(&mut self.coordinator, present);
        if former.is_up() {
            self.former = Some(former);
        } else {
            self.bury(former.boot);
        }
    }

    /// Its process is at its end, refused or not.
    pub(crate) fn former_dies(&mut self, boot: u64) {
        if self.former.take_if(|former| former.boot == boot).is_some() {
            self.bury(boot);
        }
    }

    fn bury(&mut self, boot: u64) {
        self.trace
            .line(self.now, || "the first coordinator is gone".to_owned());
        for node in 0..self.nodes.len() {
            if self.nodes[node].linked_to == boot {
                self.break_link(node, 1);
            }
        }
    }
}
