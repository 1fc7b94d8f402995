//! The coordinator's durable state: SlateDB under `<store>/state/`. Only one process may write it;
//! a second one that opens it fences the first, whose next save fails. Written by the daemon's loop
//! (records) and by the journal (curves and logs), read by the rpc service. It maps records to keys
//! and bytes and makes no decisions about jobs.
//!
//! | key | value |
//! |---|---|
//! | `counters` | JSON of `Counters` |
//! | `claim` | constant; writing it proves that this process is not fenced |
//! | `drained` | JSON: names of drained workers |
//! | `job/<id>` | JSON of `JobRecord` |
//! | `archive/<newest first>/<id>` | JSON of [`Archived`]: an ended job that left the memory |
//! | `deleted/<id>` | a deleted job whose other keys are not all deleted yet |
//! | `ledger/<job>/<number>` | JSON of `proto::ledger::Entry` |
//! | `generations/<job>/<number>` | the same, of entries that begin a generation |
//! | `last/<job>` | protobuf `StepReport`: the newest step seen |
//! | `steps/<job>/<step>` | protobuf `StepReport` |
//! | `blocks/<job>/<number>` | JSON of [`crate::curve::Block`]: a summary of steps |
//! | `logs/<job>/<number>` | protobuf `LogLine` |

use crate::archived::ArchivedJobs;
use crate::curve::Block;
use crate::opening;
use crate::usage::Used;
use coordinator_core::event::{Counters, Durable, JobRecord, Record};
use prost::Message;
use proto::account::Account;
use proto::id::JobId;
use proto::job::overrides::name_and_team;
use proto::ledger::{Entry, Line};
use proto::pb;
use serde::{Deserialize, Serialize};
use slatedb::config::{DbReaderOptions, Settings};
use slatedb::{CloseReason, Db, DbReader, DbReaderMode, ErrorKind, WriteBatch};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Flush interval of steps and log lines; records are flushed at once.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);
const COUNTERS_KEY: &str = "counters";
const DRAINED_KEY: &str = "drained";
const CLAIM_KEY: &str = "claim";
const JOB_PREFIX: &str = "job/";
const ARCHIVE_PREFIX: &str = "archive/";
const DELETED_PREFIX: &str = "deleted/";
/// Keys that are deleted at a time.
const PURGE_BATCH: usize = 1024;
const LAST_PREFIX: &str = "last/";

#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("the store of the coordinator's state: {0}")]
    Url(#[from] storage::StoreError),
    #[error("cannot {action} the coordinator's state under {url}: {source}")]
    Db {
        action: &'static str,
        url: String,
        source: slatedb::Error,
    },
    #[error(
        "another coordinator took over the state under {url}; this one must stop: only one may \
        write"
    )]
    Fenced { url: String },
    #[error("the store refuses to be used: {0}")]
    Unusable(storage::probe::Trouble),
    #[error(
        "the store under {url} did not complete a save within {} s: {cause}",
        within.as_secs_f64()
    )]
    Slow {
        url: String,
        within: Duration,
        cause: String,
    },
    #[error(
        "there is a coordinator's state under {url} already; restore into an empty store, or move \
        that folder away"
    )]
    NotEmpty { url: String },
    #[error("the database of the coordinator's state under {url} closed itself: {reason}")]
    Closed { url: String, reason: String },
    #[error(
        "the record `{key}` under {url} cannot be read: {reason}; was it written by a newer \
        coordinator?"
    )]
    Record {
        key: String,
        url: String,
        reason: String,
    },
}

/// Cheap to clone; all clones share one database.
#[derive(Clone)]
pub(crate) struct StateStore {
    db: Db,
    url: String,
    /// A save that takes longer than this ends the process.
    save_within: Duration,
    /// What is kept in memory of archived jobs.
    archived: Arc<Mutex<ArchivedJobs>>,
}

impl std::fmt::Debug for StateStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StateStore")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl StateStore {
    /// Opens (or creates) the state under `<store_url>/state/` and fences any process that has it
    /// open.
    pub(crate) async fn open(store_url: &str, save_within: Duration) -> Result<Self, StateError> {
        let (store, prefix) = crate::measured::open(store_url)?;
        let url = format!("{}/state", store_url.trim_end_matches('/'));
        let settings = Settings {
            flush_interval: Some(FLUSH_INTERVAL),
            ..Settings::default()
        };
        let opened = Db::builder(prefix.join("state"), store)
            .with_settings(settings)
            .build()
            .await;
        match opened {
            Ok(db) => Ok(Self {
                db,
                url,
                save_within,
                archived: Arc::default(),
            }),
            Err(source) => Err(StateError::Db {
                action: "open",
                url,
                source,
            }),
        }
    }

    /// Reads all saved records, from which a restart restores the state machine.
    pub(crate) async fn load(&self) -> Result<Durable, StateError> {
        let mut durable = Durable::default();
        if let Some(bytes) = self
            .db
            .get(COUNTERS_KEY)
            .await
            .map_err(|it| self.failed("read", it))?
        {
            let counters: Counters = self.json(COUNTERS_KEY, &bytes)?;
            durable.apply(Record::Counters(counters));
        }
        if let Some(bytes) = self
            .db
            .get(DRAINED_KEY)
            .await
            .map_err(|it| self.failed("read", it))?
        {
            durable.apply(Record::Drained(self.json(DRAINED_KEY, &bytes)?));
        }
        for (key, bytes) in self.scan(JOB_PREFIX, Vec::new(), usize::MAX).await? {
            match serde_json::from_slice::<JobRecord>(&bytes) {
                Ok(job) => durable.apply(Record::Job(Box::new(job))),
                // One unreadable record must not make the other jobs unavailable.
                Err(error) => {
                    let job = JobId(key.trim_start_matches(JOB_PREFIX).to_owned());
                    tracing::error!(%job, %error, "the record of a job cannot be read");
                    durable.unreadable.insert(job, error.to_string());
                }
            }
        }
        self.load_named(&mut durable).await?;
        self.load_archived().await?;
        Ok(durable)
    }

    /// Reads what is kept in memory of all archived jobs.
    async fn load_archived(&self) -> Result<(), StateError> {
        let failed = |it| self.failed("read", it);
        let scan = self.db.scan_prefix(ARCHIVE_PREFIX, ..).await;
        let mut iterator = scan.map_err(failed)?;
        while let Some(entry) = iterator.next().await.map_err(failed)? {
            let key = String::from_utf8_lossy(&entry.key);
            match self.json::<Archived>(&key, &entry.value) {
                Ok(job) => {
                    let mut archived = self.archived.lock().unwrap_or_else(PoisonError::into_inner);
                    archived.insert(job.record.id.clone(), job.used());
                }
                Err(error) => tracing::error!(%error, "an archived job is left out"),
            }
        }
        Ok(())
    }

    /// The device-time of archived jobs that had any.
    pub(crate) fn archived_use(&self) -> Vec<Arc<Used>> {
        let archived = self.archived.lock().unwrap_or_else(PoisonError::into_inner);
        archived.used()
    }

    /// The number of archived jobs of this team, and of all.
    pub(crate) fn archived_of(&self, team: &str) -> (u64, u64) {
        let archived = self.archived.lock().unwrap_or_else(PoisonError::into_inner);
        (archived.of(team), archived.all())
    }

    /// Adds the archived jobs that a job which is not over names.
    async fn load_named(&self, durable: &mut Durable) -> Result<(), StateError> {
        let live = durable.jobs.values().filter(|job| !job.phase.is_over());
        let named: BTreeSet<JobId> = live.flat_map(JobRecord::names).collect();
        for job in named {
            if !durable.jobs.contains_key(&job)
                && let Some(archived) = self.archived(&job).await?
            {
                durable.apply(Record::Archived(Box::new(archived.record)));
            }
        }
        Ok(())
    }

    /// An archived job.
    pub(crate) async fn archived(&self, job: &JobId) -> Result<Option<Archived>, StateError> {
        let key = archive_key(job);
        let bytes = self.db.get(&key).await;
        match bytes.map_err(|it| self.failed("read", it))? {
            Some(bytes) => self.json(&key, &bytes).map(Some),
            None => Ok(None),
        }
    }

    /// Up to `limit` archived jobs after `after` in the archive, newest first. One that cannot be
    /// read is logged and left out.
    pub(crate) async fn archive(
        &self,
        after: Option<&JobId>,
        limit: usize,
    ) -> Result<Vec<Archived>, StateError> {
        let from = after.map_or_else(Vec::new, |job| {
            let mut key = archive_key(job).as_bytes()[ARCHIVE_PREFIX.len()..].to_vec();
            key.push(0);
            key
        });
        let mut jobs = Vec::new();
        for (key, bytes) in self.scan(ARCHIVE_PREFIX, from, limit).await? {
            match self.json::<Archived>(&key, &bytes) {
                Ok(job) => jobs.push(job),
                Err(error) => tracing::error!(%error, "an archived job is left out"),
            }
        }
        Ok(jobs)
    }

    /// The newest step that was seen of a job.
    pub(crate) async fn last_step(
        &self,
        job: &JobId,
    ) -> Result<Option<pb::StepReport>, StateError> {
        let key = last_key(job);
        let bytes = self.db.get(&key).await;
        match bytes.map_err(|it| self.failed("read", it))? {
            Some(bytes) => self.decode(&key, &bytes).map(Some),
            None => Ok(None),
        }
    }

    /// Deleted jobs whose ledger, steps and log lines are not all deleted yet.
    pub(crate) async fn half_deleted(&self) -> Result<Vec<JobId>, StateError> {
        let keys = self.scan(DELETED_PREFIX, Vec::new(), usize::MAX).await?;
        let job = |key: String| JobId(key[DELETED_PREFIX.len()..].to_owned());
        Ok(keys.into_iter().map(|(key, _)| job(key)).collect())
    }

    /// Deletes what is left of a deleted job. Can be repeated.
    pub(crate) async fn purge(&self, job: &JobId) -> Result<(), StateError> {
        for prefix in [
            ledger_prefix(job),
            generations_prefix(job),
            steps_prefix(job),
            blocks_prefix(job),
            logs_prefix(job),
        ] {
            loop {
                let entries = self.scan(&prefix, Vec::new(), PURGE_BATCH).await?;
                if entries.is_empty() {
                    break;
                }
                let mut batch = WriteBatch::new();
                for (key, _) in entries {
                    batch.delete(key);
                }
                self.append(batch).await?;
            }
        }
        let mut batch = WriteBatch::new();
        batch.delete(last_key(job));
        batch.delete(format!("{DELETED_PREFIX}{job}"));
        self.commit(batch).await
    }

    /// Saves these records atomically. Returns when they are durable.
    pub(crate) async fn save(&self, records: &[Record]) -> Result<(), StateError> {
        let mut batch = WriteBatch::new();
        let mut changes = Vec::new();
        for record in records {
            match record {
                Record::Counters(counters) => batch.put(COUNTERS_KEY, to_json(counters)),
                Record::Drained(names) => batch.put(DRAINED_KEY, to_json(names)),
                Record::Job(job) => {
                    batch.put(format!("{JOB_PREFIX}{}", job.id), to_json(job));
                    batch.delete(archive_key(&job.id));
                    changes.push((job.id.clone(), None));
                }
                Record::Archived(job) => {
                    let archived = Archived::new((**job).clone());
                    batch.put(archive_key(&job.id), to_json(&archived));
                    changes.push((job.id.clone(), Some(archived.used())));
                    batch.delete(format!("{JOB_PREFIX}{}", job.id));
                }
                Record::Deleted(job) => {
                    batch.put(format!("{DELETED_PREFIX}{job}"), b"1");
                    batch.delete(format!("{JOB_PREFIX}{job}"));
                    batch.delete(archive_key(job));
                    changes.push((job.clone(), None));
                }
                Record::Ledger { job, entries } => {
                    for entry in entries {
                        let number = ordered(entry.number);
                        let json = to_json(entry);
                        if matches!(entry.line, Line::Generation { .. }) {
                            batch.put(format!("{}{number}", generations_prefix(job)), &json);
                        }
                        batch.put(format!("{}{number}", ledger_prefix(job)), json);
                    }
                }
            }
        }
        self.commit(batch).await?;
        let mut archived = self.archived.lock().unwrap_or_else(PoisonError::into_inner);
        for (job, used) in changes {
            match used {
                Some(used) => archived.insert(job, used),
                None => archived.remove(&job),
            };
        }
        Ok(())
    }

    /// Writes all entries of a backup to an empty state.
    pub(crate) async fn restore(&self, entries: Vec<(Vec<u8>, Vec<u8>)>) -> Result<(), StateError> {
        if !self.scan("", Vec::new(), 1).await?.is_empty() {
            return Err(StateError::NotEmpty {
                url: self.url.clone(),
            });
        }
        for part in entries.chunks(PURGE_BATCH) {
            let mut batch = WriteBatch::new();
            for (key, value) in part {
                batch.put(key, value);
            }
            self.commit(batch).await?;
        }
        Ok(())
    }

    /// Proves that no other coordinator took over, by a write that fails if this process is fenced.
    /// Called before anything outside the state is written or deleted.
    pub(crate) async fn claim(&self) -> Result<(), StateError> {
        let mut batch = WriteBatch::new();
        batch.put(CLAIM_KEY, b"1");
        self.commit(batch).await
    }

    async fn commit(&self, batch: WriteBatch) -> Result<(), StateError> {
        let save = async {
            let write = self.db.write(batch).await?;
            self.db.flush().await?;
            write.await_durable().await
        };
        match tokio::time::timeout(self.save_within, save).await {
            Ok(result) => result.map_err(|it| self.failed("save", it)),
            Err(_) => Err(StateError::Slow {
                url: self.url.clone(),
                within: self.save_within,
                cause: opening::cause(self.url.strip_suffix("/state").unwrap_or(&self.url)).await,
            }),
        }
    }

    /// Writes curve and log entries and deletes old ones. They become durable within
    /// [`FLUSH_INTERVAL`]; this function does not wait for that.
    pub(crate) async fn append(&self, batch: WriteBatch) -> Result<(), StateError> {
        self.db
            .write(batch)
            .await
            .map(drop)
            .map_err(|it| self.failed("append to", it))
    }

    /// Up to `limit` entries whose key begins with `prefix`, in key order, from the suffix `from`
    /// on.
    pub(crate) async fn scan(
        &self,
        prefix: &str,
        from: Vec<u8>,
        limit: usize,
    ) -> Result<Vec<(String, bytes::Bytes)>, StateError> {
        let mut entries = Vec::new();
        let scan = self.db.scan_prefix(prefix, from..).await;
        let mut iterator = scan.map_err(|it| self.failed("read", it))?;
        while entries.len() < limit {
            let Some(entry) = iterator
                .next()
                .await
                .map_err(|it| self.failed("read", it))?
            else {
                break;
            };
            entries.push((
                String::from_utf8_lossy(&entry.key).into_owned(),
                entry.value,
            ));
        }
        Ok(entries)
    }

    /// Up to `limit` entries of a job's ledger from number `from` on, as the stored JSON.
    pub(crate) async fn ledger(
        &self,
        job: &JobId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<String>, StateError> {
        let entries = self
            .scan(&ledger_prefix(job), ordered(from).into_bytes(), limit)
            .await?;
        let text =
            |(_, bytes): (String, bytes::Bytes)| String::from_utf8_lossy(&bytes).into_owned();
        Ok(entries.into_iter().map(text).collect())
    }

    /// Up to `limit` entries of a job's ledger that begin a generation, from number `from` on.
    /// Those that earlier releases have written are not among them.
    pub(crate) async fn generations(
        &self,
        job: &JobId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<Entry>, StateError> {
        let prefix = generations_prefix(job);
        let entries = self.scan(&prefix, ordered(from).into_bytes(), limit);
        let entries = entries.await?;
        entries
            .iter()
            .map(|(key, bytes)| self.json(key, bytes))
            .collect()
    }

    /// Up to `limit` summaries of a job's steps from block `from` on, in order, as far as they
    /// follow each other.
    pub(crate) async fn blocks(
        &self,
        job: &JobId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<Block>, StateError> {
        let prefix = blocks_prefix(job);
        let entries = self.scan(&prefix, ordered(from).into_bytes(), limit);
        let mut blocks = Vec::new();
        for (number, (key, bytes)) in (from..).zip(entries.await?) {
            // One that cannot be read is no loss: its steps can.
            match serde_json::from_slice::<Block>(&bytes) {
                Ok(block) if key[prefix.len()..] == ordered(number) => blocks.push(block),
                Ok(_) | Err(_) => break,
            }
        }
        Ok(blocks)
    }

    /// The newest steps of these jobs, of those that have done any.
    pub(crate) async fn last_steps(
        &self,
        jobs: impl Iterator<Item = &JobId>,
    ) -> Result<BTreeMap<JobId, pb::StepReport>, StateError> {
        let mut steps = BTreeMap::new();
        for job in jobs {
            if let Some(step) = self.last_step(job).await? {
                steps.insert(job.clone(), step);
            }
        }
        Ok(steps)
    }

    pub(crate) fn decode<M: Message + Default>(
        &self,
        key: &str,
        bytes: &[u8],
    ) -> Result<M, StateError> {
        M::decode(bytes).map_err(|error| self.unreadable(key, &error))
    }

    /// Waits until the database has closed itself, because another coordinator took over or one of
    /// its background tasks failed.
    pub(crate) async fn lost(&self) -> StateError {
        let mut status = self.db.subscribe();
        let reason = match status.wait_for(|it| it.close_reason.is_some()).await {
            Ok(status) => status.close_reason,
            Err(_) => None,
        };
        match reason {
            Some(CloseReason::Fenced) => StateError::Fenced {
                url: self.url.clone(),
            },
            other => StateError::Closed {
                url: self.url.clone(),
                reason: other.map_or("no reason given".to_owned(), |it| format!("{it:?}")),
            },
        }
    }

    pub(crate) async fn close(&self) -> Result<(), StateError> {
        self.db.close().await.map_err(|it| self.failed("close", it))
    }

    fn json<T: serde::de::DeserializeOwned>(
        &self,
        key: &str,
        bytes: &[u8],
    ) -> Result<T, StateError> {
        serde_json::from_slice(bytes).map_err(|error| self.unreadable(key, &error))
    }

    fn unreadable(&self, key: &str, error: &dyn std::error::Error) -> StateError {
        StateError::Record {
            key: key.to_owned(),
            url: self.url.clone(),
            reason: error.to_string(),
        }
    }

    fn failed(&self, action: &'static str, source: slatedb::Error) -> StateError {
        let url = self.url.clone();
        match source.kind() {
            ErrorKind::Closed(CloseReason::Fenced) => StateError::Fenced { url },
            _ => StateError::Db {
                action,
                url,
                source,
            },
        }
    }
}

/// All entries of the state under `<store_url>/state/`, without fencing a coordinator that uses it.
pub(crate) async fn read_state(store_url: &str) -> Result<Vec<(Vec<u8>, Vec<u8>)>, StateError> {
    let (store, prefix) = storage::open(store_url)?;
    let url = format!("{}/state", store_url.trim_end_matches('/'));
    let failed = |source| StateError::Db {
        action: "read",
        url: url.clone(),
        source,
    };
    let reader = DbReader::open(
        prefix.join("state"),
        store,
        DbReaderMode::ManagedCheckpoint,
        DbReaderOptions::default(),
    );
    let reader = reader.await.map_err(failed)?;
    let mut entries = Vec::new();
    let mut iterator = reader.scan(..).await.map_err(failed)?;
    while let Some(entry) = iterator.next().await.map_err(failed)? {
        entries.push((entry.key.to_vec(), entry.value.to_vec()));
    }
    reader.close().await.map_err(failed)?;
    Ok(entries)
}

/// An ended job in the archive, with what `jobs` filters by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Archived {
    pub(crate) name: String,
    pub(crate) team: String,
    pub(crate) record: JobRecord,
}

impl Archived {
    fn new(record: JobRecord) -> Self {
        let (name, team) = name_and_team(&record.job_toml, &record.overrides).unwrap_or_default();
        Self { name, team, record }
    }

    fn used(&self) -> Used {
        Used {
            job: self.record.id.0.clone(),
            name: self.name.clone(),
            team: self.team.clone(),
            owner: self.record.about.owner.clone(),
            labels: self.record.about.labels.clone(),
            account: Account {
                days: self.record.account.days.clone(),
                ..Account::default()
            },
        }
    }
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value)
        .expect("records are maps, lists and finite numbers, which JSON can represent")
}

/// Sorts the newest job first.
fn archive_key(job: &JobId) -> String {
    let number: u64 = job
        .0
        .rsplit('-')
        .next()
        .and_then(|it| it.parse().ok())
        .unwrap_or(0);
    format!("{ARCHIVE_PREFIX}{}/{job}", ordered(u64::MAX - number))
}

pub(crate) fn last_key(job: &JobId) -> String {
    format!("{LAST_PREFIX}{job}")
}

/// Followed by the step as [`ordered`] writes it.
pub(crate) fn steps_prefix(job: &JobId) -> String {
    format!("steps/{job}/")
}

/// Followed by the block's number as [`ordered`] writes it.
pub(crate) fn blocks_prefix(job: &JobId) -> String {
    format!("blocks/{job}/")
}

/// Followed by the entry's number as [`ordered`] writes it.
fn generations_prefix(job: &JobId) -> String {
    format!("generations/{job}/")
}

/// Followed by the entry's number as [`ordered`] writes it.
pub(crate) fn ledger_prefix(job: &JobId) -> String {
    format!("ledger/{job}/")
}

/// Followed by the line's number as [`ordered`] writes it.
pub(crate) fn logs_prefix(job: &JobId) -> String {
    format!("logs/{job}/")
}

/// Zero-padded decimal, so that keys sort in numeric order.
pub(crate) fn ordered(number: u64) -> String {
    format!("{number:020}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn url(dir: &tempfile::TempDir) -> String {
        format!("file://{}", dir.path().display())
    }

    #[tokio::test]
    async fn what_was_saved_outlives_a_process_that_just_dies() {
        let dir = tempfile::tempdir().unwrap();
        let job = crate::fixture::job_record("demo-1");
        let records = [
            Record::Counters(Counters { jobs: 1 }),
            Record::Job(Box::new(job.clone())),
        ];
        let store = StateStore::open(&url(&dir), Duration::from_secs(60))
            .await
            .unwrap();
        store.save(&records).await.unwrap();
        // No close: simulates a process killed between its save and its reply.
        drop(store);
        let durable = StateStore::open(&url(&dir), Duration::from_secs(60))
            .await
            .unwrap()
            .load()
            .await
            .unwrap();
        assert_eq!(durable.counters.jobs, 1);
        assert_eq!(durable.jobs[&job.id], job);
    }

    #[tokio::test]
    async fn the_device_time_of_archived_jobs_is_known_at_once_and_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut job = crate::fixture::job_record("demo-1");
        job.account.use_days(2, 0, 500);
        let days = job.account.days.clone();
        assert!(!days.is_empty());
        let url = url(&dir);
        let open = || StateStore::open(&url, Duration::from_secs(60));
        let known = |store: &StateStore| {
            let used = store.archived_use().into_iter();
            used.map(|it| (it.job.clone(), it.account.days.clone()))
                .collect::<Vec<_>>()
        };
        let store = open().await.unwrap();
        store
            .save(&[Record::Archived(Box::new(job))])
            .await
            .unwrap();
        assert_eq!(known(&store), [("demo-1".to_owned(), days.clone())]);
        drop(store);
        let store = open().await.unwrap();
        store.load().await.unwrap();
        assert_eq!(known(&store), [("demo-1".to_owned(), days)]);
        let deleted = Record::Deleted(JobId("demo-1".to_owned()));
        store.save(&[deleted]).await.unwrap();
        assert_eq!(known(&store), []);
    }

    #[tokio::test]
    async fn a_second_coordinator_fences_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateStore::open(&url(&dir), Duration::from_secs(60))
            .await
            .unwrap();
        let second = StateStore::open(&url(&dir), Duration::from_secs(60))
            .await
            .unwrap();
        let error = first
            .save(&[Record::Counters(Counters { jobs: 7 })])
            .await
            .unwrap_err();
        assert!(matches!(error, StateError::Fenced { .. }), "{error}");
        let error = first.claim().await.unwrap_err();
        assert!(matches!(error, StateError::Fenced { .. }), "{error}");
        second.claim().await.unwrap();
        assert!(matches!(first.lost().await, StateError::Fenced { .. }));
        assert_eq!(second.load().await.unwrap().counters.jobs, 0);
    }
}
