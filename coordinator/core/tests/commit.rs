//! Checkpoints by events and effects: when one is committed, written again or deleted, who reads
//! it, and what is none.

#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with others, which together use all of it")]
mod desk;

use coordinator_core::event::{Input, JobPhase};
use desk::{
    DETECT_WITHIN_MS, Desk, deleted, failed, ignored, manifests, rank, sample_of, sampling, sends,
    told, with_shard,
};
use proto::id::{JobId, Step};
use proto::message::RankPhase;
use proto::sample::Weights;

#[test]
fn a_checkpoint_is_committed_when_all_shards_are_there() {
    let (mut desk, job) = Desk::training();
    let first = desk.receive(
        "w1",
        vec![with_shard(rank(&job, 1, 0, RankPhase::Training), 2)],
    );
    assert_eq!(manifests(&first), vec![], "one shard of two");
    let written = manifests(&desk.shards(&job, 2));
    assert_eq!(written.len(), 1);
    let paths: Vec<&str> = written[0]
        .shards
        .iter()
        .map(|shard| shard.path.as_str())
        .collect();
    assert_eq!(paths, ["rank-0.safetensors", "rank-1.safetensors"]);
    assert_eq!(manifests(&desk.shards(&job, 2)), vec![], "it is on its way");
    assert!(desk.job(&job).checkpoints.is_empty(), "and not there yet");
    let effects = desk.written(&job, 2, Ok(()));
    assert_eq!(desk.job(&job).checkpoints.len(), 1);
    assert_eq!(told(&effects, "w2").gang().unwrap().committed_step, Step(2));
    assert_eq!(manifests(&desk.shards(&job, 2)), vec![], "it is there");
}

#[test]
fn a_manifest_that_was_not_written_is_written_again() {
    let (mut desk, job) = Desk::training();
    desk.shards(&job, 2);
    assert_eq!(
        manifests(&desk.written(&job, 2, Err("503".to_owned()))),
        vec![]
    );
    desk.now += DETECT_WITHIN_MS;
    let again = desk.receive("w1", vec![rank(&job, 1, 0, RankPhase::Training)]);
    assert_eq!(manifests(&again).len(), 1);
}

#[test]
fn a_job_is_done_when_its_last_checkpoint_is_committed_and_all_ranks_are_finished() {
    let (mut desk, job) = Desk::training();
    desk.commit(&job, 4);
    desk.receive("w1", vec![rank(&job, 1, 0, RankPhase::Finished)]);
    assert!(matches!(desk.job(&job).phase, JobPhase::Running { .. }));
    let effects = desk.receive("w2", vec![rank(&job, 1, 1, RankPhase::Finished)]);
    assert!(matches!(desk.job(&job).phase, JobPhase::Done { .. }));
    assert_eq!(
        sends(&effects)["w1#1"].assignments,
        vec![],
        "its workers are told by its absence"
    );
}

#[test]
fn a_manifest_on_its_way_when_its_generation_ends_still_counts() {
    let (mut desk, job) = Desk::training();
    desk.shards(&job, 2);
    desk.receive("w1", vec![rank(&job, 1, 0, failed("boom"))]);
    assert_eq!(
        desk.generation(&job),
        1,
        "the next generation waits until its fate is known"
    );
    let effects = desk.written(&job, 2, Ok(()));
    assert_eq!(desk.generation(&job), 2);
    assert_eq!(
        told(&effects, "w1")
            .gang()
            .unwrap()
            .resume
            .map(|resume| resume.step),
        Some(Step(2))
    );
}

#[test]
fn an_older_generation_publishes_nothing() {
    let (mut desk, job) = Desk::training();
    desk.receive(
        "w1",
        vec![with_shard(rank(&job, 1, 0, RankPhase::Training), 2)],
    );
    desk.receive("w1", vec![rank(&job, 1, 0, failed("boom"))]);
    assert_eq!(desk.generation(&job), 2);
    desk.receive(
        "w1",
        vec![with_shard(rank(&job, 2, 0, RankPhase::Training), 2)],
    );
    let late = || vec![with_shard(rank(&job, 1, 1, RankPhase::Training), 2)];
    let heard = desk.receive("w2", late());
    assert_eq!(manifests(&heard), vec![]);
    assert_eq!(
        ignored(&heard),
        ["still reports generation 1 of toy-1, which is at generation 2"]
    );
    assert_eq!(
        ignored(&desk.receive("w2", late())),
        Vec::<String>::new(),
        "once"
    );
}

#[test]
fn retention_deletes_what_nobody_reads() {
    let (mut desk, job) = Desk::training();
    desk.commit(&job, 1);
    assert_eq!(deleted(&desk.commit(&job, 2)), [1]);
    let images = desk.submit(sample_of(&job));
    let pinned = desk.job(&images).source.as_ref().unwrap();
    assert_eq!(pinned.checkpoint.unwrap().step, Step(2));
    assert!(
        deleted(&desk.commit(&job, 3)).is_empty(),
        "step 2 is to be drawn from"
    );
    let effects = {
        let mut effects = Vec::new();
        desk.ask(|request| Input::Cancel {
            request,
            job: images.clone(),
        });
        effects.extend(desk.commit(&job, 4));
        effects
    };
    assert_eq!(desk.job(&job).checkpoints.len(), 1);
    assert_eq!(deleted(&effects), [3], "2 went with the job that read it");
}

#[test]
fn pictures_of_nothing_are_refused_with_what_there_is() {
    let (mut desk, job) = Desk::training();
    assert_eq!(
        desk.refused(sample_of(&job)),
        "job toy-1 has no committed checkpoint yet"
    );
    let unknown = sample_of(&JobId("toy-9".to_owned()));
    assert_eq!(
        desk.refused(unknown),
        "there is no job toy-9; the newest is toy-1"
    );
    let mut none = sample_of(&job);
    sampling(&mut none).count = 0;
    assert!(desk.refused(none).starts_with("count: 0"));
    let mut late = sample_of(&job);
    sampling(&mut late).weights = Weights::Step(Step(9));
    assert_eq!(
        desk.refused(late),
        "job toy-1 has no checkpoint of step 9; it has: none"
    );
    desk.commit(&job, 2);
    let images = desk.submit(sample_of(&job));
    assert_eq!(
        desk.refused(sample_of(&images)),
        "job images-2 draws pictures and trains nothing; sample toy-1 instead"
    );
}

#[test]
fn shards_of_different_base_weights_are_no_checkpoint() {
    let (mut desk, job) = Desk::training();
    let mut other = with_shard(rank(&job, 1, 1, RankPhase::Training), 2);
    other.shards[0].init_digest = Some("ff".to_owned());
    desk.receive(
        "w1",
        vec![with_shard(rank(&job, 1, 0, RankPhase::Training), 2)],
    );
    assert_eq!(manifests(&desk.receive("w2", vec![other])), vec![]);
    assert!(
        desk.job(&job).incidents[0]
            .what
            .contains("different base weights")
    );
}
