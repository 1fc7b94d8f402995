//! Attention maps as in the paper's figure 6: where in a reference the retrieval encoder attends to
//! a word, by input block and time step. The encoder runs on each reference with each requested
//! word. A map shows the attention of each position to the word's token, averaged over the heads
//! and scaled from its own minimum (dark) to its own maximum (bright). Called by
//! [`crate::unit_runner`].

use crate::subject::Subject;
use figures::grid::{Cell, image_grid};
use figures::heat::overlay;
use image::RgbImage;
use model::sampler::Sampler;
use model::trainer::Trainer;
use proto::sample::SampleWork;
use serde::Serialize;

/// Side of one image in a sheet of maps, in pixels.
const SIDE: u32 = 96;
/// Number of time steps shown, from the first sampling step to the last.
const TIMES: usize = 4;

/// Images by file name, and their record.
pub(crate) struct Maps {
    pub(crate) images: Vec<(String, RgbImage)>,
    pub(crate) record: Record,
}

#[derive(Debug, Serialize)]
pub(crate) struct Record {
    maps: Vec<Map>,
}

#[derive(Debug, Serialize)]
struct Map {
    /// The overlay.
    file: String,
    /// All overlays of the same reference and word.
    sheet: String,
    /// 0-based, as in the image records.
    reference: usize,
    word: &'static str,
    /// CompVis' block number, as in the paper's figure.
    input_block: usize,
    timestep: usize,
    /// Attention probability of the word's token at the darkest position.
    least: f32,
    /// The same at the brightest position.
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
    let timesteps = spaced(sampler.timesteps(), TIMES);
    let (mut images, mut maps) = (Vec::new(), Vec::new());
    for (index, reference) in subject.example.references.iter().enumerate() {
        for word in &request.attention {
            let sheet = format!("{name}-{index}-{}.png", word.word());
            let mut rows = Vec::new();
            for &timestep in &timesteps {
                let mut row = vec![Cell::new(reference.concept.word(), reference.image.clone())];
                for found in trainer.attention(&reference.image, *word, timestep)? {
                    let image = overlay(&reference.image, &found.values, found.width);
                    let file = format!(
                        "{name}-{index}-{}-in{:02}-t{timestep:03}.png",
                        word.word(),
                        found.block
                    );
                    row.push(Cell::new(
                        format!("{} in{} t{timestep}", word.word(), found.block),
                        image.clone(),
                    ));
                    maps.push(Map {
                        file: file.clone(),
                        sheet: sheet.clone(),
                        reference: index,
                        word: word.word(),
                        input_block: found.block,
                        timestep,
                        least: found.values.iter().copied().fold(f32::INFINITY, f32::min),
                        most: found.values.iter().copied().fold(0.0, f32::max),
                    });
                    images.push((file, image));
                }
                rows.push(row);
            }
            images.push((sheet, image_grid(&rows, SIDE, 1)));
        }
    }
    Ok(Maps {
        images,
        record: Record { maps },
    })
}

/// `count` evenly spaced items, from the first to the last.
fn spaced(all: &[usize], count: usize) -> Vec<usize> {
    let last = all.len().saturating_sub(1);
    let mut chosen: Vec<usize> = (0..count)
        .map(|i| i * last / (count - 1))
        .filter_map(|index| all.get(index).copied())
        .collect();
    chosen.dedup();
    chosen
}

#[cfg(test)]
mod tests {
    use super::spaced;

    #[test]
    fn timesteps_reach_from_first_to_last() {
        assert_eq!(spaced(&[9, 8, 7, 6, 5, 4, 3], 4), [9, 7, 5, 3]);
        assert_eq!(spaced(&[9, 8], 4), [9, 8]);
        assert_eq!(spaced(&[9], 4), [9]);
    }
}
