//! Real `worker-rank` processes, with this test as their daemon: they train a tiny job, meet over Gloo, write
//! their shares and come back from them.
#![allow(clippy::unwrap_used)]

use model_data::figure::{Similar, SynthesizeOptions, identities};
use model_data::writer::{DatasetWriter, WriteOptions};
use proto::checkpoint::{CheckpointManifest, CheckpointRef, MANIFEST_FILE, checkpoint_folder};
use proto::id::{Generation, JobId, Rank, Step};
use proto::message::{
    Assignment, Concept, Halt, NamedReference, PictureSource, RankOrder, RankPhase, RankReport, SampleMethod,
    SamplePrompt, SampleRequest, Work,
};
use proto::spec::{Pairing, Task};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

const JOB: &str = r#"
name = "tiny"
[resources]
workers = { min = 1, max = 2 }
[data]
dataset = "DATASET"
resolution = 32
references = 2
seed = 5
[model]
architecture = "retrinet"
size = "tiny"
[train]
steps = 4
global_batch = 6
micro_batch = 2
learning_rate = 0.001
threads = 1
digest_every = 2
[checkpoint]
every = 2
"#;

/// The data set, the store and the assignment that all tests start from.
struct World {
    folder: tempfile::TempDir,
    assignment: Assignment,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = |name: &str| format!("file://{}/{name}", folder.path().display());
        let options = SynthesizeOptions {
            characters: 4,
            outfits: 1,
            images: 4,
            size: 32,
            seed: 1,
            similar: Similar::All,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut writer = DatasetWriter::open(&url("data"), WriteOptions::new("figures")).unwrap();
            for identity in identities(&options) {
                writer.add(identity).await.unwrap();
            }
            writer.finish().await.unwrap();
        });
        let assignment = Assignment {
            job: JobId("tiny-1".into()),
            generation: Generation(1),
            work: Work::Train,
            job_toml: JOB.replace("DATASET", &url("data")),
            dataset_version: version(&folder.path().join("data")),
            first_rank: Rank(0),
            ranks: 1,
            world: 1,
            store_address: None,
            resume: None,
            store_url: url("store"),
            acknowledged_step: Step(0),
            committed_step: Step(0),
            halt: None,
            detect_within_ms: 10_000,
        };
        Self { folder, assignment }
    }

    /// Starts all ranks of the assignment's world and returns the last report of each.
    fn run(&self, assignment: &Assignment) -> Vec<RankReport> {
        let mut ranks: Vec<TestRank> = (0..assignment.world)
            .map(|rank| TestRank::start(self.folder.path(), assignment, rank))
            .collect();
        if assignment.world > 1 {
            let address = ranks[0]
                .until(|report| report.store_address.is_some())
                .store_address;
            let known = Assignment {
                store_address: address,
                ..assignment.clone()
            };
            ranks.iter_mut().for_each(|rank| rank.order(&known));
        }
        ranks.iter_mut().map(TestRank::finish).collect()
    }

    /// Draws as job `job`; pictures.json, and the pictures that it names.
    fn pictures(&self, of: &Assignment, job: &str, request: SampleRequest) -> (Value, Vec<Vec<u8>>) {
        let assignment = Assignment {
            job: JobId(job.into()),
            work: Work::Sample(request),
            ..of.clone()
        };
        assert_eq!(self.run(&assignment)[0].phase, RankPhase::Finished);
        let folder = self.folder.path().join("store/jobs").join(job).join("pictures");
        let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
        let record: Value = serde_json::from_slice(&read("pictures.json")).unwrap();
        let files = record["pictures"].as_array().unwrap().iter();
        let files = files.map(|it| read(it["file"].as_str().unwrap())).collect();
        assert!(read("grid.png").starts_with(b"\x89PNG"));
        (record, files)
    }

    /// What the coordinator does when all shares are there.
    fn commit(&self, assignment: &Assignment, reports: &[RankReport], step: Step) -> CheckpointRef {
        let shards: Vec<_> = reports
            .iter()
            .flat_map(|report| &report.shards)
            .filter(|shard| shard.step == step)
            .collect();
        assert_eq!(shards.len(), assignment.world as usize);
        let manifest = CheckpointManifest {
            job: assignment.job.clone(),
            step,
            generation: assignment.generation,
            job_toml: assignment.job_toml.clone(),
            dataset_version: assignment.dataset_version.clone(),
            init_digest: shards[0].init_digest.clone(),
            shards: shards.iter().map(|shard| shard.shard.clone()).collect(),
            environment: shards[0].environment.clone(),
        };
        let folder = self.checkpoint(assignment, step);
        std::fs::write(folder.join(MANIFEST_FILE), serde_json::to_vec(&manifest).unwrap()).unwrap();
        CheckpointRef {
            step,
            generation: assignment.generation,
        }
    }

    fn checkpoint(&self, assignment: &Assignment, step: Step) -> std::path::PathBuf {
        let folder = checkpoint_folder(&assignment.job, step, assignment.generation);
        self.folder.path().join("store").join(folder)
    }

    /// All tensors of a checkpoint, over its shards.
    fn state(&self, assignment: &Assignment, step: u64) -> BTreeMap<String, Vec<f32>> {
        let mut state = BTreeMap::new();
        for rank in 0..assignment.world {
            let file = format!("rank-{rank}-of-{}.safetensors", assignment.world);
            let bytes = std::fs::read(self.checkpoint(assignment, Step(step)).join(file)).unwrap();
            let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            for (name, view) in tensors.iter() {
                let values = view
                    .data()
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes(b.try_into().unwrap()));
                assert!(
                    state.insert(name.to_owned(), values.collect()).is_none(),
                    "{name} is in two shards"
                );
            }
        }
        state
    }
}

fn version(folder: &Path) -> String {
    use sha2::Digest;
    let digest = sha2::Sha256::digest(std::fs::read(folder.join("dataset.json")).unwrap());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One process and our end of its socket.
struct TestRank {
    child: Child,
    reader: BufReader<UnixStream>,
    rank: Rank,
    last: Option<RankReport>,
}

impl TestRank {
    fn start(folder: &Path, assignment: &Assignment, rank: u32) -> Self {
        let socket = folder.join(format!(
            "{}-g{}-{rank}.sock",
            assignment.job, assignment.generation
        ));
        let listener = UnixListener::bind(&socket).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_worker-rank"))
            .arg("run")
            .arg("--socket")
            .arg(&socket)
            .args([
                "--job",
                &assignment.job.0,
                "--address",
                "127.0.0.1",
                "--cache-dir",
            ])
            .arg(folder.join("cache"))
            .args(["--parent", &std::process::id().to_string()])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (stream, _) = listener.accept().unwrap();
        let mut this = Self {
            child,
            reader: BufReader::new(stream),
            rank: Rank(rank),
            last: None,
        };
        this.order(assignment);
        this
    }

    /// A newer generation may give it another rank.
    fn order_as(&mut self, rank: u32, assignment: &Assignment) {
        self.rank = Rank(rank);
        self.order(assignment);
    }

    fn stop(&mut self) {
        let stop = serde_json::to_string(&RankOrder::Stop).unwrap();
        writeln!(self.reader.get_mut(), "{stop}").unwrap();
    }

    fn order(&mut self, assignment: &Assignment) {
        let order = RankOrder::Assignment {
            assignment: Box::new(assignment.clone()),
            rank: self.rank,
            device: 0,
        };
        writeln!(
            self.reader.get_mut(),
            "{}",
            serde_json::to_string(&order).unwrap()
        )
        .unwrap();
    }

    fn next(&mut self) -> Option<RankReport> {
        let mut line = String::new();
        if self.reader.read_line(&mut line).unwrap() == 0 {
            return None;
        }
        self.last = Some(serde_json::from_str(&line).unwrap());
        self.last.clone()
    }

    fn until(&mut self, wanted: impl Fn(&RankReport) -> bool) -> RankReport {
        loop {
            let report = self
                .next()
                .unwrap_or_else(|| panic!("ended with {:?}", self.last));
            if wanted(&report) {
                return report;
            }
        }
    }

    /// Its last report. Who trained stays until it is told to leave, because it holds the state.
    fn finish(&mut self) -> RankReport {
        while let Some(report) = self.next() {
            if report.phase == RankPhase::Finished {
                self.stop();
                break;
            }
        }
        let status = self.child.wait().unwrap();
        let last = self.last.clone().unwrap();
        assert_eq!(
            status.success(),
            last.phase == RankPhase::Finished,
            "{status} after {:?}",
            last.phase
        );
        last
    }
}

impl Drop for TestRank {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn assert_close(a: &BTreeMap<String, Vec<f32>>, b: &BTreeMap<String, Vec<f32>>) {
    assert!(!a.is_empty());
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, values) in a {
        for (x, y) in values.iter().zip(&b[name]) {
            // Adam divides by the root of small second moments, which blows up the last bits of a float sum.
            assert!((x - y).abs() <= 2e-4 * (1.0 + x.abs()), "{name}: {x} and {y}");
        }
    }
}

#[test]
fn two_ranks_train_to_the_weights_of_one_and_report_every_step() {
    let world = World::new();
    let one = world.run(&world.assignment);
    assert_eq!(one[0].phase, RankPhase::Finished);
    let pair = Assignment {
        generation: Generation(2),
        world: 2,
        ..world.assignment.clone()
    };
    let two = world.run(&pair);
    assert!(
        two.iter().all(|report| report.phase == RankPhase::Finished),
        "{two:?}"
    );
    // Uneven: three micro-batches over two ranks. Rank 1's share is rank 1's own weights.
    assert_close(&world.state(&world.assignment, 4), &world.state(&pair, 4));
    assert_eq!(two[1].steps, vec![], "rank 0 alone reports steps");
    let steps: Vec<u64> = two[0].steps.iter().map(|step| step.step.0).collect();
    assert_eq!(steps, [1, 2, 3, 4]);
    for (a, b) in one[0].steps.iter().zip(&two[0].steps) {
        assert!((a.loss - b.loss).abs() < 1e-3 * a.loss, "{a:?} {b:?}");
        assert!(b.seconds.communication > 0.0 && b.seconds.backward > 0.0, "{b:?}");
        assert_eq!(a.samples, 6);
        assert!(a.peak_memory_bytes > 50 << 20);
    }
    assert!(two[0].shards.iter().map(|shard| shard.step.0).eq([2, 4]));
    assert_eq!(two[0].digests.len(), 2);
    assert_eq!(
        two[0].digests, two[1].digests,
        "all ranks come to the same weights"
    );
}

#[test]
fn ranks_that_are_told_to_halt_leave_together_with_a_checkpoint_and_a_resumed_run_ends_the_same() {
    let world = World::new();
    let whole = world.run(&world.assignment);
    let halted = Assignment {
        generation: Generation(2),
        world: 2,
        halt: Some(Halt::Save),
        ..world.assignment.clone()
    };
    let reports = world.run(&halted);
    for report in &reports {
        assert_eq!(report.phase, RankPhase::Finished, "{report:?}");
        assert!(report.shards.iter().map(|shard| shard.step.0).eq([1]));
    }
    let alone = Assignment {
        generation: Generation(3),
        halt: Some(Halt::Save),
        ..world.assignment.clone()
    };
    let first = world.run(&alone);
    let resumed = Assignment {
        generation: Generation(4),
        resume: Some(world.commit(&alone, &first, Step(1))),
        ..world.assignment.clone()
    };
    let rest = world.run(&resumed);
    assert_eq!(
        rest[0].digests, whole[0].digests,
        "no bit is lost at the checkpoint of a halt"
    );
}

#[test]
fn a_resumed_rank_ends_with_the_bits_of_one_that_never_stopped() {
    let world = World::new();
    let whole = world.run(&world.assignment);
    let resume = world.commit(&world.assignment, &whole, Step(2));
    let second = Assignment {
        generation: Generation(2),
        resume: Some(resume),
        ..world.assignment.clone()
    };
    let resumed = world.run(&second);
    let steps: Vec<u64> = resumed[0].steps.iter().map(|step| step.step.0).collect();
    assert_eq!(steps, [3, 4]);
    assert_eq!(world.state(&world.assignment, 4), world.state(&second, 4));
}

#[test]
fn pictures_are_drawn_from_a_checkpoint_and_judged() {
    let world = World::new();
    let trained = world.run(&world.assignment);
    let checkpoint = world.commit(&world.assignment, &trained, Step(4));
    let request = SampleRequest {
        checkpoint: Some(checkpoint),
        count: 5,
        method: SampleMethod::DpmSolver,
        steps: 2,
        guidance: 2.0,
        seeds: vec![3],
        prompt: SamplePrompt::Pose,
        ..SampleRequest::of(world.assignment.job.clone())
    };
    let pictures = |job: &str, request: SampleRequest| world.pictures(&world.assignment, job, request);
    let (mut record, files) = pictures("tiny-1-sample-2", request.clone());
    assert_eq!(files.len(), 5);
    // Four identities in all: the own one and three others.
    assert_eq!(record["summary"]["of"], 4);
    assert_eq!(record["summary"]["count"], 5);
    assert_eq!(record["pictures"].as_array().unwrap().len(), 5);
    assert!(
        !record["pictures"][0]["prompt"]
            .as_str()
            .unwrap()
            .contains("_hair"),
        "{record}"
    );
    // The same request gives the same pictures, whatever the batch of the job.
    let batched = Assignment {
        job_toml: world
            .assignment
            .job_toml
            .replace("micro_batch = 2", "micro_batch = 3"),
        ..world.assignment.clone()
    };
    let (mut again, same) = world.pictures(&batched, "tiny-1-sample-3", request.clone());
    for record in [&mut record, &mut again] {
        let pictures = record["pictures"].as_array_mut().unwrap();
        pictures.iter_mut().for_each(|it| it["job"] = "any".into());
    }
    assert_eq!((again, same), (record, files.clone()));
    let (_, base) = pictures(
        "tiny-1-sample-4",
        SampleRequest {
            checkpoint: None,
            ..request
        },
    );
    assert_ne!(base, files, "the base draws otherwise");
}

/// Copies those tensors of a safetensors file that get a name.
fn copy_renamed(from: &Path, to: &Path, rename: impl Fn(&str) -> Option<String>) {
    let bytes = std::fs::read(from).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let renamed = tensors
        .iter()
        .filter_map(|(name, view)| Some((rename(name)?, view)));
    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
    std::fs::write(to, safetensors::serialize(renamed, None).unwrap()).unwrap();
}

#[test]
fn pictures_are_drawn_with_the_moving_average_where_there_is_one() {
    let world = World::new();
    let quick = world
        .assignment
        .job_toml
        .replace("learning_rate = 0.001", "learning_rate = 0.05");
    let averaged = Assignment {
        job_toml: quick.replace("threads = 1", "threads = 1\nema = 0.5"),
        ..world.assignment.clone()
    };
    let reports = world.run(&averaged);
    let request = |checkpoint| SampleRequest {
        checkpoint: Some(checkpoint),
        method: SampleMethod::DpmSolver,
        steps: 2,
        ..SampleRequest::of(world.assignment.job.clone())
    };
    let checkpoint = world.commit(&averaged, &reports, Step(4));
    let (record, drawn) = world.pictures(&averaged, "tiny-1-sample-1", request(checkpoint));
    let weights = |record: &Value| record["pictures"][0]["checkpoint"]["weights"].clone();
    assert_eq!(weights(&record), "moving average");
    // A job that keeps no average, with those or with the last weights for its own.
    let plain = |generation, taken: &'static str| {
        let plain = Assignment {
            job_toml: quick.clone(),
            generation: Generation(generation),
            ..world.assignment.clone()
        };
        let shard = |of: &Assignment| world.checkpoint(of, Step(4)).join("rank-0-of-1.safetensors");
        copy_renamed(&shard(&averaged), &shard(&plain), |name| {
            match name.strip_prefix(taken) {
                Some(name) => Some(format!("weights/{name}")),
                None => name.starts_with("optimizer/").then(|| name.to_owned()),
            }
        });
        let bytes = std::fs::read(shard(&plain)).unwrap();
        let mut report = reports[0].clone();
        let own = report
            .shards
            .iter_mut()
            .find(|shard| shard.step == Step(4))
            .unwrap();
        own.shard.size_bytes = bytes.len() as u64;
        own.shard.sha256 = format!("{:x}", Sha256::digest(&bytes));
        let checkpoint = world.commit(&plain, &[report], Step(4));
        let job = format!("tiny-1-sample-{generation}");
        let (record, files) = world.pictures(&plain, &job, request(checkpoint));
        assert_eq!(weights(&record), "as trained");
        files
    };
    assert!(plain(2, "ema/") == drawn, "the average itself draws the same");
    assert!(plain(3, "weights/") != drawn, "the last weights draw otherwise");
}

#[test]
fn pictures_are_drawn_from_the_sample_itself_or_from_others_as_asked() {
    let world = World::new();
    for (pairing, itself) in [(Pairing::A, true), (Pairing::B, false)] {
        let request = SampleRequest {
            steps: 1,
            pairing: Some(pairing),
            ..SampleRequest::of(world.assignment.job.clone())
        };
        let job = format!("tiny-1-sample-{itself}");
        let (record, _) = world.pictures(&world.assignment, &job, request);
        let drawn = &record["pictures"][0];
        assert_eq!(
            drawn["references"][0]["sample"] == drawn["target"]["id"],
            itself,
            "{drawn}"
        );
    }
}

#[test]
fn named_references_are_drawn_with_every_prompt_and_seed_and_looked_at() {
    let world = World::new();
    let draw = |job: &str, request: SampleRequest| world.pictures(&world.assignment, job, request);
    let plain = SampleRequest {
        steps: 2,
        ..SampleRequest::of(world.assignment.job.clone())
    };
    let (record, _) = draw("tiny-1-sample-1", plain.clone());
    let id = record["pictures"][0]["target"]["id"].as_str().unwrap().to_owned();
    // A picture of the user's, where `coordinator sample` puts it.
    let folder = world.folder.path().join("store/jobs");
    let file = std::fs::read(folder.join("tiny-1-sample-1/pictures/000.png")).unwrap();
    let sha256 = format!("{:x}", Sha256::digest(&file));
    std::fs::create_dir_all(folder.join("tiny-1/references")).unwrap();
    std::fs::write(folder.join("tiny-1/references").join(&sha256), file).unwrap();
    let named = |concept, from| NamedReference { concept, from };
    let request = SampleRequest {
        seeds: vec![7, 9],
        prompts: vec!["1girl, standing".into(), String::new(), "1girl, hat".into()],
        references: vec![
            named(Some(Concept::Face), PictureSource::Sample { id: id.clone() }),
            named(
                Some(Concept::Clothes),
                PictureSource::File {
                    name: "me.png".into(),
                    sha256: sha256.clone(),
                },
            ),
            named(None, PictureSource::Sample { id: id.clone() }),
        ],
        task: Some(Task::Reconstruction),
        attention: vec![Concept::Face, Concept::Clothes],
        ..plain
    };
    let (record, files) = draw("tiny-1-sample-2", request.clone());
    assert_eq!(files.len(), 6, "three prompts with two seeds");
    assert_ne!(files[0], files[1], "another seed draws otherwise");
    let last = &record["pictures"][5];
    assert_eq!(
        (&last["prompt"], &last["seed"]),
        (&"1girl, hat".into(), &9.into())
    );
    assert_eq!(
        (&last["target"], &last["task"]),
        (&Value::Null, &"reconstruction".into())
    );
    let references = serde_json::json!([
        { "concept": "face", "sample": id },
        { "concept": "clothes", "file": { "name": "me.png", "sha256": sha256 } },
        { "concept": "figure", "sample": id },
    ]);
    assert_eq!(last["references"], references);
    let pictures = folder.join("tiny-1-sample-2/pictures");
    let read = |name: &str| std::fs::read(pictures.join(name)).unwrap();
    let sidecar: Value = serde_json::from_slice(&read("005.json")).unwrap();
    assert_eq!(&sidecar, last);
    // One of the pictures alone is the same.
    let alone = SampleRequest {
        seeds: vec![7],
        prompts: vec![String::new()],
        ..request.clone()
    };
    assert_eq!(draw("tiny-1-sample-3", alone).1, [files[2].clone()]);
    // Three references, two words, two time steps, and the block that attends.
    look_at_maps(&pictures, 3 * 2 * 2);
}

fn look_at_maps(pictures: &Path, count: usize) {
    let read = |name: &str| std::fs::read(pictures.join(name)).unwrap();
    let maps: Value = serde_json::from_slice(&read("attention-000.json")).unwrap();
    let maps = maps["maps"].as_array().unwrap();
    assert_eq!(maps.len(), count, "{maps:?}");
    for map in maps {
        assert_eq!(map["input_block"], 3);
        let (least, most) = (map["least"].as_f64().unwrap(), map["most"].as_f64().unwrap());
        assert!(0.0 < least && least < most && most < 1.0, "{map}");
        for name in ["file", "sheet"] {
            assert!(read(map[name].as_str().unwrap()).starts_with(b"\x89PNG"));
        }
    }
}

#[test]
fn a_reference_that_is_not_there_is_named() {
    let world = World::new();
    let unknown = SampleRequest {
        references: vec![NamedReference {
            concept: None,
            from: PictureSource::Sample { id: "none".into() },
        }],
        ..SampleRequest::of(world.assignment.job.clone())
    };
    let assignment = Assignment {
        work: Work::Sample(unknown),
        ..world.assignment.clone()
    };
    let RankPhase::Failed { error, .. } = world.run(&assignment).remove(0).phase else {
        panic!("a reference that is not there was drawn")
    };
    assert!(error.contains("has no sample \"none\""), "{error}");
}

#[test]
fn what_goes_wrong_is_said_in_one_line_with_rank_place_and_reason() {
    let world = World::new();
    let check = |change: fn(&mut Assignment), parts: &[&str]| {
        let mut assignment = world.assignment.clone();
        change(&mut assignment);
        assignment.generation = Generation(10 + parts[0].len() as u64);
        let last = world.run(&assignment).remove(0);
        let RankPhase::Failed { error, .. } = last.phase else {
            panic!("{parts:?}: {last:?}")
        };
        assert!(error.starts_with("rank 0 of generation "), "{error}");
        for part in parts {
            assert!(error.contains(part), "{error:?} lacks {part:?}");
        }
    };
    check(
        |a| a.dataset_version = "0".into(),
        &["the job was submitted with 0"],
    );
    check(|a| a.job_toml = "name = 1".into(), &["job.toml of tiny-1:1"]);
    let missing = |a: &mut Assignment| {
        a.resume = Some(CheckpointRef {
            step: Step(2),
            generation: Generation(7),
        });
    };
    check(missing, &["cannot resume", "0000000002-g7/manifest.json"]);
}

/// The error with which a rank ended.
fn failure(report: &RankReport) -> &str {
    match &report.phase {
        RankPhase::Failed { error, .. } => error,
        phase => panic!("{phase:?}"),
    }
}

/// A base of nothing but an autoencoder, with the weights that a job had after `step`; the line that names it.
fn base_of(world: &World, autoencoder: &Assignment, (name, step): (&str, u64)) -> String {
    let shard = world.checkpoint(autoencoder, Step(step));
    let folder = world.folder.path().join(name);
    let file = folder.join("autoencoder.safetensors");
    copy_renamed(&shard.join("rank-0-of-1.safetensors"), &file, |name| {
        name.strip_prefix("weights/autoencoder.").map(str::to_owned)
    });
    format!("\ninit = \"file://{}\"", folder.display())
}

#[test]
fn base_weights_that_changed_since_the_checkpoint_are_refused_with_both_digests() {
    let world = World::new();
    let job = |generation, architecture: &str, init: &str| {
        let toml = &world.assignment.job_toml;
        let toml = toml.replace("\"retrinet\"", &format!("\"{architecture}\"{init}"));
        Assignment {
            generation: Generation(generation),
            job_toml: toml.replace("references = 2\n", ""),
            ..world.assignment.clone()
        }
    };
    let autoencoder = job(1, "autoencoder", "");
    assert_eq!(world.run(&autoencoder)[0].phase, RankPhase::Finished);
    let init = base_of(&world, &autoencoder, ("base", 2));
    let first = job(2, "text-to-image", &init);
    let reports = world.run(&first);
    let made_with = reports[0].shards[0].init_digest.clone().unwrap();
    let resume = Some(world.commit(&first, &reports, Step(2)));
    let resumed = |generation| Assignment {
        resume,
        ..job(generation, "text-to-image", &init)
    };
    assert_eq!(world.run(&resumed(3))[0].phase, RankPhase::Finished);
    // The same URL, other weights.
    base_of(&world, &autoencoder, ("base", 4));
    let draws = Assignment {
        work: Work::Sample(SampleRequest {
            checkpoint: resume,
            ..SampleRequest::of(first.job.clone())
        }),
        ..resumed(5)
    };
    for assignment in [resumed(4), draws] {
        let reports = world.run(&assignment);
        let error = failure(&reports[0]);
        assert!(
            error.contains("the base weights have the SHA-256 ")
                && error.contains(&format!(
                    "0000000002-g2/manifest.json was made with {made_with}: "
                )),
            "{error}"
        );
    }
    // Two ranks that begin, each from its own.
    let pair = |init: &str| Assignment {
        world: 2,
        ..job(6, "text-to-image", init)
    };
    let other = base_of(&world, &autoencoder, ("other", 2));
    let mut opener = TestRank::start(world.folder.path(), &pair(&init), 0);
    let opened = opener.until(|report| report.store_address.is_some());
    let second = Assignment {
        store_address: opened.store_address,
        ..pair(&other)
    };
    let mut second = TestRank::start(world.folder.path(), &second, 1);
    for report in [opener.finish(), second.finish()] {
        let error = failure(&report);
        assert!(error.contains("the ranks differ in the base weights"), "{error}");
    }
}

/// Two ranks with these lines added to the job's [model] and [train].
fn pair_with(world: &World, generation: u64, model: &str, train: &str) -> (Assignment, Vec<RankReport>) {
    let toml = &world.assignment.job_toml;
    let toml = toml.replace("size = \"tiny\"", &format!("size = \"tiny\"\n{model}"));
    let pair = Assignment {
        generation: Generation(generation),
        world: 2,
        job_toml: toml.replace("threads = 1", &format!("threads = 1\n{train}")),
        ..world.assignment.clone()
    };
    let reports = world.run(&pair);
    assert!(
        reports.iter().all(|report| report.phase == RankPhase::Finished),
        "{reports:?}"
    );
    (pair, reports)
}

#[test]
fn the_reducer_sees_the_same_bits_from_blocks_that_are_computed_again() {
    let world = World::new();
    let (plain, _) = pair_with(&world, 1, "", "");
    let again = "activation_checkpointing = [\"decoder\", \"retrieval-encoder\", \"cross-attention\"]";
    let (again, _) = pair_with(&world, 2, again, "");
    assert_eq!(world.state(&plain, 4), world.state(&again, 4));
}

#[test]
fn ranks_in_fp16_agree_on_the_loss_scale_and_come_back_with_it() {
    let world = World::new();
    let (pair, reports) = pair_with(&world, 1, "", "precision = \"fp16\"");
    let last = reports[0].steps.last().unwrap();
    let saved = world.state(&pair, 4);
    assert_eq!(f64::from(saved["guard/loss_scale"][0]), last.loss_scale);
    // The ranks wrote one state together: from its middle they come to the same end.
    let resumed = Assignment {
        generation: Generation(2),
        resume: Some(world.commit(&pair, &reports, Step(2))),
        ..pair
    };
    world.run(&resumed);
    assert_eq!(world.state(&resumed, 4), saved);
}

/// Two ranks of a job whose first update throws the weights out of all bounds.
fn diverging(world: &World, on_nonfinite: &str) -> (Assignment, Vec<RankReport>) {
    let rate = format!("learning_rate = 1e30\non_nonfinite = \"{on_nonfinite}\"");
    let pair = Assignment {
        world: 2,
        job_toml: world.assignment.job_toml.replace("learning_rate = 0.001", &rate),
        ..world.assignment.clone()
    };
    let reports = world.run(&pair);
    (pair, reports)
}

#[test]
fn a_loss_that_is_no_number_ends_the_job_on_all_ranks_with_step_and_samples() {
    let (_, reports) = diverging(&World::new(), "stop");
    let error = |report: &RankReport| match &report.phase {
        RankPhase::Failed {
            error,
            permanent: true,
        } => error.split_once(": ").unwrap().1.to_owned(),
        phase => panic!("{phase:?}"),
    };
    let (first, second) = (error(&reports[0]), error(&reports[1]));
    assert_eq!(first, second, "all ranks say the same");
    assert!(
        first.starts_with("step 2: the loss is not finite; nothing was changed; the samples at positions ")
            && first.contains("(id "),
        "{first}"
    );
    assert_eq!(reports[0].steps.len(), 1);
}

#[test]
fn steps_that_are_skipped_are_counted_and_leave_the_weights_alone() {
    let world = World::new();
    let (pair, reports) = diverging(&world, "skip");
    assert!(
        reports.iter().all(|report| report.phase == RankPhase::Finished),
        "{reports:?}"
    );
    let skipped: Vec<u64> = reports[0].steps.iter().map(|step| step.skipped_steps).collect();
    assert_eq!(skipped, [0, 1, 2, 3]);
    assert!(reports[0].steps.iter().all(|step| step.loss.is_finite()));
    let (second, last) = (world.state(&pair, 2), world.state(&pair, 4));
    for (name, values) in &last {
        assert!(values == &second[name] || name.starts_with("guard/"), "{name}");
    }
    assert_eq!(last["guard/skipped"], [3.0]);
}

#[test]
fn a_loss_that_an_exact_sum_cannot_hold_ends_the_job_on_all_ranks_with_step_and_samples() {
    let world = World::new();
    let pair = Assignment {
        world: 2,
        job_toml: world.assignment.job_toml.replace(
            "learning_rate = 0.001",
            "learning_rate = 100.0\nreduction = \"exact\"",
        ),
        ..world.assignment.clone()
    };
    for report in world.run(&pair) {
        let RankPhase::Failed {
            error,
            permanent: true,
        } = report.phase
        else {
            panic!("{report:?}")
        };
        for part in [
            ": step 2: the gradient or loss of a micro-batch is larger than an exact sum holds (",
            "nothing was changed; if such numbers are right, use train.reduction = \"fast\"",
            "; the samples at positions ",
        ] {
            assert!(error.contains(part), "{error:?} lacks {part:?}");
        }
    }
}

/// What `coordinator checkpoint digest` would say of the state after the last step.
fn last_digest(report: &RankReport) -> String {
    let digest = report.digests.last();
    let digest = digest.unwrap_or_else(|| panic!("no digest: {report:?}"));
    digest.sha256.clone()
}

/// Starts ranks of an assignment that differs in its first ones: those run already.
fn meet(world: &World, running: &mut [&mut TestRank], assignment: &Assignment) -> Vec<TestRank> {
    let first = u32::try_from(running.len()).unwrap();
    for (rank, process) in (0..).zip(running.iter_mut()) {
        process.order_as(rank, assignment);
    }
    let mut started: Vec<TestRank> = (first..assignment.world)
        .map(|rank| TestRank::start(world.folder.path(), assignment, rank))
        .collect();
    let opener = running
        .iter_mut()
        .map(|rank| &mut **rank)
        .chain(&mut started)
        .next()
        .unwrap();
    let generation = assignment.generation;
    let opened = opener.until(|report| report.generation == generation && report.store_address.is_some());
    let known = Assignment {
        store_address: opened.store_address,
        ..assignment.clone()
    };
    running
        .iter_mut()
        .map(|rank| &mut **rank)
        .chain(&mut started)
        .for_each(|rank| rank.order(&known));
    started
}

#[test]
fn survivors_keep_their_state_and_give_it_to_a_new_process() {
    for reduction in ["fast", "exact"] {
        let world = World::new();
        let toml = world
            .assignment
            .job_toml
            .replace("steps = 4", "steps = 24")
            .replace(
                "threads = 1",
                &format!("threads = 1\nreduction = \"{reduction}\""),
            )
            .replace("\nevery = 2", "\nevery = 100");
        let job = |generation, ranks| Assignment {
            job_toml: toml.clone(),
            generation: Generation(generation),
            world: ranks,
            ..world.assignment.clone()
        };
        let undisturbed = last_digest(&world.run(&job(1, 3))[0]);

        let mut ranks = meet(&world, &mut [], &job(2, 3));
        let [first, second, third] = &mut ranks[..] else {
            panic!("three")
        };
        first.until(|report| report.steps.len() > 1);
        second.child.kill().unwrap();
        for survivor in [&mut *first, &mut *third] {
            let RankPhase::Broken { error } = survivor
                .until(|report| matches!(report.phase, RankPhase::Broken { .. }))
                .phase
            else {
                panic!("{reduction}: {:?}", survivor.last)
            };
            assert!(
                error.contains("step ") && error.contains("generation 2 closed its connection"),
                "{error}"
            );
        }
        let process = first.child.id();
        // The third becomes rank 0; whoever has the newest step gives it to the new one.
        let mut new = meet(&world, &mut [third, first], &job(3, 3));
        let reports = [third.finish(), first.finish(), new[0].finish()];
        assert_eq!(first.child.id(), process);
        for report in &reports {
            assert_eq!(report.phase, RankPhase::Finished, "{reduction}: {report:?}");
            assert_eq!(last_digest(report), last_digest(&reports[0]), "{reduction}");
        }
        // Those steps that were made before are told by who is rank 0 now.
        let steps: Vec<u64> = reports[0].steps.iter().map(|step| step.step.0).collect();
        assert_eq!(steps, (1..=24).collect::<Vec<_>>(), "{reduction}");
        // Three floats add up otherwise when the buckets are cut otherwise; whole numbers do not.
        if reduction == "exact" {
            assert_eq!(last_digest(&reports[0]), undisturbed);
        }
    }
}

#[test]
fn a_generation_ends_for_ranks_that_work_waits_for_nobody_and_may_shrink_and_grow() {
    let world = World::new();
    let toml = world
        .assignment
        .job_toml
        .replace("steps = 4", "steps = 30")
        .replace("threads = 1", "threads = 1\nreduction = \"exact\"")
        .replace("\nevery = 2", "\nevery = 100");
    let job = |generation, ranks| Assignment {
        job_toml: toml.clone(),
        generation: Generation(generation),
        world: ranks,
        ..world.assignment.clone()
    };
    let undisturbed = last_digest(&world.run(&job(1, 1))[0]);
    let mut ranks = meet(&world, &mut [], &job(2, 2));
    let [first, second] = &mut ranks[..] else {
        panic!("two")
    };
    first.until(|report| report.steps.len() > 1);
    // The second is stopped and says nothing; an order frees the first from waiting for it.
    let stopped = second.child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-STOP", &stopped])
            .status()
            .unwrap()
            .success()
    );
    first.order_as(0, &job(3, 1));
    first.until(|report| report.generation == Generation(3) && report.phase == RankPhase::Training);
    // It wakes up two generations later and is given the state.
    assert!(
        Command::new("kill")
            .args(["-CONT", &stopped])
            .status()
            .unwrap()
            .success()
    );
    meet(&world, &mut [first, second], &job(4, 2));
    for rank in &mut ranks {
        let report = rank.finish();
        assert_eq!((&report.phase, report.generation.0), (&RankPhase::Finished, 4));
        assert_eq!(last_digest(&report), undisturbed);
    }
}

#[test]
fn a_rank_that_holds_writes_nothing_until_it_is_told_to_and_a_reserve_waits_for_its_place() {
    let world = World::new();
    let hold = Assignment {
        halt: Some(Halt::Hold),
        ..world.assignment.clone()
    };
    let mut rank = TestRank::start(world.folder.path(), &hold, 0);
    let held = rank.until(|report| report.phase == RankPhase::Finished);
    assert!(held.shards.is_empty() && held.steps.iter().map(|step| step.step.0).eq([1]));
    let save = Assignment {
        halt: Some(Halt::Save),
        ..world.assignment.clone()
    };
    rank.order(&save);
    let saved = rank.until(|report| !report.shards.is_empty());
    assert!(saved.shards.iter().map(|shard| shard.step.0).eq([1]));
    // Out of the generation, and in again: what it held it holds still.
    let reserve = Assignment {
        generation: Generation(2),
        world: 0,
        ..world.assignment.clone()
    };
    rank.order(&reserve);
    rank.until(|report| report.generation == Generation(2) && report.phase == RankPhase::Ready);
    let last = Assignment {
        generation: Generation(3),
        ..world.assignment.clone()
    };
    rank.order(&last);
    let report = rank.finish();
    assert!(report.steps.iter().map(|step| step.step.0).eq(1..=4));
}

#[test]
fn a_rank_leaves_when_it_is_told_to_and_when_its_daemon_is_gone() {
    let world = World::new();
    let endless = world.assignment.job_toml.replace("steps = 4", "steps = 100000");
    let assignment = Assignment {
        job_toml: endless,
        ..world.assignment.clone()
    };
    let mut told = TestRank::start(world.folder.path(), &assignment, 0);
    told.until(|report| report.phase == RankPhase::Training);
    writeln!(
        told.reader.get_mut(),
        "{}",
        serde_json::to_string(&RankOrder::Stop).unwrap()
    )
    .unwrap();
    assert!(told.child.wait().unwrap().success());
    let second = Assignment {
        generation: Generation(2),
        ..assignment
    };
    let mut left = TestRank::start(world.folder.path(), &second, 0);
    left.until(|report| report.phase == RankPhase::Training);
    left.reader.get_ref().shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(left.child.wait().unwrap().code(), Some(3));
}
