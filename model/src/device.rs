//! The libtorch device and dtype that a rank computes with. Does not probe the hardware; the rank's
//! doctor does that.

use proto::spec::{DeviceKind, Precision};
use tch::{Device, Kind};

/// The device of a rank. `index` counts the devices of its worker from 0 and is ignored on a CPU.
#[must_use]
pub fn device(kind: DeviceKind, index: u32) -> Device {
    match kind {
        DeviceKind::Cpu => Device::Cpu,
        DeviceKind::Cuda => Device::Cuda(index as usize),
    }
}

/// The dtype of convolutions, matrix products and attention.
#[must_use]
pub fn dtype(precision: Precision) -> Kind {
    match precision {
        Precision::Fp32 => Kind::Float,
        Precision::Fp16 => Kind::Half,
        Precision::Bf16 => Kind::BFloat16,
    }
}
