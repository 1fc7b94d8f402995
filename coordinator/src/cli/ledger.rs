//! A job's ledger as commands read it: fetched entry by entry, followed from its first hash to its
//! last, and the data set that it speaks of. Nothing here trusts the coordinator beyond the words
//! it wrote down.

use super::Global;
use super::client::{self, Client, refusal};
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
    /// Why nothing after some entry proves anything.
    pub(crate) fault: Option<String>,
}

impl LedgerReader {
    pub(crate) async fn open(global: &Global, client: &mut Client, job: &str) -> Result<Self> {
        let failed = |status| refusal(global, &status);
        let view = client::describe(global, client, job).await?;
        if view.work != "train" {
            return Err(anyhow!(
                "job {job} does [{}]; only jobs that train have a ledger",
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
        // How far it goes was asked before it is read: what is written meanwhile is none of its
        // business.
        let tip = ledger
            .view
            .ledger
            .clone()
            .context("the coordinator tells nothing of a ledger")?;
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
            if let Err(fault) = ledger.take(&line.json) {
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

    fn take(&mut self, json: &str) -> Result<(), String> {
        let number = self.replay.tip().entries;
        let entry: Entry = serde_json::from_str(json)
            .map_err(|error| format!("entry {number} cannot be read: {error}"))?;
        self.replay.take(&entry).map_err(|fault| fault.to_string())
    }

    /// The very version of the data set that the job was given.
    pub(crate) async fn data(&self) -> Result<Loader> {
        let version = Some(self.view.dataset_version.clone());
        let options = LoaderOptions::new(&self.spec.model.architecture, 0, version);
        Ok(Loader::open(&self.spec.data, options).await?)
    }
}
