//! Real processes on loopback: a tiny job from job.toml to images, with every command that inspects
//! it, and a RetriNet that is initialized from the exports of two other jobs.

use anyhow::{Context, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tests::cluster::command::run;
use tests::cluster::job::{TinyJob, digest, with_figures};
use tests::cluster::{Cluster, binary};

#[test]
fn the_whole_path_from_job_to_pictures() -> Result<()> {
    let (cluster, dataset) = with_figures(2)?;
    let id = cluster.submit(&TinyJob::forty_steps(&dataset, 2).to_toml())?;
    assert_eq!(id, "tiny-1");
    assert_eq!(cluster.wait_step(&id, 1)?.world, 2);
    let view = cluster.wait_done(&id)?;
    assert_eq!((view.step, view.steps), (40, 40), "{view:?}");

    let jobs = cluster.json(&["jobs"])?;
    assert_eq!(jobs.as_array().map(Vec::len), Some(1), "{jobs}");
    assert_eq!(
        (&jobs[0]["job"], &jobs[0]["phase"]),
        (&"tiny-1".into(), &"done".into())
    );
    let workers = cluster.json(&["workers"])?;
    let up = workers
        .as_array()
        .context("workers")?
        .iter()
        .filter(|worker| worker["up"] == true);
    assert_eq!(up.count(), 2, "{workers}");
    assert!(cluster.ok(&["jobs"])?.contains("tiny-1"));
    assert!(cluster.ok(&["workers"])?.contains("w2"));

    // Every step was reported.
    let described = cluster.json(&["describe", &id])?;
    assert_eq!(described["curve"]["steps"], 40, "{described}");
    assert!(cluster.ok(&["describe", &id])?.contains("40/40"));
    the_ledger_has_the_provenance_of_samples(&cluster, &id)?;

    the_logs_of_its_ranks_are_served(&cluster, &id)?;
    checkpoints_are_complete(&cluster, &id)?;
    images_are_sampled(&cluster, &id)?;
    a_retrinet_begins_from_a_base_of_two_jobs(&cluster, &dataset)?;
    a_damaged_checkpoint_is_found(&cluster, &id)?;
    cluster.stop()
}

/// The audit of the ledger, and the provenance of one sample: it was a target once per whole epoch,
/// or once more.
fn the_ledger_has_the_provenance_of_samples(cluster: &Cluster, id: &str) -> Result<()> {
    let audit = cluster.json(&["audit", id])?;
    assert_eq!(audit["clean"], true, "{audit}");
    assert_eq!(audit["findings"], serde_json::json!([]), "{audit}");
    assert!(
        cluster
            .ok(&["audit", id])?
            .contains("every step counts once")
    );
    let epochs = audit["whole_epochs"].as_u64().context("whole_epochs")?;
    assert_eq!(
        audit["digests"], 10,
        "both ranks should agree every four steps: {audit}"
    );
    assert_ne!(audit["checkpoints_compared"], 0, "{audit}");
    // Some characters are held out; take the first image of one that is not.
    let ask = |character| {
        let sample = format!("{character:05}-00-000");
        cluster.json(&["provenance", id, "--sample", &sample])
    };
    let answers = (0..4).map(ask).collect::<Result<Vec<Value>>>()?;
    let seen = answers
        .iter()
        .find(|it| it["trained_on"] == true)
        .context("a trained sample")?;
    let mut held_out = answers.iter().filter(|it| it["trained_on"] == false);
    assert!(
        held_out.all(|it| it["seen"] == serde_json::json!([])),
        "{answers:?}"
    );
    let uses = seen["seen"].as_array().context("seen")?;
    let targets = uses.iter().filter(|it| it["as"] == "target").count() as u64;
    assert!(
        targets == epochs || targets == epochs + 1,
        "{targets} of {epochs}: {seen}"
    );
    assert!(uses.iter().any(|it| it["as"] == "reference"), "{seen}");
    assert!(
        uses.iter()
            .all(|it| it["generation"] == 1 && it["rank"].as_u64() < Some(2)),
        "{seen}"
    );
    let unknown = cluster
        .run(&["provenance", id, "--sample", "nobody"])?
        .failure()?;
    assert!(
        unknown.contains("there is no sample \"nobody\""),
        "{unknown}"
    );
    Ok(())
}

/// `logs` prints the output of all ranks, or of one.
fn the_logs_of_its_ranks_are_served(cluster: &Cluster, id: &str) -> Result<()> {
    let all = cluster.ok(&["logs", id])?;
    assert!(all.contains("g1 r0 ") && all.contains("g1 r1 "), "{all}");
    let one = cluster.ok(&["logs", id, "--rank", "1", "--output", "json"])?;
    let lines: Vec<Value> = one
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    assert!(!lines.is_empty());
    assert!(lines.iter().all(|line| line["rank"] == 1), "{one}");
    let last = cluster.ok(&["logs", id, "--tail", "1"])?;
    assert_eq!(last.lines().count(), 1, "{last}");
    assert!(all.ends_with(&last), "{last} is not the end of {all}");
    // `2026-01-31T08:00:00.250Z g1 r0 …`
    let (time, _) = last.split_once(' ').context("a line without a time")?;
    assert!(time.len() == 24 && time.ends_with('Z'), "{time}");
    assert_eq!(cluster.ok(&["logs", id, "--since", "2h"])?, all);
    assert_eq!(cluster.ok(&["logs", id, "--since", "2999-01-01"])?, "");
    let curve = cluster.directory().join("loss.png");
    cluster.ok(&["describe", id, "--curve", &curve.display().to_string()])?;
    assert!(std::fs::read(curve)?.starts_with(b"\x89PNG"));
    Ok(())
}

/// The two newest checkpoints are kept, can be verified, and have digests.
fn checkpoints_are_complete(cluster: &Cluster, id: &str) -> Result<()> {
    let checkpoints = cluster.json(&["checkpoints", id])?;
    let steps: Vec<&Value> = checkpoints
        .as_array()
        .context("checkpoints")?
        .iter()
        .map(|it| &it["step"])
        .collect();
    assert_eq!(steps, [32, 40], "{checkpoints}");
    cluster.ok(&["checkpoint", "verify", id])?;
    cluster.ok(&["checkpoint", "verify", &format!("{id}@32")])?;
    assert_ne!(digest(cluster, &format!("{id}@32"))?, digest(cluster, id)?);
    let missing = cluster
        .run(&["checkpoint", "digest", &format!("{id}@7")])?
        .failure()?;
    assert!(
        missing.contains('7') && missing.contains("32"),
        "it should name the existing checkpoints: {missing}"
    );
    Ok(())
}

fn images_are_sampled(cluster: &Cluster, id: &str) -> Result<()> {
    let out = cluster.directory().join("images");
    let folder = out.display().to_string();
    cluster.ok(&[
        "sample", id, "--count", "2", "--steps", "2", "--seed", "3", "--out", &folder,
    ])?;
    let grid = std::fs::read(out.join("grid.png")).context("grid.png")?;
    assert!(grid.starts_with(b"\x89PNG"));
    let summary: Value = serde_json::from_slice(&std::fs::read(out.join("images.json"))?)?;
    assert!(summary.to_string().contains("correct"), "{summary}");
    assert!(out.join("000.png").is_file() && out.join("001.png").is_file());
    Ok(())
}

/// How a base model is made and used: `init` and `worker forward` read what `checkpoint export`
/// writes. `submit --watch` returns when the job has ended.
fn a_retrinet_begins_from_a_base_of_two_jobs(cluster: &Cluster, dataset: &str) -> Result<()> {
    let folder = |of: &str| cluster.directory().join(of).display().to_string();
    let text = TinyJob {
        steps: 2,
        ..TinyJob::forty_steps(dataset, 1)
    }
    .to_toml();
    let submit = |architecture: &str, init: Option<&str>| -> Result<()> {
        let init = init.map_or_else(String::new, |base| {
            format!("init = \"file://{}\"", folder(base))
        });
        let model = format!("\"{architecture}\"\n{init}");
        let mut job = text.replace("\"retrinet\"", &model);
        if architecture != "retrinet" {
            job = job.replace("references = 2\n", "");
        }
        let file = cluster.write_job(&job)?;
        let watched = cluster.ok(&["submit", &file, "--watch", "--output", "json"])?;
        let last: Value = serde_json::from_str(&watched)?;
        assert_eq!(last["phase"], "done", "{watched}");
        cluster.ok(&[
            "checkpoint",
            "export",
            last["job"].as_str().context("job")?,
            "--out",
            &folder(architecture),
        ])?;
        Ok(())
    };
    submit("autoencoder", None)?;
    submit("text-to-image", Some("autoencoder"))?;
    submit("retrinet", Some("text-to-image"))?;
    let folder = folder("retrinet");
    let export = std::fs::read_to_string(Path::new(&folder).join("export.json"))?;
    let export: Value = serde_json::from_str(&export)?;
    let files: Vec<&String> = export["files"]
        .as_object()
        .context("files")?
        .keys()
        .collect();
    assert_eq!(
        files,
        [
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "unet/retrinet.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors"
        ]
    );
    public_readers_accept_it(cluster, &folder)?;
    // Weights that contradict the job's tables are refused at submission.
    let other = text
        .replace(
            "\"retrinet\"",
            &format!("\"retrinet\"\ninit = \"file://{folder}\""),
        )
        .replace("\"tiny\"", "\"small\"");
    let refused = cluster
        .run(&["submit", &cluster.write_job(&other)?])?
        .failure()?;
    assert!(
        refused.contains("model.init") && refused.contains("vae/config.json"),
        "{refused}"
    );
    Ok(())
}

/// Every tensor of an export has the name and shape of `diffusers` and `transformers`; the reader
/// is strict.
fn public_readers_accept_it(cluster: &Cluster, folder: &str) -> Result<()> {
    let normal = |name: &str, shape: &[usize]| (name.to_owned(), "F32", shape.to_vec());
    let unet = [
        normal("sample", &[1, 4, 8, 8]),
        ("timestep".to_owned(), "I64", vec![1]),
        normal("encoder_hidden_states", &[1, 77, 16]),
    ];
    let references = [
        normal("references", &[1, 2, 4, 8, 8]),
        normal("reference_hidden_states", &[1, 2, 77, 16]),
    ];
    let latent = [normal("latent", &[1, 4, 8, 8])];
    let ids = [("input_ids".to_owned(), "I64", vec![1, 77])];
    for (component, folder_name, inputs) in [
        ("unet", "unet", unet.to_vec()),
        ("retrinet", "unet", [&unet[..], &references].concat()),
        ("vae-decode", "vae", latent.to_vec()),
        ("text", "text_encoder", ids.to_vec()),
    ] {
        let at = |name: &str| cluster.directory().join(name).display().to_string();
        std::fs::write(at("in.safetensors"), zeros(&inputs))?;
        let weights = format!("{folder}/{folder_name}");
        let mut command = std::process::Command::new(binary("worker")?);
        command.args(["forward", "--component", component, "--weights", &weights]);
        command.args([
            "--inputs",
            &at("in.safetensors"),
            "--outputs",
            &at("out.safetensors"),
        ]);
        run(command)?.success()?;
    }
    Ok(())
}

/// A safetensors file of zero tensors.
fn zeros(tensors: &[(String, &str, Vec<usize>)]) -> Vec<u8> {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, kind, shape) in tensors {
        let begin = end;
        end += shape.iter().product::<usize>() * if *kind == "I64" { 8 } else { 4 };
        let entry =
            serde_json::json!({ "dtype": kind, "shape": shape, "data_offsets": [begin, end] });
        header.insert(name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    [
        &(header.len() as u64).to_le_bytes()[..],
        header.as_bytes(),
        &vec![0; end],
    ]
    .concat()
}

/// `verify` finds one changed byte and names its shard.
fn a_damaged_checkpoint_is_found(cluster: &Cluster, id: &str) -> Result<()> {
    let shard = newest_shard(cluster, id)?;
    let mut bytes = std::fs::read(&shard)?;
    let last = bytes.last_mut().context("a shard has bytes")?;
    *last ^= 1;
    std::fs::write(&shard, bytes)?;
    let outcome = cluster.run(&["checkpoint", "verify", id])?;
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let output = outcome.stdout + &outcome.stderr;
    let name = shard.file_name().context("a name")?.to_string_lossy();
    assert!(
        output.contains(&*name) && output.contains("sha256") || output.contains("SHA-256"),
        "{output}"
    );
    Ok(())
}

fn newest_shard(cluster: &Cluster, id: &str) -> Result<PathBuf> {
    let folder = cluster
        .directory()
        .join(format!("store/jobs/{id}/checkpoints/0000000040-g1"));
    Ok(folder.join("rank-1-of-2.safetensors"))
}
