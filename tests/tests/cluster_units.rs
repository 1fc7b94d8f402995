//! Jobs of units on real processes: images are the same as those of one undisturbed worker, even if
//! workers die, are drained and restart; a failed unit is named; jobs wait for their dependencies.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result};
use proto::id::JobId;
use proto::pb::JobView;
use proto::reason::{Cause, Dependency, DependencyState, Fault, Waiting};
use std::collections::BTreeMap;
use std::path::Path;
use tests::cluster::Cluster;
use tests::cluster::job::{TinyJob, with_figures};
use tests::cluster::reason::{cause, waiting};

/// Six subjects with two seeds each, slow enough for faults in the middle.
fn images(name: &str, job: &str, lines: &str) -> String {
    format!(
        "name = \"{name}\"\n{lines}\n[sample]\njob = \"{job}\"\ncount = 6\nseeds = [1, 2]\nsteps \
        = 25\n\
         guidance = 3.0\nattention = [\"face\"]\n"
    )
}

/// All image files of the job, by name. Its JSON records are left out, because they name the job.
fn image_files(cluster: &Cluster, job: &str) -> Result<BTreeMap<String, Vec<u8>>> {
    let folder = cluster
        .directory()
        .join("store/jobs")
        .join(job)
        .join("images");
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|it| it == "png") {
            let name = path
                .file_name()
                .context("a name")?
                .to_string_lossy()
                .into_owned();
            found.insert(name, std::fs::read(&path)?);
        }
    }
    Ok(found)
}

fn done(view: &JobView) -> u64 {
    view.units.as_ref().map_or(0, |units| units.done)
}

#[test]
fn images_are_the_same_whoever_dies_while_they_are_made() -> Result<()> {
    let (mut cluster, dataset) = with_figures(3)?;
    let train = TinyJob {
        steps: 2,
        ..TinyJob::forty_steps(&dataset, 1)
    };
    let trained = cluster.submit(&train.to_toml())?;
    let alone = "[resources]\nworkers = { min = 1, max = 1 }";
    let after = format!("after = [\"{trained}\"]\n");
    let undisturbed = cluster.submit(&images("alone", &trained, &format!("{after}{alone}")))?;
    let why = cluster.json(&["why", &undisturbed])?;
    assert_eq!(why["constraint"], "dependency", "{why}");
    cluster.wait_done(&trained)?;
    let view = cluster.wait_done(&undisturbed)?;
    // Twelve images, six sheets of attention maps, and the closing unit.
    let units = view.units.context("units")?;
    assert_eq!((units.total, units.done, units.set_aside), (19, 19, 0));

    let id = cluster.submit(&images("disturbed", &trained, ""))?;
    cluster.wait(&id, "a first image", |view| 0 < done(view))?;
    cluster.kill_worker(0)?;
    cluster.ok(&["drain", "w2"])?;
    cluster.start_worker(0)?;
    cluster.kill_coordinator()?;
    cluster.start_coordinator()?;
    let view = cluster.wait_done(&id)?;
    assert_eq!(done(&view), 19, "{view:?}");
    let (expected, found) = (
        image_files(&cluster, &undisturbed)?,
        image_files(&cluster, &id)?,
    );
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>()
    );
    for (name, bytes) in &expected {
        assert!(
            found[name] == *bytes,
            "{name} differs from that of an undisturbed worker"
        );
    }
    let jobs = cluster.ok(&["jobs"])?;
    assert!(jobs.contains("19/19"), "{jobs}");
    cluster.stop()
}

#[test]
fn a_job_waits_for_those_that_it_comes_after() -> Result<()> {
    let (cluster, dataset) = with_figures(1)?;
    let endless = TinyJob {
        steps: 1_000_000,
        ..TinyJob::forty_steps(&dataset, 1)
    };
    let first = cluster.submit(&endless.to_toml())?;
    let second = cluster.submit(&format!("after = [\"{first}\"]\n{}", endless.to_toml()))?;
    cluster.wait(&second, "a wait for the first job", |view| {
        matches!(
            waiting(view),
            Some(Waiting::Dependencies { dependencies }) if dependencies[0].job.0 == first
        )
    })?;
    cluster.wait_step(&first, 3)?;
    cluster.ok(&["cancel", &first])?;
    let dependency = Dependency {
        job: JobId(first.clone()),
        state: DependencyState::Cancelled,
    };
    let failed = Some(Waiting::DependencyFailed {
        job: JobId(second.clone()),
        dependencies: vec![dependency],
    });
    cluster.wait(&second, "the failure of the first job", |view| {
        waiting(view) == failed
    })?;
    let unknown = endless.to_toml();
    let unknown = cluster.write_job(&format!("after = [\"nobody-7\"]\n{unknown}"))?;
    let refused = cluster.run(&["submit", &unknown])?.failure()?;
    assert!(refused.contains("nobody-7"), "{refused}");
    cluster.ok(&["cancel", &second])?;
    cluster.stop()
}

#[test]
fn a_unit_that_cannot_be_made_is_named() -> Result<()> {
    let (cluster, dataset) = with_figures(1)?;
    let train = TinyJob {
        steps: 2,
        ..TinyJob::forty_steps(&dataset, 1)
    };
    let trained = cluster.submit(&train.to_toml())?;
    cluster.wait_done(&trained)?;
    // The file was never uploaded, so no worker can find it.
    let sha256 = "0".repeat(64);
    let broken = |name: &str, on_failed: &str| {
        format!(
            "name = \"{name}\"\n[sample]\njob = \"{trained}\"\nsteps = 2\non_failed_unit = \
            \"{on_failed}\"\n\
             references = [{{ concept = \"face\", file = \"me.png\", sha256 = \"{sha256}\" }}]\n"
        )
    };
    let send = |text: &str| -> Result<String> {
        // Through the API, because the command line would check the file.
        let request = proto::pb::SubmitRequest {
            file_name: "job.toml".into(),
            job_toml: text.to_owned(),
            dry_run: false,
            ..Default::default()
        };
        submit(cluster.url(), request)
    };
    let stopped = send(&broken("stopped", "stop"))?;
    let view = cluster.wait(&stopped, "its end", |view| view.phase == "failed")?;
    let Some(Cause::Fault {
        fault:
            Fault::Unit {
                unit,
                failures,
                error,
                ..
            },
        ..
    }) = cause(&view)
    else {
        panic!("{view:?}")
    };
    assert_eq!((unit, failures), (0, 3), "{view:?}");
    assert!(error.to_string().contains(&sha256), "{error}");
    let aside = send(&broken("aside", "set-aside"))?;
    let view = cluster.wait_done(&aside)?;
    let units = view.units.clone().context("units")?;
    assert_eq!(
        (units.total, units.done, units.set_aside),
        (2, 1, 1),
        "{view:?}"
    );
    assert_eq!(units.failed[0].unit, 0);
    assert!(units.failed[0].error.contains(&sha256), "{units:?}");
    let list = cluster
        .directory()
        .join("store/jobs")
        .join(&aside)
        .join("images/images.json");
    let list: serde_json::Value = serde_json::from_slice(&std::fs::read(Path::new(&list))?)?;
    assert_eq!(list["missing"][0], "000.png", "{list}");
    cluster.stop()
}

fn submit(url: &str, request: proto::pb::SubmitRequest) -> Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let channel = tonic::transport::Endpoint::from_shared(url.to_owned())?
            .connect()
            .await?;
        let stamp: proto::version::Stamp = proto::version::stamp;
        let mut client = proto::pb::control_client::ControlClient::with_interceptor(channel, stamp);
        Ok(client.submit(request).await?.into_inner().job)
    })
}
