//! Curves and generations of jobs, read from the journal as far as pages ask for them and kept for
//! the next page. A request reads a bounded number of steps, and says how far it came.

use crate::curve::{BLOCK, Curve};
use crate::journal::Journal;
use crate::store::StateError;
use proto::id::JobId;
use proto::ledger::{Entry, Line};
use proto::pb;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex as Sync, PoisonError};
use std::time::Instant;
use tokio::sync::Mutex;

/// Jobs whose curves are kept.
const JOBS: usize = 64;
/// Entries per read from the store.
const PAGE: usize = 2048;
/// Steps, and entries of the ledger, that one request reads.
pub(super) const STEPS_MAX: usize = 65_536;
/// Of more steps than these summaries are read: cells are as wide as these.
const SINGLE: u64 = 65_536;
/// Entries of the ledger before a generation among which is the last step that was done.
const BEFORE: u64 = 32;
/// The same for a row of a table, which is asked for again with every change.
pub(super) const STEPS_OF_ROW: usize = 4_096;

/// A generation in a job's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Begun {
    pub(super) generation: u64,
    pub(super) world: u32,
    /// It continued from the state after this step.
    pub(super) from: u64,
    /// Steps of older generations that it does again.
    pub(super) lost: u64,
}

/// What is known of a job's steps.
#[derive(Debug)]
pub(super) struct History {
    pub(super) curve: Curve,
    pub(super) generations: Vec<Begun>,
    /// Steps up to here are summarized in [`Self::curve`], though the last may be missing.
    covered: u64,
    ledger: Ledger,
    /// The job's generation, and the newest checkpoint it had, at the last look. A later generation
    /// can repeat only steps after that checkpoint.
    generation: u64,
    committed: u64,
    /// Everything that there was is read.
    pub(super) complete: bool,
}

/// How far a job's ledger is read.
#[derive(Debug, Default)]
struct Ledger {
    /// Entries before this one are read.
    entries: u64,
    /// Whether generations are found by their own keys: not in a job of an earlier release.
    indexed: Option<bool>,
    /// The last entry, of those that are read, that says that steps are done.
    last_line: String,
}

impl History {
    fn new() -> Self {
        Self {
            curve: Curve::new(),
            generations: Vec::new(),
            covered: 0,
            ledger: Ledger::default(),
            generation: 0,
            committed: 0,
            complete: false,
        }
    }

    /// Reads up to `most` steps or summaries, and as many entries of the ledger.
    async fn read(
        &mut self,
        journal: &Journal,
        view: &pb::JobView,
        (most, single): (usize, u64),
    ) -> Result<(), StateError> {
        let job = JobId(view.job.clone());
        if self.generation != view.generation {
            self.generation = view.generation;
            self.curve.truncate(self.committed);
            self.covered = 0;
        }
        self.committed = view.checkpoints.last().map_or(0, |it| it.step);
        // Steps beyond the job's are of a generation that lost them.
        let end = view.step.max(self.committed);
        let mut read = 0;
        self.complete = true;
        while self.curve.last().max(self.covered) < end {
            if most <= read {
                self.complete = false;
                break;
            }
            let blocks = self.read_blocks(journal, &job, end, single).await?;
            read += blocks;
            if blocks != 0 {
                continue;
            }
            let (last, at) = (self.curve.last(), self.curve.last().max(self.covered));
            // Summaries begin where a block does.
            let to_block = at.next_multiple_of(BLOCK);
            let is_part = at != to_block && single <= end - at;
            let (to, limit) = if is_part {
                self.covered = to_block;
                (to_block, usize::try_from(BLOCK).unwrap_or(PAGE))
            } else {
                (end, PAGE)
            };
            let steps = journal.steps(&job, at, limit).await?;
            let within = steps.iter().take_while(|it| it.step <= to);
            within.for_each(|step| self.curve.add(step));
            read += steps.len();
            if !is_part && (steps.len() < PAGE || self.curve.last() == last) {
                break;
            }
        }
        self.read_generations(journal, &job, most).await
    }

    /// The number of summaries that there were, of a job of many steps that are not read.
    async fn read_blocks(
        &mut self,
        journal: &Journal,
        job: &JobId,
        end: u64,
        single: u64,
    ) -> Result<usize, StateError> {
        let at = self.curve.last().max(self.covered);
        if end - at < single || !at.is_multiple_of(BLOCK) {
            return Ok(0);
        }
        let blocks = journal.blocks(job, at / BLOCK, PAGE).await?;
        let mut count = 0;
        for block in &blocks {
            let covered = at + (count as u64 + 1) * BLOCK;
            if end < covered {
                break;
            }
            self.curve.add_block(block);
            self.covered = covered;
            count += 1;
        }
        Ok(count)
    }

    async fn read_generations(
        &mut self,
        journal: &Journal,
        job: &JobId,
        most: usize,
    ) -> Result<(), StateError> {
        let mut read = 0;
        if self.ledger.indexed.is_none() {
            let first = journal.ledger(job, 0, PAGE).await?;
            let first = first.iter().position(|it| is_generation(it));
            let known = journal.generations(job, 0, 1).await?;
            self.ledger.indexed = match (first, known.first()) {
                (None, None) => return Ok(()),
                (Some(first), Some(known)) => Some(first as u64 == known.number),
                (first, known) => Some(first.is_none() && known.is_some()),
            };
        }
        while self.ledger.indexed == Some(true) {
            let found = journal.generations(job, self.ledger.entries, PAGE).await?;
            for entry in &found {
                let from = entry.number.saturating_sub(BEFORE);
                let count = usize::try_from(entry.number - from).unwrap_or(0);
                let lines = journal.ledger(job, from, count).await?;
                let steps = lines.iter().rev().map(|line| step_of(line));
                let before = steps.into_iter().find(|step| *step != 0).unwrap_or(0);
                self.generations.extend(begun(entry, before));
                self.ledger.entries = entry.number + 1;
            }
            read += found.len();
            if found.len() < PAGE {
                return Ok(());
            }
            if most <= read {
                self.complete = false;
                return Ok(());
            }
        }
        loop {
            let lines = journal.ledger(job, self.ledger.entries, PAGE).await?;
            self.ledger.entries += lines.len() as u64;
            read += lines.len();
            for line in &lines {
                // Most are steps, and need not be parsed.
                if is_generation(line)
                    && let Ok(entry) = serde_json::from_str(line)
                {
                    let before = step_of(&self.ledger.last_line);
                    self.generations.extend(begun(&entry, before));
                }
                if line.contains("\"line\":{\"step\"") || line.contains("\"line\":{\"unheard\"") {
                    self.ledger.last_line.clone_from(line);
                }
            }
            if lines.len() < PAGE {
                return Ok(());
            }
            if most <= read {
                self.complete = false;
                return Ok(());
            }
        }
    }

    /// The generation that followed.
    pub(super) fn after(&self, generation: u64) -> Option<&Begun> {
        self.generations
            .iter()
            .find(|it| generation < it.generation)
    }
}

fn is_generation(line: &str) -> bool {
    line.contains("\"line\":{\"generation\"")
}

/// `before`: the last step that was done until then. None: it begins no generation.
fn begun(entry: &Entry, before: u64) -> Option<Begun> {
    let Line::Generation {
        generation,
        world,
        from,
    } = entry.line
    else {
        return None;
    };
    Some(Begun {
        generation: generation.0,
        world,
        from: from.0,
        lost: before.saturating_sub(from.0),
    })
}

/// 0: it is no line of steps.
fn step_of(line: &str) -> u64 {
    let entry = serde_json::from_str::<Entry>(line);
    match entry.map(|it| it.line) {
        Ok(Line::Step { step, .. } | Line::Unheard { through: step, .. }) => step.0,
        _ => 0,
    }
}

type Kept = HashMap<String, (Instant, Arc<Mutex<History>>)>;

/// Cheap to clone; all clones share the curves.
#[derive(Debug, Clone)]
pub(super) struct Curves {
    journal: Journal,
    kept: Arc<Sync<Kept>>,
}

impl Curves {
    pub(super) fn new(journal: Journal) -> Self {
        Self {
            journal,
            kept: Arc::default(),
        }
    }

    fn entry(&self, job: &str) -> Arc<Mutex<History>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if JOBS <= kept.len() && !kept.contains_key(job) {
            let oldest = kept.iter().min_by_key(|(_, (used, _))| *used);
            if let Some(oldest) = oldest.map(|(job, _)| job.clone()) {
                kept.remove(&oldest);
            }
        }
        let fresh = || (Instant::now(), Arc::new(Mutex::new(History::new())));
        let entry = kept.entry(job.to_owned()).or_insert_with(fresh);
        entry.0 = Instant::now();
        Arc::clone(&entry.1)
    }

    /// Reads up to `most` steps that are new, and gives what is known then to `use_`.
    pub(super) async fn with<T>(
        &self,
        view: &pb::JobView,
        most: usize,
        use_: impl FnOnce(&History) -> T,
    ) -> Result<T, StateError> {
        let entry = self.entry(&view.job);
        let mut history = entry.lock().await;
        history.read(&self.journal, view, (most, SINGLE)).await?;
        Ok(use_(&history))
    }

    /// The steps of a range, at most `most` cells of them, as [`Curve::json`]. What is kept may be
    /// too coarse for a part; then that is read again.
    pub(super) async fn range(
        &self,
        view: &pb::JobView,
        range: RangeInclusive<u64>,
        most: usize,
    ) -> Result<Map<String, Value>, StateError> {
        // Whoever asks has heard of a step, which may still be on its way to the store.
        self.journal.flushed().await;
        let kept = self.with(view, STEPS_MAX, |history| {
            let mut object = history.curve.json(&range, most);
            object.insert("read".into(), history.curve.last().into());
            object.insert("complete".into(), history.complete.into());
            (object, history.curve.stride())
        });
        let (object, stride) = kept.await?;
        let end = (*range.end()).min(view.step);
        let steps = end.saturating_sub(*range.start());
        let cells = u64::try_from(most).unwrap_or(u64::MAX);
        let is_coarse = 1 < stride && steps / stride < cells / 2;
        if !is_coarse || (STEPS_MAX as u64) < steps {
            return Ok(object);
        }
        let mut part = Curve::of_at_most(most, 1);
        let job = JobId(view.job.clone());
        let mut after = range.start().saturating_sub(1);
        while after < end {
            let page = self.journal.steps(&job, after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = last.step;
            page.iter()
                .filter(|it| it.step <= end)
                .for_each(|it| part.add(it));
        }
        let mut fine = part.json(&range, most);
        // The time before the range is known from what is kept.
        let begun = object["seconds"]
            .as_array()
            .and_then(|it| it.first()?.as_f64());
        if let (Some(begun), Some(times)) = (begun, fine["seconds"].as_array()) {
            let times = times.iter().filter_map(Value::as_f64).map(|it| it + begun);
            let times: Vec<f64> = times.collect();
            fine.insert("seconds".into(), times.into());
        }
        for name in ["read", "complete"] {
            fine.insert(name.into(), object[name].clone());
        }
        Ok(fine)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::StateStore;
    use coordinator_core::event::Record;
    use proto::id::{Generation, Step};
    use proto::ledger::Tip;
    use std::time::Duration;

    const STEPS: u64 = 1500;

    fn step(step: u64) -> pb::StepReport {
        pb::StepReport {
            step,
            loss: step as f64,
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn a_long_curve_is_read_from_summaries_and_its_end_step_by_step() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}", dir.path().display());
        let store = StateStore::open(&url, Duration::from_secs(60))
            .await
            .unwrap();
        let journal = Journal::start(store.clone());
        let job = JobId("a-1".into());
        (1..=STEPS).for_each(|it| journal.step(&job, step(it)));
        journal.flushed().await;
        let view = pb::JobView {
            job: job.0.clone(),
            step: STEPS,
            generation: 1,
            ..Default::default()
        };
        let mut single = History::new();
        single.read(&journal, &view, (9999, 9999)).await.unwrap();
        let mut history = History::new();
        // 10 summaries while more than 100 steps are left, and then the steps.
        history.read(&journal, &view, (10, 100)).await.unwrap();
        assert_eq!((history.curve.last(), history.complete), (1408, false));
        history.read(&journal, &view, (10, 100)).await.unwrap();
        assert_eq!((history.curve.last(), history.complete), (STEPS, true));
        let steps = |history: &History| history.curve.means("loss", 12);
        assert_eq!(steps(&history), steps(&single));
        assert_eq!(history.curve.stride(), BLOCK);
        assert_eq!(single.curve.stride(), 1);
        // A later generation from step 400 undoes what is known after it.
        journal.step(&job, step(401));
        journal.flushed().await;
        let again = pb::JobView {
            step: 401,
            generation: 2,
            ..view
        };
        history.read(&journal, &again, (9999, 100)).await.unwrap();
        assert_eq!((history.curve.last(), history.complete), (401, true));
    }

    #[tokio::test]
    async fn generations_are_found_without_reading_the_steps_between_them() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}", dir.path().display());
        let store = StateStore::open(&url, Duration::from_secs(60))
            .await
            .unwrap();
        let journal = Journal::start(store.clone());
        let job = JobId("a-1".into());
        let mut tip = Tip::begin(&job, "", "");
        let mut lines = Vec::new();
        for (generation, from, to) in [(1, 0, 300), (3, 280, 310)] {
            lines.push(Line::Generation {
                generation: Generation(generation),
                world: 2,
                from: Step(from),
            });
            lines.extend((from + 1..=to).map(|step| Line::Step {
                generation: Generation(generation),
                step: Step(step),
                first: 4 * (step - 1),
                samples: 4,
                loss: None,
            }));
        }
        let entries = lines.into_iter().map(|line| tip.append(line)).collect();
        let record = Record::Ledger {
            job: job.clone(),
            entries,
        };
        store.save(&[record]).await.unwrap();
        let mut history = History::new();
        history.read_generations(&journal, &job, 10).await.unwrap();
        let found = |history: &History| -> Vec<(u64, u64, u64)> {
            let all = history.generations.iter();
            all.map(|it| (it.generation, it.from, it.lost)).collect()
        };
        assert_eq!(found(&history), [(1, 0, 0), (3, 280, 20)]);
        assert_eq!(history.ledger.indexed, Some(true));
        // The same of a ledger that an earlier release wrote.
        let mut old = History::new();
        old.ledger.indexed = Some(false);
        old.read_generations(&journal, &job, 9999).await.unwrap();
        assert_eq!(found(&old), found(&history));
    }
}
