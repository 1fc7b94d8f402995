//! Whom pictures are drawn of: a sample of the data set with the references that training would
//! choose, or references that the request names. Called by [`crate::studio`].

use anyhow::{Context, ensure};
use image::{GrayImage, Rgb, RgbImage};
use model_data::example::{Example, Reference};
use model_data::image_file::{Along, flatten, on_pad, open_image, place};
use model_data::loader::Loader;
use model_data::prepare::named_reference;
use model_data::tags::pose_prompt;
use object_store::ObjectStoreExt;
use proto::sample::{Concept, ImageSource, NamedReference, SamplePrompt, SampleWork};
use proto::spec::TrainWork;
use proto::text::hex_sha256;
use serde::{Deserialize, Serialize};

/// White, like the ground that prompts of pose speak of.
const BACKGROUND: Rgb<u8> = Rgb([255, 255, 255]);

/// References, and the prompts to draw from them.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) example: Example,
    pub(crate) prompts: Vec<String>,
    /// Position of the sample that is to be drawn; None for named references.
    pub(crate) target: Option<u64>,
    /// Where each reference comes from.
    pub(crate) from: Vec<Origin>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Origin {
    /// A sample of the data set.
    Sample(String),
    /// A picture of the user's, by its name and SHA-256.
    File { name: String, sha256: String },
}

/// A sample, and the epoch whose random numbers it is shown with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chosen {
    pub(crate) epoch: u64,
    pub(crate) position: u64,
}

/// The sample as training would show it.
pub(crate) async fn of_data(
    loader: &Loader,
    spec: &TrainWork,
    chosen: Chosen,
    request: &SampleWork,
) -> anyhow::Result<Subject> {
    let example = loader
        .examples_at(vec![(chosen.epoch, chosen.position)])
        .await?
        .into_iter()
        .next();
    let mut example = example.context("the data set gave no example")?;
    if spec.model.architecture.references().is_none() {
        example.references.clear();
    }
    let row =
        |position: u64| &loader.rows()[usize::try_from(position).expect("positions are indices")];
    let from = example.references.iter();
    let from = from.map(|reference| Origin::Sample(row(reference.position).id.clone()));
    let full = &row(chosen.position).prompts;
    let own = match request.prompt {
        SamplePrompt::Full => full.clone(),
        SamplePrompt::Pose => pose_prompt(full),
        SamplePrompt::Empty => String::new(),
    };
    Ok(Subject {
        from: from.collect(),
        prompts: if request.prompts.is_empty() {
            vec![own]
        } else {
            request.prompts.clone()
        },
        target: Some(chosen.position),
        example,
    })
}

/// The references that the request names. Their random numbers come from its first seed, and the
/// noise of a picture from its own seed alone.
pub(crate) async fn named(
    loader: &Loader,
    store_url: &str,
    spec: &TrainWork,
    request: &SampleWork,
) -> anyhow::Result<Subject> {
    let data = &spec.data;
    let how = spec.model.architecture.references();
    let how = how.context("this job's model takes no references")?;
    let seed = request.seeds.first().copied().unwrap_or(0);
    let (mut references, mut from) = (Vec::new(), Vec::new());
    for (slot, named) in request.references.iter().enumerate() {
        let (reference, source) = match &named.from {
            ImageSource::Sample { id } => {
                let position = loader.rows().iter().position(|row| row.id == *id);
                let position = position.with_context(|| {
                    format!("{} has no sample {id:?} to refer to", data.dataset)
                })?;
                let decoded = loader.decoded(position as u64).await?;
                let reference = named_reference(
                    how,
                    data.resolution,
                    named.concept,
                    &decoded,
                    seed,
                    slot as u64,
                );
                (reference, Origin::Sample(id.clone()))
            }
            ImageSource::File { name, sha256 } => {
                let image = fetch(store_url, request, sha256)
                    .await
                    .with_context(|| format!("reference {name}"))?;
                let source = Origin::File {
                    name: name.clone(),
                    sha256: sha256.clone(),
                };
                (whole(image, named, data.resolution), source)
            }
        };
        references.push(reference);
        from.push(source);
    }
    let side = data.resolution;
    Ok(Subject {
        example: Example {
            position: 0,
            target: RgbImage::from_pixel(side, side, BACKGROUND),
            target_mask: GrayImage::new(side, side),
            face_mask: GrayImage::new(side, side),
            references,
            prompt: String::new(),
            timestep: 0,
            noise_seed: 0,
        },
        prompts: match (request.prompts.as_slice(), request.prompt) {
            ([], _) => vec![String::new()],
            (prompts, _) => prompts.to_vec(),
        },
        target: None,
        from,
    })
}

/// A picture that `coordinator sample` put beside the trained job.
async fn fetch(store_url: &str, request: &SampleWork, sha256: &str) -> anyhow::Result<RgbImage> {
    let (store, prefix) = storage::open(store_url)?;
    let path = ["jobs", &request.job.0, "references", sha256]
        .into_iter()
        .fold(prefix, |path, part| path.join(part));
    let bytes = async { store.get(&path).await?.bytes().await };
    let bytes = bytes.await.with_context(|| format!("cannot read {path}"))?;
    let found = hex_sha256(&bytes);
    ensure!(found == sha256, "{path} is damaged: its SHA-256 is {found}");
    Ok(flatten(open_image("reference", &bytes)?, BACKGROUND))
}

/// A picture as it is, in the middle of a white square.
fn whole(image: RgbImage, named: &NamedReference, side: u32) -> Reference {
    let at = place(image.width(), image.height(), side, 1.0, Along::MIDDLE);
    Reference {
        image: on_pad(image, at, side, BACKGROUND),
        concept: named.concept.unwrap_or(Concept::Figure),
        // Of no sample.
        position: u64::MAX,
    }
}
