//! What `worker daemon` serves on `/metrics`.

use super::Kind::{Counter, Gauge};
use super::{Metric, TRAINING_JOB, table};

table! {
    CONNECTED: "retri_worker_connected" Gauge, "", [],
        "1 while the stream to the coordinator is open";
    CAPACITY: "retri_worker_capacity" Gauge, "ranks", [],
        "Number of ranks that this worker can run at once";
    DEVICES_USED: "retri_worker_devices_used" Gauge, "devices", [],
        "Devices that hold a rank process";
    RANK_UP: "retri_worker_rank_up" Gauge, "", [TRAINING_JOB, "rank"],
        "1 while the rank is joining or training, else 0";
    RANK_GENERATION: "retri_worker_rank_generation" Gauge, "", [TRAINING_JOB, "rank"],
        "The rank's generation";
    RANK_STEP: "retri_worker_rank_step" Gauge, "steps", [TRAINING_JOB, "rank"],
        "Last step that the rank has finished";
    RANK_STEPS: "retri_worker_rank_steps_total" Counter, "steps", [TRAINING_JOB, "rank"],
        "Steps that the rank's process has finished";
    RANK_PHASE_SECONDS: "retri_worker_rank_phase_seconds_total" Counter, "seconds",
        [TRAINING_JOB, "rank", "phase"],
        "Wall time of all steps of the rank's process by phase; communication: waiting for the \
        gradients of others, their transfer included";
    RANK_STARTS: "retri_worker_rank_starts_total" Counter, "", [TRAINING_JOB],
        "Rank processes started, of the newest jobs on this worker";
    RANK_FAILURES: "retri_worker_rank_failures_total" Counter, "", [TRAINING_JOB],
        "Rank processes that exited with a failure, of the newest jobs on this worker";
}
