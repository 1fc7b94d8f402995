//! The closing unit of an evaluation: writes the table of all images, then a summary. The summary
//! comes last, so its presence means that all outputs exist. Both are built from the records in the
//! store alone. Images of units that were given up are counted as missing.

use super::{Evaluation, record_file};
use futures::{StreamExt, TryStreamExt};
use metric::Measure;
use model_data::evaluation::{Row, write};
use proto::evaluate::EvaluateWork;
use proto::score::{Mean, Means};
use proto::summary::{ModelSummary, SUMMARY_FILE, Summary};
use std::collections::BTreeMap;

const TABLE: &str = "rows.parquet";

/// Records that are read concurrently.
const CONCURRENT_READS: usize = 32;

/// `unit`: the number of the closing unit.
pub(super) fn close(evaluation: &mut Evaluation<'_>, unit: u64) -> anyhow::Result<()> {
    if evaluation.wait(unit, evaluation.images.has(SUMMARY_FILE))? {
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
        plan: evaluation.plan.clone(),
        images: rows.len() as u64,
        missing,
        prompts: evaluation.prompts.clone(),
        models: models(evaluation.work, &rows),
    };
    let json = serde_json::to_vec_pretty(&summary)?;
    evaluation.wait(unit, evaluation.images.put(SUMMARY_FILE, json))
}

/// The mean scores of each model.
fn models(work: &EvaluateWork, rows: &[Row]) -> Vec<ModelSummary> {
    let summarize = |name: &String| {
        let (mut images, mut score) = (0, Mean::default());
        let mut means: BTreeMap<&str, Mean> = BTreeMap::new();
        for row in rows.iter().filter(|row| row.model == *name) {
            images += 1;
            for (measure, value) in &row.scores {
                means.entry(measure.name()).or_default().add(*value);
            }
            let of = |name: &str| row.scores.get(&Measure::named(name)?).copied();
            let value = work.metrics.score.as_ref().and_then(|it| it.of(of));
            value.into_iter().for_each(|value| score.add(value));
        }
        let means = means.into_iter();
        let means: Means = means
            .filter_map(|(name, mean)| Some((name.to_owned(), mean.value()?)))
            .collect();
        ModelSummary {
            name: name.clone(),
            images,
            missing: work.plan.images().saturating_sub(images),
            means,
            score: score.value(),
        }
    };
    let names = work.models.iter().map(|model| &model.name);
    names.map(summarize).collect()
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
