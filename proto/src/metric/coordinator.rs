//! What `coordinator serve` serves on `/metrics`.

use super::Kind::{Counter, Gauge, Histogram};
use super::{Metric, TRAINING_JOB, table};

/// Seconds of a request.
pub const REQUEST_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
];
/// Seconds until a job trains again.
pub const RECOVERY_SECONDS: &[f64] = &[0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0];

table! {
    JOB_INFO: "retri_job_info" Gauge, "",
        [TRAINING_JOB, "name", "team", "owner", "work"], "Always 1; the labels describe the job";
    JOB_PHASE: "retri_job_phase" Gauge, "", [TRAINING_JOB, "phase"],
        "Always 1; the label names the phase";
    JOB_STEP: "retri_job_step" Gauge, "steps", [TRAINING_JOB], "Newest finished step";
    JOB_STEPS_TARGET: "retri_job_steps_target" Gauge, "steps", [TRAINING_JOB],
        "Total steps of the job";
    JOB_LOSS: "retri_job_loss" Gauge, "", [TRAINING_JOB, "term"],
        "Loss of the newest step by term (total; equation 3: target, face); term validation: of \
        the newest validation";
    JOB_GRADIENT_NORM: "retri_job_gradient_norm" Gauge, "", [TRAINING_JOB],
        "L2 norm of the newest gradient before clipping";
    JOB_LEARNING_RATE: "retri_job_learning_rate" Gauge, "", [TRAINING_JOB],
        "Learning rate of the newest step";
    JOB_STEP_SECONDS: "retri_job_step_seconds" Gauge, "seconds", [TRAINING_JOB, "phase"],
        "Wall time of the newest step of rank 0 by phase";
    JOB_PHASE_SECONDS: "retri_job_phase_seconds_total" Counter, "seconds",
        [TRAINING_JOB, "phase"],
        "Wall time of all steps of rank 0 by phase since the coordinator started";
    JOB_SAMPLES: "retri_job_samples_total" Counter, "samples", [TRAINING_JOB],
        "Samples trained since the coordinator started";
    JOB_SAMPLES_PER_SECOND: "retri_job_samples_per_second" Gauge, "samples/s", [TRAINING_JOB],
        "Throughput of the newest step";
    JOB_GENERATION: "retri_job_generation" Gauge, "", [TRAINING_JOB], "Newest generation";
    JOB_WORLD_SIZE: "retri_job_world_size" Gauge, "ranks", [TRAINING_JOB],
        "World size of the running generation; 0 while the job waits";
    JOB_RESTARTS: "retri_job_restarts_total" Counter, "", [TRAINING_JOB],
        "Generations that ended early";
    JOB_INCIDENTS: "retri_job_incidents_total" Counter, "", [TRAINING_JOB, "kind"],
        "Incidents since the job was submitted, by kind";
    JOB_RECOVERY_SECONDS: "retri_job_recovery_seconds" Histogram(RECOVERY_SECONDS), "seconds", [],
        "Time from the end of a generation by a fault to the next step of the job";
    JOB_DEVICE_SECONDS: "retri_job_device_seconds_total" Counter, "seconds",
        [TRAINING_JOB, "bucket"],
        "Where the time of the job's devices went, since it was submitted; the buckets add up to \
        the devices times the time that they were held, up to the step in progress";
    JOB_WAITED_SECONDS: "retri_job_waited_seconds_total" Counter, "seconds", [TRAINING_JOB],
        "Time that the job has waited to run, since it was submitted";
    JOB_STRAGGLER_RATIO: "retri_job_straggler_ratio" Gauge, "ratio", [TRAINING_JOB],
        "Own work per step of the slowest rank divided by that of the median rank, since their \
        processes began; 1: all are equally fast";
    JOB_PEAK_MEMORY: "retri_job_peak_memory_bytes" Gauge, "bytes", [TRAINING_JOB],
        "Largest resident memory of rank 0 on its host so far";
    JOB_PEAK_DEVICE_MEMORY: "retri_job_peak_device_memory_bytes" Gauge, "bytes", [TRAINING_JOB],
        "Largest memory of rank 0's tensors on its GPU so far; 0 on a CPU";
    JOB_SKIPPED_STEPS: "retri_job_skipped_steps" Gauge, "steps", [TRAINING_JOB],
        "Steps whose update was skipped because of a non-finite value";
    JOB_LOSS_SCALE: "retri_job_loss_scale" Gauge, "", [TRAINING_JOB],
        "Factor that scales the loss before the backward pass; 1 except in fp16";
    JOB_CUT_PROMPTS: "retri_job_cut_prompts" Gauge, "samples", [TRAINING_JOB],
        "Training samples whose prompt is longer than what the model reads";
    JOB_LOST_TAG_SAMPLES: "retri_job_lost_tag_samples" Gauge, "samples", [TRAINING_JOB, "tag"],
        "Training samples that lose the tag, because their prompt is too long; the most frequent \
        tags";
    JOB_ADAPTED_SAMPLES: "retri_job_adapted_samples" Gauge, "samples", [TRAINING_JOB, "how"],
        "Samples that the job uses otherwise than its data set has them: held-out, left-out, \
        enlarged, padded, repeated-references";
    JOB_UNITS: "retri_job_units" Gauge, "units", [TRAINING_JOB, "state"],
        "Units of the job by state: total, done, leased, failed, set-aside";
    JOB_UNITS_PER_SECOND: "retri_job_units_per_second" Gauge, "units/s", [TRAINING_JOB],
        "Units done per second over the last minute";
    JOB_EVALUATION_SCORE: "retri_job_evaluation_score" Gauge, "", [TRAINING_JOB, "score"],
        "Mean of each score over the images of the newest evaluation of a checkpoint; keep_best: \
        of that expression";
    JOB_EVALUATION_STEP: "retri_job_evaluation_step" Gauge, "steps", [TRAINING_JOB],
        "Step of the checkpoint that has these scores";
    JOBS: "retri_jobs" Gauge, "jobs", ["phase"], "Jobs in memory by phase";
    JOBS_WAITING: "retri_jobs_waiting" Gauge, "jobs", ["reason"], "Queued jobs by why they wait";
    CHECKPOINT_STEP: "retri_checkpoint_committed_step" Gauge, "steps", [TRAINING_JOB],
        "Step of the newest committed checkpoint";
    CHECKPOINT_TIMESTAMP: "retri_checkpoint_committed_timestamp_seconds" Gauge, "seconds",
        [TRAINING_JOB], "When the newest checkpoint was committed, as Unix time";
    CHECKPOINT_INTERVAL: "retri_checkpoint_interval_steps" Gauge, "steps", [TRAINING_JOB],
        "Steps between checkpoints, as the job asks (checkpoint.every)";
    CHECKPOINT_BYTES: "retri_checkpoint_bytes" Gauge, "bytes", [TRAINING_JOB],
        "Size of the shards of the newest checkpoint since the coordinator started";
    CHECKPOINT_COMMIT_SECONDS: "retri_checkpoint_commit_seconds" Histogram(REQUEST_SECONDS),
        "seconds", [], "Time to write a manifest, which commits a checkpoint";
    CHECKPOINT_FAILURES: "retri_checkpoint_commit_failures_total" Counter, "", [],
        "Manifests that could not be written at once; they are tried again";
    WORKER_UP: "retri_worker_up" Gauge, "", ["worker"], "1 while the worker's lease is valid";
    WORKER_DRAINED: "retri_worker_drained" Gauge, "", ["worker"],
        "1 while the worker is drained: it gets no new work";
    WORKER_DEVICES: "retri_worker_devices" Gauge, "devices", ["worker", "state"],
        "Devices of the worker by state: used, free";
    STORE_REQUESTS: "retri_store_requests_total" Counter, "", ["operation", "outcome"],
        "Requests of the coordinator to the object store by outcome: ok, refused (a condition of a \
        put or get did not hold, there is no such object, or the store cannot do this), error";
    STORE_REQUEST_SECONDS: "retri_store_request_seconds" Histogram(REQUEST_SECONDS), "seconds",
        ["operation"], "Time of requests to the object store until their answer begins";
    RPC_REQUESTS: "retri_rpc_requests_total" Counter, "", ["method", "code"],
        "Answered requests by gRPC method and status code";
    RPC_REQUEST_SECONDS: "retri_rpc_request_seconds" Histogram(REQUEST_SECONDS), "seconds",
        ["method"], "Time of requests until their answer begins";
    LOOP_LAG_SECONDS: "retri_loop_lag_seconds" Histogram(REQUEST_SECONDS), "seconds", [],
        "How long an input waited for the coordinator's loop";
    LOOP_INPUT_SECONDS: "retri_loop_input_seconds" Histogram(REQUEST_SECONDS), "seconds", [],
        "How long the coordinator's loop took for an input, saves included";
    EVENTS: "retri_events_total" Counter, "", ["kind"],
        "Events of jobs and workers since the coordinator started";
    NOTIFICATIONS: "retri_notifications_total" Counter, "", ["outcome"],
        "Notifications by outcome: sent, retried, dropped";
    START: "retri_coordinator_start_timestamp_seconds" Gauge, "seconds", [],
        "When the coordinator started, as Unix time";
    BUILD_INFO: "retri_coordinator_build_info" Gauge, "", ["version", "commit"],
        "Always 1; the labels name the release";
}
