//! The rows of evaluations that are looked at: read from the store once, without what no page
//! shows, and kept as long as there is room.

use crate::budget::blocking;
use crate::checkpoint::commit::CheckpointStore;
use crate::evaluation::numbers::Part;
use futures::StreamExt;
use model_data::evaluation::{Row, read};
use proto::id::JobId;
use proto::limits::cut;
use std::collections::HashMap;
use std::sync::{Arc, Mutex as Sync, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// As the closing unit names its table.
const TABLE: &str = "rows.parquet";
/// Bytes of a table that is read; a report of the command line has no limit.
const TABLE_BYTES_MAX: u64 = 64 << 20;
/// Rows of all evaluations together that are kept.
const ROWS_MAX: usize = 60_000;
/// Of an evaluation that runs only so many records are read, at a time.
const RECORDS: u64 = 1000;
const CONCURRENT_READS: usize = 16;
const RECORD_BYTES_MAX: u64 = 1 << 20;
/// These are read again after this time.
const RUNNING_FOR: Duration = Duration::from_secs(30);
/// Longer prompts are cut.
const PROMPT_BYTES: usize = 300;

/// What is known of an evaluation.
#[derive(Debug)]
pub(in crate::web) struct Scored {
    pub(in crate::web) rows: Vec<Row>,
    /// The table is there, and with it all rows.
    pub(in crate::web) complete: bool,
    /// What is computed of each part, as far as somebody has asked.
    pub(super) tables: Sync<HashMap<Part, Arc<super::Tables>>>,
}

#[derive(Debug)]
struct Kept {
    used: Instant,
    read: Instant,
    scored: Arc<Scored>,
}

/// Cheap to clone; all clones share the rows.
#[derive(Debug, Clone, Default)]
pub(in crate::web) struct Evaluated {
    kept: Arc<Sync<HashMap<JobId, Kept>>>,
    /// Tables are read one at a time: each may take much memory.
    reading: Arc<Mutex<()>>,
}

impl Evaluated {
    /// The rows of an evaluation, in order. `images`: how many there will be.
    pub(in crate::web) async fn rows(
        &self,
        store: &CheckpointStore,
        job: &JobId,
        images: u64,
    ) -> Result<Arc<Scored>, String> {
        if let Some(known) = self.known(job) {
            return Ok(known);
        }
        let _one = self.reading.lock().await;
        if let Some(known) = self.known(job) {
            return Ok(known);
        }
        let scored = Arc::new(load(store, job, images).await?);
        self.keep(job, &scored);
        Ok(scored)
    }

    fn known(&self, job: &JobId) -> Option<Arc<Scored>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let it = kept.get_mut(job)?;
        if !it.scored.complete && RUNNING_FOR <= it.read.elapsed() {
            return None;
        }
        it.used = Instant::now();
        Some(Arc::clone(&it.scored))
    }

    fn keep(&self, job: &JobId, scored: &Arc<Scored>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.remove(job);
        let count = |kept: &HashMap<JobId, Kept>| -> usize {
            kept.values().map(|it| it.scored.rows.len().max(100)).sum()
        };
        while !kept.is_empty() && ROWS_MAX < count(&kept) + scored.rows.len() {
            let oldest = kept.iter().min_by_key(|(_, it)| it.used);
            let Some(oldest) = oldest.map(|(job, _)| job.clone()) else {
                break;
            };
            kept.remove(&oldest);
        }
        let now = Instant::now();
        let entry = Kept {
            used: now,
            read: now,
            scored: Arc::clone(scored),
        };
        kept.insert(job.clone(), entry);
    }
}

async fn load(store: &CheckpointStore, job: &JobId, images: u64) -> Result<Scored, String> {
    let table = store.read_output(job, TABLE, TABLE_BYTES_MAX).await?;
    let complete = table.is_some();
    let rows = match table {
        Some(table) => {
            let parsed = blocking(move || {
                let rows = read(table)?;
                Ok::<_, model_data::evaluation::TableError>(rows.into_iter().map(slim).collect())
            });
            let parsed = parsed.await.map_err(|error| error.to_string())?;
            parsed.map_err(|error| format!("{TABLE} of {job}: {error}"))?
        }
        None => records(store, job, images.min(RECORDS)).await?,
    };
    Ok(Scored {
        rows,
        complete,
        tables: Sync::default(),
    })
}

/// The first images of an evaluation that runs, as far as they are scored.
async fn records(store: &CheckpointStore, job: &JobId, count: u64) -> Result<Vec<Row>, String> {
    let names = (0..count).map(|unit| format!("{unit:07}.json"));
    let reads = futures::stream::iter(names)
        .map(|name| async move { store.read_output(job, &name, RECORD_BYTES_MAX).await });
    let found: Vec<_> = reads.buffered(CONCURRENT_READS).collect().await;
    let mut rows = Vec::new();
    for record in found {
        let Some(record) = record? else { continue };
        let row = serde_json::from_slice::<Row>(&record);
        rows.push(slim(
            row.map_err(|error| format!("a record of {job}: {error}"))?,
        ));
    }
    Ok(rows)
}

/// Without what no page shows.
fn slim(row: Row) -> Row {
    Row {
        key: String::new(),
        model_digest: String::new(),
        prompt: cut(&row.prompt, PROMPT_BYTES),
        sample_id: None,
        negative_prompt: String::new(),
        knobs: String::new(),
        references: Vec::new(),
        concepts: Vec::new(),
        environment: String::new(),
        image_sha256: String::new(),
        clip_i_each: Vec::new(),
        clip_i_whole_each: Vec::new(),
        vqa: row.vqa.map(|vqa| model_data::evaluation::Answers {
            model: vqa.model,
            ..Default::default()
        }),
        ..row
    }
}
