//! What must hold after every event, in production too: a crash and a restart from durable state are cheaper
//! than a wrong checkpoint. Each is about the machine's own doing; bad input cannot break one.

use crate::Coordinator;
use crate::event::{FRUITLESS_MAX, INCIDENTS_MAX, JobPhase, Member};
use crate::job::Job;
use proto::id::{Generation, Rank};
use std::collections::BTreeSet;

/// Panics with what is wrong.
pub(crate) fn check(coordinator: &Coordinator) {
    for (id, job) in &coordinator.jobs {
        assert_eq!(*id, job.record.id, "a job is kept under its own id");
        record(job);
        reserves(coordinator, job);
        if let JobPhase::Running { members } = &job.record.phase {
            running(coordinator, job, members);
        } else {
            assert!(job.live.ranks.is_empty(), "{id} does not run and has live ranks");
        }
    }
}

fn record(job: &Job) {
    let record = &job.record;
    let id = &record.id;
    let rising = |pair: &[proto::checkpoint::CheckpointRef]| {
        pair[0].step < pair[1].step && pair[0].generation <= pair[1].generation
    };
    assert!(
        record.checkpoints.windows(2).all(rising),
        "{id}: commits went back: {:?}",
        record.checkpoints
    );
    if let Some(newest) = record.checkpoints.last() {
        assert!(
            newest.generation <= record.generation,
            "{id}: a commit of a generation to come"
        );
        assert!(
            newest.step <= job.steps_max(),
            "{id}: a commit after the last step"
        );
    }
    assert!(
        record.fruitless <= FRUITLESS_MAX,
        "{id}: {} fruitless generations",
        record.fruitless
    );
    assert!(
        record.incidents.len() <= INCIDENTS_MAX,
        "{id}: too many incidents"
    );
    if let Some(writing) = &job.writing {
        assert_eq!(
            writing.checkpoint().generation,
            record.generation,
            "{id}: an older generation publishes"
        );
    }
}

fn reserves(coordinator: &Coordinator, job: &Job) {
    let id = &job.record.id;
    let mut ranks = Vec::new();
    for reserve in &job.record.reserves {
        let worker = &reserve.worker;
        let held = coordinator.fleet.holds(worker);
        assert!(held, "{id}: its reserve {worker} is gone");
        let member = job.members().iter().any(|member| member.worker == *worker);
        assert!(!member, "{id}: {worker} is a member and in reserve");
        let first = reserve.first_rank.0;
        let inside = (first as usize) < job.live.ranks.len();
        assert!(!inside, "{id}: a reserve has the number of a rank");
        ranks.extend((first..first + reserve.ranks).map(Rank));
    }
    ranks.sort();
    assert!(
        job.live.reserves.keys().copied().eq(ranks),
        "{id}: live reserves are not its reserves"
    );
}

fn running(coordinator: &Coordinator, job: &Job, members: &[Member]) {
    let id = &job.record.id;
    assert!(
        Generation(0) < job.record.generation,
        "{id} runs without a generation"
    );
    let lost = job.record.hopeless || FRUITLESS_MAX <= job.record.fruitless;
    assert!(!lost, "{id} should have failed");
    let mut next = 0;
    let mut workers = BTreeSet::new();
    for member in members {
        assert_eq!(member.first_rank, Rank(next), "{id}: ranks have gaps");
        next += member.ranks;
        assert!(
            workers.insert(&member.worker),
            "{id}: {} is a member twice",
            member.worker
        );
        assert!(
            coordinator.fleet.holds(&member.worker),
            "{id}: its member {} is gone",
            member.worker
        );
    }
    assert!(0 < next, "{id} runs without ranks");
    assert!(
        job.live.ranks.keys().copied().eq((0..next).map(Rank)),
        "{id}: live ranks are not its ranks"
    );
    assert!(
        job.live.acknowledged <= job.steps_max().max(job.committed()),
        "{id}: a step after the last"
    );
}
