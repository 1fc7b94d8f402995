//! Real processes on loopback: the way of a tiny job from job.toml to pictures, and what happens to it when
//! something dies under it. Faults strike when `coordinator watch` shows that the job is in the middle.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tests::cluster::command::run;
use tests::cluster::job::{TinyJob, synthesize};
use tests::cluster::{Cluster, Options, binary};

/// A cluster with the tests' data set in its folder.
fn cluster(workers: usize) -> Result<(Cluster, String)> {
    let cluster = Cluster::start(Options::with_workers(workers))?;
    let dataset = format!("file://{}", cluster.directory().join("figures").display());
    cluster.ok(&synthesize(&dataset))?;
    Ok((cluster, dataset))
}

/// Long enough that a fault at step 10 lands in its middle, with a commit before and steps to repeat.
fn job(dataset: &str, workers: u32) -> TinyJob {
    TinyJob {
        name: "tiny".to_owned(),
        dataset: dataset.to_owned(),
        workers,
        steps: 40,
        checkpoint_every: 8,
    }
}

fn digest(cluster: &Cluster, job: &str) -> Result<String> {
    let digest = cluster.ok(&["checkpoint", "digest", job])?.trim().to_owned();
    ensure!(
        digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "digest is {digest:?}"
    );
    Ok(digest)
}

/// The weights of [`job`] on two workers when nothing goes wrong: made once, by whichever test needs it
/// first.
fn undisturbed() -> &'static str {
    static DIGEST: OnceLock<String> = OnceLock::new();
    DIGEST.get_or_init(|| {
        let (cluster, dataset) = cluster(2).unwrap();
        let id = cluster.submit(&job(&dataset, 2).to_toml()).unwrap();
        let view = cluster.wait_done(&id).unwrap();
        assert_eq!(view.restarts, 0, "{view:?}");
        digest(&cluster, &id).unwrap()
    })
}

/// Lets `fault` strike a job on two workers in its middle; the job must end as if nothing had been, after
/// `restarts`.
fn check(fault: impl FnOnce(&mut Cluster) -> Result<()>, restarts: u32) -> Result<()> {
    let expected = undisturbed();
    let (mut cluster, dataset) = cluster(2)?;
    let id = cluster.submit(&job(&dataset, 2).to_toml())?;
    cluster.wait_step(&id, 10)?;
    fault(&mut cluster)?;
    let view = cluster.wait_done(&id)?;
    assert_eq!(view.restarts, restarts, "{view:?}");
    assert_eq!(view.generation, u64::from(restarts) + 1, "{view:?}");
    assert_eq!(view.incidents.len(), restarts as usize, "{view:?}");
    assert_eq!(
        digest(&cluster, &id)?,
        expected,
        "the weights differ from those of an undisturbed run"
    );
    let audit = cluster.json(&["audit", &id])?;
    assert_eq!(
        (&audit["clean"], &audit["steps"]),
        (&true.into(), &40.into()),
        "{audit}"
    );
    cluster.stop()
}

#[test]
fn a_job_survives_the_death_of_a_rank() -> Result<()> {
    check(|cluster| cluster.kill_rank(1), 1)
}

#[test]
fn a_job_survives_the_death_of_a_daemon() -> Result<()> {
    check(
        |cluster| {
            cluster.kill_worker(1)?;
            cluster.start_worker(1)
        },
        1,
    )
}

#[test]
fn a_job_does_not_notice_the_death_of_the_coordinator() -> Result<()> {
    check(
        |cluster| {
            cluster.kill_coordinator()?;
            cluster.start_coordinator()
        },
        0,
    )
}

/// Pause, resume and drain end a generation at a checkpoint of the step it is at: nothing is repeated, nothing is a fault,
/// and the weights are those of a run that nobody touched.
#[test]
fn a_job_is_paused_and_a_worker_drained_without_a_trace() -> Result<()> {
    let expected = undisturbed();
    let (cluster, dataset) = cluster(3)?;
    let id = cluster.submit(&job(&dataset, 2).to_toml())?;
    cluster.wait_step(&id, 10)?;
    assert_eq!(cluster.ok(&["pause", &id])?.trim(), "tiny-1 is paused");
    let why = cluster.json(&["why", &id])?;
    assert_eq!(why["constraint"], "paused", "{why}");
    assert_eq!(why["remedy"], "`coordinator resume tiny-1`", "{why}");
    cluster.ok(&["resume", &id])?;
    let view = cluster.wait_step(&id, 22)?;
    let why = cluster.json(&["why", &id])?;
    assert_eq!(why["constraint"], "step", "{why}");
    let worker = view.members[1].worker.as_ref().context("a worker")?.name.clone();
    let drained = cluster.ok(&["drain", &worker])?;
    assert_eq!(drained.trim(), format!("{worker} is drained and empty"));
    let refused = cluster.run(&["scale", &id, "--workers", "9"])?.failure()?;
    assert!(
        refused.contains("workers: 9 is no scale for job tiny-1"),
        "{refused}"
    );
    let view = cluster.wait_done(&id)?;
    assert_eq!((view.restarts, view.incidents.len()), (0, 0), "{view:?}");
    assert_eq!(digest(&cluster, &id)?, expected);
    let audit = cluster.json(&["audit", &id])?;
    assert_eq!(
        (&audit["clean"], &audit["steps"]),
        (&true.into(), &40.into()),
        "{audit}"
    );
    assert_eq!(audit["superseded_steps"], 0, "{audit}");
    cluster.ok(&["undrain", &worker])?;
    cluster.stop()
}

#[test]
fn a_job_moves_to_another_worker_when_its_own_is_lost() -> Result<()> {
    let (mut cluster, dataset) = cluster(2)?;
    let id = cluster.submit(&job(&dataset, 1).to_toml())?;
    let view = cluster.wait_step(&id, 10)?;
    let name = view.members[0].worker.as_ref().map(|worker| worker.name.as_str());
    cluster.kill_worker(if name == Some("w1") { 0 } else { 1 })?;
    let view = cluster.wait_done(&id)?;
    assert_eq!(view.restarts, 1, "{view:?}");
    Ok(())
}

/// The ledger's proof, and what it says of one sample: as often a target as there were epochs, or once more.
fn who_saw_what(cluster: &Cluster, id: &str) -> Result<()> {
    let audit = cluster.json(&["audit", id])?;
    assert_eq!(audit["clean"], true, "{audit}");
    assert_eq!(audit["findings"], serde_json::json!([]), "{audit}");
    assert!(cluster.ok(&["audit", id])?.contains("every step counts once"));
    let epochs = audit["whole_epochs"].as_u64().context("whole_epochs")?;
    assert_eq!(
        audit["digests"], 10,
        "both ranks agreed every four steps: {audit}"
    );
    assert_ne!(audit["checkpoints_compared"], 0, "{audit}");
    // Some characters are held out; the first picture of one that is not.
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
    let sights = seen["seen"].as_array().context("seen")?;
    let targets = sights.iter().filter(|it| it["as"] == "target").count() as u64;
    assert!(
        targets == epochs || targets == epochs + 1,
        "{targets} of {epochs}: {seen}"
    );
    assert!(sights.iter().any(|it| it["as"] == "reference"), "{seen}");
    assert!(
        sights
            .iter()
            .all(|it| it["generation"] == 1 && it["rank"].as_u64() < Some(2)),
        "{seen}"
    );
    let unknown = cluster
        .run(&["provenance", id, "--sample", "nobody"])?
        .failure()?;
    assert!(unknown.contains("there is no sample \"nobody\""), "{unknown}");
    Ok(())
}

#[test]
fn the_whole_path_from_job_to_pictures() -> Result<()> {
    let (cluster, dataset) = cluster(2)?;
    let id = cluster.submit(&job(&dataset, 2).to_toml())?;
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
    who_saw_what(&cluster, &id)?;

    its_ranks_are_heard(&cluster, &id)?;
    checkpoints_are_whole(&cluster, &id)?;
    pictures_are_drawn(&cluster, &id)?;
    a_retrinet_begins_from_a_base_of_two_jobs(&cluster, &dataset)?;
    a_torn_checkpoint_is_found(&cluster, &id)?;
    cluster.stop()
}

/// `logs` tells what the ranks wrote, of all of them or of one.
fn its_ranks_are_heard(cluster: &Cluster, id: &str) -> Result<()> {
    let all = cluster.ok(&["logs", id])?;
    assert!(all.contains("g1 r0 ") && all.contains("g1 r1 "), "{all}");
    let one = cluster.ok(&["logs", id, "--rank", "1", "--output", "json"])?;
    let lines: Vec<Value> = one.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    assert!(!lines.is_empty());
    assert!(lines.iter().all(|line| line["rank"] == 1), "{one}");
    let curve = cluster.directory().join("loss.png");
    cluster.ok(&["describe", id, "--curve", &curve.display().to_string()])?;
    assert!(std::fs::read(curve)?.starts_with(b"\x89PNG"));
    Ok(())
}

/// The way a base model is made and used: what `checkpoint export` writes is what `init` reads, and what `worker forward`
/// takes for public weights. `submit --watch` ends when the job does.
fn a_retrinet_begins_from_a_base_of_two_jobs(cluster: &Cluster, dataset: &str) -> Result<()> {
    let folder = cluster.directory().join("exported").display().to_string();
    let text = TinyJob {
        steps: 2,
        ..job(dataset, 1)
    }
    .to_toml();
    let submit = |architecture: &str| -> Result<()> {
        let file = cluster.write_job(&text.replace("\"retrinet\"", architecture))?;
        let watched = cluster.ok(&["submit", &file, "--watch", "--output", "json"])?;
        let last: Value = serde_json::from_str(&watched)?;
        assert_eq!(last["phase"], "done", "{watched}");
        cluster.ok(&[
            "checkpoint",
            "export",
            last["job"].as_str().context("job")?,
            "--out",
            &folder,
        ])?;
        Ok(())
    };
    submit("\"autoencoder\"")?;
    submit(&format!("\"text-to-image\"\ninit = \"file://{folder}\""))?;
    submit(&format!("\"retrinet\"\ninit = \"file://{folder}\""))?;
    let export = std::fs::read_to_string(Path::new(&folder).join("export.json"))?;
    let export: Value = serde_json::from_str(&export)?;
    let files: Vec<&String> = export["files"].as_object().context("files")?.keys().collect();
    assert_eq!(
        files,
        [
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "unet/retrinet.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors"
        ]
    );
    public_readers_take_it(cluster, &folder)?;
    // What the job's tables contradict is refused before anything waits in a queue.
    let other = text
        .replace(
            "\"retrinet\"",
            &format!("\"retrinet\"\ninit = \"file://{folder}\""),
        )
        .replace("\"tiny\"", "\"small\"");
    let refused = cluster.run(&["submit", &cluster.write_job(&other)?])?.failure()?;
    assert!(
        refused.contains("model.init") && refused.contains("vae/config.json"),
        "{refused}"
    );
    Ok(())
}

/// Every tensor of an export has the name and shape that `diffusers` and `transformers` give it: the reader is strict.
fn public_readers_take_it(cluster: &Cluster, folder: &str) -> Result<()> {
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
    for (component, part, inputs) in [
        ("unet", "unet", unet.to_vec()),
        ("retrinet", "unet", [&unet[..], &references].concat()),
        ("vae-decode", "vae", latent.to_vec()),
        ("text", "text_encoder", ids.to_vec()),
    ] {
        let at = |name: &str| cluster.directory().join(name).display().to_string();
        std::fs::write(at("in.safetensors"), zeros(&inputs))?;
        let weights = format!("{folder}/{part}");
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

/// A safetensors file of zeros.
fn zeros(tensors: &[(String, &str, Vec<usize>)]) -> Vec<u8> {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, kind, shape) in tensors {
        let begin = end;
        end += shape.iter().product::<usize>() * if *kind == "I64" { 8 } else { 4 };
        let entry = serde_json::json!({ "dtype": kind, "shape": shape, "data_offsets": [begin, end] });
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

/// The two newest are kept, verify, and have a digest.
fn checkpoints_are_whole(cluster: &Cluster, id: &str) -> Result<()> {
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
        "it should name what there is: {missing}"
    );
    Ok(())
}

fn pictures_are_drawn(cluster: &Cluster, id: &str) -> Result<()> {
    let out = cluster.directory().join("pictures");
    let folder = out.display().to_string();
    cluster.ok(&[
        "sample", id, "--count", "2", "--steps", "2", "--seed", "3", "--out", &folder,
    ])?;
    let grid = std::fs::read(out.join("grid.png")).context("grid.png")?;
    assert!(grid.starts_with(b"\x89PNG"));
    let summary: Value = serde_json::from_slice(&std::fs::read(out.join("pictures.json"))?)?;
    assert!(summary.to_string().contains("correct"), "{summary}");
    assert!(out.join("000.png").is_file() && out.join("001.png").is_file());
    Ok(())
}

/// One changed byte in one shard is found and named.
fn a_torn_checkpoint_is_found(cluster: &Cluster, id: &str) -> Result<()> {
    let shard = newest_shard(cluster, id)?;
    let mut bytes = std::fs::read(&shard)?;
    let last = bytes.last_mut().context("a shard has bytes")?;
    *last ^= 1;
    std::fs::write(&shard, bytes)?;
    let outcome = cluster.run(&["checkpoint", "verify", id])?;
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let said = outcome.stdout + &outcome.stderr;
    let name = shard.file_name().context("a name")?.to_string_lossy();
    assert!(
        said.contains(&*name) && said.contains("sha256") || said.contains("SHA-256"),
        "{said}"
    );
    Ok(())
}

fn newest_shard(cluster: &Cluster, id: &str) -> Result<PathBuf> {
    let folder = cluster
        .directory()
        .join(format!("store/jobs/{id}/checkpoints/0000000040-g1"));
    Ok(folder.join("rank-1-of-2.safetensors"))
}

#[test]
fn the_same_job_gives_the_same_weights() -> Result<()> {
    let (cluster, dataset) = cluster(1)?;
    let first = cluster.submit(&job(&dataset, 1).to_toml())?;
    let second = cluster.submit(&job(&dataset, 1).to_toml())?;
    cluster.wait_done(&first)?;
    cluster.wait_done(&second)?;
    assert_ne!(first, second);
    assert_eq!(digest(&cluster, &first)?, digest(&cluster, &second)?);
    cluster.stop()
}

#[test]
fn a_waiting_job_outlives_the_coordinator_and_can_be_cancelled() -> Result<()> {
    let (mut cluster, dataset) = cluster(1)?;
    // Two workers are wanted and one is there.
    let id = cluster.submit(&job(&dataset, 2).to_toml())?;
    let view = cluster.wait(&id, "phase queued", |view| view.phase == "queued")?;
    assert!(view.reason.contains("needs 2 cpu workers"), "{view:?}");
    cluster.kill_coordinator()?;
    cluster.start_coordinator()?;
    assert_eq!(cluster.json(&["describe", &id])?["phase"], "queued");

    cluster.ok(&["cancel", &id])?;
    assert_eq!(cluster.json(&["describe", &id])?["phase"], "cancelled");
    let watched = cluster.run(&["watch", &id])?;
    assert_ne!(
        watched.code,
        Some(0),
        "a cancelled job did not do what was asked for: {watched:?}"
    );

    // A running job frees its worker for the next.
    let endless = TinyJob {
        steps: 1_000_000,
        ..job(&dataset, 1)
    };
    let running = cluster.submit(&endless.to_toml())?;
    cluster.wait_step(&running, 2)?;
    let next = cluster.submit(
        &TinyJob {
            steps: 2,
            ..job(&dataset, 1)
        }
        .to_toml(),
    )?;
    cluster.ok(&["cancel", &running])?;
    cluster.wait_done(&next)?;
    assert_eq!(cluster.json(&["describe", &running])?["phase"], "cancelled");
    cluster.stop()
}

#[test]
fn wrong_input_is_refused_with_what_would_be_right() -> Result<()> {
    let (mut cluster, dataset) = cluster(0)?;
    let good = job(&dataset, 1).to_toml();
    let refused = |cluster: &Cluster, toml: &str, words: &[&str]| -> Result<()> {
        let file = cluster.write_job(toml)?;
        let said = cluster.run(&["submit", &file])?.failure()?;
        for word in words {
            assert!(said.contains(word), "{word:?} is missing in: {said}");
        }
        Ok(())
    };
    refused(
        &cluster,
        &good.replace("steps =", "stepps ="),
        &["job.toml:", "stepps", "did you mean `steps`?"],
    )?;
    refused(
        &cluster,
        &good.replace("global_batch = 4", "global_batch = 5"),
        &["train.global_batch", "is 5", "2"],
    )?;
    refused(
        &cluster,
        &good.replace("resolution = 32", "resolution = 33"),
        &["data.resolution", "is 33"],
    )?;
    refused(
        &cluster,
        &good.replace("/figures\"", "/figurines\""),
        &["data.dataset", "figurines"],
    )?;
    let absent = cluster.run(&["submit", "nowhere.toml"])?.failure()?;
    assert!(absent.contains("nowhere.toml"), "{absent}");
    let unknown = cluster.run(&["describe", "tiny-77"])?.failure()?;
    assert!(unknown.contains("tiny-77"), "{unknown}");

    // A dry run says yes and leaves nothing.
    let file = cluster.write_job(&good)?;
    cluster.ok(&["submit", &file, "--dry-run"])?;
    assert_eq!(cluster.json(&["jobs"])?, Value::Array(Vec::new()));

    cluster.kill_coordinator()?;
    let alone = cluster.run(&["jobs"])?.failure()?;
    assert!(
        alone.contains("cannot reach a coordinator at http://127.0.0.1:"),
        "{alone}"
    );
    Ok(())
}
