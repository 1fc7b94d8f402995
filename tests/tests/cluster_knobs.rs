//! Real processes on loopback: images of two of the paper's peers with the settings that only they
//! have, and what is refused of them before anything runs.

use anyhow::{Context, Result};
use serde_json::Value;
use std::path::Path;
use tests::cluster::Cluster;
use tests::cluster::job::{TinyJob, with_figures};

#[test]
fn images_follow_the_knobs_of_their_architecture_and_others_are_refused() -> Result<()> {
    let (cluster, dataset) = with_figures(1)?;
    let base = base_model(&cluster, &dataset)?;
    let id = train(&cluster, &dataset, "controlnet", Some(&base))?;
    let sample = |name: &str, options: &[&str]| -> Result<Vec<u8>> {
        let out = cluster.directory().join(name);
        let folder = out.display().to_string();
        let fixed = [
            "sample", &id, "--count", "1", "--steps", "2", "--out", &folder,
        ];
        cluster.ok(&[&fixed[..], options].concat())?;
        let described = std::fs::read(out.join("images.json"))?;
        let described: Value = serde_json::from_slice(&described)?;
        assert!(described.to_string().contains("000.png"), "{described}");
        Ok(std::fs::read(out.join("000.png"))?)
    };
    // 1. the same knobs give the same image, others another one
    let plain = sample("plain", &[])?;
    let faint = sample("faint", &["--knob", "control_scales=[0.0]"])?;
    assert_ne!(plain, faint, "the hint has no effect");
    let whole = [
        "--knob",
        "control_scales=[1.0]",
        "--knob",
        "guess_mode=false",
    ];
    assert_eq!(sample("whole", &whole)?, plain, "these are the defaults");
    let guessed = sample("guessed", &["--knob", "guess_mode=true"])?;
    assert!(guessed != plain && guessed != faint);
    // 2. what is no knob of a controlnet, or a wrong value of one, is refused by name
    let out = cluster.directory().join("none").display().to_string();
    for (knob, expected) in [
        ("image_scale=0.5", "knobs.image_scale"),
        ("image_scale=0.5", "it has control_scales, guess_mode"),
        ("control_scales=[1, 2]", "has 2 scales; this U-Net has"),
        ("control_scales=\"a\"", "--knob: "),
        ("scale=1", "unknown field `scale`"),
    ] {
        let refused = cluster.run(&["sample", &id, "--out", &out, "--knob", knob])?;
        let error = refused.failure()?;
        assert!(error.contains(expected), "{knob}: {error}");
    }
    // 3. a hint of another size
    let hint = cluster.directory().join("hint.png");
    image::RgbImage::new(48, 32).save(&hint)?;
    let hint = hint.display().to_string();
    let refused = cluster.run(&["sample", &id, "--out", &out, "--references", &hint])?;
    let error = refused.failure()?;
    assert!(
        error.contains("hint.png has 48x32 pixels; a controlnet's hint"),
        "{error}"
    );
    assert_eq!(
        cluster.json(&["jobs"])?.as_array().map(Vec::len),
        Some(7),
        "none was submitted"
    );
    cluster.stop()
}

/// An autoencoder and a U-Net of two short jobs, as a folder.
fn base_model(cluster: &Cluster, dataset: &str) -> Result<String> {
    let autoencoder = train(cluster, dataset, "autoencoder", None)?;
    let first = export(cluster, &autoencoder, "autoencoder")?;
    let unet = train(cluster, dataset, "text-to-image", Some(&first))?;
    export(cluster, &unet, "base")
}

fn train(
    cluster: &Cluster,
    dataset: &str,
    architecture: &str,
    init: Option<&str>,
) -> Result<String> {
    let steps = if architecture == "controlnet" { 8 } else { 2 };
    let job = TinyJob {
        steps,
        ..TinyJob::forty_steps(dataset, 1)
    };
    let init = init.map_or_else(String::new, |base| format!("init = \"file://{base}\""));
    let references = if architecture == "controlnet" {
        "references = 1\n"
    } else {
        ""
    };
    let text = job
        .to_toml()
        .replace("\"retrinet\"", &format!("\"{architecture}\"\n{init}"))
        .replace("references = 2\n", references)
        .replace("learning_rate = 1e-3", "learning_rate = 1e-2");
    let id = cluster.submit(&text)?;
    cluster.wait_done(&id)?;
    Ok(id)
}

fn export(cluster: &Cluster, id: &str, name: &str) -> Result<String> {
    let folder = cluster.directory().join(name).display().to_string();
    cluster.ok(&["checkpoint", "export", id, "--out", &folder])?;
    let has_record = Path::new(&folder).join("export.json").is_file();
    has_record.then_some(folder).context("no export.json")
}
