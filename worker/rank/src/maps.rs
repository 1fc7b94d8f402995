//! Attention maps as in the paper's figure 6: where in a reference the retrieval encoder attends to
//! a word, by input block and time step. The encoder runs on each reference with each requested
//! word. A map shows the attention of each position to the word's token, averaged over the heads.
//! The time steps reach 0, as in the figure, where the references are what the model sees of them.
//! All maps of a sheet have one scale, from the smallest (dark) to the largest (bright) probability
//! among them, so that blocks and time steps can be compared; the sheet and the record say so.
//! Called by [`crate::unit_runner`].

use crate::subject::Subject;
use figures::grid::{Cell, captioned_grid};
use figures::heat::{Scale, overlay};
use image::RgbImage;
use model::AttentionMap;
use model::sampler::Sampler;
use model::trainer::Trainer;
use model_data::example::{Concept, Reference};
use proto::sample::SampleWork;
use serde::Serialize;

/// Side of one image in a sheet of maps, in pixels.
const SIDE: u32 = 96;
/// Number of time steps shown, from the first sampling step to 0.
const TIMES: usize = 4;

/// Images by file name, and their record.
pub(crate) struct Maps {
    pub(crate) images: Vec<(String, RgbImage)>,
    pub(crate) record: Record,
}

#[derive(Debug, Serialize)]
pub(crate) struct Record {
    sheets: Vec<Sheet>,
    maps: Vec<Map>,
}

/// All maps of one reference and one word, and their common scale.
#[derive(Debug, Serialize)]
struct Sheet {
    file: String,
    /// 0-based, as in the image records.
    reference: usize,
    word: &'static str,
    /// Attention probability that is dark in all maps of the sheet.
    dark: f32,
    /// The same for bright.
    bright: f32,
    /// From the first sampling step down to 0.
    timesteps: Vec<usize>,
    /// What is written under the sheet.
    caption: String,
}

#[derive(Debug, Serialize)]
struct Map {
    /// The overlay, on the scale of its sheet.
    file: String,
    /// All overlays of the same reference and word.
    sheet: String,
    /// 0-based, as in the image records.
    reference: usize,
    word: &'static str,
    /// CompVis' block number, as in the paper's figure.
    input_block: usize,
    timestep: usize,
    /// Attention probability of the word's token at the position that attends least.
    least: f32,
    /// The same at the position that attends most.
    most: f32,
}

/// All maps of one subject; `name` is the prefix of their file names.
pub(crate) fn render(
    trainer: &mut Trainer,
    subject: &Subject,
    request: &SampleWork,
    name: &str,
) -> anyhow::Result<Maps> {
    let schedule = trainer.noise_schedule().clone();
    let sampler = Sampler::new(schedule, request.method, request.steps)?;
    let timesteps = down_to_zero(sampler.timesteps());
    let mut maps = Maps {
        images: Vec::new(),
        record: Record {
            sheets: Vec::new(),
            maps: Vec::new(),
        },
    };
    for (index, reference) in subject.example.references.iter().enumerate() {
        for word in &request.attention {
            let mut found = Vec::new();
            for &timestep in &timesteps {
                let attention = trainer.attention(&reference.image, *word, timestep)?;
                found.push((timestep, attention));
            }
            maps.add(reference, (index, *word), &found, name);
        }
    }
    Ok(maps)
}

impl Maps {
    /// Adds the sheet of one reference and one word from the attention at each time step.
    fn add(
        &mut self,
        reference: &Reference,
        (index, word): (usize, Concept),
        found: &[(usize, Vec<AttentionMap>)],
        name: &str,
    ) {
        let word = word.word();
        let prefix = format!("{name}-{index}-{word}");
        let sheet = format!("{prefix}.png");
        let all = || found.iter().flat_map(|(_, maps)| maps);
        let scale = Scale::of(all().flat_map(|map| map.values.iter().copied()));
        let mut rows = Vec::new();
        for (timestep, maps) in found {
            let mut row = vec![Cell::new(reference.concept.word(), reference.image.clone())];
            for map in maps {
                let image = overlay(&reference.image, &map.values, map.width, scale);
                let file = format!("{prefix}-in{:02}-t{timestep:03}.png", map.block);
                let label = format!("{word} in{} t{timestep}", map.block);
                row.push(Cell::new(label, image.clone()));
                let own = Scale::of(map.values.iter().copied());
                self.record.maps.push(Map {
                    file: file.clone(),
                    sheet: sheet.clone(),
                    reference: index,
                    word,
                    input_block: map.block,
                    timestep: *timestep,
                    least: own.dark,
                    most: own.bright,
                });
                self.images.push((file, image));
            }
            rows.push((row, String::new()));
        }
        let timesteps: Vec<usize> = found.iter().map(|(timestep, _)| *timestep).collect();
        let caption = caption(word, scale, &timesteps);
        if let Some((_, text)) = rows.last_mut() {
            text.clone_from(&caption);
        }
        self.images
            .push((sheet.clone(), captioned_grid(&rows, SIDE)));
        self.record.sheets.push(Sheet {
            file: sheet,
            reference: index,
            word,
            dark: scale.dark,
            bright: scale.bright,
            timesteps,
            caption,
        });
    }
}

fn caption(word: &str, scale: Scale, timesteps: &[usize]) -> String {
    let timesteps: Vec<String> = timesteps.iter().map(ToString::to_string).collect();
    format!(
        "attention to \"{word}\", one scale for all maps: dark {:.4}, bright {:.4}; time steps {}",
        scale.dark,
        scale.bright,
        timesteps.join(", ")
    )
}

/// At most [`TIMES`] time steps: evenly spaced ones of the sampling steps, which descend from the
/// first one and in general do not reach 0, and then 0.
fn down_to_zero(sampling: &[usize]) -> Vec<usize> {
    let mut chosen: Vec<usize> = (0..TIMES - 1)
        .map(|i| i * sampling.len() / (TIMES - 1))
        .filter_map(|index| sampling.get(index).copied())
        .filter(|timestep| *timestep > 0)
        .collect();
    chosen.push(0);
    chosen.dedup();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timesteps_reach_from_the_first_sampling_step_to_0() {
        let ddim: Vec<usize> = (0..50).rev().map(|k| k * 20 + 1).collect();
        assert_eq!(down_to_zero(&ddim), [981, 661, 321, 0]);
        assert_eq!(down_to_zero(&[9, 8]), [9, 8, 0]);
        assert_eq!(down_to_zero(&[9]), [9, 0]);
        // The second sampling step of PNDM is made twice.
        assert_eq!(down_to_zero(&[501, 1, 1]), [501, 1, 0]);
    }

    #[test]
    fn all_maps_of_a_sheet_have_one_scale() {
        let reference = Reference {
            image: image::RgbImage::from_pixel(8, 8, image::Rgb([100, 100, 100])),
            view: None,
            concept: Concept::Figure,
            position: 0,
        };
        let map = |value| AttentionMap {
            block: 3,
            width: 1,
            values: vec![value],
        };
        let found = [(900, vec![map(0.1)]), (0, vec![map(0.3)])];
        let mut maps = Maps {
            images: Vec::new(),
            record: Record {
                sheets: Vec::new(),
                maps: Vec::new(),
            },
        };
        maps.add(&reference, (0, Concept::Face), &found, "attention-000");
        let brightness = |index: usize| {
            let image: &image::RgbImage = &maps.images[index].1;
            image.as_raw().iter().map(|it| u32::from(*it)).sum::<u32>()
        };
        // On scales of their own, both constant maps would be dark.
        assert!(brightness(1) > 2 * brightness(0));
        let sheet = &maps.record.sheets[0];
        assert_eq!((sheet.dark, sheet.bright), (0.1, 0.3));
        assert_eq!(
            sheet.caption,
            "attention to \"face\", one scale for all maps: dark 0.1000, bright 0.3000; time steps \
            900, 0"
        );
    }
}
