//! `worker-rank gpu-check`: checks that need a GPU. Compares GPU results with the CPU, runs NCCL,
//! and times a step in each precision. Needs no coordinator, daemon, data set or network. With
//! `--device cpu` it tests itself: it compares the CPU with itself and skips NCCL.

use crate::collective::device::{gpus, library_architectures, libtorch_version};
use crate::collective::precision::full_fp32;
use crate::collective::{Group, Membership, Store};
use crate::device;
use anyhow::{Context, ensure};
use image::{GrayImage, Luma, Rgb, RgbImage};
use model::init::InitWeights;
use model::trainer::Trainer;
use model::weights::{self, Storage};
use model_data::example::{Concept, Example, Reference};
use proto::id::Generation;
use proto::spec::{DeviceKind, Precision, TrainWork};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// Largest accepted relative difference between CPU and GPU, which sum fp32 in different orders.
const LOSS_TOLERANCE: f64 = 1e-4;
const GRADIENT_TOLERANCE: f64 = 1e-3;

const SIZES: [(&str, u32); 2] = [("tiny", 32), ("small", 64)];
const MICRO_BATCH: u32 = 16;
const WARM_UP: u32 = 3;
const TIMED: u32 = 20;
const NCCL_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(long, default_value = "cuda")]
    device: String,
}

/// Prints one line per result. Returns an error if a check fails.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let kind = if options.device == DeviceKind::Cpu.name() {
        DeviceKind::Cpu
    } else {
        DeviceKind::Cuda
    };
    print_line(&format!(
        "libtorch {} for {}",
        libtorch_version(),
        library_architectures().join(" ")
    ))?;
    for gpu in gpus()? {
        print_line(&format!(
            "GPU {}: {}, {}",
            gpu.index, gpu.name, gpu.architecture
        ))?;
    }
    let device = device::choose(kind, 0, Precision::Fp32)?;
    full_fp32();
    for (size, resolution) in SIZES {
        agreement(size, resolution, device)?;
    }
    if device.is_cuda() {
        nccl(device)?;
    }
    let timed = if device.is_cuda() { TIMED } else { 1 };
    for precision in [
        ("fp32", Precision::Fp32),
        ("fp16", Precision::Fp16),
        ("bf16", Precision::Bf16),
    ] {
        step_time(precision, device, timed)?;
    }
    print_line("gpu-check ok")
}

fn print_line(line: &str) -> anyhow::Result<()> {
    shell::outln!("{line}");
    Ok(())
}

fn spec(size: &str, resolution: u32) -> anyhow::Result<TrainWork> {
    let text = format!(
        "name = \"gpu-check\"\n\
         [data]\ndataset = \"file:///none\"\nresolution = {resolution}\nreferences = 2\n\
         [model]\narchitecture = \"retrinet\"\nsize = \"{size}\"\n\
         [train]\nsteps = 1000\nglobal_batch = {MICRO_BATCH}\nmicro_batch = {MICRO_BATCH}\n"
    );
    Ok(proto::job::parse_training("the check's own job", &text)?)
}

/// Checks that both devices compute the same loss and gradients from the same weights and inputs.
fn agreement(size: &str, resolution: u32, device: Device) -> anyhow::Result<()> {
    let spec = spec(size, resolution)?;
    let examples = examples(2, resolution);
    let mut cpu = Trainer::new(&spec, None, Device::Cpu)?;
    // Zero-initialized convolutions hide the retrieval encoder. After two updates every gradient is
    // nonzero.
    for step in 1..=2 {
        backward(&mut cpu, &examples)?;
        cpu.update(step)?;
    }
    let mut other = copy(&cpu, &spec, device)?;
    let expected = backward(&mut cpu, &examples)?;
    let found = backward(&mut other, &examples)?;
    let loss = relative(expected, found);
    let (mut worst, mut worst_name) = (0.0f64, "");
    for ((name, a), (_, b)) in cpu.parameters().iter().zip(other.parameters()) {
        let (a, b) = (a.grad(), b.grad().to_device(Device::Cpu));
        let norm = a.norm().double_value(&[]);
        let difference = (&a - &b).norm().double_value(&[]) / norm.max(1e-6);
        if difference.is_nan() || difference > worst {
            (worst, worst_name) = (difference, name);
        }
    }
    print_line(&format!(
        "agreement {size}: loss differs by {loss:.1e}, gradients by at most {worst:.1e} \
        ({worst_name})"
    ))?;
    ensure!(
        loss <= LOSS_TOLERANCE,
        "{size}: loss {expected} on the CPU, {found} on the device"
    );
    ensure!(
        worst <= GRADIENT_TOLERANCE,
        "{size}: gradient of {worst_name} differs by {worst:.1e}"
    );
    Ok(())
}

fn relative(a: f64, b: f64) -> f64 {
    (a - b).abs() / a.abs().max(1e-12)
}

/// Zeroes gradients, runs forward and backward, and returns the loss.
fn backward(trainer: &mut Trainer, examples: &[Example]) -> anyhow::Result<f64> {
    trainer.zero_gradients();
    let loss = trainer.forward(examples, u32::try_from(examples.len())?)?;
    loss.loss.f_backward()?;
    Ok(loss.total)
}

/// Copies the model to another device. As in a rank, base weights are read from files and the rest
/// is loaded like a checkpoint.
fn copy(from: &Trainer, spec: &TrainWork, device: Device) -> anyhow::Result<Trainer> {
    let folder = std::env::temp_dir().join(format!("gpu-check-{}", std::process::id()));
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    let files = from.export();
    let mut init = InitWeights::new();
    for component in ["autoencoder", "text_encoder", "unet"] {
        let path = folder.join(format!("{component}.safetensors"));
        let tensors = files
            .get(component)
            .with_context(|| format!("the model has no {component}"))?;
        weights::write(&path, tensors, Storage::Float32)?;
        init.insert(component.to_owned(), path);
    }
    let mut copy = Trainer::new(spec, Some(&init), device)?;
    copy.load_state(&from.state().into_iter().collect(), from.step())?;
    std::fs::remove_dir_all(&folder)
        .with_context(|| format!("cannot remove {}", folder.display()))?;
    Ok(copy)
}

/// Runs NCCL with a single rank.
fn nccl(device: Device) -> anyhow::Result<()> {
    let store = Store::serve("127.0.0.1", NCCL_TIMEOUT)?;
    let membership = Membership {
        job: "gpu-check".into(),
        generation: Generation(1),
        rank: 0,
        world: 1,
        host: "127.0.0.1".into(),
        interface: None,
        device,
        timeout: NCCL_TIMEOUT,
    };
    let group = Group::join(store, membership)?;
    let values = Tensor::arange(1 << 20, (Kind::Float, device));
    let expected = values.copy();
    let start = Instant::now();
    group.all_reduce(&values, "all-reduce of 4 MiB over NCCL")?;
    ensure!(
        values.equal(&expected),
        "a sum over one rank changed the values"
    );
    print_line(&format!(
        "nccl: one rank reduced 4 MiB in {:.3} s",
        start.elapsed().as_secs_f64()
    ))
}

/// Times forward, backward and update of the small RetriNet.
fn step_time(
    (name, precision): (&str, Precision),
    device: Device,
    timed: u32,
) -> anyhow::Result<()> {
    let (size, resolution) = SIZES[SIZES.len() - 1];
    let mut spec = spec(size, resolution)?;
    spec.train.precision = precision;
    let mut trainer = Trainer::new(&spec, None, device)?;
    let examples = examples(MICRO_BATCH, resolution);
    let warm_up = WARM_UP.min(timed);
    let mut start = Instant::now();
    for step in 0..warm_up + timed {
        if step == warm_up {
            start = Instant::now();
        }
        let loss = backward(&mut trainer, &examples)?;
        ensure!(loss.is_finite(), "{name}: the loss is {loss}");
        // Reading the gradient norm synchronizes with the device.
        trainer
            .update(u64::from(step) + 1)
            .with_context(|| name.to_owned())?;
    }
    let seconds = start.elapsed().as_secs_f64() / f64::from(timed);
    let rate = f64::from(MICRO_BATCH) / seconds;
    print_line(&format!(
        "step {size} {name}: {seconds:.4} s, {rate:.0} samples/s at micro-batch {MICRO_BATCH}"
    ))
}

/// Deterministic images of coloured noise.
fn examples(count: u32, resolution: u32) -> Vec<Example> {
    (0..count)
        .map(|n| {
            let reference = |slot: u32, concept| Reference {
                image: image(resolution, n * 3 + slot),
                concept,
                position: u64::from(n),
            };
            Example {
                position: u64::from(n),
                target: image(resolution, n * 3),
                target_mask: GrayImage::from_pixel(resolution, resolution, Luma([255])),
                face_mask: GrayImage::from_fn(resolution, resolution, |x, y| {
                    Luma([if x.max(y) < resolution / 3 { 255 } else { 0 }])
                }),
                references: vec![reference(1, Concept::Face), reference(2, Concept::Clothes)],
                references_dropped: false,
                prompt: "1girl, blue_hair, smile".into(),
                timestep: 40 + 60 * (n % 16),
                noise_seed: u64::from(n) + 1,
            }
        })
        .collect()
}

fn image(side: u32, seed: u32) -> RgbImage {
    RgbImage::from_fn(side, side, |x, y| {
        let mut bits = (x / 4).wrapping_mul(73_856_093)
            ^ (y / 4).wrapping_mul(19_349_663)
            ^ seed.wrapping_mul(83_492_791);
        bits = (bits ^ (bits >> 13)).wrapping_mul(0x5bd1_e995);
        Rgb([(bits >> 16) as u8, (bits >> 8) as u8, bits as u8])
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_cpu_agrees_with_itself() {
        agreement("tiny", 32, Device::Cpu).unwrap();
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_cpu_build_says_that_it_cannot() {
        let error = run(&Options {
            device: "cuda".into(),
        })
        .unwrap_err()
        .to_string();
        assert!(error.contains("built without CUDA"), "{error}");
    }
}
