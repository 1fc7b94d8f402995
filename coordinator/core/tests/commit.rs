//! Checkpoints by inputs and effects: when one is committed, retried or deleted, which jobs read
//! it, and which shards form none.

#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with others, which together use all of it")]
mod harness;

use coordinator_core::event::{Input, JobPhase};
use harness::{
    DETECT_WITHIN_MS, Harness, assigned, deleted, failed, ignored, manifests, rank, resumes,
    sample_of, sampling, sends, with_shard,
};
use proto::id::{Generation, JobId, Step};
use proto::message::RankPhase;
use proto::reason::{Disagreement, Ending, MissingSource, Violation};
use proto::sample::Weights;

#[test]
fn a_checkpoint_is_committed_when_all_shards_are_reported() {
    let (mut harness, job) = Harness::training();
    let first = harness.receive(
        "w1",
        vec![with_shard(rank(&job, 1, 0, RankPhase::Training), 2)],
    );
    assert_eq!(manifests(&first), vec![], "one shard of two");
    let written = manifests(&harness.shards(&job, 2));
    assert_eq!(written.len(), 1);
    let paths: Vec<&str> = written[0]
        .shards
        .iter()
        .map(|shard| shard.path.as_str())
        .collect();
    assert_eq!(paths, ["rank-0.safetensors", "rank-1.safetensors"]);
    assert_eq!(
        manifests(&harness.shards(&job, 2)),
        vec![],
        "it is being written"
    );
    assert!(
        harness.job(&job).checkpoints.is_empty(),
        "not committed yet"
    );
    let effects = harness.written(&job, 2, Ok(()));
    assert_eq!(harness.job(&job).checkpoints.len(), 1);
    assert_eq!(
        assigned(&effects, "w2").gang().unwrap().committed_step,
        Step(2)
    );
    assert_eq!(
        manifests(&harness.shards(&job, 2)),
        vec![],
        "it is committed"
    );
}

#[test]
fn a_failed_manifest_write_is_retried() {
    let (mut harness, job) = Harness::training();
    harness.shards(&job, 2);
    assert_eq!(
        manifests(&harness.written(&job, 2, Err("503".to_owned()))),
        vec![]
    );
    harness.now += DETECT_WITHIN_MS;
    let again = harness.receive("w1", vec![rank(&job, 1, 0, RankPhase::Training)]);
    assert_eq!(manifests(&again).len(), 1);
}

#[test]
fn a_job_is_done_when_its_last_checkpoint_is_committed_and_all_ranks_are_finished() {
    let (mut harness, job) = Harness::training();
    harness.commit(&job, 4);
    harness.receive("w1", vec![rank(&job, 1, 0, RankPhase::Finished)]);
    assert!(matches!(harness.job(&job).phase, JobPhase::Running { .. }));
    let effects = harness.receive("w2", vec![rank(&job, 1, 1, RankPhase::Finished)]);
    assert!(matches!(harness.job(&job).phase, JobPhase::Done { .. }));
    assert_eq!(
        sends(&effects)["w1#1"].assignments,
        vec![],
        "the assignment is removed from its workers"
    );
}

#[test]
fn a_manifest_that_is_being_written_when_its_generation_ends_still_counts() {
    let (mut harness, job) = Harness::training();
    harness.shards(&job, 2);
    harness.receive("w1", vec![rank(&job, 1, 0, failed("boom"))]);
    assert_eq!(
        harness.generation(&job),
        1,
        "the next generation waits for the result"
    );
    let effects = harness.written(&job, 2, Ok(()));
    assert_eq!(harness.generation(&job), 2);
    assert_eq!(
        assigned(&effects, "w1")
            .gang()
            .unwrap()
            .resume
            .map(|resume| resume.step),
        Some(Step(2))
    );
}

#[test]
fn an_older_generation_commits_nothing() {
    let (mut harness, job) = Harness::training();
    harness.receive(
        "w1",
        vec![with_shard(rank(&job, 1, 0, RankPhase::Training), 2)],
    );
    harness.receive("w1", vec![rank(&job, 1, 0, failed("boom"))]);
    assert_eq!(harness.generation(&job), 2);
    harness.receive(
        "w1",
        vec![with_shard(rank(&job, 2, 0, RankPhase::Training), 2)],
    );
    let late = || vec![with_shard(rank(&job, 1, 1, RankPhase::Training), 2)];
    let effects = harness.receive("w2", late());
    assert_eq!(manifests(&effects), vec![]);
    assert_eq!(
        ignored(&effects),
        [Violation::OldGeneration {
            job: job.clone(),
            reported: Generation(1),
            newest: Generation(2),
        }]
    );
    assert_eq!(ignored(&harness.receive("w2", late())), [], "once");
}

#[test]
fn retention_deletes_checkpoints_that_no_job_reads() {
    let (mut harness, job) = Harness::training();
    harness.commit(&job, 1);
    assert_eq!(deleted(&harness.commit(&job, 2)), [1]);
    let images = harness.submit(sample_of(&job));
    let pinned = harness.job(&images).source.as_ref().unwrap();
    assert_eq!(pinned.checkpoint.unwrap().step, Step(2));
    assert!(
        deleted(&harness.commit(&job, 3)).is_empty(),
        "step 2 is read by the sampling job"
    );
    let effects = {
        let mut effects = Vec::new();
        harness.ask(|request| Input::Cancel {
            request,
            job: images.clone(),
        });
        effects.extend(harness.commit(&job, 4));
        effects
    };
    assert_eq!(harness.job(&job).checkpoints.len(), 1);
    assert_eq!(
        deleted(&effects),
        [3],
        "2 was deleted with the job that read it"
    );
}

#[test]
fn sampling_without_a_checkpoint_is_refused_with_what_exists() {
    let (mut harness, job) = Harness::training();
    let missing = MissingSource::NoCheckpoint { job: job.clone() };
    assert_eq!(harness.refused(sample_of(&job)), missing.to_string());
    let unknown = sample_of(&JobId("toy-9".to_owned()));
    assert_eq!(
        harness.refused(unknown),
        "there is no job toy-9; the newest is toy-1"
    );
    let mut none = sample_of(&job);
    sampling(&mut none).count = 0;
    assert!(harness.refused(none).starts_with("count: 0"));
    let mut late = sample_of(&job);
    sampling(&mut late).weights = Weights::Step(Step(9));
    let missing = MissingSource::NoStep {
        job: job.clone(),
        step: Step(9),
        steps: vec![],
    };
    assert_eq!(harness.refused(late), missing.to_string());
    harness.commit(&job, 2);
    let images = harness.submit(sample_of(&job));
    assert_eq!(
        harness.refused(sample_of(&images)),
        "job images-2 generates images and trains no model; sample job toy-1 instead"
    );
}

#[test]
fn shards_of_different_base_weights_form_no_checkpoint() {
    let (mut harness, job) = Harness::training();
    let mut other = with_shard(rank(&job, 1, 1, RankPhase::Training), 2);
    other.shards[0].init_digest = Some("ff".to_owned());
    harness.receive(
        "w1",
        vec![with_shard(rank(&job, 1, 0, RankPhase::Training), 2)],
    );
    assert_eq!(manifests(&harness.receive("w2", vec![other])), vec![]);
    let digests = vec![None, Some("ff".to_owned())];
    let ending = Ending::ShardsDisagree {
        step: Step(2),
        shards: Disagreement::BaseWeights { digests },
    };
    assert_eq!(harness.faults(&job), [&resumes(ending, &[], 0)]);
}
