//! Which libtorch device a rank works on. Never looks at what the machine has: the rank's doctor does.

use proto::spec::DeviceKind;
use tch::Device;

/// The device of a rank: `index` counts the devices of its worker from 0 and means nothing on a CPU.
#[must_use]
pub fn device(kind: DeviceKind, index: u32) -> Device {
    match kind {
        DeviceKind::Cpu => Device::Cpu,
        DeviceKind::Cuda => Device::Cuda(index as usize),
    }
}
