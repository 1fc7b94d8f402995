//! Stored job records of this release and of older ones.

#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with others, which together use all of it")]
mod harness;

use coordinator_core::event::{JobPhase, JobRecord, RECORD_VERSION};
use harness::{Harness, machine, sample_of};
use proto::id::{JobId, Step};
use proto::message::UnitRange;
use proto::sample::{SampleMethod, Weights};
use serde_json::{Value, json};

/// The record of this job as written by a release before records had a version.
fn first_version(record: &JobRecord, work: &Value) -> Value {
    let mut old = serde_json::to_value(record).unwrap();
    let fields = old.as_object_mut().unwrap();
    for new in ["version", "source", "units"] {
        fields.remove(new).unwrap();
    }
    let resources = json!({
        "workers_min": 1, "workers_max": 1, "devices_per_worker": 1, "device": "cpu",
        "priority": 3, "team": "figures",
    });
    fields.insert(
        "spec".to_owned(),
        json!({"name": "of another release", "resources": resources}),
    );
    fields.insert("work".to_owned(), work.clone());
    old
}

fn sample(checkpoint: &Value) -> Value {
    json!({"sample": {
        "source": "toy-1", "checkpoint": checkpoint, "count": 2, "steps": 20, "guidance": 7.5,
        "seeds": [1, 2], "prompt": "full", "prompts": [], "references": [], "task": null,
        "pairing": null, "attention": [],
    }})
}

#[test]
fn a_record_is_read_as_it_was_written_and_has_a_version() {
    let (mut harness, source) = Harness::training();
    harness.commit(&source, 2);
    let images = harness.submit(sample_of(&source));
    for job in [source, images] {
        let record = harness.job(&job);
        let json = serde_json::to_value(record).unwrap();
        assert_eq!(json["version"], RECORD_VERSION);
        assert_eq!(
            json.get("spec"),
            None,
            "the spec is parsed from the text alone"
        );
        assert_eq!(serde_json::from_value::<JobRecord>(json).unwrap(), *record);
    }
}

#[test]
fn a_training_job_of_the_first_version_is_read_unchanged() {
    let (mut harness, job) = Harness::training();
    harness.commit(&job, 2);
    let record = harness.job(&job).clone();
    let old = first_version(&record, &json!("train"));
    assert_eq!(serde_json::from_value::<JobRecord>(old).unwrap(), record);
}

#[test]
fn a_sampling_job_of_the_first_version_becomes_one_of_units() {
    let (mut harness, source) = Harness::training();
    harness.commit(&source, 2);
    // It ran as a gang of one rank, with the text of the job that it read.
    let mut gang = harness.job(&source).clone();
    gang.id = JobId("toy-1-sample-2".to_owned());
    gang.checkpoints.clear();
    let old = first_version(&gang, &sample(&json!({"step": 2, "generation": 1})));
    let read: JobRecord = serde_json::from_value(old).unwrap();
    let pinned = read.source.clone().unwrap();
    assert_eq!(
        (pinned.job_toml, pinned.checkpoint.unwrap().step),
        (gang.job_toml.clone(), Step(2))
    );
    assert!(matches!(read.phase, JobPhase::Queued { .. }));
    let spec = proto::job::parse_stored(&read.id, &read.job_toml).unwrap();
    let work = spec.work.sampling().unwrap();
    assert_eq!(
        (work.count, work.method, work.weights),
        (2, SampleMethod::Ddim, Weights::Step(Step(2)))
    );
    assert_eq!(
        (spec.resources.priority, spec.resources.team.as_str()),
        (3, "figures")
    );
    harness.durable.jobs.insert(read.id.clone(), read.clone());
    harness.machine = machine(&harness.durable, harness.now);
    harness.receive("w3", vec![]);
    assert_eq!(
        harness.generation(&read.id),
        gang.generation.0 + 1,
        "under a new generation number"
    );
    gang.phase = JobPhase::Done { ended_ms: 7 };
    let old = first_version(&gang, &sample(&Value::Null));
    let read: JobRecord = serde_json::from_value(old).unwrap();
    assert_eq!(read.phase, gang.phase);
    assert_eq!(read.source.unwrap().checkpoint, None);
    assert_eq!(read.units.unwrap().done, [UnitRange { first: 0, end: 5 }]);
}

#[test]
fn a_record_of_an_unknown_version_is_refused_by_name() {
    let (harness, job) = Harness::training();
    let mut newer = serde_json::to_value(harness.job(&job)).unwrap();
    newer["version"] = json!(9);
    let error = serde_json::from_value::<JobRecord>(newer)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("job toy-1: version 9; this release reads versions 1 to 3"),
        "{error}"
    );
    let mut neither = serde_json::to_value(harness.job(&job)).unwrap();
    neither.as_object_mut().unwrap().remove("version");
    let error = serde_json::from_value::<JobRecord>(neither)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("job toy-1: version 1 without `spec` and `work`"),
        "{error}"
    );
}
