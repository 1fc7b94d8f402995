//! Writes loss curves with their summaries ([`blocks`]) and log lines to the store. One task does
//! the writing, so that the daemon's loop never waits for it. Entries that do not fit its queue are
//! dropped with a warning, because correctness does not depend on them. Filled by the daemon's
//! loop; read by the rpc service.

mod blocks;

use crate::curve::Block;
use crate::gaps::Gaps;
use crate::log_limit::LogLimit;
use crate::store::{StateError, StateStore, last_key, logs_prefix, ordered, steps_prefix};
use blocks::Blocks;
use prost::Message;
use proto::id::JobId;
use proto::ledger;
use proto::limits::cut;
use proto::pb;
use slatedb::WriteBatch;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};

/// Log lines stored per job; older ones are deleted.
pub(crate) const LOG_LINES_MAX: u64 = 20_000;
/// Longest stored log line in bytes; longer ones are truncated.
const LINE_BYTES_MAX: usize = 4096;
const QUEUE_MAX: usize = 8192;
const BATCH_MAX: usize = 512;

/// Cheap to clone; all clones write one journal.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    entries: mpsc::Sender<Entry>,
    /// Number of batches written. Readers that follow a log wait for it to change.
    written: watch::Receiver<u64>,
    store: StateStore,
    /// Entries for which the queue had no room.
    dropped: Arc<LogLimit>,
    gaps: Arc<Mutex<Gaps>>,
}

#[derive(Debug)]
enum Entry {
    Step {
        job: JobId,
        step: pb::StepReport,
    },
    Log {
        job: JobId,
        line: pb::LogLine,
    },
    /// The job is deleted: nothing of it is written from here on.
    Forget(JobId),
    /// Answered when every earlier entry can be read.
    Barrier(oneshot::Sender<()>),
}

impl Journal {
    /// Starts the writing task, which ends when the last clone is dropped. A failing store ends it
    /// too; the daemon's loop learns of that from the store itself.
    pub(crate) fn start(store: StateStore) -> Self {
        let (entries, queue) = mpsc::channel(QUEUE_MAX);
        let (count, written) = watch::channel(0);
        let writer = Writer {
            store: store.clone(),
            logs: BTreeMap::new(),
            blocks: Blocks::default(),
        };
        tokio::spawn(writer.run(queue, count));
        Self {
            entries,
            written,
            store,
            dropped: Arc::new(LogLimit::at_most(1)),
            gaps: Arc::default(),
        }
    }

    /// Never waits.
    pub(crate) fn step(&self, job: &JobId, step: pb::StepReport) {
        self.offer(Entry::Step {
            job: job.clone(),
            step,
        });
    }

    /// Never waits.
    pub(crate) fn log(&self, job: &JobId, mut line: pb::LogLine) {
        line.text = cut(&line.text, LINE_BYTES_MAX);
        // One job's lines must not displace another job's steps.
        if self.entries.capacity() < QUEUE_MAX / 2 {
            self.gaps().add(job, &line);
            self.warn_dropped(job);
            return;
        }
        self.gaps().close(job, &mut line);
        self.offer(Entry::Log {
            job: job.clone(),
            line,
        });
    }

    fn warn_dropped(&self, job: &JobId) {
        if let Some(dropped) = self.dropped.admit() {
            tracing::warn!(
                dropped,
                %job,
                "steps or log lines come faster than the store takes them; some were dropped, the \
                 last of this job"
            );
        }
    }

    fn offer(&self, entry: Entry) {
        let Err(TrySendError::Full(entry)) = self.entries.try_send(entry) else {
            return;
        };
        match entry {
            Entry::Step { job, .. } => self.warn_dropped(&job),
            Entry::Log { job, line } => {
                self.gaps().add(&job, &line);
                self.warn_dropped(&job);
            }
            Entry::Forget(_) | Entry::Barrier(_) => {}
        }
    }

    fn gaps(&self) -> MutexGuard<'_, Gaps> {
        self.gaps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The job is deleted. Returns when nothing more of it will be written.
    pub(crate) async fn forget(&self, job: &JobId) {
        // An error means that the writer has ended and nothing more will be written.
        self.entries.send(Entry::Forget(job.clone())).await.ok();
        self.flushed().await;
    }

    /// Returns when every entry offered before can be read.
    pub(crate) async fn flushed(&self) {
        let (done, wait) = oneshot::channel();
        if self.entries.send(Entry::Barrier(done)).await.is_ok() {
            // An error means that the writer has ended and nothing more will be written.
            wait.await.ok();
        }
    }

    /// Changes when there may be more to read.
    pub(crate) fn written(&self) -> watch::Receiver<u64> {
        self.written.clone()
    }

    /// Up to `limit` finished steps of `job` after step `after`, in order.
    pub(crate) async fn steps(
        &self,
        job: &JobId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<pb::StepReport>, StateError> {
        let from = ordered(after.saturating_add(1)).into_bytes();
        let entries = self.store.scan(&steps_prefix(job), from, limit).await?;
        entries
            .iter()
            .map(|(key, bytes)| self.store.decode(key, bytes))
            .collect()
    }

    /// See [`StateStore::blocks`].
    pub(crate) async fn blocks(
        &self,
        job: &JobId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<Block>, StateError> {
        self.store.blocks(job, from, limit).await
    }

    /// See [`StateStore::generations`].
    pub(crate) async fn generations(
        &self,
        job: &JobId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<ledger::Entry>, StateError> {
        self.store.generations(job, from, limit).await
    }

    /// See [`StateStore::ledger`].
    pub(crate) async fn ledger(
        &self,
        job: &JobId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<String>, StateError> {
        self.store.ledger(job, from, limit).await
    }

    /// Up to `limit` lines of `job` from line number `from` on, in order, with their numbers. The
    /// first also tells of the lines from there on that are not kept any more.
    pub(crate) async fn logs(
        &self,
        job: &JobId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<(u64, pb::LogLine)>, StateError> {
        let prefix = logs_prefix(job);
        let entries = self
            .store
            .scan(&prefix, ordered(from).into_bytes(), limit)
            .await?;
        let mut lines = Vec::with_capacity(entries.len());
        for (key, bytes) in &entries {
            let line: pb::LogLine = self.store.decode(key, bytes)?;
            lines.push((number_of(key, &prefix), line));
        }
        // Older lines than the first are not kept.
        if let Some((number, first)) = lines.first_mut() {
            first.dropped = first.dropped.saturating_add(number.saturating_sub(from));
        }
        Ok(lines)
    }
}

/// The number at the end of a key that [`ordered`] made.
fn number_of(key: &str, prefix: &str) -> u64 {
    key[prefix.len()..].parse().unwrap_or_default()
}

struct Writer {
    store: StateStore,
    /// First and next line number of every job that has logged since this process started.
    logs: BTreeMap<JobId, (u64, u64)>,
    blocks: Blocks,
}

impl Writer {
    async fn run(mut self, mut queue: mpsc::Receiver<Entry>, count: watch::Sender<u64>) {
        let mut entries = Vec::new();
        while 0 < queue.recv_many(&mut entries, BATCH_MAX).await {
            if let Err(error) = self.write(std::mem::take(&mut entries)).await {
                tracing::error!(%error, "journal cannot be written");
                return;
            }
            count.send_modify(|it| *it += 1);
        }
    }

    async fn write(&mut self, entries: Vec<Entry>) -> Result<(), StateError> {
        let mut batch = WriteBatch::new();
        let mut any = false;
        let mut barriers = Vec::new();
        for entry in entries {
            match entry {
                Entry::Barrier(done) => {
                    barriers.push(done);
                    continue;
                }
                Entry::Forget(job) => {
                    self.logs.remove(&job);
                    self.blocks.forget(&job);
                    continue;
                }
                Entry::Step { job, step } => {
                    if self.blocks.must_read(&job, &step) {
                        // Steps before it may be in the batch.
                        if any {
                            let before = std::mem::replace(&mut batch, WriteBatch::new());
                            self.store.append(before).await?;
                        }
                        let (store, blocks) = (&self.store, &mut self.blocks);
                        blocks.read(store, &job, &step, &mut batch).await?;
                    }
                    self.blocks.add(&job, &step, &mut batch);
                    let bytes = step.encode_to_vec();
                    batch.put(
                        format!("{}{}", steps_prefix(&job), ordered(step.step)),
                        &bytes,
                    );
                    batch.put(last_key(&job), &bytes);
                }
                Entry::Log { job, line } => {
                    let prefix = logs_prefix(&job);
                    let (first, next) = self.range(job).await?;
                    batch.put(format!("{prefix}{}", ordered(*next)), line.encode_to_vec());
                    *next += 1;
                    while LOG_LINES_MAX < *next - *first {
                        batch.delete(format!("{prefix}{}", ordered(*first)));
                        *first += 1;
                    }
                }
            }
            any = true;
        }
        if any {
            self.store.append(batch).await?;
        }
        for done in barriers {
            // Fails if the caller no longer waits.
            done.send(()).ok();
        }
        Ok(())
    }

    /// First and next line number of a job's log; read from the store once.
    async fn range(&mut self, job: JobId) -> Result<(&mut u64, &mut u64), StateError> {
        if !self.logs.contains_key(&job) {
            let prefix = logs_prefix(&job);
            let lines = self.store.scan(&prefix, Vec::new(), usize::MAX).await?;
            let number = |entry: Option<&(String, bytes::Bytes)>| {
                entry.map(|(key, _)| number_of(key, &prefix))
            };
            let first = number(lines.first()).unwrap_or(0);
            let next = number(lines.last()).map_or(0, |last| last + 1);
            self.logs.insert(job.clone(), (first, next));
        }
        let (first, next) = self
            .logs
            .get_mut(&job)
            .expect("a missing entry was inserted above");
        Ok((first, next))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn line(number: u64) -> pb::LogLine {
        pb::LogLine {
            text: format!("line {number}"),
            ..Default::default()
        }
    }

    async fn store(dir: &tempfile::TempDir) -> StateStore {
        StateStore::open(
            &format!("file://{}", dir.path().display()),
            std::time::Duration::from_secs(60),
        )
        .await
        .unwrap()
    }

    #[tokio::test]
    async fn curves_and_logs_are_read_back_in_order_also_by_the_next_process() {
        let dir = tempfile::tempdir().unwrap();
        let (job, other) = (JobId("a-1".into()), JobId("a-10".into()));
        let first = store(&dir).await;
        let journal = Journal::start(first.clone());
        for step in [2, 1, 10] {
            journal.step(
                &job,
                pb::StepReport {
                    step,
                    loss: f64::NAN,
                    ..Default::default()
                },
            );
        }
        journal.step(
            &other,
            pb::StepReport {
                step: 5,
                ..Default::default()
            },
        );
        journal.log(&job, line(0));
        journal.flushed().await;
        let steps = journal.steps(&job, 1, 10).await.unwrap();
        assert_eq!(steps.iter().map(|it| it.step).collect::<Vec<_>>(), [2, 10]);
        assert!(steps[0].loss.is_nan(), "a NaN loss is stored unchanged");
        first.close().await.unwrap();

        let second = store(&dir).await;
        let journal = Journal::start(second.clone());
        journal.log(&job, line(1));
        journal.flushed().await;
        assert_eq!(
            journal.logs(&job, 0, 10).await.unwrap(),
            [(0, line(0)), (1, line(1))]
        );
        assert_eq!(second.last_step(&job).await.unwrap().unwrap().step, 10);
    }

    #[tokio::test]
    async fn only_the_newest_lines_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let job = JobId("a-1".into());
        let mut writer = Writer {
            store: store(&dir).await,
            logs: BTreeMap::new(),
            blocks: Blocks::default(),
        };
        let entries = |numbers: std::ops::Range<u64>| {
            numbers
                .map(|it| Entry::Log {
                    job: job.clone(),
                    line: line(it),
                })
                .collect()
        };
        writer.write(entries(0..LOG_LINES_MAX)).await.unwrap();
        writer
            .write(entries(LOG_LINES_MAX..LOG_LINES_MAX + 3))
            .await
            .unwrap();
        let journal = Journal::start(writer.store.clone());
        let stored = journal.logs(&job, 0, usize::MAX).await.unwrap();
        assert_eq!(stored.len() as u64, LOG_LINES_MAX);
        let first = pb::LogLine {
            dropped: 3,
            ..line(3)
        };
        assert_eq!(stored[0], (3, first), "it tells how many are gone");
        assert_eq!(journal.logs(&job, 3, 1).await.unwrap(), [(3, line(3))]);
    }

    #[tokio::test]
    async fn a_deleted_job_leaves_no_line_behind_and_a_new_one_is_numbered_from_the_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let job = JobId("a-1".into());
        let store = store(&dir).await;
        let journal = Journal::start(store.clone());
        for number in 0..3 {
            journal.log(&job, line(number));
        }
        journal.forget(&job).await;
        store.purge(&job).await.unwrap();
        assert_eq!(journal.logs(&job, 0, 10).await.unwrap(), []);
        journal.log(&job, line(7));
        journal.flushed().await;
        assert_eq!(journal.logs(&job, 0, 10).await.unwrap(), [(0, line(7))]);
    }

    #[tokio::test]
    async fn blocks_are_of_the_steps_as_they_were_done_last() {
        let dir = tempfile::tempdir().unwrap();
        let job = JobId("a-1".into());
        let store = store(&dir).await;
        let step = |step: u64, loss: f64| pb::StepReport {
            step,
            loss,
            ..Default::default()
        };
        let ends = |blocks: Vec<Block>| -> Vec<(u64, u64)> {
            blocks.iter().map(|it| (it.first, it.last)).collect()
        };
        let journal = Journal::start(store.clone());
        (1..=400).for_each(|it| journal.step(&job, step(it, 1.0)));
        journal.flushed().await;
        let blocks = journal.blocks(&job, 0, 10).await.unwrap();
        assert_eq!(ends(blocks), [(1, 128), (129, 256), (257, 384)]);
        // A generation that continues from step 200, in another process: what follows is undone.
        let journal = Journal::start(store.clone());
        journal.step(&job, step(201, 3.0));
        journal.flushed().await;
        assert_eq!(ends(journal.blocks(&job, 0, 10).await.unwrap()), [(1, 128)]);
        (202..=260).for_each(|it| journal.step(&job, step(it, 3.0)));
        // And one from step 255, of the same process.
        (256..=300).for_each(|it| journal.step(&job, step(it, 5.0)));
        journal.flushed().await;
        let blocks = journal.blocks(&job, 0, 10).await.unwrap();
        assert_eq!(ends(blocks.clone()), [(1, 128), (129, 256)]);
        let mut curve = crate::curve::Curve::of_at_most(9, crate::curve::BLOCK);
        blocks.iter().for_each(|it| curve.add_block(it));
        let mean = (72.0 * 1.0 + 55.0 * 3.0 + 5.0) / 128.0;
        assert_eq!(
            curve.means("loss", 9),
            [(128, Some(1.0)), (256, Some(mean))]
        );
        assert_eq!(journal.blocks(&job, 5, 9).await.unwrap(), []);
        journal.forget(&job).await;
        store.purge(&job).await.unwrap();
        assert_eq!(journal.blocks(&job, 0, 9).await.unwrap(), []);
    }
}
