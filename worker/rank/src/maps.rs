//! Attention maps as in the paper's figure 6: where in a reference the retrieval encoder finds a
//! word, by input block and time step. For every reference and every word that is asked for, the
//! encoder reads the reference under that word; drawn is how much each place attends to the word's
//! token, mean over the heads, from the least (dark) to the most (bright) of its own map. Called by
//! [`crate::studio`].

use crate::subject::Subject;
use figures::grid::{Cell, image_grid};
use figures::heat::overlay;
use image::RgbImage;
use model::sampler::Sampler;
use model::trainer::Trainer;
use proto::sample::SampleWork;
use serde::Serialize;

/// Side of a picture in a sheet of maps.
const SIDE: u32 = 96;
/// Time steps shown, from the first of drawing to the last, with which drawing ends.
const TIMES: usize = 4;

/// Pictures by file name, and what they are.
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
    /// The overlay; all of a reference and a word are in `sheet` too.
    file: String,
    sheet: String,
    /// 0-based, as in the pictures' records.
    reference: usize,
    word: &'static str,
    /// CompVis' number, as the figure has it.
    input_block: usize,
    timestep: usize,
    /// Share of attention that the word's token gets, at the darkest place and at the brightest.
    least: f32,
    most: f32,
}

/// All maps of one subject; `name` begins the names of their files.
pub(crate) fn draw(
    trainer: &mut Trainer,
    subject: &Subject,
    request: &SampleWork,
    name: &str,
) -> anyhow::Result<Maps> {
    let schedule = trainer.noise_schedule().clone();
    let sampler = Sampler::new(schedule, request.method, request.steps)?;
    let times = spread(sampler.timesteps(), TIMES);
    let (mut images, mut maps) = (Vec::new(), Vec::new());
    for (index, reference) in subject.example.references.iter().enumerate() {
        for word in &request.attention {
            let sheet = format!("{name}-{index}-{}.png", word.word());
            let mut rows = Vec::new();
            for &timestep in &times {
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

/// So many of a list, from its first to its last.
fn spread(all: &[usize], count: usize) -> Vec<usize> {
    let last = all.len().saturating_sub(1);
    let mut chosen: Vec<usize> = (0..count)
        .map(|i| i * last / (count - 1))
        .filter_map(|at| all.get(at).copied())
        .collect();
    chosen.dedup();
    chosen
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn times_reach_from_first_to_last() {
        assert_eq!(spread(&[9, 8, 7, 6, 5, 4, 3], 4), [9, 7, 5, 3]);
        assert_eq!(spread(&[9, 8], 4), [9, 8]);
        assert_eq!(spread(&[9], 4), [9]);
    }
}
