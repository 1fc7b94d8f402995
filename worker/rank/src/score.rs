//! Whose picture is this? A drawn picture is compared by colour with its own character-and-outfit
//! (other pictures than the target) and with seven others; it is right when its own is nearest.
//! Chance is one in eight. Called by [`crate::studio`]; the measure itself is
//! `model_data::identity`'s, with its limits.

use image::RgbImage;
use model_data::identity::{Histogram, figure_mask, histogram, mean, nearest};
use model_data::loader::{LoadError, Loader};
use model_data::order::SampleOrder;
use std::collections::BTreeMap;

/// Candidates of each picture: its own identity and seven others.
const CANDIDATES: usize = 8;

/// Pictures that make up a candidate's portrait, at most.
const PORTRAIT_IMAGES: usize = 8;

/// Identities to choose from, by their positions.
#[derive(Debug)]
pub(crate) struct Identities {
    seed: u64,
    /// Identity -> its positions in the data set.
    positions: BTreeMap<u64, Vec<u64>>,
    histograms: BTreeMap<u64, Histogram>,
}

/// What one picture was found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Index of the nearest candidate; 0 is the own identity.
    pub(crate) nearest: usize,
    /// Number of the nearest identity in the data set.
    pub(crate) identity: u64,
    /// How many candidates there were.
    pub(crate) of: usize,
}

impl Identities {
    /// All identities among `positions`; those with one picture only cannot be told from it and are
    /// left out.
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

    /// Those whom training never shows, where there are enough of them, and all otherwise.
    pub(crate) fn of(loader: &Loader, seed: u64) -> Self {
        let held_out = Self::new(loader, loader.held_out(), seed);
        if held_out.are_enough() {
            return held_out;
        }
        let all: Vec<u64> = (0..loader.rows().len() as u64).collect();
        Self::new(loader, &all, seed)
    }

    /// How many candidates there are for the sample at `target`.
    pub(crate) fn candidates_of(&self, loader: &Loader, target: u64) -> usize {
        let row = usize::try_from(target).expect("positions are indices");
        self.candidates(loader.rows()[row].identity, target).len()
    }

    /// Whether each picture gets all its candidates.
    fn are_enough(&self) -> bool {
        self.positions.len() >= CANDIDATES
    }

    /// Judges the picture that was drawn for the sample at `target`. None when its identity has no
    /// other picture, or there is no other identity.
    pub(crate) async fn judge(
        &mut self,
        loader: &Loader,
        target: u64,
        drawn: &RgbImage,
    ) -> Result<Option<Verdict>, LoadError> {
        let row = usize::try_from(target).expect("positions are indices");
        let own = loader.rows()[row].identity;
        let candidates = self.candidates(own, target);
        if candidates.len() < 2 {
            return Ok(None);
        }
        let mut portraits = Vec::with_capacity(candidates.len());
        for &identity in &candidates {
            portraits.push(self.portrait(loader, identity, target).await?);
        }
        let drawn = histogram(drawn, &figure_mask(drawn));
        let found = nearest(&drawn, &portraits);
        Ok(found.map(|index| Verdict {
            nearest: index,
            identity: candidates[index],
            of: candidates.len(),
        }))
    }

    /// The own identity first, then others, chosen by the target so that every run judges alike.
    fn candidates(&self, own: u64, target: u64) -> Vec<u64> {
        if !self.positions.contains_key(&own) {
            return Vec::new();
        }
        let all: Vec<u64> = self.positions.keys().copied().collect();
        let order = SampleOrder::new(self.seed ^ target, all.len() as u64);
        let shuffled = (0..order.samples())
            .map(|place| all[usize::try_from(order.at(place).1).expect("an index")]);
        std::iter::once(own)
            .chain(shuffled.filter(|&identity| identity != own))
            .take(CANDIDATES)
            .collect()
    }

    /// The mean colours of an identity's pictures, without the target.
    async fn portrait(
        &mut self,
        loader: &Loader,
        identity: u64,
        target: u64,
    ) -> Result<Histogram, LoadError> {
        let members = self.positions.get(&identity).cloned().unwrap_or_default();
        let mut parts = Vec::new();
        for position in members
            .into_iter()
            .filter(|&position| position != target)
            .take(PORTRAIT_IMAGES)
        {
            if let Some(known) = self.histograms.get(&position) {
                parts.push(known.clone());
                continue;
            }
            let image = loader.decoded(position).await?;
            let colours = histogram(&image.image, &image.mask);
            self.histograms.insert(position, colours.clone());
            parts.push(colours);
        }
        Ok(mean(&parts))
    }
}
