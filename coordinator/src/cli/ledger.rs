//! Reads a job's ledger for commands: fetches it entry by entry, verifies the hash chain from first
//! to last, and opens the data set that it refers to. It trusts the coordinator for nothing but the
//! ledger's text.

use super::Global;
use super::client::{self, Client, request_error};
use anyhow::{Context, Result, anyhow};
use model_data::loader::{Loader, LoaderOptions};
use proto::id::{Generation, JobId, Step};
use proto::ledger::{Entry, Replay, Tip};
use proto::pb;
use proto::spec::TrainWork;

pub(crate) struct LedgerReader {
    pub(crate) view: pb::JobView,
    pub(crate) spec: TrainWork,
    pub(crate) replay: Replay,
    /// The first fault; entries from there on prove nothing.
    pub(crate) fault: Option<String>,
}

impl LedgerReader {
    pub(crate) async fn open(global: &Global, client: &mut Client, job: &str) -> Result<Self> {
        let failed = |status| request_error(global, &status);
        let view = client::describe(global, client, job).await?;
        if view.work != "train" {
            return Err(anyhow!(
                "job {job} is a [{}] job; only [train] jobs have a ledger",
                view.work
            ));
        }
        let spec = proto::job::parse_training(&format!("job.toml of {job}"), &view.job_toml)?;
        let begin = Tip::begin(
            &JobId(job.to_owned()),
            &view.dataset_version,
            &view.job_toml,
        );
        let mut ledger = Self {
            replay: Replay::new(begin, spec.train.global_batch),
            view,
            spec,
            fault: None,
        };
        // The tip was fetched before the entries; entries written meanwhile are ignored.
        let tip = ledger
            .view
            .ledger
            .clone()
            .context("the coordinator reports no ledger for the job")?;
        let request = pb::JobRequest {
            job: job.to_owned(),
        };
        let mut lines = client
            .list_ledger(request)
            .await
            .map_err(failed)?
            .into_inner();
        while let Some(line) = lines.message().await.map_err(failed)? {
            if ledger.replay.tip().entries == tip.entries {
                break;
            }
            if let Err(fault) = ledger.append(&line.json) {
                ledger.fault = Some(fault);
                return Ok(ledger);
            }
        }
        let tip = Tip {
            entries: tip.entries,
            hash: tip.hash,
            generation: Generation(tip.generation),
            step: Step(tip.step),
        };
        ledger.fault = ledger
            .replay
            .ends_at(&tip)
            .err()
            .map(|fault| fault.to_string());
        Ok(ledger)
    }

    fn append(&mut self, json: &str) -> Result<(), String> {
        let number = self.replay.tip().entries;
        let entry: Entry = serde_json::from_str(json)
            .map_err(|error| format!("entry {number} cannot be read: {error}"))?;
        self.replay.take(&entry).map_err(|fault| fault.to_string())
    }

    /// Opens the data set in the version that the job pinned.
    pub(crate) async fn open_dataset(&self) -> Result<Loader> {
        let version = Some(self.view.dataset_version.clone());
        let options = LoaderOptions::new(&self.spec.model.architecture, 0, version);
        Ok(Loader::open(&self.spec.data, options).await?)
    }
}
