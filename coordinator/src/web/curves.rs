//! Curves and generations of jobs, read from the journal as far as pages ask for them and kept for
//! the next page. A request reads a bounded number of steps, and says how far it came.

use super::curve::Curve;
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
pub(super) const STEPS_MAX: usize = 40_000;
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
    /// Entries of the ledger that are read.
    entries: u64,
    /// The last of them that says that steps are done.
    last_line: String,
    /// The job's generation, and the newest checkpoint it had, at the last look. A later generation
    /// can repeat only steps after that checkpoint.
    generation: u64,
    committed: u64,
    /// Everything that there was is read.
    pub(super) complete: bool,
}

impl History {
    fn new() -> Self {
        Self {
            curve: Curve::new(),
            generations: Vec::new(),
            entries: 0,
            last_line: String::new(),
            generation: 0,
            committed: 0,
            complete: false,
        }
    }

    async fn read(
        &mut self,
        journal: &Journal,
        view: &pb::JobView,
        most: usize,
    ) -> Result<(), StateError> {
        let job = JobId(view.job.clone());
        if self.generation != view.generation {
            self.generation = view.generation;
            self.curve.truncate(self.committed);
        }
        self.committed = view.checkpoints.last().map_or(0, |it| it.step);
        // Steps beyond the job's are of a generation that lost them.
        let end = view.step.max(self.committed);
        let mut read = 0;
        self.complete = true;
        while self.curve.last() < end {
            let steps = journal.steps(&job, self.curve.last(), PAGE).await?;
            let within = steps.iter().take_while(|it| it.step <= end);
            let before = self.curve.last();
            within.for_each(|step| self.curve.add(step));
            read += steps.len();
            if steps.len() < PAGE || self.curve.last() == before {
                break;
            }
            if most <= read {
                self.complete = false;
                break;
            }
        }
        read = 0;
        loop {
            let lines = journal.ledger(&job, self.entries, PAGE).await?;
            self.entries += lines.len() as u64;
            read += lines.len();
            for line in &lines {
                // Most are steps, and need not be parsed.
                if line.contains("\"line\":{\"generation\"") {
                    let before = step_of(&self.last_line);
                    self.generations.extend(begun(line, before));
                }
                if line.contains("\"line\":{\"step\"") || line.contains("\"line\":{\"unheard\"") {
                    self.last_line.clone_from(line);
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

/// `before`: the last step that was done until then.
fn begun(line: &str, before: u64) -> Option<Begun> {
    let entry: Entry = serde_json::from_str(line).ok()?;
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
        history.read(&self.journal, view, most).await?;
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
