//! Selects the rank's device. Fails with a clear error if this libtorch has no code for it, or if
//! it does not support the job's precision.

use crate::collective::device::{Gpu, gpus, library_architectures, supports};
use anyhow::{Context, bail};
use proto::spec::{DeviceKind, Precision};
use tch::Device;

/// The node's device with this index.
pub(crate) fn choose(kind: DeviceKind, index: u32, precision: Precision) -> anyhow::Result<Device> {
    if kind == DeviceKind::Cuda {
        let found = gpus()?;
        let library = library_architectures();
        check(&found, &library, index, precision)?;
    }
    Ok(model::device::device(kind, index))
}

fn check(
    found: &[Gpu],
    library: &[String],
    index: u32,
    precision: Precision,
) -> anyhow::Result<()> {
    if library.is_empty() {
        bail!("a GPU is required, but this worker-rank was built without CUDA; build with CUDA=1");
    }
    let gpu = found
        .iter()
        .find(|gpu| gpu.index == index)
        .with_context(|| format!("GPU {index} is required, but {} were found", found.len()))?;
    if !supports(library, &gpu.architecture) {
        bail!(
            "GPU {index} ({}) is {}, but this libtorch has code for {}; use one built for it",
            gpu.name,
            gpu.architecture,
            library.join(" ")
        );
    }
    if precision == Precision::Bf16 && !has_bf16(&gpu.architecture) {
        bail!(
            "train.precision is bf16, which GPU {index} ({}, {}) does not support (sm_80 and newer \
            do); use fp16 or fp32",
            gpu.name,
            gpu.architecture
        );
    }
    Ok(())
}

/// Older GPUs emulate bf16, which is slower than fp32.
fn has_bf16(architecture: &str) -> bool {
    let version = architecture.trim_start_matches("sm_").trim_end_matches('a');
    version.parse::<u32>().is_ok_and(|version| version >= 80)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_gpu_that_is_missing_or_too_old_or_without_code_is_named() {
        let v100 = Gpu {
            index: 0,
            name: "Tesla V100".into(),
            architecture: "sm_70".into(),
        };
        let new = ["sm_75".to_owned(), "sm_80".to_owned()];
        let error = check(std::slice::from_ref(&v100), &new, 0, Precision::Fp32)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("Tesla V100")
                && error.contains("sm_70")
                && error.contains("sm_75 sm_80"),
            "{error}"
        );
        let old = ["sm_70".to_owned()];
        check(std::slice::from_ref(&v100), &old, 0, Precision::Fp16).unwrap();
        let error = check(&[v100], &old, 0, Precision::Bf16)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with(
                "train.precision is bf16, which GPU 0 (Tesla V100, sm_70) does not support"
            ),
            "{error}"
        );
        let error = check(&[], &new, 2, Precision::Fp32)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("GPU 2") && error.contains("0 were found"),
            "{error}"
        );
        let error = check(&[], &[], 0, Precision::Fp32).unwrap_err().to_string();
        assert!(error.contains("CUDA=1"), "{error}");
        assert_eq!(
            choose(DeviceKind::Cpu, 3, Precision::Bf16).unwrap(),
            Device::Cpu
        );
    }
}
