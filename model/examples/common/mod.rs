//! What the examples of this folder that are compared with PyTorch have in common.

use model::trainer::Trainer;
use model::weights::NamedTensors;
use std::io::Write;
use tch::{Device, Kind, Tensor};

pub(crate) fn print_json(value: &serde_json::Value) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    out.flush()
}

/// Replaces zero-initialized matrices, which would hide errors in the layers before them.
pub(crate) fn replace_zeros(trainer: &Trainer) {
    let files = trainer.export();
    let zeros = files
        .values()
        .flat_map(NamedTensors::values)
        .filter(|tensor| tensor.dim() > 1 && tensor.count_nonzero(None).int64_value(&[]) == 0);
    for tensor in zeros {
        let count = tensor.numel() as i64;
        let values = (Tensor::arange(count, (Kind::Float, Device::Cpu)) * 0.7).sin() * 0.02;
        tensor
            .shallow_clone()
            .copy_(&values.view(tensor.size().as_slice()));
    }
}

/// Patches of colour.
pub(crate) fn image(side: u32, seed: u32) -> image::RgbImage {
    image::RgbImage::from_fn(side, side, |x, y| {
        let mut bits = (x / 4).wrapping_mul(73_856_093)
            ^ (y / 4).wrapping_mul(19_349_663)
            ^ seed.wrapping_mul(83_492_791);
        bits = (bits ^ (bits >> 13)).wrapping_mul(0x5bd1_e995);
        image::Rgb([(bits >> 16) as u8, (bits >> 8) as u8, bits as u8])
    })
}

/// CPU time of this process over all threads, in seconds; the kernel counts hundredths.
pub(crate) fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace();
    let ticks: f64 = fields
        .skip(11)
        .take(2)
        .filter_map(|it| it.parse::<f64>().ok())
        .sum();
    ticks / 100.0
}

/// A memory field of /proc/self/status, in bytes; 0 if the kernel does not report it.
pub(crate) fn memory(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kibibytes = status.lines().find_map(|it| {
        it.strip_prefix(field)?
            .trim()
            .strip_suffix("kB")?
            .trim()
            .parse::<u64>()
            .ok()
    });
    kibibytes.unwrap_or_default() * 1024
}
