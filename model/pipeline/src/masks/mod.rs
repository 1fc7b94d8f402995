//! The stage `masks`: a segmentation model separates the figures of clusters from their backgrounds
//! (paper, appendix A.1: IS-Net). Masks are 8-bit PNG of the image's size, in tars with an index.

mod layout;

use crate::batches::{self, is_table, keep, prepared, refuse};
use crate::error::Result;
use crate::figure::MASKED;
use crate::images::Images;
use crate::onnx::{Model, lanczos_gray, runtime, short};
use crate::output::{Outputs, StageFolder};
use crate::sheet::{Sheet, thumbnail};
use crate::table::{Table, Value};
use crate::tar::Tar;
use crate::truth;
use futures::StreamExt;
use image::{GrayImage, RgbImage};
use layout::Segmenter;
use model_data::image_file::encode_gray;
use proto::build::StagePlan;
use proto::build::image_stages::MasksSettings;
use proto::build::report::{BadRow, Part, Report, UnitOutput};
use std::path::Path;
use std::pin::pin;

/// Reasons for which a figure has no mask.
pub const NO_CONTRAST: &str = "a model's output that is the same everywhere, or no number";
pub const EMPTY: &str = "a mask that is empty";
pub const FULL: &str = "a mask that is full";
pub const NO_TRUTH: &str = "true masks that cannot be used";

/// An image as the model takes it.
pub(crate) struct Prepared {
    size: (u32, u32),
    values: Vec<f32>,
    /// Of figures that the contact sheet shows.
    thumbnail: Option<RgbImage>,
}

/// Segments the figures of a unit.
///
/// # Errors
/// Input is missing or damaged, the model is no segmentation model, or storage fails.
pub async fn run(
    plan: &StagePlan,
    settings: &MasksSettings,
    outputs: &Outputs,
    units: (u32, u32),
    scratch: &Path,
) -> Result<UnitOutput> {
    let figures = batches::figures(plan, outputs).await?;
    let model = Model::open(&settings.model).await?;
    let mut stage = Masks {
        segmenter: Segmenter::new(model, settings.layout, settings.batch as usize)?,
        images: Images::of_stage(plan, outputs, settings.images.as_ref(), scratch).await?,
        truth: match &settings.truth {
            Some(truth) => Some(Images::open(truth, scratch).await?),
            None => None,
        },
        folder: outputs.stage(&plan.key()),
        settings,
    };
    stage.images.check(settings.on_bad_row)?;
    let folder = stage.folder.clone();
    let each = async |number: usize, figures: &[i64]| stage.batch(number, figures).await;
    let mut output = batches::run(&folder, &figures, units, each).await?;
    let description = format!("{} by {}", stage.segmenter.description(), runtime());
    output.report.found.insert(0, description);
    stage.images.describe(units.0, &mut output.report);
    Ok(output)
}

struct Masks<'a> {
    settings: &'a MasksSettings,
    segmenter: Segmenter,
    images: Images,
    truth: Option<Images>,
    folder: StageFolder,
}

/// What a batch has made.
struct Made {
    report: Report,
    table: Table,
    tar: Tar,
    sheet: Sheet,
}

impl Masks<'_> {
    async fn batch(&mut self, number: usize, figures: &[i64]) -> Result<UnitOutput> {
        let mut made = Made {
            report: Report {
                rows_in: figures.len() as u64,
                ..Report::default()
            },
            table: Table::new(&MASKED),
            tar: Tar::default(),
            sheet: Sheet::default(),
        };
        let preparation = self.segmenter.preparation();
        let prepare = move |image: RgbImage| Prepared {
            size: image.dimensions(),
            values: preparation.values(&image),
            thumbnail: (number == 0).then(|| thumbnail(image)),
        };
        let (images, on_bad_row) = (&self.images, self.settings.on_bad_row);
        let groups = prepared(images, figures, prepare).chunks(self.segmenter.batch);
        let mut groups = pin!(groups);
        while let Some(group) = groups.next().await {
            let (mut ids, mut kept) = (Vec::new(), Vec::new());
            for found in group {
                if let Some((id, image)) = keep(found, (images, on_bad_row), &mut made.report)? {
                    ids.push(id);
                    kept.push(image);
                }
            }
            let masks = self.segmenter.segment(&kept)?;
            for ((id, image), mask) in ids.into_iter().zip(kept).zip(masks) {
                let Some(mask) = mask else {
                    made.report.lose(NO_CONTRAST, 1);
                    continue;
                };
                if let Some(truth) = &self.truth {
                    compare(truth, id, &mask, self.settings, &mut made.report).await?;
                }
                add(id, mask, image.thumbnail, self.settings, &mut made);
            }
        }
        self.write(number, made).await
    }

    async fn write(&self, number: usize, made: Made) -> Result<UnitOutput> {
        let Made {
            mut report,
            table,
            tar,
            sheet,
        } = made;
        report.rows_out = table.rows();
        let mut parts = Vec::new();
        if 0 < table.rows() {
            let stem = format!("masks-{number:06}");
            let rows = table.rows();
            let part = self.folder.put_part(&stem, rows, table.finish()).await?;
            let (bytes, index) = tar.finish();
            parts.extend(put_tar(&self.folder, &part, bytes, index).await?);
            parts.push(part);
        }
        parts.extend(sheet.put(&self.folder, number, &mut report).await?);
        Ok(UnitOutput { parts, report })
    }
}

/// Writes a tar and its index, named as the table of what is in it.
pub(crate) async fn put_tar(
    folder: &StageFolder,
    table: &Part,
    tar: Vec<u8>,
    index: Vec<u8>,
) -> Result<[Part; 2]> {
    debug_assert!(is_table(&table.path));
    // By the content of the tar: masks may differ where areas do not.
    let digest = proto::text::hex_sha256(&tar);
    let stem = table.path.rsplit_once('-').map_or("files", |it| it.0);
    let name = |ending: &str| format!("{stem}-{}.{ending}", &digest[..16]);
    Ok([
        folder.put_file(name("tar"), 0, tar).await?,
        folder.put_file(name("json"), 0, index).await?,
    ])
}

/// Adds a mask, unless it is empty or full.
#[allow(clippy::cast_precision_loss)] // Numbers of pixels are exact in f64.
fn add(
    id: i64,
    mask: GrayImage,
    thumbnail: Option<RgbImage>,
    settings: &MasksSettings,
    made: &mut Made,
) {
    let figure = mask.as_raw().iter().filter(|it| truth::is_figure(**it));
    let area = figure.count() as f64 / mask.as_raw().len() as f64;
    if area < settings.area_min {
        return made.report.lose(EMPTY, 1);
    }
    if settings.area_max < area {
        return made.report.lose(FULL, 1);
    }
    if let Some(thumbnail) = thumbnail {
        let (width, height) = thumbnail.dimensions();
        made.sheet
            .add_mask(thumbnail, &lanczos_gray(&mask, width, height));
    }
    let bytes = encode_gray(mask).expect("greyscale is written to memory");
    made.tar.add(&format!("{id}.png"), &bytes);
    made.table.push([Value::Number(id), Value::Real(area)]);
}

/// Compares a mask with the true one, if there is one.
async fn compare(
    truth: &Images,
    id: i64,
    mask: &GrayImage,
    settings: &MasksSettings,
    report: &mut Report,
) -> Result<()> {
    let Some(file) = truth.path(id) else {
        return Ok(());
    };
    let compared = match truth.read(id).await {
        Ok(bytes) => truth::compare_mask(mask, &bytes, report),
        Err(reason) => Err(reason),
    };
    let Err(reason) = compared else {
        return Ok(());
    };
    let row = BadRow {
        file,
        row: u64::try_from(id).unwrap_or(0),
        offset: None,
        reason: format!("the true mask of post {id}: {reason}"),
    };
    // The figure stays: only the comparison is lost.
    let mut refused = Report::default();
    refuse(row, NO_TRUTH, settings.on_bad_row, &mut refused)?;
    report.count(NO_TRUTH, 1);
    report.bad_rows.append(&mut refused.bad_rows);
    Ok(())
}

/// For messages about a model.
fn named(model: &Model) -> &str {
    short(&model.name)
}
