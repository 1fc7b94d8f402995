//! Writes ids and annotations without images, which are often not theirs to publish who annotate
//! them: `samples.jsonl`, and the masks that this pipeline has made. The stage `folders` reads the
//! rows, and joins them by their ids with images that somebody has.

use super::rows::{self, Row};
use crate::engine::Engine;
use crate::error::{BuildError, Result};
use crate::output::Outputs;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use proto::build::report::Report;
use proto::build::{Stage, StagePlan};
use proto::text::hex_sha256;
use serde_json::json;

/// In the folder of the data set.
const ROWS: &str = "samples.jsonl";
/// Of a larger cluster the similar rows are not listed: the outfit names them.
const LISTED_MAX: i64 = 1024;

/// Writes the annotations of the usable figures below `url`.
pub(super) async fn write(
    engine: &Engine,
    plan: &StagePlan,
    outputs: &Outputs,
    url: &str,
    is_whole: impl Fn(&Row) -> bool,
    report: &mut Report,
) -> Result<()> {
    let (mut text, mut cluster) = (Vec::new(), Vec::<Row>::new());
    let end = |cluster: &mut Vec<Row>, text: &mut Vec<u8>| {
        let names: Vec<String> = cluster.iter().map(|row| row.name.clone()).collect();
        for (at, row) in cluster.drain(..).enumerate() {
            let mut line = row.annotations();
            if row.size <= LISTED_MAX {
                let others = names.iter().enumerate().filter(|(other, _)| *other != at);
                line["similar"] = json!(others.map(|(_, name)| name).collect::<Vec<_>>());
            }
            if is_whole(&row) {
                line["whole"] = json!(true);
            }
            text.extend(line.to_string().bytes());
            text.push(b'\n');
        }
    };
    rows::each(engine, |row| {
        if cluster.first().is_some_and(|it| it.cluster != row.cluster) {
            end(&mut cluster, &mut text);
        }
        cluster.push(row);
        report.rows_out += 1;
    })?;
    end(&mut cluster, &mut text);
    if text.is_empty() {
        return Err(BuildError::Input("no figure can be used".to_owned()));
    }
    let (store, prefix) = storage::open(url)?;
    if plan.input(Stage::Masks).is_some() {
        let (folder, manifest) = outputs.input(plan, Stage::Masks).await?;
        let ends = |path: &str| path.ends_with(".tar") || path.ends_with(".json");
        for part in manifest.parts.iter().filter(|it| ends(&it.path)) {
            let bytes = folder.part(part).await?;
            let path = prefix.clone().join("masks").join(part.path.as_str());
            put(&*store, path, bytes.into()).await?;
        }
    }
    report.found.push(format!(
        "annotations stages/{}/…/data/{ROWS}, SHA-256 {}, {} rows without images",
        Stage::Dataset,
        hex_sha256(&text),
        report.rows_out
    ));
    // Last, because it makes the annotations visible.
    put(&*store, prefix.join(ROWS), text.into()).await
}

async fn put(store: &dyn ObjectStore, path: Path, bytes: PutPayload) -> Result<()> {
    let written = store.put(&path, bytes).await;
    written.map(|_| ()).map_err(|source| BuildError::Write {
        path: path.to_string(),
        source,
    })
}
