//! The stage `tagger`: a tagger names the clothes of figures. The set of cloth tags over a
//! threshold is a second signature of outfits, which needs no server. Ours: the paper asks a model
//! (section 3). Only figures are tagged whose character and artist have others.

mod labels;

use crate::batches::{self, keep, prepared};
use crate::cloths::ClothTags;
use crate::error::{BuildError, Result};
use crate::figure::{self, TAGGED};
use crate::images::Images;
use crate::onnx::{ImageInput, Model, cubic, read_file, runtime, short};
use crate::output::Outputs;
use crate::table::{Table, Value};
use futures::StreamExt;
use image::{Rgb, RgbImage};
use proto::build::StagePlan;
use proto::build::image_stages::{TaggerLayout, TaggerSettings};
use proto::build::report::{Report, UnitOutput};
use std::path::Path;
use std::pin::pin;

pub const NO_CLOTHS: &str = "no cloth tag over the threshold";

const RIGHT: &str = "a tagger has one input of f32 [N, H, W, 3] (WD14) or [N, 3, H, W] \
    (cl_tagger), such as [1, 448, 448, 3]";
const SIDE: usize = 448;
const LABELS_BYTES_MAX: u64 = 64 << 20;

/// Tags the figures of a unit.
///
/// # Errors
/// Input is missing or damaged, the model is no tagger, or storage fails.
pub async fn run(
    plan: &StagePlan,
    settings: &TaggerSettings,
    outputs: &Outputs,
    units: (u32, u32),
    scratch: &Path,
) -> Result<UnitOutput> {
    let figures = figure::with_others(plan, outputs, scratch).await?;
    let mut tagger = Tagger::open(settings).await?;
    let images = Images::of_stage(plan, outputs, settings.images.as_ref(), scratch).await?;
    images.check(settings.on_bad_row)?;
    let folder = outputs.stage(&plan.key());
    let each = async |number: usize, figures: &[i64]| {
        let (report, table) = tagger.batch(&images, figures, settings).await?;
        let mut parts = Vec::new();
        if 0 < table.rows() {
            let (stem, rows) = (format!("tags-{number:06}"), table.rows());
            parts.push(folder.put_part(&stem, rows, table.finish()).await?);
        }
        Ok::<_, BuildError>(UnitOutput { parts, report })
    };
    let mut output = batches::run(&folder, &figures, units, each).await?;
    output.report.found.push(tagger.description());
    images.describe(units.0, &mut output.report);
    Ok(output)
}

/// How images become input.
#[derive(Debug, Clone, Copy)]
struct Preparation {
    layout: TaggerLayout,
    width: usize,
    height: usize,
}

impl Preparation {
    /// Both pad to a white square, and shrink it as Pillow's `BICUBIC`.
    #[allow(clippy::cast_possible_truncation)] // Sides of a model's input.
    fn values(&self, image: &RgbImage) -> Vec<f32> {
        let (width, height) = image.dimensions();
        let side = width.max(height);
        let mut square = RgbImage::from_pixel(side, side, Rgb([255; 3]));
        let (left, top) = ((side - width) / 2, (side - height) / 2);
        image::imageops::replace(&mut square, image, left.into(), top.into());
        let small = cubic(&square, self.width as u32, self.height as u32);
        match self.layout {
            TaggerLayout::Wd14 => {
                let bgr = small.pixels().flat_map(|it| [it.0[2], it.0[1], it.0[0]]);
                bgr.map(f32::from).collect()
            }
            TaggerLayout::ClTagger => {
                let plane = |channel: usize| {
                    let values = small.pixels().map(move |it| f32::from(it.0[channel]));
                    values.map(|it| it / 127.5 - 1.0)
                };
                [2, 1, 0].into_iter().flat_map(plane).collect()
            }
        }
    }
}

struct Tagger {
    model: Model,
    input: ImageInput,
    preparation: Preparation,
    batch: usize,
    /// For each output the cloth tag that it is for.
    cloths: Vec<Option<String>>,
    threshold: f64,
}

impl Tagger {
    async fn open(settings: &TaggerSettings) -> Result<Self> {
        let list = ClothTags::parse(&settings.cloth_tags)
            .map_err(|reason| BuildError::input("filter.cloth_tags", reason))?;
        let file = format!("{}/{}", settings.labels.folder, settings.labels.file.path);
        let text = read_file(&settings.labels, LABELS_BYTES_MAX).await?;
        let labels = labels::parse(&text).map_err(|reason| BuildError::input(&file, reason))?;
        let model = Model::open_file(&settings.model).await?;
        let input = model.image_input(RIGHT)?;
        let layout = match (settings.layout, input.channels_last) {
            (Some(TaggerLayout::Wd14) | None, true) => TaggerLayout::Wd14,
            (Some(TaggerLayout::ClTagger) | None, false) => TaggerLayout::ClTagger,
            (Some(_), _) => {
                let right = format!("tagger.layout says otherwise; {RIGHT}");
                return Err(model.unfit(&model.inputs, "inputs", &right));
            }
        };
        let declared = model.outputs.first().and_then(|it| it.shape.as_ref());
        let count = declared.and_then(|it| it.last().copied().flatten());
        if let Some(count) = count.filter(|count| *count != labels.len()) {
            let right = format!(
                "{file} names {} tags: {count} are expected, which are those of this model",
                labels.len()
            );
            return Err(model.unfit(&model.outputs, "outputs", &right));
        }
        let cloths = labels.iter().map(|it| list.name(it).map(str::to_owned));
        let cloths: Vec<Option<String>> = cloths.collect();
        if cloths.iter().all(Option::is_none) {
            let reason = format!(
                "none of its {} tags is a cloth tag; the first is {:?}",
                labels.len(),
                labels.first().map_or("", String::as_str)
            );
            return Err(BuildError::input(&file, reason));
        }
        Ok(Self {
            preparation: Preparation {
                layout,
                width: input.width.unwrap_or(SIDE),
                height: input.height.unwrap_or(SIDE),
            },
            batch: input.batch.unwrap_or(settings.batch as usize).max(1),
            threshold: settings.threshold,
            model,
            input,
            cloths,
        })
    }

    fn description(&self) -> String {
        let layout = match self.preparation.layout {
            TaggerLayout::Wd14 => "WD14",
            TaggerLayout::ClTagger => "cl_tagger",
        };
        format!(
            "tags of {}, as {layout}, {} of its {} tags are cloth tags, by {}",
            short(&self.model.name),
            self.cloths.iter().flatten().count(),
            self.cloths.len(),
            runtime()
        )
    }

    async fn batch(
        &mut self,
        images: &Images,
        figures: &[i64],
        settings: &TaggerSettings,
    ) -> Result<(Report, Table)> {
        let mut report = Report {
            rows_in: figures.len() as u64,
            ..Report::default()
        };
        let mut table = Table::new(&TAGGED);
        let preparation = self.preparation;
        let prepare = move |image: RgbImage| preparation.values(&image);
        let mut groups = pin!(prepared(images, figures, prepare).chunks(self.batch));
        while let Some(group) = groups.next().await {
            let (mut ids, mut values) = (Vec::new(), Vec::new());
            for found in group {
                let about = (images, settings.on_bad_row);
                if let Some((id, image)) = keep(found, about, &mut report)? {
                    ids.push(id);
                    values.extend(image);
                }
            }
            if ids.is_empty() {
                continue;
            }
            let scores = self.scores(ids.len(), values)?;
            for (id, scores) in ids.into_iter().zip(scores.chunks_exact(self.cloths.len())) {
                let cloths = self.over(scores);
                if cloths.is_empty() {
                    report.lose(NO_CLOTHS, 1);
                } else {
                    table.push([Value::Number(id), Value::Text(&cloths)]);
                }
            }
        }
        report.rows_out = table.rows();
        Ok((report, table))
    }

    /// The scores of `count` images, one after the other.
    fn scores(&mut self, count: usize, mut values: Vec<f32>) -> Result<Vec<f32>> {
        let Preparation { width, height, .. } = self.preparation;
        let run = self.input.batch.unwrap_or(count);
        values.resize(run * 3 * width * height, 0.0);
        let name = self.model.outputs.first().map(|it| it.name.clone());
        let outputs = self
            .model
            .run(self.input.shape(run, width, height), values)?;
        let output = outputs
            .into_iter()
            .find(|it| Some(&it.name) == name.as_ref());
        let expected = run * self.cloths.len();
        match output {
            Some(output) if output.values.len() == expected => Ok(output.values),
            output => {
                let found = output.map_or("no f32".to_owned(), |it| format!("{:?}", it.shape));
                let reason = format!(
                    "its first output {:?} is {found}; [{run}, {}] is expected, a score for each \
                     tag",
                    name.unwrap_or_default(),
                    self.cloths.len()
                );
                Err(BuildError::input(&self.model.name, reason))
            }
        }
    }

    /// The cloth tags over the threshold: sorted, each once, separated by spaces.
    fn over(&self, scores: &[f32]) -> String {
        let probability = |score: f32| match self.preparation.layout {
            TaggerLayout::Wd14 => f64::from(score),
            TaggerLayout::ClTagger => 1.0 / (1.0 + (-f64::from(score)).exp()),
        };
        let found = self.cloths.iter().zip(scores).filter_map(|(cloth, score)| {
            let is_over = self.threshold < probability(*score);
            cloth.as_deref().filter(|_| is_over)
        });
        let found: std::collections::BTreeSet<&str> = found.collect();
        found.into_iter().collect::<Vec<_>>().join(" ")
    }
}
