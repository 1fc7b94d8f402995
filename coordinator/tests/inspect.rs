//! Runs `coordinator serve` and submits jobs whose data sets and base models are hostile. Each is
//! refused with its file and a reason, and costs the coordinator itself no memory.

#![allow(clippy::unwrap_used)]

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use model_data::columns::{schema, to_batch};
use model_data::image_file::{encode_gray, encode_rgb};
use model_data::sample::{Metadata, Sample};
use model_data::writer::{DatasetWriter, WriteOptions};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use proto::dataset::{DATASET_FILE, DatasetManifest, IndexFile, SampleFile};
use proto::pb;
use proto::pb::control_client::ControlClient;
use proto::version::{self, Stamp};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// It has 25 MiB when it has started.
const COORDINATOR_MIB_MAX: u64 = 200;

type Client = ControlClient<InterceptedService<Channel, Stamp>>;

struct Server {
    child: Child,
    rpc: Endpoint,
}

impl Server {
    fn start(folder: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_coordinator"))
            .arg("serve")
            .env("RETRI_COORDINATOR__LISTEN", "127.0.0.1:0")
            .env("RETRI_COORDINATOR__METRICS_LISTEN", "127.0.0.1:0")
            .env("RETRI_COORDINATOR__WEB_LISTEN", "127.0.0.1:0")
            .env("RETRI_COORDINATOR__STORE", url(&folder.join("store")))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let rpc = line
            .split("rpc=")
            .nth(1)
            .and_then(|it| it.split(' ').next())
            .unwrap();
        let rpc = Endpoint::from_shared(rpc.to_owned()).unwrap();
        Self { child, rpc }
    }

    /// A new connection: one that waits for its first request is closed after a while, and making
    /// a hostile data set may take longer.
    fn client(&self) -> Client {
        let stamp: Stamp = version::stamp;
        ControlClient::with_interceptor(self.rpc.connect_lazy(), stamp)
    }

    /// The most memory that it has had.
    fn peak_mib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM:"))
            .unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
            / 1024
    }

    /// How many processes it has started that still run.
    fn children(&self) -> usize {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let is_child = |stat: &str| {
            let fields: Vec<&str> = stat
                .rsplit(')')
                .next()
                .unwrap()
                .split_whitespace()
                .collect();
            fields[0] != "Z" && fields[1] == self.child.id().to_string()
        };
        processes
            .filter_map(|it| std::fs::read_to_string(it.path().join("stat")).ok())
            .filter(|stat| is_child(stat))
            .count()
    }

    /// The message with which a job is refused. The server must still serve and be small.
    async fn refusal(&mut self, job: String) -> String {
        let status = submit(self.client(), job).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(
            self.child.try_wait().unwrap().is_none(),
            "the coordinator died"
        );
        let peak = self.peak_mib();
        assert!(peak < COORDINATOR_MIB_MAX, "{peak} MiB: {status}");
        status.message().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

async fn submit(mut client: Client, job_toml: String) -> Result<String, Status> {
    let request = pb::SubmitRequest {
        file_name: "job.toml".into(),
        job_toml,
        ..Default::default()
    };
    Ok(client.submit(request).await?.into_inner().job)
}

fn url(folder: &Path) -> String {
    format!("file://{}", folder.display())
}

fn job(dataset: &str, model: &str) -> String {
    format!(
        "name = \"demo\"\n[resources]\nworkers = {{ min = 1, max = 1 }}\n\
         [data]\ndataset = \"{dataset}\"\nresolution = 32\n\
         [model]\narchitecture = \"autoencoder\"\nsize = \"tiny\"\n{model}\n\
         [train]\nsteps = 4\nglobal_batch = 4\nmicro_batch = 2\n"
    )
}

fn sample(number: usize) -> Sample {
    Sample {
        metadata: Metadata {
            id: format!("id-{number}"),
            character: "c".to_owned(),
            artists: "a".to_owned(),
            bbox: [0.5, 0.5, 0.5, 0.5],
            width: 8,
            height: 8,
            ..Metadata::default()
        },
        image: encode_rgb(image::RgbImage::new(8, 8)).unwrap(),
        mask: encode_gray(image::GrayImage::new(8, 8)).unwrap(),
    }
}

async fn good_dataset(folder: &Path) -> String {
    let mut writer = DatasetWriter::open(&url(folder), WriteOptions::new("test"))
        .await
        .unwrap();
    writer.add((0..4).map(sample).collect()).await.unwrap();
    drop(writer.finish().await.unwrap());
    url(folder)
}

/// A data set of one Parquet file whose row groups have one row each, with these prompts.
fn dataset_of(folder: &Path, prompts: &[String]) -> String {
    std::fs::create_dir_all(folder).unwrap();
    let at = schema().index_of("prompts").unwrap();
    let mut bytes = Vec::new();
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_dictionary_enabled(false);
    let mut writer = ArrowWriter::try_new(&mut bytes, schema(), Some(properties.build())).unwrap();
    for (number, prompt) in prompts.iter().enumerate() {
        let batch = to_batch(&[sample(number)]).unwrap();
        let mut columns: Vec<ArrayRef> = batch.columns().to_vec();
        columns[at] = Arc::new(StringArray::from(vec![prompt.as_str()]));
        writer
            .write(&RecordBatch::try_new(schema(), columns).unwrap())
            .unwrap();
        writer.flush().unwrap();
    }
    writer.close().unwrap();
    write_dataset(folder, &bytes, vec![1; prompts.len()]);
    url(folder)
}

fn write_dataset(folder: &Path, bytes: &[u8], row_groups: Vec<u32>) {
    std::fs::write(folder.join("samples.parquet"), bytes).unwrap();
    let manifest = DatasetManifest {
        schema_version: proto::dataset::DATASET_SCHEMA_VERSION,
        source: String::new(),
        samples: row_groups.iter().map(|rows| u64::from(*rows)).sum(),
        characters: 1,
        files: vec![SampleFile {
            path: "samples.parquet".to_owned(),
            size_bytes: bytes.len() as u64,
            sha256: String::new(),
            row_groups,
        }],
        index: IndexFile {
            path: "index.parquet".to_owned(),
            size_bytes: 0,
            sha256: String::new(),
        },
    };
    let manifest = serde_json::to_vec(&manifest).unwrap();
    std::fs::write(folder.join(DATASET_FILE), manifest).unwrap();
}

#[tokio::test]
async fn hostile_data_sets_are_refused_by_file_and_cost_the_coordinator_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path());
    let good = good_dataset(&dir.path().join("good")).await;
    for _ in 0..2 {
        submit(server.client(), job(&good, "")).await.unwrap();
    }

    // A page of 200 MiB in some KB: more than a row group's texts may have.
    let large = dataset_of(&dir.path().join("large"), &["x".repeat(200 << 20)]);
    let message = server.refusal(job(&large, "")).await;
    assert!(
        message
            .starts_with("job.toml: data.dataset: cannot read row group 0 of \"samples.parquet\"")
            && message.contains("unfold to 209")
            && message.contains("at most 134217728 are read"),
        "{message}"
    );

    // Every row group is within its limits; all tags together, which "rare-first" counts, are not.
    let prompts = (0..16).map(|number| format!("{number}{}", "x".repeat(120 << 20)));
    let prompts: Vec<String> = prompts.collect();
    let many = dataset_of(&dir.path().join("many"), &prompts);
    drop(prompts);
    let counting = job(&many, "")
        .replace("[model]", "prompt_order = \"rare-first\"\n[model]")
        .replace("\"autoencoder\"", "\"text-to-image\"");
    let message = server.refusal(counting).await;
    let reason =
        format!("reading \"samples.parquet\" of {many} takes more than 1024 MiB of memory");
    assert!(
        message.starts_with(&format!("job.toml: data.dataset: {reason}")),
        "{message}"
    );

    let giant = dir.path().join("giant");
    std::fs::create_dir(&giant).unwrap();
    let file = std::fs::File::create(giant.join(DATASET_FILE)).unwrap();
    file.set_len(3 << 30).unwrap();
    let message = server.refusal(job(&url(&giant), "")).await;
    assert!(
        message.contains("\"dataset.json\"")
            && message.contains("it has 3221225472 bytes; at most 16777216 are read"),
        "{message}"
    );

    let damaged = dir.path().join("damaged");
    dataset_of(&damaged, &["x".to_owned()]);
    let mut bytes = std::fs::read(damaged.join("samples.parquet")).unwrap();
    let end = bytes.len() - 8;
    bytes[end - 200..end].fill(0xff);
    write_dataset(&damaged, &bytes, vec![1]);
    let message = server.refusal(job(&url(&damaged), "")).await;
    assert!(
        message.contains("\"samples.parquet\"") && message.contains("its footer is damaged"),
        "{message}"
    );

    let base = dir.path().join("base");
    std::fs::create_dir_all(base.join("vae")).unwrap();
    let index = r#"{"weight_map": {"x": "../../private.safetensors"}}"#;
    let name = "vae/diffusion_pytorch_model.safetensors.index.json";
    std::fs::write(base.join(name), index).unwrap();
    let init = format!("init = \"{}\"", url(&base));
    let message = server.refusal(job(&good, &init)).await;
    assert!(
        message.starts_with(&format!("job.toml: model.init: {name} of "))
            && message.contains("names \"../../private.safetensors\", which is not in the same"),
        "{message}"
    );
    submit(server.client(), job(&good, "")).await.unwrap();
}

/// A data set that is a pipe without a writer: its reader never returns.
#[tokio::test]
async fn others_are_served_while_a_data_set_blocks_its_reader() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let good = good_dataset(&dir.path().join("good")).await;
    let folder = dir.path().join("pipe");
    std::fs::create_dir(&folder).unwrap();
    let made = Command::new("mkfifo")
        .arg(folder.join(DATASET_FILE))
        .status();
    assert!(made.unwrap().success());
    assert_eq!(server.children(), 0);
    let blocked = tokio::spawn(submit(server.client(), job(&url(&folder), "")));
    while server.children() == 0 {
        tokio::task::yield_now().await;
    }
    submit(server.client(), job(&good, "")).await.unwrap();
    let workers = server
        .client()
        .list_workers(pb::ListWorkersRequest {})
        .await
        .unwrap();
    assert!(workers.into_inner().workers.is_empty());
    assert!(!blocked.is_finished());
    // With the request its process ends.
    blocked.abort();
    while server.children() != 0 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn the_child_answers_garbage_with_an_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_coordinator"))
        .arg("inspect")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"{\"look\":\"moon\"}").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), output.stdout.as_slice()),
        (Some(1), &b""[..])
    );
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.starts_with("error: cannot read the request: unknown variant `moon`"),
        "{error}"
    );
}
