//! An evaluation on real processes: whoever dies meanwhile, its table is that of an undisturbed
//! worker, bit for bit, and only what was missing is generated; plans that cannot work are refused
//! before anything runs; units that fail pause the job, and what is done stays done.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result};
use proto::pb::JobView;
use proto::reason::Waiting;
use serde_json::json;
use std::path::{Path, PathBuf};
use tests::cluster::Cluster;
use tests::cluster::job::{TinyJob, clip, with_figures};
use tests::cluster::reason::waiting;

/// Two models, three characters, two prompts, two seeds and one sample: 24 images.
fn plan(name: &str, lines: &str) -> String {
    format!(
        "name = \"{name}\"\n{lines}\n[evaluate]\nin_domain = {{ trained = 1 }}\n\
         out_of_domain = {{ held_out = 2 }}\nprompts = [\"1girl, smile\", \"1girl, hat\"]\n\
         seeds = [1, 2]\nsteps = 8\n\
         guidance = 3.0\nmodels = [{{ name = \"r-b\", job = \"tiny\" }}, {{ name = \"r-a\", job = \
         \"tiny\", weights = \"base\" }}]\n"
    )
}

const ALONE: &str = "[resources]\nworkers = { min = 1, max = 1 }";

fn results(cluster: &Cluster, job: &str) -> PathBuf {
    let store = cluster.directory().join("store/jobs");
    store.join(job).join("images")
}

fn done(view: &JobView) -> u64 {
    view.units.as_ref().map_or(0, |units| units.done)
}

fn trained(cluster: &Cluster, dataset: &str) -> Result<String> {
    let job = TinyJob {
        steps: 2,
        ..TinyJob::forty_steps(dataset, 1)
    };
    // One character is trained on, and three are held out.
    let text = job.to_toml().replace("holdout = 0.25", "holdout = 0.5");
    let id = cluster.submit(&text)?;
    cluster.wait_done(&id)?;
    Ok(id)
}

/// The folder of an LPIPS whose weights mean nothing.
fn lpips(cluster: &Cluster) -> Result<String> {
    let folder = cluster.directory().join("lpips");
    std::fs::create_dir_all(&folder)?;
    let layers = [
        (0, 3, 64, 11),
        (3, 64, 192, 5),
        (6, 192, 384, 3),
        (8, 384, 256, 3),
        (10, 256, 256, 3),
    ];
    let (mut backbone, mut heads) = (Vec::new(), Vec::new());
    for (index, (number, inputs, outputs, kernel)) in layers.into_iter().enumerate() {
        let name = |part: &str| format!("features.{number}.{part}");
        backbone.push((name("weight"), vec![outputs, inputs, kernel, kernel]));
        backbone.push((name("bias"), vec![outputs]));
        heads.push((format!("lin{index}.model.1.weight"), vec![1, outputs, 1, 1]));
    }
    std::fs::write(folder.join("alexnet.safetensors"), safetensors(&backbone))?;
    std::fs::write(folder.join("lpips.safetensors"), safetensors(&heads))?;
    Ok(folder.display().to_string())
}

/// A file of tensors in fp32, with values between 0 and 0.05.
fn safetensors(tensors: &[(String, Vec<usize>)]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in tensors {
        let begin = data.len();
        for index in 0..shape.iter().product() {
            let value = (index % 11) as f32 * 0.005;
            data.extend(value.to_le_bytes());
        }
        let offsets = [begin, data.len()];
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": offsets});
        header.insert(name.clone(), entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

fn evaluate(cluster: &Cluster, text: &str) -> Result<String> {
    let file = cluster.write_job(text)?;
    Ok(cluster.ok(&["evaluate", &file])?.trim().to_owned())
}

#[test]
fn a_table_is_the_same_whoever_dies_while_it_is_made() -> Result<()> {
    let (mut cluster, dataset) = with_figures(2)?;
    trained(&cluster, &dataset)?;
    let clip = clip(&cluster, &dataset)?;
    let lpips = lpips(&cluster)?;
    let scored = |name: &str, lines: &str| {
        let plan = plan(name, lines);
        format!("{plan}clip = \"{clip}\"\nlpips = \"{lpips}\"\n")
    };
    let undisturbed = evaluate(&cluster, &scored("alone", ALONE))?;
    let view = cluster.wait_done(&undisturbed)?;
    let units = view.units.context("units")?;
    assert_eq!((units.total, units.done, units.set_aside), (25, 25, 0));

    let id = evaluate(&cluster, &scored("disturbed", ""))?;
    cluster.wait(&id, "some images", |view| 2 < done(view))?;
    cluster.kill_worker(0)?;
    cluster.kill_worker(1)?;
    cluster.kill_coordinator()?;
    cluster.start_coordinator()?;
    cluster.start_worker(0)?;
    cluster.wait_done(&id)?;
    let table = |job: &str| std::fs::read(results(&cluster, job).join("rows.parquet"));
    assert!(table(&id)? == table(&undisturbed)?, "the tables differ");
    // A unit that was cut off is at most made again once by whoever resumes it.
    let log = cluster.ok(&["logs", &id])?;
    let generated = log.matches("generated and scored an image").count();
    assert!(
        generated <= 24,
        "{generated} of 24 images were generated:\n{log}"
    );

    report(&cluster, &id)?;
    cluster.stop()
}

fn report(cluster: &Cluster, id: &str) -> Result<()> {
    let out = cluster.directory().join("report");
    let folder = out.display().to_string();
    let line = cluster.ok(&["evaluate", "report", id, "--out", &folder])?;
    assert!(line.contains("24 of 24 images"), "{line}");
    let text = std::fs::read_to_string(out.join("report.md"))?;
    assert!(text.contains("2 models, 3 characters, 2 prompts"), "{text}");
    // Both models have both scores, in both domains and together, and are compared with each other.
    for line in [
        "| model | CLIP-I |",
        "### in-domain characters",
        "### out-of-domain characters",
        "| r-b - r-a | ",
    ] {
        assert!(text.contains(line), "{line} is missing: {text}");
    }
    let csv = std::fs::read_to_string(out.join("scores.csv"))?;
    for column in ["swd_clip_t_clip_i", "lpips", "swd_lpips_clip_i"] {
        assert!(csv.contains(&format!("all,r-a,{column},")), "{csv}");
    }
    for name in [
        "report.html",
        "scores.csv",
        "rows.parquet",
        "character-000.png",
    ] {
        assert!(out.join(name).is_file(), "{name}");
    }
    Ok(())
}

#[test]
fn a_plan_that_cannot_work_is_refused_by_name() -> Result<()> {
    let (cluster, dataset) = with_figures(1)?;
    let id = trained(&cluster, &dataset)?;
    let good = plan("wrong", "");
    for (old, new, expected) in [
        (
            "job = \"tiny\" }",
            "job = \"nobody\" }",
            "there is no job nobody",
        ),
        ("trained = 1", "trained = 99", "asks for 99 characters"),
        (
            "held_out = 2",
            "ids = [\"no-such\"]",
            "has no sample \"no-such\"",
        ),
        (
            "prompts = [\"1girl, smile\", \"1girl, hat\"]",
            "prompt_file = \"no.txt\"",
            "cannot read",
        ),
        ("held_out = 2", "folder = \"none\"", "cannot read"),
        (
            "steps = 8",
            "resolution = 33\nsteps = 8",
            "evaluate.resolution = 33",
        ),
        (
            "steps = 8",
            "lpips = \".\"\nsteps = 8",
            "has no alexnet.safetensors; it must have alexnet.safetensors, lpips.safetensors",
        ),
        (
            "weights = \"base\" }",
            "weights = \"base\", task = \"hats\" }",
            "unknown variant `hats`",
        ),
        (
            "weights = \"base\" }",
            "weights = \"base\", knobs = { image_scale = 0.5 } }",
            "\"r-a\"",
        ),
        (
            "job = \"tiny\" }",
            "job = \"tiny\", weights = 77 }",
            "no checkpoint of step 77",
        ),
    ] {
        assert!(good.contains(old), "{old}");
        let file = cluster.write_job(&good.replacen(old, new, 1))?;
        let error = cluster.run(&["evaluate", &file])?.failure()?;
        assert!(error.contains(expected), "{new}: {error}");
    }
    let error = cluster
        .run(&["evaluate", "report", &id, "--out", "x"])?
        .failure()?;
    assert!(
        error.contains("a report is of a job with [evaluate]"),
        "{error}"
    );
    let jobs = cluster.json(&["jobs"])?;
    assert_eq!(jobs.as_array().map(Vec::len), Some(1), "none was submitted");
    cluster.stop()
}

#[test]
fn units_that_fail_pause_the_job_and_nothing_is_lost() -> Result<()> {
    let (cluster, dataset) = with_figures(1)?;
    trained(&cluster, &dataset)?;
    // A character of a file that nobody stored: its digest names nothing yet.
    let image = image::RgbImage::from_pixel(32, 32, image::Rgb([200, 10, 10]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png)?;
    let bytes = bytes.into_inner();
    let sha256 = proto::text::hex_sha256(&bytes);
    let files = format!(
        "files = [{{ name = \"me\", references = [{{ file = \"me.png\", sha256 = \
         \"{sha256}\" }}] }}]"
    );
    let text = plan("broken", ALONE).replace("held_out = 2", &files);
    let id = evaluate(&cluster, &text)?;
    let view = cluster.wait(&id, "a pause", |view| {
        matches!(waiting(view), Some(Waiting::UnitsFailed { .. }))
    })?;
    assert_eq!(view.phase, "paused", "{view:?}");
    let sentence = view.reason_sentence();
    assert!(sentence.contains(&sha256), "{sentence}");
    let before = files_of(&results(&cluster, &id))?;
    assert!(
        !before.is_empty(),
        "the images of other characters are there"
    );
    let why = cluster.json(&["why", &id])?;
    assert_eq!(why["constraint"], "paused", "{why}");
    // The file appears, and a user resumes the job.
    let folder = cluster.directory().join("store/jobs/tiny-1/references");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join(&sha256), &bytes)?;
    cluster.ok(&["resume", &id])?;
    let view = cluster.wait_done(&id)?;
    assert_eq!(done(&view), 17);
    let after = files_of(&results(&cluster, &id))?;
    assert!(before.iter().all(|it| after.contains(it)), "a file changed");
    cluster.stop()
}

/// Names and contents of the images.
fn files_of(folder: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|it| it == "png") {
            found.push((path.display().to_string(), std::fs::read(&path)?));
        }
    }
    Ok(found)
}
