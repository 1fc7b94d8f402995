//! A contact sheet of a stage that is complete, for `coordinator dataset preview --stage`.

use crate::batches::decoded;
use crate::error::{BuildError, Result};
use crate::figure::{self, ANSWERS, CLUSTERED, FIGURES, TAGGED};
use crate::images::Images;
use crate::output::{Outputs, StageFolder};
use crate::sheet::{Sheet, thumbnail};
use crate::table::{self, Column, Value};
use image::{GrayImage, RgbImage};
use model_data::dataset::Dataset;
use model_data::decoded::decode;
use proto::build::report::StageManifest;
use proto::build::settings::ListedFolder;
use proto::build::{Stage, StageKey, StagePlan};
use serde::Deserialize;
use std::path::Path;

/// Figures of a sheet.
const SHOWN: usize = 64;

/// What is to be shown.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// As in [`proto::build::BuildWork`].
    pub out: String,
    pub key: StageKey,
    /// Images of posts, for stages whose settings name none.
    pub images: Option<ListedFolder>,
}

/// The bytes of a PNG.
///
/// # Errors
/// The stage has no images, is not complete, or its images cannot be read.
pub async fn sheet(order: &Order, scratch: &Path) -> Result<Vec<u8>> {
    let outputs = Outputs::open(&order.out)?;
    let stage = order.key.stage;
    let plan = StagePlan {
        settings: outputs.stage(&order.key).plan(&order.key).await?.settings,
        inputs: vec![order.key.clone()],
    };
    let (folder, manifest) = outputs.input(&plan, stage).await?;
    let ids: Option<(&str, &[(&str, Column)])> = match stage {
        Stage::Sources | Stage::Posts => None,
        Stage::Figures | Stage::Masks | Stage::Faces => {
            let sheet = manifest.parts.iter().find(|it| it.path.ends_with(".png"));
            let sheet = sheet.ok_or_else(|| nothing(stage))?;
            return Ok(folder.part(sheet).await?.to_vec());
        }
        Stage::Dataset => {
            let url = format!(
                "{}/{}/data",
                order.out.trim_end_matches('/'),
                order.key.folder()
            );
            return of_dataset(&url).await;
        }
        Stage::Filter | Stage::Folders => Some((figure::FIGURES_PART, &FIGURES)),
        Stage::Outfits => Some(("", &ANSWERS)),
        Stage::Tagger => Some(("", &TAGGED)),
        Stage::Clusters => Some(("", &CLUSTERED)),
    };
    let Some((stem, columns)) = ids else {
        return Err(BuildError::Input(format!(
            "the stage {stage} is about metadata: look at filter, the first stage about images"
        )));
    };
    let ids = first(&folder, &manifest, stem, columns).await?;
    let plan = match stage {
        Stage::Folders => plan,
        _ => manifest.plan.clone(),
    };
    let listed = order.images.as_ref();
    if listed.is_none() && plan.input(Stage::Folders).is_none() {
        return Err(BuildError::Input(
            "the pipeline names no images: give it a table [dataset]".to_owned(),
        ));
    }
    let images = Images::of_stage(&plan, &outputs, listed, scratch).await?;
    let mut sheet = Sheet::default();
    for id in ids {
        // An image that is missing or damaged has no cell: the stages that read it count it.
        let Ok(bytes) = images.read(id).await else {
            continue;
        };
        if let Ok(cell) = decoded(bytes, thumbnail).await {
            sheet.add(cell);
        }
    }
    sheet.finish().ok_or_else(|| nothing(stage))
}

fn nothing(stage: Stage) -> BuildError {
    BuildError::Input(format!("the stage {stage} has no image that can be shown"))
}

/// The first ids of a stage, each once, in the order of its rows.
async fn first(
    folder: &StageFolder,
    manifest: &StageManifest,
    stem: &str,
    columns: &[(&str, Column)],
) -> Result<Vec<i64>> {
    let mut ids: Vec<i64> = Vec::new();
    let is_of = |path: &str| path.starts_with(stem) && path.ends_with(".parquet");
    for part in manifest.parts.iter().filter(|it| is_of(&it.path)) {
        if SHOWN <= ids.len() {
            break;
        }
        let bytes = folder.part(part).await?;
        table::read(&part.path, bytes, columns, |rows| {
            for row in 0..rows.count() {
                match rows.row(row).next() {
                    Some(Value::Number(id)) if ids.len() < SHOWN && ids.last() != Some(&id) => {
                        ids.push(id);
                    }
                    _ => {}
                }
            }
            Ok(())
        })?;
    }
    Ok(ids)
}

/// The first samples, with their masks and faces.
async fn of_dataset(url: &str) -> Result<Vec<u8>> {
    let failed = |error: &dyn std::error::Error| BuildError::Input(proto::text::chain(error));
    let dataset = Dataset::open(url).await.map_err(|error| failed(&error))?;
    let mut sheet = Sheet::default();
    let mut shown = 0;
    for (first, group) in dataset.groups() {
        let samples = dataset.rows_of_group(group).await;
        for (row, sample) in (first..).zip(samples.map_err(|error| failed(&error))?) {
            if shown == SHOWN {
                return sheet.finish().ok_or_else(|| nothing(Stage::Dataset));
            }
            shown += 1;
            let pixels = decode(&sample, row).map_err(|error| failed(&error))?;
            let bbox = pixels.metadata.bbox;
            let (image, mask) = fitted(pixels.image, &pixels.mask);
            sheet.add_mask_and_box(image, &mask, bbox);
        }
    }
    sheet.finish().ok_or_else(|| nothing(Stage::Dataset))
}

/// An image as a cell, and its mask in the same size.
fn fitted(image: RgbImage, mask: &GrayImage) -> (RgbImage, GrayImage) {
    let image = thumbnail(image);
    let (width, height) = image.dimensions();
    let mask = crate::onnx::lanczos_gray(mask, width, height);
    (image, mask)
}
