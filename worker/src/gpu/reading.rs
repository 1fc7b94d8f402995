//! One reading of a GPU. What the GPU or its driver does not support is None.

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

/// The clocks that are read, as a label.
pub(crate) const CLOCKS: [&str; 2] = ["sm", "memory"];
/// Why a GPU runs slower than it could, as a label. That it is idle is no reason.
pub(crate) const THROTTLES: [&str; 5] = [
    "power-cap",
    "thermal-software",
    "thermal-hardware",
    "power-brake",
    "hardware-slowdown",
];
const THROTTLE_BITS: [ThrottleReasons; 5] = [
    ThrottleReasons::SW_POWER_CAP,
    ThrottleReasons::SW_THERMAL_SLOWDOWN,
    ThrottleReasons::HW_THERMAL_SLOWDOWN,
    ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN,
    ThrottleReasons::HW_SLOWDOWN,
];

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Reading {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) uuid: String,
    /// It does not answer any more.
    pub(crate) lost: bool,
    /// Of the time since the last reading, when a kernel ran.
    pub(crate) utilization: Option<f64>,
    pub(crate) memory_used: Option<u64>,
    pub(crate) memory_total: Option<u64>,
    /// In degrees Celsius.
    pub(crate) temperature: Option<f64>,
    pub(crate) power_watts: Option<f64>,
    /// As [`CLOCKS`].
    pub(crate) clocks_hz: [Option<f64>; 2],
    /// ECC errors since its last reset.
    pub(crate) corrected: Option<u64>,
    pub(crate) uncorrected: Option<u64>,
    /// As [`THROTTLES`].
    pub(crate) throttles: Option<[bool; 5]>,
    /// Errors that its driver has reported since the daemon started, and the newest one's code.
    pub(crate) xids: u64,
    pub(crate) newest_xid: Option<u64>,
    pub(crate) sick: bool,
}

/// All GPUs of the node, in NVML's order.
pub(super) fn all(nvml: &Nvml) -> Vec<Reading> {
    let count = nvml.device_count().unwrap_or(0);
    let one = |index| match nvml.device_by_index(index) {
        Ok(device) => of(index, &device),
        Err(error) => Reading {
            index,
            lost: is_lost(&error),
            ..Reading::default()
        },
    };
    (0..count).map(one).collect()
}

fn is_lost(error: &NvmlError) -> bool {
    matches!(error, NvmlError::GpuLost)
}

fn of(index: u32, device: &Device<'_>) -> Reading {
    let ecc = |kind| device.total_ecc_errors(kind, EccCounter::Volatile).ok();
    let clock = |clock| Some(f64::from(device.clock_info(clock).ok()?) * 1e6);
    let memory = device.memory_info().ok();
    let temperature = device.temperature(TemperatureSensor::Gpu);
    let throttles = device.current_throttle_reasons().ok();
    Reading {
        index,
        name: device.name().unwrap_or_default(),
        uuid: device.uuid().unwrap_or_default(),
        lost: temperature.as_ref().is_err_and(is_lost),
        utilization: device
            .utilization_rates()
            .ok()
            .map(|it| f64::from(it.gpu) / 100.0),
        memory_used: memory.as_ref().map(|it| it.used),
        memory_total: memory.as_ref().map(|it| it.total),
        temperature: temperature.ok().map(f64::from),
        power_watts: device.power_usage().ok().map(|it| f64::from(it) / 1000.0),
        clocks_hz: [clock(Clock::SM), clock(Clock::Memory)],
        corrected: ecc(MemoryError::Corrected),
        uncorrected: ecc(MemoryError::Uncorrected),
        throttles: throttles.map(|reasons| THROTTLE_BITS.map(|bit| reasons.contains(bit))),
        ..Reading::default()
    }
}
