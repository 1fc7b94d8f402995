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
    GPU_INFO: "retri_worker_gpu_info" Gauge, "", ["gpu", "name", "uuid"],
        "Always 1; the labels describe the GPU. All figures of GPUs are absent without NVML";
    GPU_SICK: "retri_worker_gpu_sick" Gauge, "", ["gpu"],
        "1 if the GPU has errors of its hardware: uncorrected ECC errors, or a fatal Xid";
    GPU_UTILIZATION: "retri_worker_gpu_utilization_ratio" Gauge, "ratio", ["gpu"],
        "Part of the time in which a kernel ran on the GPU";
    GPU_MEMORY: "retri_worker_gpu_memory_bytes" Gauge, "bytes", ["gpu", "state"],
        "Memory of the GPU by state: used (by all processes), total";
    GPU_TEMPERATURE: "retri_worker_gpu_temperature_celsius" Gauge, "celsius", ["gpu"],
        "Temperature of the GPU";
    GPU_POWER: "retri_worker_gpu_power_watts" Gauge, "watts", ["gpu"],
        "Power that the GPU draws";
    GPU_CLOCK: "retri_worker_gpu_clock_hertz" Gauge, "hertz", ["gpu", "clock"],
        "Clocks of the GPU: sm, memory";
    GPU_THROTTLED: "retri_worker_gpu_throttled" Gauge, "", ["gpu", "reason"],
        "1 while the GPU runs slower than it could for this reason: power-cap, thermal-software, \
        thermal-hardware, power-brake, hardware-slowdown";
    GPU_ECC_ERRORS: "retri_worker_gpu_ecc_errors_total" Counter, "", ["gpu", "kind"],
        "Memory errors since the GPU's last reset: corrected, uncorrected";
    GPU_XIDS: "retri_worker_gpu_xid_errors_total" Counter, "", ["gpu"],
        "Errors (Xid) that the GPU's driver has reported since the daemon started";
    GPU_XID: "retri_worker_gpu_newest_xid" Gauge, "", ["gpu"],
        "Code of the newest error (Xid) that the GPU's driver has reported";
}
