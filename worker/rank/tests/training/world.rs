//! The data set, the store and the daemon for the tests of rank processes.

use figures::synthetic::{Backgrounds, Similar, SynthesizeOptions, identities};
use model_data::writer::{DatasetWriter, WriteOptions};
use proto::checkpoint::{CheckpointManifest, CheckpointRef, MANIFEST_FILE, checkpoint_folder};
use proto::id::{Generation, JobId, Rank, Step};
use proto::message::{
    Assignment, GangOrder, RankOrder, RankPhase, RankReport, Run, SourceJob, UnitOrder, UnitRange,
};
use proto::sample::SampleWork;
use proto::spec::{JobSpec, Work};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

pub(crate) const JOB: &str = r#"
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

/// The data set, the store and the default assignment.
pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) assignment: Assignment,
}

impl World {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = |name: &str| format!("file://{}/{name}", folder.path().display());
        let options = SynthesizeOptions {
            characters: 4,
            outfits: 1,
            images: 4,
            size: 32,
            seed: 1,
            similar: Similar::All,
            backgrounds: Backgrounds::All,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let options_of_writer = WriteOptions::new("figures");
            let mut writer = DatasetWriter::open(&url("data"), options_of_writer)
                .await
                .unwrap();
            for identity in identities(&options) {
                writer.add(identity).await.unwrap();
            }
            writer.finish().await.unwrap();
        });
        let assignment = Assignment {
            job: JobId("tiny-1".into()),
            generation: Generation(1),
            job_toml: JOB.replace("DATASET", &url("data")),
            dataset_version: version(&folder.path().join("data")),
            first_rank: Rank(0),
            ranks: 1,
            store_url: url("store"),
            graceful_stop: None,
            run: world_of(1),
            detect_within_ms: 10_000,
        };
        Self { folder, assignment }
    }

    /// Runs all ranks of the assignment and returns the last report of each.
    pub(crate) fn run(&self, assignment: &Assignment) -> Vec<RankReport> {
        let mut ranks: Vec<TestRank> = (0..assignment.world())
            .map(|rank| TestRank::start(self.folder.path(), assignment, rank))
            .collect();
        if assignment.world() > 1 && assignment.gang().is_some() {
            let address = ranks[0]
                .until(|report| report.store_address.is_some())
                .store_address;
            let addressed = Assignment {
                run: with_store_address(assignment, address),
                ..assignment.clone()
            };
            ranks.iter_mut().for_each(|rank| rank.order(&addressed));
        }
        ranks.iter_mut().map(TestRank::finish).collect()
    }

    /// The assignment of a sampling job that leases all units of `work` but the last to one rank.
    pub(crate) fn sampling(
        &self,
        of: &Assignment,
        job: &str,
        work: &SampleWork,
        checkpoint: Option<CheckpointRef>,
    ) -> Assignment {
        let trained = proto::job::parse_stored(&of.job, &of.job_toml).unwrap();
        let spec = JobSpec {
            name: job.into(),
            work: Work::Sample(Box::new(work.clone())),
            ..trained
        };
        let lease = UnitRange {
            first: 0,
            end: work.units().count - 1,
        };
        Assignment {
            job: JobId(job.into()),
            job_toml: proto::job::to_toml(&spec),
            run: units_of(of, checkpoint, &[lease]),
            ..of.clone()
        }
    }

    /// Runs a sampling job. Returns images.json, and the images that it lists.
    pub(crate) fn images(
        &self,
        of: &Assignment,
        job: &str,
        work: &SampleWork,
        checkpoint: Option<CheckpointRef>,
    ) -> (Value, Vec<Vec<u8>>) {
        let assignment = self.sampling(of, job, work, checkpoint);
        let mut rank = TestRank::start(self.folder.path(), &assignment, 0);
        let last = work.units().count - 1;
        rank.until(|report| {
            report.units.done
                == [UnitRange {
                    first: 0,
                    end: last,
                }]
        });
        rank.order(&Assignment {
            run: units_of(of, checkpoint, &[UnitRange::one(last)]),
            ..assignment
        });
        rank.until(|report| report.units.done == [UnitRange::one(last)]);
        rank.stop();
        self.outputs(job)
    }

    /// The outputs of a sampling job: images.json, and the images that it lists.
    pub(crate) fn outputs(&self, job: &str) -> (Value, Vec<Vec<u8>>) {
        let folder = self
            .folder
            .path()
            .join("store/jobs")
            .join(job)
            .join("images");
        let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
        let record: Value = serde_json::from_slice(&read("images.json")).unwrap();
        let files = record["images"].as_array().unwrap().iter();
        let files = files.map(|it| read(it["file"].as_str().unwrap())).collect();
        assert!(read("grid.png").starts_with(b"\x89PNG"));
        (record, files)
    }

    /// Commits a checkpoint as the coordinator does when all shards exist.
    pub(crate) fn commit(
        &self,
        assignment: &Assignment,
        reports: &[RankReport],
        step: Step,
    ) -> CheckpointRef {
        let shards: Vec<_> = reports
            .iter()
            .flat_map(|report| &report.shards)
            .filter(|shard| shard.step == step)
            .collect();
        assert_eq!(shards.len(), assignment.world() as usize);
        let manifest = CheckpointManifest {
            job: assignment.job.clone(),
            step,
            generation: assignment.generation,
            job_toml: assignment.job_toml.clone(),
            dataset_version: assignment.dataset_version.clone(),
            init_digest: shards[0].init_digest.clone(),
            shards: shards.iter().map(|shard| shard.shard.clone()).collect(),
            environment: shards[0].environment.clone(),
            ranks: BTreeMap::new(),
        };
        let folder = self.checkpoint(assignment, step);
        std::fs::write(
            folder.join(MANIFEST_FILE),
            serde_json::to_vec(&manifest).unwrap(),
        )
        .unwrap();
        CheckpointRef {
            step,
            generation: assignment.generation,
        }
    }

    pub(crate) fn checkpoint(&self, assignment: &Assignment, step: Step) -> std::path::PathBuf {
        let folder = checkpoint_folder(&assignment.job, step, assignment.generation);
        self.folder.path().join("store").join(folder)
    }

    /// All tensors of a checkpoint, merged from its shards.
    pub(crate) fn state(&self, assignment: &Assignment, step: u64) -> BTreeMap<String, Vec<f32>> {
        let mut state = BTreeMap::new();
        for rank in 0..assignment.world() {
            let file = format!("rank-{rank}-of-{}.safetensors", assignment.world());
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

/// A gang of `world` ranks without a store address.
pub(crate) fn world_of(world: u32) -> Run {
    Run::Gang(GangOrder {
        world,
        ..GangOrder::default()
    })
}

fn gang_of(assignment: &Assignment) -> GangOrder {
    assignment.gang().unwrap().clone()
}

/// The assignment's gang, resuming from a checkpoint.
pub(crate) fn resumed_from(assignment: &Assignment, resume: Option<CheckpointRef>) -> Run {
    Run::Gang(GangOrder {
        resume,
        ..gang_of(assignment)
    })
}

/// The assignment's gang with a store address.
pub(crate) fn with_store_address(assignment: &Assignment, store_address: Option<String>) -> Run {
    Run::Gang(GangOrder {
        store_address,
        ..gang_of(assignment)
    })
}

/// Units of the trained job `of`, all leased to rank 0.
pub(crate) fn units_of(
    of: &Assignment,
    checkpoint: Option<CheckpointRef>,
    lease: &[UnitRange],
) -> Run {
    let source = SourceJob {
        job_toml: of.job_toml.clone(),
        checkpoint,
    };
    Run::Units(UnitOrder {
        models: Vec::new(),
        source: Some(source),
        leases: BTreeMap::from([(Rank(0), lease.to_vec())]),
    })
}

pub(crate) fn version(folder: &Path) -> String {
    proto::text::hex_sha256(&std::fs::read(folder.join("dataset.json")).unwrap())
}

/// One process, and the daemon's end of its socket.
pub(crate) struct TestRank {
    pub(crate) child: Child,
    pub(crate) reader: BufReader<UnixStream>,
    pub(crate) rank: Rank,
    pub(crate) last: Option<RankReport>,
}

impl TestRank {
    pub(crate) fn start(folder: &Path, assignment: &Assignment, rank: u32) -> Self {
        Self::start_with(folder, assignment, rank, &[])
    }

    /// Starts a process with extra environment variables.
    pub(crate) fn start_with(
        folder: &Path,
        assignment: &Assignment,
        rank: u32,
        environment: &[(&str, &str)],
    ) -> Self {
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
            .envs(environment.iter().copied())
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

    /// Sends an order with another rank.
    pub(crate) fn order_as(&mut self, rank: u32, assignment: &Assignment) {
        self.rank = Rank(rank);
        self.order(assignment);
    }

    pub(crate) fn stop(&mut self) {
        let stop = serde_json::to_string(&RankOrder::Stop).unwrap();
        // Ignored: the process may have exited.
        let _ = writeln!(self.reader.get_mut(), "{stop}");
    }

    pub(crate) fn order(&mut self, assignment: &Assignment) {
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

    pub(crate) fn next(&mut self) -> Option<RankReport> {
        let mut line = String::new();
        if self.reader.read_line(&mut line).unwrap() == 0 {
            return None;
        }
        self.last = Some(serde_json::from_str(&line).unwrap());
        self.last.clone()
    }

    pub(crate) fn until(&mut self, condition: impl Fn(&RankReport) -> bool) -> RankReport {
        loop {
            let report = self
                .next()
                .unwrap_or_else(|| panic!("ended with {:?}", self.last));
            if condition(&report) {
                return report;
            }
        }
    }

    /// Waits until the process exits, and returns its last report. A finished rank is stopped here:
    /// it stays alive by itself, because it holds the state.
    pub(crate) fn finish(&mut self) -> RankReport {
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

/// Copies the tensors of a safetensors file for which `rename` returns a name.
pub(crate) fn copy_renamed(from: &Path, to: &Path, rename: impl Fn(&str) -> Option<String>) {
    let bytes = std::fs::read(from).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let renamed = tensors
        .iter()
        .filter_map(|(name, view)| Some((rename(name)?, view)));
    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
    std::fs::write(to, safetensors::serialize(renamed, None).unwrap()).unwrap();
}

/// The error with which a rank ended.
pub(crate) fn failure(report: &RankReport) -> String {
    match &report.phase {
        RankPhase::Failed { failure } => failure.to_string(),
        phase => panic!("{phase:?}"),
    }
}

/// The digest of the state after the last step, as `coordinator checkpoint digest` prints it.
pub(crate) fn last_digest(report: &RankReport) -> String {
    let digest = report.digests.last();
    let digest = digest.unwrap_or_else(|| panic!("no digest: {report:?}"));
    digest.sha256.clone()
}

/// Starts a gang. The processes in `running` become its first ranks; the others are started.
pub(crate) fn start_gang(
    world: &World,
    running: &mut [&mut TestRank],
    assignment: &Assignment,
) -> Vec<TestRank> {
    let first = u32::try_from(running.len()).unwrap();
    for (rank, process) in (0..).zip(running.iter_mut()) {
        process.order_as(rank, assignment);
    }
    let mut started: Vec<TestRank> = (first..assignment.world())
        .map(|rank| TestRank::start(world.folder.path(), assignment, rank))
        .collect();
    let opener = running
        .iter_mut()
        .map(|rank| &mut **rank)
        .chain(&mut started)
        .next()
        .unwrap();
    let generation = assignment.generation;
    let opened =
        opener.until(|report| report.generation == generation && report.store_address.is_some());
    let addressed = Assignment {
        run: with_store_address(assignment, opened.store_address),
        ..assignment.clone()
    };
    running
        .iter_mut()
        .map(|rank| &mut **rank)
        .chain(&mut started)
        .for_each(|rank| rank.order(&addressed));
    started
}
