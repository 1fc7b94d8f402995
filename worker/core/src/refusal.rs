//! Assignments that this worker refuses, because a field is beyond what it accepts. Their ranks are
//! reported as failed, so that the job's users see why, and no other job of the worker is affected.

use crate::Worker;
use crate::event::{Effect, Event, RankKey};
use crate::rank::RankState;
use proto::id::Rank;
use proto::message::Refusal;
use proto::reason::RankFailure;

impl Worker {
    /// Replaces the refusals of the last desired state by those of this one.
    pub(crate) fn set_refused(&mut self, refused: Vec<Refusal>, effects: &mut Vec<Effect>) {
        for refusal in &refused {
            if !self.refused.contains(refusal) {
                let error = &refusal.error;
                let what = match refusal.ranks {
                    0 => format!("a part of the desired state: {error}"),
                    _ => format!(
                        "the assignment of {} generation {}: {error}",
                        refusal.job, refusal.generation
                    ),
                };
                let worker = self.config.worker.clone();
                effects.push(Effect::Emit(Event::Ignored { worker, what }));
            }
        }
        self.refused = refused;
    }

    pub(crate) fn is_refused(&self, key: &RankKey) -> bool {
        let refuses = |refusal: &Refusal| {
            let offset = key.rank.0.checked_sub(refusal.first_rank.0);
            (&refusal.job, refusal.generation) == (&key.job, key.generation)
                && offset.is_some_and(|offset| offset < refusal.ranks)
        };
        self.refused.iter().any(refuses)
    }

    /// Reports the ranks of refused assignments as failed. Every worker would refuse them, so
    /// another generation would not help.
    pub(crate) fn report_refused(&mut self) {
        for refusal in &self.refused {
            for offset in 0..refusal.ranks.min(self.config.devices) {
                let key = RankKey {
                    job: refusal.job.clone(),
                    generation: refusal.generation,
                    rank: Rank(refusal.first_rank.0.saturating_add(offset)),
                };
                if self.ranks.contains_key(&key) {
                    continue;
                }
                let text = format!("the worker refuses the assignment: {}", refusal.error);
                let failure = RankFailure::error(&text, true);
                self.ranks
                    .insert(key.clone(), RankState::refused(&key, failure));
                self.report_due = true;
            }
        }
    }
}
