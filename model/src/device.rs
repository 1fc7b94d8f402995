//! Which libtorch device a rank works on, and in which dtype. Never looks at what the machine has:
//! the rank's doctor does.

use proto::spec::{DeviceKind, Precision};
use tch::{Device, Kind};

/// The device of a rank: `index` counts the devices of its worker from 0 and means nothing on a
/// CPU.
#[must_use]
pub fn device(kind: DeviceKind, index: u32) -> Device {
    match kind {
        DeviceKind::Cpu => Device::Cpu,
        DeviceKind::Cuda => Device::Cuda(index as usize),
    }
}

/// What convolutions, matrix products and attention compute in.
#[must_use]
pub fn dtype(precision: Precision) -> Kind {
    match precision {
        Precision::Fp32 => Kind::Float,
        Precision::Fp16 => Kind::Half,
        Precision::Bf16 => Kind::BFloat16,
    }
}
