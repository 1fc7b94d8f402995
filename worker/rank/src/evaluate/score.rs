//! The networks of a plan's metrics, from their folders, and the embedded references of a
//! character.

use super::character::Subject;
use crate::folder;
use crate::process::{Permanent, Rank};
use crate::scorers::{Network, Reference, References, Scored, Scorers};
use anyhow::Context;
use image::RgbImage;
use proto::evaluate::MetricSettings;
use proto::spec::Precision;

/// A character's references, embedded.
pub(super) struct Embedded {
    shown: Vec<Reference>,
    wholes: Vec<Reference>,
}

/// Loads what the plan names.
pub(super) fn open(rank: &Rank<'_>, settings: &MetricSettings) -> anyhow::Result<Scorers> {
    let mut scorers = Scorers::default();
    let kind = rank.job.resources.device;
    let device = crate::device::choose(kind, rank.task.device, Precision::Fp32)?;
    for network in Network::ALL {
        let url = match network {
            Network::Clip => &settings.clip,
            Network::Lpips => &settings.lpips,
            Network::Faces => &settings.faces,
        };
        let Some(url) = url else {
            continue;
        };
        let field = format!("evaluate.{} {url}", network.name());
        let fetched = folder::fetch(url, &rank.settings.cache_dir);
        let folder = rank.runtime.block_on(fetched);
        let folder = folder.with_context(|| field.clone())?;
        // A folder of another kind is the same for every rank.
        let loaded = scorers.load(network, &folder, device);
        loaded.map_err(|error| Permanent(format!("{field}: {error:#}")))?;
        let digest = scorers.digest(network);
        let network = network.name();
        tracing::info!(network, url, digest, "loaded a network that scores images");
    }
    Ok(scorers)
}

/// The scores of an image. The subject's references are embedded at its first image.
pub(super) fn score(
    scorers: &mut Scorers,
    image: &RgbImage,
    subject: &mut Subject,
    prompt: &str,
) -> anyhow::Result<Scored> {
    if subject.embedded.is_none() {
        let shown = subject.example.references.iter();
        let shown = shown.map(|it| scorers.reference(it.image.clone()));
        let wholes = subject.wholes.iter();
        let wholes = wholes.map(|it| scorers.reference(it.clone()));
        subject.embedded = Some(Embedded {
            shown: shown.collect::<anyhow::Result<_>>()?,
            wholes: wholes.collect::<anyhow::Result<_>>()?,
        });
    }
    let embedded = subject.embedded.as_ref().context("was just embedded")?;
    let references = References {
        shown: &embedded.shown.iter().collect::<Vec<_>>(),
        wholes: &embedded.wholes.iter().collect::<Vec<_>>(),
    };
    scorers.score(image, references, Some(prompt))
}
