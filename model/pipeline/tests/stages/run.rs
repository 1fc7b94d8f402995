//! Runs a pipeline in a folder, unit by unit, as workers would.

use model_data::pipeline_inputs::inputs;
use pipeline::output::{Outputs, StageFolder};
use pipeline::table;
use proto::build::pipeline::{Pipeline, Planned};
use proto::build::report::StageManifest;
use proto::build::{BuildWork, Stage};
use std::collections::BTreeMap;
use std::path::Path;

/// The manifests of all stages, or the first error.
pub(crate) async fn build(
    folder: &Path,
    text: &str,
) -> Result<BTreeMap<Stage, StageManifest>, String> {
    let mut manifests = BTreeMap::new();
    for planned in plan(folder, text).await? {
        let (work, output) = prepare(folder, text, &planned).await;
        for unit in 0..=u64::from(work.units) {
            run_unit(folder, &work, unit).await?;
        }
        let manifest = output.manifest().await.unwrap().unwrap();
        manifests.insert(planned.plan.stage(), manifest);
    }
    Ok(manifests)
}

pub(crate) async fn plan(folder: &Path, text: &str) -> Result<Vec<Planned>, String> {
    let pipeline = parse(folder, text)?;
    let found = inputs(&pipeline).await;
    let found = found.map_err(|error| proto::text::chain(&error))?;
    Ok(pipeline.stages(&found))
}

fn parse(folder: &Path, text: &str) -> Result<Pipeline, String> {
    Pipeline::parse("pipeline.toml", text, folder).map_err(|errors| errors.to_string())
}

/// Writes the plan of a stage, as the command does.
pub(crate) async fn prepare(
    folder: &Path,
    text: &str,
    planned: &Planned,
) -> (BuildWork, StageFolder) {
    let out = parse(folder, text).unwrap().out;
    let work = BuildWork {
        out: out.clone(),
        key: planned.plan.key(),
        units: planned.units,
    };
    let output = Outputs::open(&out).unwrap().stage(&work.key);
    output.put_plan(&planned.plan).await.unwrap();
    (work, output)
}

pub(crate) async fn run_unit(folder: &Path, work: &BuildWork, unit: u64) -> Result<(), String> {
    let done = pipeline::unit::run(work, unit, &folder.join("scratch")).await;
    done.map_err(|error| proto::text::chain(&error))
}

/// Ids and clusters of the last stage.
pub(crate) async fn clusters(
    folder: &Path,
    text: &str,
    manifest: &StageManifest,
) -> BTreeMap<i64, i64> {
    let output = Outputs::open(&parse(folder, text).unwrap().out).unwrap();
    let output = output.stage(&manifest.key);
    let mut found = BTreeMap::new();
    for part in &manifest.parts {
        let bytes = output.part(part).await.unwrap();
        table::read(&part.path, bytes, &pipeline::figure::CLUSTERED, |rows| {
            for row in 0..rows.count() {
                let values: Vec<_> = rows.row(row).take(2).collect();
                let [table::Value::Number(id), table::Value::Number(cluster)] = values[..] else {
                    panic!("an id and a cluster are numbers");
                };
                found.insert(id, cluster);
            }
            Ok(())
        })
        .unwrap();
    }
    found
}
