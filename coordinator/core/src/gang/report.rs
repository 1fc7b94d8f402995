//! Classifies a rank's report before it is applied, so that late and impossible reports are
//! ignored. This changes no state and never panics.

use super::job::Gang;
use crate::record::Member;
use proto::id::WorkerId;
use proto::message::RankReport;
use proto::reason::Violation;

/// The classification of a rank's report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Class {
    /// A rank of the running generation, reported by its worker.
    Live,
    /// A standby, reported by its worker.
    Standby,
    /// An ended generation or a dropped standby.
    Late,
    Impossible(Violation),
}

pub(crate) fn classify(job: &Gang, worker: &WorkerId, report: &RankReport) -> Class {
    let newest = job.head.generation;
    if newest < report.generation {
        let job = report.job.clone();
        return Class::Impossible(Violation::FutureGeneration {
            job,
            reported: report.generation,
            newest,
        });
    }
    if report.generation < newest {
        return Class::Late;
    }
    let of_worker = |member: &&Member| member.worker == *worker;
    let standby = job.standby_members().iter().find(of_worker);
    if standby.is_some_and(|standby| standby.runs(report.rank)) {
        return Class::Standby;
    }
    let Some(running) = job.running() else {
        return Class::Late;
    };
    if running.world() <= report.rank.0 && job.standbys.was_assigned(report.rank) {
        return Class::Late;
    }
    let Some(member) = running.members.iter().find(of_worker) else {
        return Class::Impossible(Violation::NotMember {
            job: report.job.clone(),
            generation: newest,
        });
    };
    if !member.runs(report.rank) {
        return Class::Impossible(Violation::RankOutside {
            rank: report.rank,
            first: member.first_rank,
            ranks: member.ranks,
        });
    }
    Class::Live
}
