//! Real processes on loopback: a cancelled job is continued by `retry`, backed up while it runs,
//! restored into an empty state, and deleted.

use anyhow::{Context, Result};
use serde_json::Value;
use std::path::Path;
use tests::cluster::Cluster;
use tests::cluster::job::{TinyJob, with_figures};

#[test]
fn a_cancelled_job_is_retried_backed_up_restored_and_deleted() -> Result<()> {
    let (mut cluster, dataset) = with_figures(1)?;
    let mut long = TinyJob::forty_steps(&dataset, 1);
    long.steps = 100_000;
    let id = cluster.submit(&long.to_toml())?;
    cluster.wait(&id, "a checkpoint", |view| !view.checkpoints.is_empty())?;
    cluster.ok(&["cancel", &id])?;
    let committed = newest_checkpoint(&cluster, &id)?;

    let refused = cluster.run(&["retry", &id, "--set", "train.global_batch=8"])?;
    let refused = refused.failure()?;
    assert!(
        refused.contains("train.global_batch: it changes the samples"),
        "{refused}"
    );
    let steps = committed + 8;
    let set = format!("train.steps={steps}");
    cluster.ok(&["retry", &id, "--set", &set])?;
    let view = cluster.wait_done(&id)?;
    assert_eq!((view.step, view.steps), (steps, steps), "{view:?}");
    let described = cluster.ok(&["describe", &id])?;
    assert!(described.contains(&set), "{described}");
    let audit = cluster.json(&["audit", &id])?;
    assert_eq!(audit["clean"], true, "{audit}");

    jobs_are_listed_by_page_and_filter(&cluster, &dataset, &id)?;
    the_state_survives_in_a_backup(&mut cluster, &id)?;
    it_is_deleted_with_its_checkpoints(&cluster, &id)?;
    cluster.stop()
}

fn newest_checkpoint(cluster: &Cluster, id: &str) -> Result<u64> {
    let checkpoints = cluster.json(&["checkpoints", id])?;
    let steps = checkpoints.as_array().context("checkpoints")?.iter();
    let newest = steps.filter_map(|it| it["step"].as_u64()).max();
    newest.context("no checkpoint")
}

fn ids(jobs: &Value) -> Vec<&str> {
    let jobs = jobs.as_array().map(Vec::as_slice).unwrap_or_default();
    jobs.iter().filter_map(|job| job["job"].as_str()).collect()
}

/// Another job, which waits for a second worker, joins the first one in the list.
fn jobs_are_listed_by_page_and_filter(cluster: &Cluster, dataset: &str, id: &str) -> Result<()> {
    let mut waiting = TinyJob::forty_steps(dataset, 2);
    waiting.name = "waiting".to_owned();
    let waiting = cluster.submit(&waiting.to_toml())?;
    let list = |arguments: &[&str]| cluster.json(&[&["jobs"], arguments].concat());
    assert_eq!(ids(&list(&["--phase", "done"])?), [id]);
    assert_eq!(ids(&list(&["--name", "waiting"])?), [waiting.as_str()]);
    assert_eq!(ids(&list(&["--limit", "1"])?), [waiting.as_str()]);
    let older = list(&["--limit", "1", "--before", &waiting])?;
    assert_eq!(ids(&older), [id]);
    let page = cluster.ok(&["jobs", "--limit", "1"])?;
    assert!(page.contains(&format!("--before {waiting}")), "{page}");
    let unknown = cluster.run(&["jobs", "--phase", "dome"])?.failure()?;
    assert!(
        unknown.contains("dome") && unknown.contains("done"),
        "{unknown}"
    );
    Ok(())
}

/// A backup of the running coordinator's state, restored after the state is lost.
fn the_state_survives_in_a_backup(cluster: &mut Cluster, id: &str) -> Result<()> {
    let store = cluster.store();
    let file = cluster.directory().join("state.backup");
    let file = file.display().to_string();
    let described = cluster.json(&["describe", id])?;
    cluster.ok(&["state", "backup", "--store", &store, "--out", &file])?;
    let again = cluster.run(&["state", "backup", "--store", &store, "--out", &file])?;
    let again = again.failure()?;
    assert!(again.contains(&file), "{again}");

    cluster.kill_coordinator()?;
    let restore = ["state", "restore", &file, "--store", &store];
    let refused = cluster.run(&restore)?.failure()?;
    assert!(refused.contains(&store), "{refused}");
    let state = Path::new(store.trim_start_matches("file://")).join("state");
    std::fs::rename(&state, state.with_extension("lost"))?;
    let damaged = cluster.directory().join("damaged.backup");
    let mut bytes = std::fs::read(&file)?;
    bytes.pop();
    std::fs::write(&damaged, bytes)?;
    let damaged = damaged.display().to_string();
    let refused = cluster.run(&["state", "restore", &damaged, "--store", &store])?;
    let refused = refused.failure()?;
    assert!(refused.contains(&damaged), "{refused}");
    cluster.ok(&restore)?;
    cluster.start_coordinator()?;
    assert_eq!(cluster.json(&["describe", id])?, described);
    let audit = cluster.json(&["audit", id])?;
    assert_eq!(audit["clean"], true, "{audit}");
    Ok(())
}

fn it_is_deleted_with_its_checkpoints(cluster: &Cluster, id: &str) -> Result<()> {
    let running = cluster.run(&["delete", "waiting-2"])?.failure()?;
    assert!(running.contains("waiting-2"), "{running}");
    let store = cluster.store();
    let folder = Path::new(store.trim_start_matches("file://")).join("jobs");
    assert!(folder.join(id).exists(), "{}", folder.display());
    let deleted = cluster.json(&["delete", id, "--checkpoints"])?;
    assert_ne!(deleted["files"], 0, "{deleted}");
    let gone = cluster.run(&["describe", id])?.failure()?;
    assert!(gone.contains(id), "{gone}");
    let files = files_below(&folder.join(id))?;
    assert!(files.is_empty(), "{files:?}");
    Ok(())
}

fn files_below(folder: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Ok(files);
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else {
            files.push(path.display().to_string());
        }
    }
    Ok(files)
}
