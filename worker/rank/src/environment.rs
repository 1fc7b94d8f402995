//! The environment description for manifests, and the peak memory use. Reads only.

use crate::collective::device::libtorch_version;
use proto::spec::{DeviceKind, TrainWork};

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
