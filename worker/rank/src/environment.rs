//! The environment of this rank, for the rendezvous and for manifests, and its peak memory use.
//! Reads only.

use crate::collective::device::{gpus, libtorch_version, numerics};
use proto::environment::RankEnvironment;
use proto::spec::{DeviceKind, TrainWork};

/// Our release and the commit that it was built from.
const RELEASE: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (commit ",
    env!("RETRI_COMMIT"),
    ")"
);

/// Variables by which libraries are told to round differently.
const ROUNDING_VARIABLES: [&str; 8] = [
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "CUBLAS_WORKSPACE_CONFIG",
    "MKL_CBWR",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
];

/// The environment of a rank on the node's device with this index. `address`: the worker's.
pub(crate) fn of_rank(device: DeviceKind, index: u32, address: &str) -> RankEnvironment {
    let (model, driver) = match device {
        DeviceKind::Cpu => (cpu_model(&read("/proc/cpuinfo")), String::new()),
        DeviceKind::Cuda => (
            gpu_model(index),
            driver(&read("/proc/driver/nvidia/version")),
        ),
    };
    let set = ROUNDING_VARIABLES.into_iter().filter_map(|name| {
        let value = std::env::var_os(name)?;
        Some(format!(", {name}={}", value.to_string_lossy()))
    });
    RankEnvironment {
        host: host_name(),
        address: address.to_owned(),
        release: RELEASE.to_owned(),
        libtorch: libtorch_version(),
        device: model,
        numerics: std::iter::once(numerics()).chain(set).collect(),
        driver,
    }
}

/// The kernel's name of this machine.
pub(crate) fn host_name() -> String {
    read("/proc/sys/kernel/hostname").trim().to_owned()
}

fn read(file: &str) -> String {
    std::fs::read_to_string(file).unwrap_or_default()
}

fn gpu_model(index: u32) -> String {
    let found = gpus().unwrap_or_default().into_iter();
    let gpu = found.into_iter().find(|gpu| gpu.index == index);
    gpu.map_or_else(
        || "unknown GPU".to_owned(),
        |gpu| format!("{} ({})", gpu.name, gpu.architecture),
    )
}

/// The first CPU's model name, or the architecture where the kernel tells none.
fn cpu_model(cpuinfo: &str) -> String {
    let model = cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_owned())
    });
    let architecture = std::env::consts::ARCH;
    match model {
        Some(model) => format!("{model} ({architecture})"),
        None => format!("unknown CPU ({architecture})"),
    }
}

/// The driver's version: the first word of its line that is made of numbers and dots.
fn driver(version_file: &str) -> String {
    let is_version =
        |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    let line = version_file.lines().next().unwrap_or_default();
    line.split_whitespace()
        .find(is_version)
        .unwrap_or_default()
        .to_owned()
}

/// "libtorch 2.10.0, cpu, 1 thread": results are bit-identical only where these agree.
pub(crate) fn describe(spec: &TrainWork, device: DeviceKind) -> String {
    let threads = spec.train.threads;
    let plural = if threads == 1 { "" } else { "s" };
    let device = match device {
        DeviceKind::Cpu => "cpu",
        DeviceKind::Cuda => "cuda",
    };
    format!(
        "libtorch {}, {device}, {threads} thread{plural}",
        libtorch_version()
    )
}

/// Peak resident set size in bytes, which is memory of the host; 0 if unknown.
pub(crate) fn peak_memory_bytes() -> u64 {
    std::fs::read_to_string("/proc/self/status").map_or(0, |text| high_water_mark(&text))
}

fn high_water_mark(status: &str) -> u64 {
    let kibibytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|number| number.trim().parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::precision::full_fp32;

    #[test]
    fn a_rank_knows_its_machine_and_libraries() {
        // As `run` does before anything else.
        full_fp32();
        let found = of_rank(DeviceKind::Cpu, 0, "10.0.0.1");
        assert_eq!(found.address, "10.0.0.1");
        assert_eq!(found.libtorch, libtorch_version());
        assert!(found.release.contains(" (commit "), "{found:?}");
        assert!(found.numerics.ends_with("TF32 off"), "{found:?}");
        assert!(!found.host.is_empty() && found.driver.is_empty());
        assert!(
            found
                .device
                .ends_with(&format!("({})", std::env::consts::ARCH))
        );
    }

    #[test]
    fn models_and_drivers_are_read_from_the_kernels_files() {
        let cpuinfo = "processor\t: 0\nmodel name\t: AMD EPYC 9554 64-Core\nmodel name\t: other\n";
        assert!(cpu_model(cpuinfo).starts_with("AMD EPYC 9554 64-Core ("));
        assert!(cpu_model("").starts_with("unknown CPU ("));
        let version = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\nGCC \
            version: gcc 12.2.0\n";
        assert_eq!(driver(version), "550.54.15");
        assert_eq!(driver(""), "");
    }

    #[test]
    fn the_high_water_mark_is_read_in_bytes() {
        assert_eq!(
            high_water_mark("Name:\tx\nVmHWM:\t  123 kB\nVmRSS:\t 7 kB\n"),
            123 * 1024
        );
        assert_eq!(high_water_mark("Name:\tx\n"), 0);
        assert!(peak_memory_bytes() > 1 << 20);
    }
}
