//! The devices that a gang holds and what they do, for its account.

use super::job::Gang;
use crate::account::{Holding, Use};
use crate::rank::RankLive;
use crate::record::Member;
use proto::id::{Rank, Step};
use proto::reason::StopCause;
use std::collections::BTreeMap;

impl Gang {
    /// Steps up to this one were done before the running generation.
    pub(crate) fn reached(&self) -> Step {
        self.reached
    }

    pub(crate) fn holdings(&self) -> Vec<Holding> {
        let preempted = matches!(self.stop_reason(), Some(StopCause::Preempted { .. }));
        let running = self.running().into_iter();
        let members = running.flat_map(|running| {
            let members = running.members.iter();
            members.flat_map(|member| seats(member, &running.ranks, preempted, false))
        });
        let standbys = self.standby_members().iter();
        let standbys =
            standbys.flat_map(|member| seats(member, self.standbys.ranks(), false, true));
        members.chain(standbys).collect()
    }
}

fn seats<'a>(
    member: &'a Member,
    ranks: &'a BTreeMap<Rank, RankLive>,
    preempted: bool,
    standby: bool,
) -> impl Iterator<Item = Holding> + 'a {
    member.numbers().zip(0..).map(move |(rank, device)| {
        let live = ranks.get(&rank);
        Holding {
            key: (member.worker.clone(), device),
            use_: if preempted {
                Use::Preempted
            } else {
                Use::of_gang(live.and_then(|live| live.phase.as_ref()), standby)
            },
            totals: live.and_then(|live| live.totals),
        }
    })
}
