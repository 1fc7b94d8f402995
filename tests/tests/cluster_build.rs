//! `coordinator dataset build` on real processes: whoever dies meanwhile, the outputs are those of
//! an undisturbed worker, byte for byte; a second run submits nothing, and bad input fails by name.
#![allow(clippy::unwrap_used)]

#[path = "../../model/pipeline/tests/danbooru/mod.rs"]
mod danbooru;

use anyhow::{Context, Result};
use proto::pb::JobView;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tests::cluster::job::TinyJob;
use tests::cluster::{Cluster, Options};

/// Files of metadata, each of which is one piece.
const FILES: usize = 24;

fn done(view: &JobView) -> u64 {
    view.units.as_ref().map_or(0, |units| units.done)
}

/// Metadata of 96 posts in two editions, with their images and masks.
fn metadata(cluster: &Cluster) -> Result<()> {
    let drawn = danbooru::drawn(8, 6, 32);
    for kind in ["posts", "images", "masks"] {
        std::fs::create_dir(cluster.directory().join(kind))?;
    }
    for (post, sample) in &drawn {
        let name = format!("{}.png", post.id);
        std::fs::write(
            cluster.directory().join("images").join(&name),
            &sample.image,
        )?;
        std::fs::write(cluster.directory().join("masks").join(&name), &sample.mask)?;
    }
    let posts: Vec<danbooru::FakePost> = drawn.into_iter().map(|(post, _)| post).collect();
    let folder = cluster.directory().join("posts");
    for (number, posts) in posts.chunks(posts.len() / FILES).enumerate() {
        let text = match number % 2 {
            0 => danbooru::lines(posts.iter().map(danbooru::old)),
            _ => danbooru::lines(posts.iter().map(danbooru::new)),
        };
        std::fs::write(folder.join(format!("{number:02}")), text)?;
    }
    Ok(())
}

/// Writes a pipeline whose outputs are in the folder `out`.
fn pipeline(cluster: &Cluster, out: &str) -> Result<String> {
    let file = cluster.directory().join(format!("{out}.toml"));
    let text = format!(
        "name = \"{out}\"\nout = \"{out}\"\n[[posts]]\nfrom = \"posts\"\n[dataset]\nimages = \
         \"images\"\nmasks = \"masks\"\n[units]\nposts = {FILES}\n"
    );
    std::fs::write(&file, text)?;
    Ok(file.display().to_string())
}

fn build(cluster: &Cluster, file: &str) -> Result<Vec<String>> {
    let printed = cluster.ok(&["dataset", "build", file])?;
    Ok(printed.lines().map(str::to_owned).collect())
}

fn outputs(cluster: &Cluster, out: &str) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let root = cluster.directory().join(out);
    let (mut found, mut folders) = (BTreeMap::new(), vec![root.clone()]);
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).with_context(|| next.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(&root)?.to_owned(), std::fs::read(&path)?);
            }
        }
    }
    Ok(found)
}

#[test]
fn outputs_are_the_same_whoever_dies_while_they_are_built() -> Result<()> {
    let mut cluster = Cluster::start(Options::with_workers(2))?;
    metadata(&cluster)?;
    let file = pipeline(&cluster, "calm")?;
    let jobs = build(&cluster, &file)?;
    assert_eq!(
        jobs,
        [
            "calm-sources-1",
            "calm-posts-2",
            "calm-filter-3",
            "calm-clusters-4",
            "calm-dataset-5"
        ]
    );
    let view = cluster.wait_done("calm-dataset-5")?;
    assert_eq!(done(&view), 2);
    let calm = outputs(&cluster, "calm")?;

    let file = pipeline(&cluster, "stormy")?;
    let jobs = build(&cluster, &file)?;
    cluster.wait(&jobs[1], "some pieces", |view| 2 < done(view))?;
    cluster.kill_worker(0)?;
    cluster.kill_worker(1)?;
    cluster.kill_coordinator()?;
    cluster.start_coordinator()?;
    cluster.start_worker(0)?;
    cluster.wait_done(&jobs[4])?;
    let stormy = outputs(&cluster, "stormy")?;
    assert_eq!(
        stormy.keys().collect::<Vec<_>>(),
        calm.keys().collect::<Vec<_>>()
    );
    for (name, bytes) in &calm {
        assert!(stormy[name] == *bytes, "{} differs", name.display());
    }
    again(&cluster, &file)?;
    cluster.stop()
}

/// A second run, and one with a changed setting.
fn again(cluster: &Cluster, file: &str) -> Result<()> {
    let jobs = || Ok::<_, anyhow::Error>(cluster.json(&["jobs"])?.as_array().map_or(0, Vec::len));
    let before = jobs()?;
    let printed = cluster.ok(&["dataset", "build", file])?;
    for line in [
        "JSON of 2017 to 2020",
        "JSON of 2021 or later",
        "599192",
        "no other figure in the same outfit",
        "56.2 %",
    ] {
        assert!(printed.contains(line), "{line} is missing: {printed}");
    }
    let report = cluster.json(&["dataset", "build", file])?;
    let last = report["funnel"]
        .as_array()
        .and_then(|it| it.iter().find(|step| step["paper"] == 116_729))
        .context("a funnel")?;
    assert!(0 < last["rows"].as_u64().unwrap_or(0), "{report}");
    assert_eq!(jobs()?, before, "nothing was submitted");
    let stages = report["stages"].as_array().context("stages")?;
    let folder = stages
        .last()
        .and_then(|it| it["folder"].as_str())
        .context("a folder")?;
    let data = cluster.directory().join("stormy").join(folder).join("data");
    let verified = cluster.ok(&["dataset", "verify", &data.display().to_string()])?;
    assert!(verified.contains("all good"), "{verified}");
    let text = std::fs::read_to_string(file)?;
    std::fs::write(file, format!("{text}[clusters]\nsize_min = 3\n"))?;
    let error = cluster.run(&["dataset", "build", file, "--dry-run"])?;
    assert!(
        error.stderr.contains("would build: clusters"),
        "{}",
        error.stderr
    );
    let submitted = build(cluster, file)?;
    assert_eq!(
        submitted[..2],
        ["stormy-clusters-11", "stormy-dataset-12"],
        "{submitted:?}"
    );
    cluster.wait_done("stormy-dataset-12")?;
    Ok(())
}

/// Photographs of people, as far as anything knows: no artist, mask, face box, clothes or prompt.
fn people(cluster: &Cluster) -> Result<()> {
    for person in 0..4_u8 {
        let folder = cluster.directory().join(format!("people/person{person}"));
        std::fs::create_dir_all(&folder)?;
        for number in 0..4_u8 {
            let image = image::RgbImage::from_fn(40, 48, |x, y| {
                let cell = (x / 5 * 7 + y / 6 * 11 + u32::from(number) * 29) % 250;
                image::Rgb([person * 60, cell as u8, 255 - cell as u8])
            });
            image.save(folder.join(format!("{number}.png")))?;
        }
    }
    Ok(())
}

/// What a set without artists and masks is good for.
#[test]
fn a_set_of_people_is_previewed_trained_on_sampled_and_evaluated() -> Result<()> {
    let cluster = Cluster::start(Options::with_workers(1))?;
    people(&cluster)?;
    let file = cluster.directory().join("faces.toml");
    let text = "name = \"faces\"\nout = \"faces\"\n[[folders]]\nfrom = \"people\"\n[dataset]\n";
    std::fs::write(&file, text)?;
    let file = file.display().to_string();
    let jobs = build(&cluster, &file)?;
    assert_eq!(
        jobs,
        ["faces-folders-1", "faces-clusters-2", "faces-dataset-3"]
    );
    cluster.wait_done(&jobs[2])?;
    let report = cluster.json(&["dataset", "build", &file])?;
    assert_eq!(report["stages"][2]["report"]["rows_out"], 16, "{report}");
    let sheet = cluster.directory().join("sheet.png").display().to_string();
    for stage in ["folders", "clusters", "dataset"] {
        cluster.ok(&[
            "dataset", "preview", &file, "--stage", stage, "--out", &sheet,
        ])?;
        let size = image::open(&sheet)?.into_rgb8().dimensions();
        assert_eq!(size, (8 * 128, 2 * 128), "{stage}");
    }
    let refused = cluster.run(&[
        "dataset", "preview", &file, "--stage", "masks", "--out", &sheet,
    ])?;
    let error = refused.failure()?;
    assert!(
        error.contains("its stages are folders, clusters, dataset"),
        "{error}"
    );

    let folder = report["stages"][2]["folder"].as_str().context("a folder")?;
    let data = cluster.directory().join("faces").join(folder).join("data");
    let job = TinyJob {
        steps: 2,
        checkpoint_every: 2,
        ..TinyJob::forty_steps(&format!("file://{}", data.display()), 1)
    };
    let toml = job
        .to_toml()
        .replace("[data]", "[data]\ntask = \"multitask\"");
    let path = cluster.write_job(&toml)?;
    cluster.ok(&["dataset", "preview", "--job", &path, "--out", &sheet])?;
    let id = cluster.submit(&toml)?;
    cluster.wait_done(&id)?;
    let out = cluster.directory().join("images").display().to_string();
    cluster.ok(&["sample", &id, "--count", "1", "--steps", "2", "--out", &out])?;
    let plan = cluster.directory().join("plan.toml");
    let text = format!(
        "name = \"people\"\n[resources]\nworkers = {{ min = 1, max = 1 }}\n[evaluate]\nin_domain = \
         {{ trained = 1 }}\nprompts = [\"smile\"]\nseeds = [1]\nsteps = 2\nmodels = [{{ name = \
         \"a\", job = \"{id}\" }}]\n"
    );
    std::fs::write(&plan, text)?;
    let submitted = cluster.ok(&["evaluate", &plan.display().to_string()])?;
    let evaluation = submitted
        .lines()
        .last()
        .context("the id of the evaluation")?;
    cluster.wait_done(evaluation.trim())?;
    cluster.stop()
}

#[test]
fn a_stage_that_cannot_read_its_input_fails_by_name() -> Result<()> {
    let cluster = Cluster::start(Options::with_workers(1))?;
    metadata(&cluster)?;
    std::fs::write(
        Path::new(cluster.directory()).join("posts/23"),
        "no metadata",
    )?;
    let file = pipeline(&cluster, "bad")?;
    let watched = cluster.run(&["dataset", "build", &file, "--watch"])?;
    let error = watched.failure()?;
    assert!(error.contains("bad-sources-1 is failed"), "{error}");
    let why = cluster.json(&["why", "bad-sources-1"])?.to_string();
    assert!(
        why.contains("posts/23: is neither JSON, Parquet nor SQLite"),
        "{why}"
    );
    let missing = cluster.run(&["dataset", "build", "none.toml"])?.failure()?;
    assert!(missing.contains("cannot read none.toml"), "{missing}");
    cluster.stop()
}
