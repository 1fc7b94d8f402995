//! `worker score`: the scores of image files, or the embeddings of texts, to compare with another
//! implementation and to score images that were made elsewhere. [`crate::scorers`] computes them;
//! this module has the command.

use crate::collective::precision::full_fp32;
use crate::device;
use crate::scorers::{Network, Reference, References, Scorers};
use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use image::RgbImage;
use metric::{Measure, Scores, clip_score, mean};
use model::metric::{Clip, SentenceEncoder};
use model_data::decode::{Expect, MaskSource, Origin, decode};
use model_data::image_file::IMAGE_FILE_BYTES_MAX;
use proto::spec::{DeviceKind, Precision};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use storage::regular;
use tch::Device;

/// Longest list of images, or of texts, that is read.
const LIST_BYTES_MAX: u64 = 256 << 20;
/// Longest prompt of a file beside an image.
const PROMPT_BYTES_MAX: u64 = 1 << 20;
const IMAGES: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// Score images: with CLIP, as cosines, CLIP-I against references and CLIP-T against prompts; LPIPS
/// and whose face it is, against references. Prints JSON.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// A CLIP's folder with config.json and model.safetensors, as transformers and `coordinator
    /// checkpoint export` write it
    #[arg(long, value_name = "DIR", required_unless_present_any = ["lpips", "faces", "sentences"])]
    clip: Option<PathBuf>,
    /// LPIPS' folder with alexnet.safetensors and lpips.safetensors
    #[arg(long, value_name = "DIR")]
    lpips: Option<PathBuf>,
    /// A folder with facenet-pytorch's weights: pnet.safetensors, rnet.safetensors,
    /// onet.safetensors and inception_resnet_v1.safetensors
    #[arg(long, value_name = "DIR")]
    faces: Option<PathBuf>,
    /// Folder of images; the prompt of NAME.png is the text of NAME.txt
    #[arg(long, value_name = "DIR", conflicts_with = "list")]
    images: Option<PathBuf>,
    /// Folder of images that are the references of each image, as the model was shown them and as
    /// whole images
    #[arg(long, value_name = "DIR", requires = "images")]
    references: Option<PathBuf>,
    /// Instead of --images: a JSON list of {"image": FILE, "prompt": TEXT, "references": [FILE],
    /// "whole": [FILE]}; all but the image are optional; files are relative to the list
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
    /// Instead of all these: a sentence encoder's folder, to embed --texts
    #[arg(
        long,
        value_name = "DIR",
        requires = "texts",
        conflicts_with_all = ["clip", "lpips", "faces"]
    )]
    sentences: Option<PathBuf>,
    /// A JSON list of texts
    #[arg(long, value_name = "FILE", requires = "sentences")]
    texts: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "cpu")]
    device: DeviceChoice,
    /// Number of libtorch threads [default: all cores]
    #[arg(long, value_name = "COUNT")]
    threads: Option<u16>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DeviceChoice {
    Cpu,
    Cuda,
}

/// An image to score.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    image: PathBuf,
    prompt: Option<String>,
    /// As the model was shown them, for CLIP-I.
    #[serde(default)]
    references: Vec<PathBuf>,
    /// The whole images of the references, for all scores against references.
    #[serde(default)]
    whole: Vec<PathBuf>,
}

/// The result for an image.
#[derive(Debug, Serialize)]
struct Row {
    image: PathBuf,
    #[serde(flatten)]
    scores: Scores,
    #[serde(skip_serializing_if = "Option::is_none")]
    clip_t_sliced: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_tokens: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_cut: Option<bool>,
    /// Left, top, right, bottom of each face in pixels, the largest first. None: nothing looks for
    /// them.
    #[serde(skip_serializing_if = "Option::is_none")]
    faces: Option<Vec<[f32; 4]>>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let kind = match options.device {
        DeviceChoice::Cpu => DeviceKind::Cpu,
        DeviceChoice::Cuda => DeviceKind::Cuda,
    };
    let device = device::choose(kind, 0, Precision::Fp32)?;
    if let Some(threads) = options.threads {
        tch::set_num_threads(threads.max(1).into());
    }
    full_fp32();
    let result = match (&options.sentences, &options.texts) {
        (Some(folder), Some(texts)) => embed(folder, texts, device)?,
        _ => score(options, &items(options)?, device)?,
    };
    shell::print::out_lines(&format!("{result:#}"));
    Ok(())
}

fn read_text(path: &Path, max: u64) -> anyhow::Result<String> {
    let bytes = regular::read(path, max).with_context(|| format!("{}", path.display()))?;
    String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8", path.display()))
}

/// What the options name, with paths that can be opened from here.
fn items(options: &Options) -> anyhow::Result<Vec<Item>> {
    let found = match (&options.list, &options.images) {
        (Some(list), _) => listed(list)?,
        (None, Some(folder)) => {
            let references = options.references.as_deref();
            let references = references.map(images_in).transpose()?.unwrap_or_default();
            let images = images_in(folder)?;
            let items = images.into_iter().map(|image| {
                let beside = image.with_extension("txt");
                let prompt = beside
                    .is_file()
                    .then(|| read_text(&beside, PROMPT_BYTES_MAX));
                Ok(Item {
                    image,
                    prompt: prompt.transpose()?.map(|it| it.trim_end().to_owned()),
                    references: references.clone(),
                    whole: references.clone(),
                })
            });
            items.collect::<anyhow::Result<_>>()?
        }
        (None, None) => bail!("name the images with --images or --list"),
    };
    ensure!(!found.is_empty(), "there are no images to score");
    Ok(found)
}

fn listed(list: &Path) -> anyhow::Result<Vec<Item>> {
    let text = read_text(list, LIST_BYTES_MAX)?;
    let mut items: Vec<Item> = serde_json::from_str(&text)
        .with_context(|| format!("{} is not a list of {{\"image\": FILE, …}}", list.display()))?;
    let folder = list.parent().unwrap_or(Path::new(""));
    for item in &mut items {
        let paths = item.references.iter_mut().chain(&mut item.whole);
        for path in paths.chain([&mut item.image]) {
            *path = folder.join(&path);
        }
    }
    Ok(items)
}

/// The images of a folder, sorted by name.
fn images_in(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("{}", folder.display()))?;
    let paths: Result<Vec<PathBuf>, _> = entries.map(|it| Ok(it?.path())).collect();
    let mut paths = paths.map_err(|error: std::io::Error| error)?;
    paths.retain(|path| {
        let extension = path.extension().and_then(|it| it.to_str());
        extension.is_some_and(|it| IMAGES.contains(&it.to_lowercase().as_str()))
    });
    paths.sort();
    Ok(paths)
}

fn open_image(path: &Path) -> anyhow::Result<RgbImage> {
    let bytes = regular::read(path, IMAGE_FILE_BYTES_MAX);
    let bytes = bytes.with_context(|| format!("{}", path.display()))?;
    let expect = Expect {
        what: "image",
        origin: Origin::File,
        size: None,
        face: None,
        check: true,
    };
    let pixels = decode(&bytes, MaskSource::Whole, &expect, &mut Vec::new());
    Ok(pixels.with_context(|| format!("{}", path.display()))?.image)
}

fn score(options: &Options, items: &[Item], device: Device) -> anyhow::Result<serde_json::Value> {
    let mut scorers = Scorers::default();
    for network in Network::ALL {
        let folder = match network {
            Network::Clip => &options.clip,
            Network::Lpips => &options.lpips,
            Network::Faces => &options.faces,
        };
        if let Some(folder) = folder {
            let loaded = scorers.load(network, folder, device);
            loaded.with_context(|| format!("--{}", network.name()))?;
        }
    }
    // The same reference usually belongs to many images.
    let mut known: BTreeMap<&Path, Reference> = BTreeMap::new();
    let mut rows = Vec::with_capacity(items.len());
    for item in items {
        for path in item.references.iter().chain(&item.whole) {
            if !known.contains_key(path.as_path()) {
                known.insert(path, scorers.reference(open_image(path)?)?);
            }
        }
        rows.push(score_image(&mut scorers, item, &known)?);
    }
    let mut means = BTreeMap::new();
    let mut percent = BTreeMap::new();
    for measure in Measure::ALL {
        let values = rows.iter().filter_map(|it| it.scores.get(&measure));
        let values: Vec<f64> = values.copied().collect();
        if !values.is_empty() {
            means.insert(measure.name(), mean(&values)?);
            if measure.name().starts_with("clip") {
                percent.insert(measure.name(), clip_score(&values)?);
            }
        }
    }
    let cut = rows.iter().filter(|it| it.prompt_cut == Some(true));
    Ok(json!({
        "images_scored": rows.len(),
        "prompts_cut": cut.count(),
        "side": scorers.clip().map(Clip::side),
        "tokens": scorers.clip().map(Clip::tokens),
        "mean": means,
        // As torchmetrics prints it.
        "clip_score": percent,
        "images": rows,
    }))
}

fn score_image(
    scorers: &mut Scorers,
    item: &Item,
    known: &BTreeMap<&Path, Reference>,
) -> anyhow::Result<Row> {
    let image = open_image(&item.image)?;
    let all = |paths: &[PathBuf]| -> Vec<&Reference> {
        paths.iter().map(|path| &known[path.as_path()]).collect()
    };
    let shown = all(&item.references);
    let wholes = all(&item.whole);
    let references = References {
        shown: &shown,
        wholes: &wholes,
    };
    let scored = scorers.score(&image, references, item.prompt.as_deref())?;
    Ok(Row {
        image: item.image.clone(),
        scores: scored.scores,
        clip_t_sliced: scored.clip_t_sliced,
        prompt_tokens: scored.prompt_tokens,
        prompt_cut: scored.prompt_cut,
        faces: scorers.faces(&image)?,
    })
}

fn embed(folder: &Path, texts: &Path, device: Device) -> anyhow::Result<serde_json::Value> {
    let list: Vec<String> = serde_json::from_str(&read_text(texts, LIST_BYTES_MAX)?)
        .with_context(|| format!("{} is not a JSON list of texts", texts.display()))?;
    let encoder = SentenceEncoder::open(folder, device)?;
    let embedded = encoder
        .embed(&list)?
        .into_iter()
        .map(|it| json!({"tokens": it.tokens, "cut": it.cut, "embedding": it.embedding}));
    Ok(json!({"texts": embedded.collect::<Vec<_>>()}))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn files_are_relative_to_their_list_and_unknown_fields_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("list.json");
        let text = r#"[{"image": "a.png", "references": ["r/b.png"]},
            {"image": "/c.png", "prompt": "solo"}]"#;
        std::fs::write(&list, text).unwrap();
        let items = listed(&list).unwrap();
        assert_eq!(items[0].image, folder.path().join("a.png"));
        assert_eq!(items[0].references, [folder.path().join("r/b.png")]);
        assert_eq!(items[1].image, Path::new("/c.png"));
        assert_eq!(items[1].prompt.as_deref(), Some("solo"));
        std::fs::write(&list, r#"[{"image": "a.png", "reference": "b.png"}]"#).unwrap();
        let error = format!("{:#}", listed(&list).unwrap_err());
        assert!(error.contains("unknown field `reference`"), "{error}");
    }

    #[test]
    fn the_images_of_a_folder_are_in_order_and_other_files_are_ignored() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.PNG", "a.jpg", "a.txt", "grid.json"] {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }
        let found = images_in(folder.path()).unwrap();
        let names: Vec<_> = found.iter().map(|it| it.file_name().unwrap()).collect();
        assert_eq!(names, ["a.jpg", "b.PNG"]);
        let error = format!("{:#}", open_image(&found[0]).unwrap_err());
        assert!(
            error.contains("a.jpg") && error.contains("cannot be decoded"),
            "{error}"
        );
    }
}
