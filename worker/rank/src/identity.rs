//! The identity test. Compares the colour histogram of a generated image with those of its own
//! identity (a character in an outfit; other images than the target) and of seven other identities.
//! The image is correct if its own identity is the nearest. Chance is one in eight. Called by
//! [`crate::unit_runner`]; the metric and its limits are in `model_data::identity`.

use image::RgbImage;
use model_data::identity::{Histogram, figure_mask, histogram, mean, nearest};
use model_data::loader::{LoadError, Loader};
use model_data::order::SampleOrder;
use std::collections::BTreeMap;

/// Candidates per image: its own identity and seven others.
const CANDIDATES: usize = 8;

/// Maximum number of images that are averaged into a candidate's histogram.
const IMAGES_PER_IDENTITY: usize = 8;

/// The identities that candidates are chosen from.
#[derive(Debug)]
pub(crate) struct Identities {
    seed: u64,
    /// Identity -> its positions in the data set.
    positions: BTreeMap<u64, Vec<u64>>,
    /// Position -> histogram of its image.
    histograms: BTreeMap<u64, Histogram>,
}

/// The result of the identity test for one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Classification {
    /// Index of the nearest candidate; 0 is the target's identity, 1 that of swapped references.
    pub(crate) nearest: usize,
    /// Number of the nearest identity in the data set.
    pub(crate) identity: u64,
}

impl Identities {
    /// All identities among `positions`, except those with a single image: they have none to
    /// compare with.
    fn new(loader: &Loader, positions: &[u64], seed: u64) -> Self {
        let mut found: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for &position in positions {
            let row = usize::try_from(position).expect("positions are indices");
            found
                .entry(loader.rows()[row].identity)
                .or_default()
                .push(position);
        }
        found.retain(|_, members| members.len() > 1);
        Self {
            seed,
            positions: found,
            histograms: BTreeMap::new(),
        }
    }

    /// The held-out identities if there are enough of them, otherwise all.
    pub(crate) fn of(loader: &Loader, seed: u64) -> Self {
        let held_out = Self::new(loader, loader.held_out(), seed);
        if held_out.has_enough() {
            return held_out;
        }
        let all = 0..loader.rows().len() as u64;
        let all: Vec<u64> = all.filter(|position| loader.uses(*position)).collect();
        Self::new(loader, &all, seed)
    }

    /// Number of candidates for the sample at `target`.
    pub(crate) fn candidate_count(&self, loader: &Loader, target: u64) -> usize {
        self.candidates(identity(loader, target), None, target)
            .len()
    }

    /// True if every image gets all its candidates.
    fn has_enough(&self) -> bool {
        self.positions.len() >= CANDIDATES
    }

    /// Classifies an image that was generated for the sample at `target`, with the references of
    /// that at `donor` if they were swapped: its identity is then a candidate too. None if its
    /// identity has no other image, or if there is no other identity.
    pub(crate) async fn classify(
        &mut self,
        loader: &Loader,
        target: u64,
        donor: Option<u64>,
        image: &RgbImage,
    ) -> Result<Option<Classification>, LoadError> {
        let own = identity(loader, target);
        let donor = donor.map(|donor| identity(loader, donor));
        let candidates = self.candidates(own, donor, target);
        if candidates.len() < 2 {
            return Ok(None);
        }
        let mut histograms = Vec::with_capacity(candidates.len());
        for &identity in &candidates {
            histograms.push(self.mean_histogram(loader, identity, target).await?);
        }
        let own_histogram = histogram(image, &figure_mask(image));
        let found = nearest(&own_histogram, &histograms);
        Ok(found.map(|index| Classification {
            nearest: index,
            identity: candidates[index],
        }))
    }

    /// `own` first, then that of swapped references, then others. Chosen by the target, so that
    /// every run has the same candidates.
    fn candidates(&self, own: u64, donor: Option<u64>, target: u64) -> Vec<u64> {
        let first: Vec<u64> = std::iter::once(own).chain(donor).collect();
        if first.iter().any(|it| !self.positions.contains_key(it)) {
            return Vec::new();
        }
        let all: Vec<u64> = self.positions.keys().copied().collect();
        let order = SampleOrder::new(self.seed ^ target, all.len() as u64);
        let shuffled = (0..order.samples())
            .map(|index| all[usize::try_from(order.at(index).1).expect("an index")]);
        let others = shuffled.filter(|identity| !first.contains(identity));
        first
            .iter()
            .copied()
            .chain(others)
            .take(CANDIDATES)
            .collect()
    }

    /// The mean histogram of an identity's images, without the target.
    async fn mean_histogram(
        &mut self,
        loader: &Loader,
        identity: u64,
        target: u64,
    ) -> Result<Histogram, LoadError> {
        let members = self.positions.get(&identity).cloned().unwrap_or_default();
        let mut histograms = Vec::new();
        for position in members
            .into_iter()
            .filter(|&position| position != target)
            .take(IMAGES_PER_IDENTITY)
        {
            if let Some(known) = self.histograms.get(&position) {
                histograms.push(known.clone());
                continue;
            }
            let image = loader.decoded(position).await?;
            let colours = histogram(&image.image, &image.mask);
            self.histograms.insert(position, colours.clone());
            histograms.push(colours);
        }
        Ok(mean(&histograms))
    }
}

fn identity(loader: &Loader, position: u64) -> u64 {
    let row = usize::try_from(position).expect("positions are indices");
    loader.rows()[row].identity
}
