//! The devices that a job of units holds and what they do, for its account.

use super::job::Units;
use crate::account::{Holding, Use};
use proto::message::Stage;
use proto::reason::StopCause;

impl Units {
    pub(crate) fn holdings(&self) -> Vec<Holding> {
        let seats = self.participants().iter().flat_map(|participant| {
            let why = participant.leaving.as_ref().map(|leaving| &leaving.why);
            let preempted = matches!(why, Some(StopCause::Preempted { .. }));
            let ranks = participant.ranks.values().zip(0..);
            ranks.map(move |(rank, device)| {
                let activity = rank.live.activity;
                let in_unit = activity.is_some_and(|it| matches!(it.stage, Stage::Unit(_)));
                let use_ = Use::of_units(rank.live.phase.as_ref(), in_unit);
                Holding {
                    key: (participant.worker().clone(), device),
                    use_: if preempted && !in_unit {
                        Use::Preempted
                    } else {
                        use_
                    },
                    totals: None,
                }
            })
        });
        seats.collect()
    }
}
