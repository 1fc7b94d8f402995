//! Real processes on loopback: a job with a moving average of its weights is sampled and exported
//! with that average, unless the trained weights are requested.

use anyhow::{Context, Result};
use serde_json::Value;
use std::path::Path;
use tests::cluster::job::with_figures;

/// The bytes of one tensor of a safetensors file.
fn tensor(file: &Path, name: &str) -> Result<Vec<u8>> {
    let bytes = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    let (length, rest) = bytes.split_first_chunk::<8>().context("a header")?;
    let (header, data) = rest.split_at(usize::try_from(u64::from_le_bytes(*length))?);
    let header: Value = serde_json::from_slice(header)?;
    let range = &header[name]["data_offsets"];
    let end = |at: usize| {
        let number = range[at].as_u64();
        let number = number.with_context(|| format!("{name} is not in {header}"))?;
        anyhow::Ok(usize::try_from(number)?)
    };
    Ok(data[end(0)?..end(1)?].to_vec())
}

#[test]
fn an_averaged_job_is_drawn_and_exported_with_its_average() -> Result<()> {
    let (cluster, dataset) = with_figures(1)?;
    let folder = cluster.directory();
    let id = cluster.submit(&format!(
        "name = \"averaged\"\n\
         [resources]\nworkers = {{ min = 1, max = 1 }}\n\
         [data]\ndataset = \"{dataset}\"\nresolution = 32\nholdout = 0.25\n\
         [model]\narchitecture = \"text-to-image\"\nsize = \"tiny\"\n\
         [train]\nsteps = 6\nglobal_batch = 4\nmicro_batch = 2\nlearning_rate = 0.01\nema = 0.5\n\
         [checkpoint]\nevery = 6\n"
    ))?;
    cluster.wait_done(&id)?;
    let shard = format!("store/jobs/{id}/checkpoints/0000000006-g1/rank-0-of-1.safetensors");
    let saved = |kind: &str| tensor(&folder.join(&shard), &format!("{kind}/unet.out.2.weight"));
    assert_ne!(saved("ema")?, saved("weights")?);
    for (flag, kind, words) in [
        (None, "ema", "moving average"),
        (Some("--as-trained"), "weights", "as trained"),
    ] {
        let out = folder.join(kind);
        let to = out.display().to_string();
        let mut arguments = vec!["checkpoint", "export", &id, "--out", &to];
        arguments.extend(flag);
        let origin = cluster.json(&arguments)?;
        assert_eq!(origin["weights"], words, "{origin}");
        let exported = tensor(
            &out.join("unet/diffusion_pytorch_model.safetensors"),
            "conv_out.weight",
        )?;
        assert!(exported == saved(kind)?, "{words}");
    }
    let out = folder.join("images");
    let to = out.display().to_string();
    cluster.ok(&[
        "sample", &id, "--count", "1", "--steps", "1", "--seed", "3", "--out", &to,
    ])?;
    let sidecar: Value = serde_json::from_slice(&std::fs::read(out.join("000.json"))?)?;
    assert_eq!(
        sidecar["checkpoint"]["weights"], "moving average",
        "{sidecar}"
    );
    cluster.stop()
}
