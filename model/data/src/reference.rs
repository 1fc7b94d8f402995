//! Chooses the reference images of a target and their concepts (paper, section 5.1 and A.4; notes
//! 3.8 and 8). No pixels are touched here. Called by the loader, which then decodes only the chosen
//! images.

use proto::spec::{Pairing, References, Task};
use rand::Rng;
use rand::seq::SliceRandom;

use crate::example::Concept;
use crate::random::{Purpose, random};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The target itself, under another random transform (pairing a).
    Target,
    /// The n-th entry of the target's `similar`.
    Similar(usize),
}

/// One reference to crop. A slot that requests clothes shows the whole figure instead if the face
/// fills the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    pub source: Source,
    pub requested: Concept,
}

/// Chooses the N references of the sample at `position`, which has `similar` similar images.
///
/// Pairing b samples without replacement if there are at least N similar images. Otherwise each
/// appears at least once and the remaining slots are sampled with replacement. The result is empty
/// if pairing b has no similar image, or if N is 0.
#[must_use]
pub fn choose(
    references: &References,
    seed: u64,
    epoch: u64,
    position: u64,
    similar: usize,
) -> Vec<Slot> {
    let slots = references.count as usize;
    let sources = match references.pairing {
        Pairing::A => vec![Source::Target; slots],
        Pairing::B if similar == 0 => Vec::new(),
        Pairing::B => sample_similar(
            slots,
            similar,
            &mut random(seed, epoch, position, Purpose::ReferenceChoice),
        ),
    };
    let reconstruction = is_reconstruction(references, seed, epoch, position);
    let mut rng = random(seed, epoch, position, Purpose::Concept);
    sources
        .into_iter()
        .map(|source| {
            let face = rng.random_bool(references.face_probability.clamp(0.0, 1.0));
            let requested = match (reconstruction, face) {
                (true, _) => Concept::Figure,
                (false, true) => Concept::Face,
                (false, false) => Concept::Clothes,
            };
            Slot { source, requested }
        })
        .collect()
}

/// True if the references of this sample show whole images (reconstruction) rather than faces and
/// clothes (composition).
#[must_use]
pub fn is_reconstruction(references: &References, seed: u64, epoch: u64, position: u64) -> bool {
    match references.task {
        Task::Reconstruction => true,
        Task::Composition => false,
        Task::Multitask => random(seed, epoch, position, Purpose::Task)
            .random_bool(references.multitask_reconstruction.clamp(0.0, 1.0)),
    }
}

/// True if training drops all references of this sample. Independent of the drop of its prompt.
#[must_use]
pub fn are_dropped(references: &References, seed: u64, epoch: u64, position: u64) -> bool {
    let probability = references.drop.clamp(0.0, 1.0);
    random(seed, epoch, position, Purpose::ReferenceDrop).random_bool(probability)
}

fn sample_similar(slots: usize, similar: usize, rng: &mut impl Rng) -> Vec<Source> {
    let mut order: Vec<usize> = (0..similar).collect();
    order.shuffle(rng);
    (0..slots)
        .map(|slot| {
            Source::Similar(
                order
                    .get(slot)
                    .copied()
                    .unwrap_or_else(|| rng.random_range(0..similar)),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example_data::{SEED, references};
    use std::collections::BTreeSet;

    fn indices(slots: &[Slot]) -> Vec<usize> {
        slots
            .iter()
            .map(|s| match s.source {
                Source::Similar(i) => i,
                Source::Target => panic!("pairing b never uses the target as reference"),
            })
            .collect()
    }

    #[test]
    fn enough_similar_images_are_sampled_without_replacement() {
        let references = References {
            count: 4,
            ..references()
        };
        let mut seen = BTreeSet::new();
        for position in 0..200 {
            let chosen = indices(&choose(&references, SEED, 0, position, 7));
            assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), 4);
            seen.extend(chosen);
        }
        assert!(
            seen.iter().copied().eq(0..7),
            "every similar image is chosen sometimes: {seen:?}"
        );
    }

    #[test]
    fn too_few_are_all_used_before_any_repeats() {
        let references = References {
            count: 4,
            ..references()
        };
        for position in 0..100 {
            let chosen = indices(&choose(&references, SEED, 0, position, 3));
            assert_eq!(chosen.len(), 4);
            assert_eq!(
                chosen.iter().collect::<BTreeSet<_>>().len(),
                3,
                "{chosen:?}"
            );
        }
        assert!(choose(&references, SEED, 0, 1, 0).is_empty());
    }

    #[test]
    fn pairing_a_uses_the_target_only() {
        let references = References {
            pairing: Pairing::A,
            count: 2,
            ..references()
        };
        assert!(
            choose(&references, SEED, 0, 5, 0)
                .iter()
                .all(|s| s.source == Source::Target)
        );
        assert_eq!(choose(&references, SEED, 0, 5, 0).len(), 2);
    }

    #[test]
    fn tasks_set_the_concepts_and_multitask_mixes_by_sample() {
        let requested = |task, position| -> Vec<Concept> {
            let references = References {
                task,
                count: 4,
                ..references()
            };
            choose(&references, SEED, 0, position, 9)
                .iter()
                .map(|s| s.requested)
                .collect()
        };
        assert!(
            requested(Task::Reconstruction, 1)
                .iter()
                .all(|c| *c == Concept::Figure)
        );
        let composed: Vec<Concept> = (0..300)
            .flat_map(|p| requested(Task::Composition, p))
            .collect();
        let faces = composed.iter().filter(|c| **c == Concept::Face).count();
        assert!(!composed.contains(&Concept::Figure));
        assert!((500..700).contains(&faces), "{faces} of 1200 faces");
        let whole = (0..400)
            .filter(|p| requested(Task::Multitask, *p).contains(&Concept::Figure))
            .count();
        assert!((150..250).contains(&whole), "{whole} of 400 reconstruct");
        for position in 0..50 {
            let kinds = requested(Task::Multitask, position);
            let figures = kinds.iter().filter(|c| **c == Concept::Figure).count();
            assert!(
                figures == 0 || figures == 4,
                "a sample has one task: {kinds:?}"
            );
        }
    }

    #[test]
    fn another_epoch_chooses_other_references() {
        let chosen = |epoch| {
            (0..20)
                .map(|p| choose(&references(), SEED, epoch, p, 9))
                .collect::<Vec<_>>()
        };
        assert_eq!(chosen(0), chosen(0));
        assert_ne!(chosen(0), chosen(1));
    }
}
