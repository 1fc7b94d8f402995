//! Small valid values for this crate's tests.

use coordinator_core::event::{About, JobPhase, JobRecord, RECORD_VERSION};
use image::{GrayImage, Luma, Rgb, RgbImage};
use model_data::image_file::{encode_gray, encode_rgb};
use model_data::sample::{Metadata, Sample};
use model_data::writer::{DatasetWriter, WriteOptions};
use proto::account::Account;
use proto::checkpoint::{CheckpointManifest, CheckpointRef, MANIFEST_FILE, ShardEntry};
use proto::id::{Generation, JobId, Step};
use proto::ledger::Tip;
use proto::reason::Waiting;
use proto::text::hex_sha256;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::collections::BTreeMap;

/// A job.toml that `job::parse` accepts, on the data set at `dataset`.
pub(crate) fn job_toml(dataset: &str) -> String {
    format!(
        r#"name = "demo"
[resources]
workers = {{ min = 1, max = 2 }}
[data]
dataset = "{dataset}"
resolution = 32
[model]
architecture = "autoencoder"
size = "tiny"
[train]
steps = 4
global_batch = 4
micro_batch = 2
"#
    )
}

pub(crate) fn job_record(id: &str) -> JobRecord {
    JobRecord {
        version: RECORD_VERSION,
        id: JobId(id.into()),
        job_toml: job_toml("file:///data"),
        overrides: Vec::new(),
        trained_ms: 0,
        dataset_version: "0".repeat(64),
        cut_prompts: None,
        lost_tags: Vec::new(),
        adapted: None,
        source: None,
        models: Vec::new(),
        parent: None,
        evaluations: None,
        submitted_ms: 5,
        standbys: Vec::new(),
        ledger: Tip::begin(&JobId(id.into()), "", ""),
        paused: false,
        paused_because: None,
        workers: None,
        generation: Generation(0),
        phase: JobPhase::Queued {
            reason: Waiting::Submitted,
        },
        checkpoints: Vec::new(),
        reached: Step(0),
        restarts_without_progress: 0,
        permanent_failure: false,
        restarts: 0,
        incidents: Vec::new(),
        units: None,
        about: About::default(),
        account: Account::default(),
        faults: BTreeMap::new(),
        committed_ms: None,
    }
}

/// A small checkpoint of job `demo-1` in its own temporary folder.
pub(crate) struct TestCheckpoint {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) url: String,
    pub(crate) manifest: CheckpointManifest,
    pub(crate) reference: CheckpointRef,
}

/// Seven tensors, the same for every `world`, split over that many shards; with a manifest if
/// `committed`.
pub(crate) async fn test_checkpoint(world: usize, committed: bool) -> TestCheckpoint {
    let dir = tempfile::tempdir().expect("the temporary folder is writable");
    let url = format!("file://{}", dir.path().display());
    let (step, generation) = (Step(4), Generation(2));
    let job = JobId("demo-1".into());
    let folder = dir
        .path()
        .join(proto::checkpoint::checkpoint_folder(&job, step, generation));
    std::fs::create_dir_all(&folder).expect("the temporary folder is writable");
    let values: Vec<Vec<u8>> = (0..7u8)
        .map(|it| {
            (it..it + 8)
                .flat_map(|b| f32::from(b).to_le_bytes())
                .collect()
        })
        .collect();
    let mut shards = Vec::new();
    for rank in 0..world {
        let tensors = (0..7).filter(|it| it % world == rank).map(|it| {
            let view =
                TensorView::new(Dtype::F32, vec![2, 4], &values[it]).expect("8 floats of 4 bytes");
            let name = format!("weights/unet.output_blocks.{it}.0.in_layers.0.weight");
            (name, view)
        });
        let bytes = safetensors::serialize(tensors, None).expect("the names differ");
        let path = format!("rank-{rank}-of-{world}.safetensors");
        std::fs::write(folder.join(&path), &bytes).expect("the temporary folder is writable");
        let sha256 = hex_sha256(&bytes);
        shards.push(ShardEntry {
            path,
            size_bytes: bytes.len() as u64,
            sha256,
        });
    }
    let manifest = CheckpointManifest {
        job,
        step,
        generation,
        // An architecture with a U-Net.
        job_toml: job_toml("file:///data").replace("\"autoencoder\"", "\"text-to-image\""),
        dataset_version: "0".repeat(64),
        init_digest: None,
        shards,
        environment: "test".into(),
        ranks: std::collections::BTreeMap::new(),
    };
    if committed {
        let json = serde_json::to_vec(&manifest).expect("a manifest is JSON");
        std::fs::write(folder.join(MANIFEST_FILE), json).expect("the temporary folder is writable");
    }
    TestCheckpoint {
        dir,
        url,
        manifest,
        reference: CheckpointRef { step, generation },
    }
}

/// Creates a data set of four small images of one character; returns its URL.
pub(crate) async fn dataset(dir: &std::path::Path) -> String {
    let url = format!("file://{}", dir.join("data").display());
    let mut writer = DatasetWriter::open(&url, WriteOptions::new("fixture"))
        .await
        .expect("the folder can be created and is empty");
    writer
        .add((0..4).map(sample).collect())
        .await
        .expect("the temporary folder is writable");
    let _ = writer
        .finish()
        .await
        .expect("the temporary folder is writable");
    url
}

/// One of four images of a character, 32 pixels square, that list each other as similar.
fn sample(number: u8) -> Sample {
    let id = |number: u8| format!("demo-{number}");
    let image = RgbImage::from_pixel(32, 32, Rgb([60 * number, 90, 200]));
    Sample {
        metadata: Metadata {
            id: id(number),
            character: "demo".to_owned(),
            artists: "fixture".to_owned(),
            bbox: [0.5, 0.5, 0.5, 0.5],
            prompts: "1girl, solo".to_owned(),
            similar: (0..4).filter(|other| *other != number).map(id).collect(),
            width: 32,
            height: 32,
            ..Metadata::default()
        },
        image: encode_rgb(image).expect("32 by 32 pixels can be encoded"),
        mask: encode_gray(GrayImage::from_pixel(32, 32, Luma([255])))
            .expect("32 by 32 pixels can be encoded"),
    }
}
