//! Switches of libtorch's arithmetic that `tch` does not reach. Called where a process begins to compute.

use super::ffi;
use tch::Device;

/// What convolutions and matrix products compute in; everything else stays fp32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precision {
    Fp32,
    Fp16,
    Bf16,
}

impl Precision {
    pub(crate) const ALL: [Self; 3] = [Self::Fp32, Self::Fp16, Self::Bf16];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
        }
    }

    /// Holds for this thread until the next call; weights change between steps, so call it once per step.
    pub(crate) fn apply(self, device: Device) {
        let precision = match self {
            Self::Fp32 => 0,
            Self::Fp16 => 1,
            Self::Bf16 => 2,
        };
        // SAFETY: sets thread-local flags; takes any numbers.
        unsafe { ffi::retri_autocast(device.is_cuda().into(), precision) }
    }
}

/// Makes a GPU compute fp32 as fp32, so that it can be compared with a CPU.
pub(crate) fn full_fp32() {
    // SAFETY: sets two flags of libtorch's global context.
    unsafe { ffi::retri_full_fp32() }
}
