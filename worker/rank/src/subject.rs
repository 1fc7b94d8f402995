//! The subject of generated images: a sample of the data set with the references that training
//! would choose, or references that the request names. Called by [`crate::unit_runner`].

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use image::{GrayImage, Rgb, RgbImage};
use model_data::decoded::Decoded;
use model_data::example::{Example, Reference};
use model_data::image_file::{Along, IMAGE_FILE_BYTES_MAX, on_pad, place};
use model_data::loader::Loader;
use model_data::prepare::named_reference;
use model_data::tags::pose_prompt;
use model_data::user_image::{NO_POSITION, UserImage};
use model_data::view::{noise, view_of};
use proto::architecture::ViewConfig;
use proto::sample::{Concept, ImageSource, MaskFile, NamedReference, SamplePrompt, SampleWork};
use proto::spec::{References, TrainWork};
use proto::text::hex_sha256;
use serde::{Deserialize, Serialize};
use storage::read::read_bounded;

/// White, like the background in pose prompts.
const BACKGROUND: Rgb<u8> = Rgb([255, 255, 255]);

/// References, and the prompts to generate images with.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) example: Example,
    pub(crate) prompts: Vec<String>,
    /// Position of the sample that the images should reproduce; None for named references.
    pub(crate) target: Option<u64>,
    /// Position of the sample whose references it has, if they are swapped.
    pub(crate) donor: Option<u64>,
    /// The origin of each reference.
    pub(crate) origins: Vec<Origin>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Origin {
    /// A sample of the data set.
    Sample(String),
    /// A file of the user.
    File(UserFile),
}

impl Origin {
    fn of_file(named: &NamedReference, changes: Vec<String>) -> anyhow::Result<Self> {
        let ImageSource::File {
            name,
            sha256,
            face_box,
            mask,
        } = &named.from
        else {
            bail!("a sample of the data set is no file");
        };
        Ok(Self::File(UserFile {
            name: name.clone(),
            sha256: sha256.clone(),
            face_box: *face_box,
            mask: mask.clone(),
            assumed: named.assumption(),
            changes,
        }))
    }
}

/// A file of the user, how it is annotated, and what is assumed because it is not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct UserFile {
    name: String,
    sha256: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    face_box: Option<[f64; 4]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mask: Option<MaskFile>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    assumed: Option<String>,
    /// What was changed or guessed to read it, as `kind=detail`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    changes: Vec<String>,
}

/// A sample, and the epoch that seeds its random choices.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chosen {
    pub(crate) epoch: u64,
    pub(crate) position: u64,
}

/// The subject of a sample, prepared as in training; with the references of `donor`, if any.
pub(crate) async fn from_sample(
    loader: &Loader,
    spec: &TrainWork,
    chosen: Chosen,
    donor: Option<Chosen>,
    request: &SampleWork,
) -> anyhow::Result<Subject> {
    let wanted = [Some(chosen), donor].into_iter().flatten();
    let wanted = wanted.map(|it| (it.epoch, it.position)).collect();
    let mut examples = loader.examples_at(wanted).await?.into_iter();
    let mut example = examples.next().context("the data set gave no example")?;
    if donor.is_some() {
        let donor = examples.next().context("the data set gave no example")?;
        example.references = donor.references;
    }
    if spec.model.architecture.references().is_none() {
        example.references.clear();
    }
    let row =
        |position: u64| &loader.rows()[usize::try_from(position).expect("positions are indices")];
    let references = example.references.iter();
    let origins = references
        .map(|reference| Origin::Sample(row(reference.position).id.clone()))
        .collect();
    // As the model was trained, whose prompts may have another order than those of the data set.
    let full = loader.prompt(chosen.epoch, chosen.position);
    let prompt = match request.prompt {
        SamplePrompt::Pose => pose_prompt(&full),
        SamplePrompt::Full => full,
        SamplePrompt::Empty => String::new(),
    };
    Ok(Subject {
        origins,
        prompts: if request.prompts.is_empty() {
            vec![prompt]
        } else {
            request.prompts.clone()
        },
        target: Some(chosen.position),
        donor: donor.map(|donor| donor.position),
        example,
    })
}

/// The subject with the references that the request names. The random choices of references depend
/// on the first seed, the noise of an image only on its own seed.
pub(crate) async fn from_request(
    loader: &Loader,
    store_url: &str,
    spec: &TrainWork,
    request: &SampleWork,
) -> anyhow::Result<Subject> {
    let data = &spec.data;
    let settings = spec.model.architecture.references();
    let settings = settings.context("this job's model takes no references")?;
    let view = spec.model.architecture.view();
    let seed = request.seeds.first().copied().unwrap_or(0);
    let (mut references, mut origins) = (Vec::new(), Vec::new());
    for (slot, named) in request.references.iter().enumerate() {
        let (reference, origin) = match &named.from {
            ImageSource::Sample { id } => {
                let position = loader.position_of(id).with_context(|| {
                    format!(
                        "{} has no sample {id:?}, which is a reference",
                        data.dataset
                    )
                })?;
                let rating = &loader.rows()[position as usize].rating;
                ensure!(
                    loader.uses(position),
                    "the reference {id:?} of {} is rated {}, and data.ratings of the trained job \
                     is {}",
                    data.dataset,
                    if rating.is_empty() { "unrated" } else { rating },
                    data.ratings
                );
                let decoded = loader.decoded(position).await?;
                let reference = named_reference(
                    settings,
                    view,
                    data.resolution,
                    named.concept,
                    &decoded,
                    seed,
                    slot as u64,
                );
                (reference, Origin::Sample(id.clone()))
            }
            ImageSource::File { name, .. } => {
                let (decoded, changes) = read_image(store_url, request, &named.from)
                    .await
                    .with_context(|| format!("reference {name}"))?;
                let seeds = (seed, slot as u64);
                let reference = of_file(settings, view, data.resolution, named, decoded, seeds);
                (reference, Origin::of_file(named, changes)?)
            }
        };
        references.push(reference);
        origins.push(origin);
    }
    Ok(Subject {
        example: Example {
            references,
            ..without_references(data.resolution)
        },
        prompts: match (request.prompts.as_slice(), request.prompt) {
            ([], _) => vec![String::new()],
            (prompts, _) => prompts.to_vec(),
        },
        target: None,
        donor: None,
        origins,
    })
}

/// An example of white images of this side, for a subject that is no sample.
pub(crate) fn without_references(side: u32) -> Example {
    Example {
        position: 0,
        target: RgbImage::from_pixel(side, side, BACKGROUND),
        target_mask: GrayImage::new(side, side),
        face_mask: GrayImage::new(side, side),
        references: Vec::new(),
        figure_mask: None,
        target_view: None,
        references_dropped: false,
        prompt: String::new(),
        timestep: 0,
        noise_seed: 0,
    }
}

/// A user's image: cut as a sample of the data set is if it is annotated, else whole. `seeds` are
/// the request's seed and the reference's index.
fn of_file(
    settings: &References,
    view: Option<ViewConfig>,
    side: u32,
    named: &NamedReference,
    decoded: Decoded,
    (seed, slot): (u64, u64),
) -> Reference {
    match &named.from {
        ImageSource::File {
            face_box: None,
            mask: None,
            ..
        } => padded(decoded.image, named, view, side),
        ImageSource::File { .. } | ImageSource::Sample { .. } => {
            named_reference(settings, view, side, named.concept, &decoded, seed, slot)
        }
    }
}

/// Reads a user's image, and its mask if it has one. Also what was changed to read them.
pub(crate) async fn read_image(
    store_url: &str,
    request: &SampleWork,
    source: &ImageSource,
) -> anyhow::Result<(Decoded, Vec<String>)> {
    let ImageSource::File {
        name,
        sha256,
        face_box,
        mask,
    } = source
    else {
        bail!("a sample of the data set is no file");
    };
    let bytes = read_file(store_url, request, sha256).await?;
    let mask_bytes = match mask {
        Some(mask) => Some(read_file(store_url, request, &mask.sha256).await?),
        None => None,
    };
    let mask = mask.as_ref().zip(mask_bytes.as_ref());
    let image = UserImage {
        name,
        bytes: &bytes,
        face_box: *face_box,
        mask: mask.map(|(mask, bytes)| (mask.name.as_str(), bytes.as_ref())),
    };
    let mut changes = Vec::new();
    let decoded = image.decode(&mut changes)?;
    Ok((decoded, changes.iter().map(ToString::to_string).collect()))
}

/// Reads a file that `coordinator sample` stored with the trained job.
async fn read_file(store_url: &str, request: &SampleWork, sha256: &str) -> anyhow::Result<Bytes> {
    let (store, prefix) = storage::open(store_url)?;
    let path = ["jobs", &request.job.0, "references", sha256]
        .into_iter()
        .fold(prefix, |path, part| path.join(part));
    let bytes = read_bounded(&*store, &path, IMAGE_FILE_BYTES_MAX).await;
    let bytes = bytes.with_context(|| format!("cannot read {path}"))?;
    let found = hex_sha256(&bytes);
    ensure!(found == sha256, "{path} is damaged: its SHA-256 is {found}");
    Ok(bytes)
}

/// The whole image, centred on a white square.
fn padded(
    image: RgbImage,
    named: &NamedReference,
    view: Option<ViewConfig>,
    side: u32,
) -> Reference {
    let region = place(image.width(), image.height(), side, 1.0, Along::MIDDLE);
    Reference {
        view: view.map(|view| view_of(view, &image, None, &mut noise(0))),
        image: on_pad(image, region, side, BACKGROUND),
        concept: named.concept.unwrap_or(Concept::Figure),
        position: NO_POSITION,
    }
}
