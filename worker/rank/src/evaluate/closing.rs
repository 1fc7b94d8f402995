//! The closing unit of an evaluation: writes the table of all images, then a summary. The summary
//! comes last, so its presence means that all outputs exist. Both are built from the records in the
//! store alone. Images of units that were given up are counted as missing.

use super::{Evaluation, record_file};
use futures::{StreamExt, TryStreamExt};
use model_data::evaluation::{Row, write};
use serde::Serialize;

const TABLE: &str = "rows.parquet";
const SUMMARY: &str = "evaluation.json";

/// Records that are read concurrently.
const CONCURRENT_READS: usize = 32;

/// `evaluation.json`.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    plan: &'a str,
    images: usize,
    /// Units whose images were given up.
    missing: Vec<u64>,
    prompts: &'a [String],
}

/// `unit`: the number of the closing unit.
pub(super) fn close(evaluation: &mut Evaluation<'_>, unit: u64) -> anyhow::Result<()> {
    if evaluation.wait(unit, evaluation.images.has(SUMMARY))? {
        return Ok(());
    }
    let (mut rows, missing) = evaluation.wait(unit, read_all(evaluation))?;
    if let Some(asker) = &mut evaluation.asker {
        asker.score_generated(&mut rows)?;
    }
    let table = write(&rows)?;
    evaluation.wait(unit, evaluation.images.put(TABLE, table))?;
    tracing::info!(
        images = rows.len(),
        missing = missing.len(),
        "all images are generated and scored"
    );
    let summary = Summary {
        plan: &evaluation.plan,
        images: rows.len(),
        missing,
        prompts: &evaluation.prompts,
    };
    let json = serde_json::to_vec_pretty(&summary)?;
    evaluation.wait(unit, evaluation.images.put(SUMMARY, json))
}

/// The rows of all images in order, and the units whose images are missing.
async fn read_all(evaluation: &Evaluation<'_>) -> anyhow::Result<(Vec<Row>, Vec<u64>)> {
    let (mut rows, mut missing) = (Vec::new(), Vec::new());
    let reads = futures::stream::iter(0..evaluation.work.images()).map(|unit| async move {
        let record = evaluation.images.get(&record_file(unit)).await?;
        anyhow::Ok((unit, record))
    });
    let mut reads = std::pin::pin!(reads.buffered(CONCURRENT_READS));
    while let Some((unit, record)) = reads.try_next().await? {
        match record {
            Some(record) => rows.push(serde_json::from_slice(&record)?),
            None => missing.push(unit),
        }
    }
    Ok((rows, missing))
}
