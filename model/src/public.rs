//! Loads public weights into our networks: a folder of `diffusers` or `transformers` with its
//! `config.json`, or one safetensors file in their naming or in that of CompVis (notes 3.2, 5.2,
//! 5.5). Loading is strict, as in [`crate::weights`], but ignores the rest of a Stable Diffusion
//! single file (other components, EMA weights, schedule buffers). Called for a job's base weights
//! and by `worker forward`.

use crate::architecture::kandinsky_decoder::unet::ImageUNet;
use crate::architecture::kandinsky_prior::transformer::Prior;
use crate::autoencoder::Autoencoder;
use crate::error::ModelError;
use crate::mapped::Mapped;
use crate::metric::bert::Bert;
use crate::movq::Movq;
use crate::parameter::{Parameters, Scope};
use crate::text::TextEncoder;
use crate::unet::UNet;
use crate::vision::ImageEncoder;
use crate::weights::{self, NamedTensors};
use base_weights::base::TEXT_BYTES_MAX;
use proto::architecture::PRIOR;
use proto::layout::{
    AutoencoderLayout, BertLayout, CLIP_VOCABULARY, Colours, ImageLayout, TextLayout, UNetLayout,
    hint_widths,
};
use proto::public::agree::agree;
use proto::public::base::{CONFIG_FILE, WEIGHT_FILES};
use proto::public::config::{self, ConfigError};
use proto::public::names::{
    RETRIEVAL_NOTE, SINGLE_FILE_AUTOENCODER, SINGLE_FILE_TEXT, SINGLE_FILE_UNET,
    diffusers_autoencoder, diffusers_unet,
};
use proto::spec::{Model, Retrieval};
use std::path::Path;
use storage::regular;
use tch::Device;

/// An opened folder or file.
#[derive(Debug)]
pub(crate) struct Source {
    tensors: Mapped,
    /// The text of `config.json` and its path.
    config: Option<(String, String)>,
}

impl Source {
    /// Opens a folder with its config, or a file without one.
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        if !path.is_dir() {
            return Ok(Self {
                tensors: Mapped::open(path)?,
                config: None,
            });
        }
        let found = WEIGHT_FILES.iter().find_map(|file| {
            let index = path.join(format!("{file}.index.json"));
            let file = path.join(file);
            let index = index.is_file().then(|| Mapped::open_index(&index));
            file.is_file().then(|| Mapped::open(&file)).or(index)
        });
        let Some(tensors) = found else {
            return Err(ModelError::NoWeights {
                path: path.to_owned(),
                expected: WEIGHT_FILES.join(" or "),
            });
        };
        Ok(Self {
            tensors: tensors?,
            config: config_in(path)?,
        })
    }

    /// Like [`Self::open`], but for a file also reads the config beside it, if any.
    pub(crate) fn open_with_sibling_config(path: &Path) -> Result<Self, ModelError> {
        let mut source = Self::open(path)?;
        if let (None, Some(folder)) = (&source.config, path.parent()) {
            source.config = config_in(folder)?;
        }
        Ok(source)
    }

    /// The retrieval settings that a RetriNet's own file was trained with, from its metadata; the
    /// defaults if it has none.
    ///
    /// # Errors
    /// The metadata cannot be parsed.
    pub(crate) fn retrieval(&self) -> Result<Retrieval, ModelError> {
        let metadata = self.tensors.metadata(RETRIEVAL_NOTE);
        metadata.map_or(Ok(Retrieval::default()), |text| {
            serde_json::from_str(text).map_err(|error| ModelError::ReadWeights {
                path: self.tensors.origin("").to_owned(),
                source: error.into(),
            })
        })
    }

    /// All files with their paths and contents.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        self.tensors.files()
    }

    /// The text of `config.json` and its path.
    ///
    /// # Errors
    /// There is none.
    fn required_config(&self, folder: &Path) -> Result<(&str, &str), ModelError> {
        match &self.config {
            Some((text, origin)) => Ok((text, origin)),
            None => Err(ModelError::NoWeights {
                path: folder.to_owned(),
                expected: format!("{CONFIG_FILE} beside them"),
            }),
        }
    }

    /// The layout from `config.json`, or that of Stable Diffusion 1.5 without one.
    fn layout<T>(
        &self,
        read: impl FnOnce(&str) -> Result<T, ConfigError>,
        sd15: impl FnOnce() -> T,
    ) -> Result<T, ModelError> {
        match &self.config {
            None => Ok(sd15()),
            Some((text, origin)) => read(text).map_err(|source| ModelError::PublicConfig {
                path: origin.into(),
                source,
            }),
        }
    }

    /// The layout of the U-Net.
    ///
    /// # Errors
    /// An unsupported config field.
    pub(crate) fn unet_layout(&self) -> Result<UNetLayout, ModelError> {
        self.layout(config::unet, || sd15().0)
    }

    /// The layout of a ControlNet's branch, and the widths of its hint's convolutions.
    ///
    /// # Errors
    /// An unsupported config field.
    pub(crate) fn controlnet_layout(&self) -> Result<(UNetLayout, Vec<i64>), ModelError> {
        self.layout(config::controlnet, || (sd15().0, hint_widths(8)))
    }

    /// True if any tensor name has this prefix.
    pub(crate) fn any_with_prefix(&self, prefix: &str) -> bool {
        self.tensors.any_with_prefix(prefix)
    }

    /// The names of all tensors.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.names()
    }

    /// The shape of a tensor, or None if it does not exist.
    pub(crate) fn shape(&self, name: &str) -> Option<Vec<i64>> {
        self.tensors.shape(name)
    }

    /// True for FastComposer's published file, whose components have the names of `diffusers` and
    /// `transformers` under prefixes of their own.
    fn is_fastcomposer(&self) -> bool {
        self.tensors.any_with_prefix("postfuse_module.") && self.tensors.any_with_prefix("unet.")
    }

    /// [`Self::load`] of a component whose names have a prefix.
    fn load_under(
        &self,
        prefix: &str,
        into: &NamedTensors,
        names: impl Fn(&str) -> Vec<String>,
    ) -> Result<NamedTensors, ModelError> {
        let prefixed = |name: &str| {
            let names = names(name).into_iter();
            names.map(|name| format!("{prefix}{name}")).collect()
        };
        self.load(into, prefixed, |name| name.starts_with(prefix))
    }

    /// Copies values into parameters. `names_in_file` maps a parameter's name to the names that a
    /// file may use. Tensors whose names are not `expected` belong to another component and are
    /// ignored. Returns the parameters by their names in the file.
    pub(crate) fn load(
        &self,
        into: &NamedTensors,
        names_in_file: impl Fn(&str) -> Vec<String>,
        expected: impl Fn(&str) -> bool,
    ) -> Result<NamedTensors, ModelError> {
        // 1. check all names and shapes before copying
        let mut used = std::collections::BTreeSet::new();
        let mut pairs = Vec::with_capacity(into.len());
        for (name, parameter) in into {
            let names = names_in_file(name);
            let preferred = names.first().unwrap_or(name).clone();
            let Some(found) = names.into_iter().find(|name| self.tensors.contains(name)) else {
                return Err(ModelError::MissingTensor {
                    origin: self.tensors.origin("").display().to_string(),
                    tensor: preferred,
                    expected: parameter.size(),
                });
            };
            let shape = self.tensors.shape(&found).unwrap_or_default();
            if !same_weight(&shape, &parameter.size()) {
                return Err(ModelError::TensorShape {
                    origin: self.tensors.origin(&found).display().to_string(),
                    tensor: found,
                    found: shape,
                    expected: parameter.size(),
                });
            }
            used.insert(found.clone());
            pairs.push((found, parameter));
        }
        let extra = self.tensors.names().find(|name| {
            expected(name) && !used.contains(*name) && !name.ends_with("position_ids")
        });
        if let Some(extra) = extra {
            return Err(ModelError::ExtraTensor {
                origin: self.tensors.origin(extra).display().to_string(),
                tensor: extra.to_owned(),
            });
        }
        // 2. copy the values
        let mut loaded = NamedTensors::new();
        for (found, parameter) in pairs {
            let tensor = self.tensors.read(&found)?;
            let origin = self.tensors.origin(&found).display().to_string();
            weights::refuse_nonfinite(&origin, &found, &tensor)?;
            let values = tensor.view(parameter.size().as_slice());
            tch::no_grad(|| parameter.shallow_clone().copy_(&values));
            loaded.insert(found, parameter.shallow_clone());
        }
        Ok(loaded)
    }
}

/// The text of a folder's config and its path, or None without a config.
fn config_in(folder: &Path) -> Result<Option<(String, String)>, ModelError> {
    text_in(folder, CONFIG_FILE)
}

/// The text of a folder's file and its path, or None without the file.
pub(crate) fn text_in(folder: &Path, name: &str) -> Result<Option<(String, String)>, ModelError> {
    let file = folder.join(name);
    if !file.is_file() {
        return Ok(None);
    }
    let text = regular::read(&file, TEXT_BYTES_MAX)
        .and_then(|bytes| String::from_utf8(bytes).map_err(std::io::Error::other));
    match text {
        Ok(text) => Ok(Some((text, file.display().to_string()))),
        Err(source) => Err(ModelError::ReadConfig { path: file, source }),
    }
}

/// True if the shapes are equal, where a 1x1 convolution's weight equals a linear layer's.
fn same_weight(found: &[i64], expected: &[i64]) -> bool {
    let squeezed = |shape: &[i64]| match shape {
        [outputs, inputs, 1, 1] => vec![*outputs, *inputs],
        other => other.to_vec(),
    };
    squeezed(found) == squeezed(expected)
}

fn sd15() -> (UNetLayout, AutoencoderLayout, TextLayout) {
    let (unet, autoencoder, text) = proto::size::named("sd15").expect("sd15 is a named size");
    ((&unet).into(), (&autoencoder).into(), (&text).into())
}

/// Parameters without random initialization, to be loaded from a file.
fn parameters(device: Device) -> Parameters {
    Parameters::seeded(0, device).skip_init(String::new())
}

/// Loads a component ("autoencoder", "text_encoder" or "unet") of a job into its parameters. The
/// config, if any, must agree with the job's tables.
///
/// # Errors
/// A config that does not agree with the job, or as [`unet`].
pub(crate) fn load(
    source: &Source,
    component: &str,
    model: &Model,
    into: &NamedTensors,
) -> Result<(), ModelError> {
    if let Some((text, origin)) = &source.config {
        agree(component, text, model).map_err(|source| ModelError::ArchitectureMismatch {
            path: origin.into(),
            source,
        })?;
    }
    let levels = model.architecture.autoencoder();
    let is_kandinsky = model.architecture.kandinsky().is_some();
    match component {
        // Their parameters have the names of diffusers.
        PRIOR => load_as_named(source, into),
        "autoencoder" | "unet" if is_kandinsky => load_as_named(source, into),
        "autoencoder" => {
            load_autoencoder(source, levels.map_or(1, |it| it.channel_mult.len()), into)
        }
        "text_encoder" => load_text(source, into),
        "image_encoder" => load_image(source, into),
        _ => match model.architecture.unet() {
            Some(unet) => load_unet(source, &unet.into(), into).map(drop),
            None => Ok(()),
        },
    }
}

/// Loads a component whose parameters have the file's names.
fn load_as_named(source: &Source, into: &NamedTensors) -> Result<(), ModelError> {
    let loaded = source.load(into, |name| vec![name.to_owned()], |_| true);
    loaded.map(drop)
}

/// Loads a U-Net of this layout, in any of the known namings.
///
/// # Errors
/// As [`unet`].
pub(crate) fn load_unet(
    source: &Source,
    layout: &UNetLayout,
    into: &NamedTensors,
) -> Result<NamedTensors, ModelError> {
    let tensors = &source.tensors;
    let theirs = |name: &str| diffusers_unet(name, layout).into_iter().collect();
    if source.is_fastcomposer() {
        source.load_under("unet.", into, theirs)
    } else if tensors.any_with_prefix(SINGLE_FILE_UNET) {
        let expected = |name: &str| name.starts_with(SINGLE_FILE_UNET);
        source.load(
            into,
            |name| vec![format!("{SINGLE_FILE_UNET}{name}")],
            expected,
        )
    } else if tensors.any_with_prefix("input_blocks.") {
        source.load(into, |name| vec![name.to_owned()], |_| true)
    } else {
        source.load(into, theirs, |_| true)
    }
}

/// A network with its weights.
#[derive(Debug)]
pub struct Loaded<T> {
    pub network: T,
    /// By their names in the file.
    pub parameters: NamedTensors,
}

/// Loads a U-Net.
///
/// # Errors
/// A file that cannot be read, an unsupported config field, or a tensor that is missing,
/// unexpected, of the wrong shape or not finite.
pub fn unet(path: &Path, device: Device) -> Result<Loaded<UNet>, ModelError> {
    let source = Source::open_with_sibling_config(path)?;
    let layout = source.unet_layout()?;
    let parameters = parameters(device);
    let network = UNet::new(&parameters.root(), &layout);
    let parameters = load_unet(&source, &layout, &parameters.tensors())?;
    Ok(Loaded {
        network,
        parameters,
    })
}

/// The layout of a U-Net's folder or file.
///
/// # Errors
/// A file that cannot be read, or an unsupported config field.
pub(crate) fn unet_layout(path: &Path) -> Result<UNetLayout, ModelError> {
    Source::open_with_sibling_config(path)?.unet_layout()
}

/// Loads Kandinsky's prior.
///
/// # Errors
/// As [`unet`]; also a file without `config.json` beside it.
pub fn prior(path: &Path, device: Device) -> Result<Loaded<Prior>, ModelError> {
    kandinsky(path, config::prior, Prior::new, device)
}

/// Loads the U-Net of Kandinsky's decoder.
///
/// # Errors
/// As [`prior`].
pub fn image_unet(path: &Path, device: Device) -> Result<Loaded<ImageUNet>, ModelError> {
    kandinsky(path, config::image_unet, ImageUNet::new, device)
}

/// Loads Kandinsky's autoencoder.
///
/// # Errors
/// As [`prior`].
pub fn movq(path: &Path, device: Device) -> Result<Loaded<Movq>, ModelError> {
    kandinsky(path, config::movq, Movq::new, device)
}

fn kandinsky<L, T>(
    path: &Path,
    read: impl FnOnce(&str) -> Result<L, ConfigError>,
    build: impl FnOnce(&Scope<'_>, &L) -> T,
    device: Device,
) -> Result<Loaded<T>, ModelError> {
    let source = Source::open_with_sibling_config(path)?;
    let Some((text, origin)) = &source.config else {
        return Err(ModelError::NoWeights {
            path: path.to_owned(),
            expected: CONFIG_FILE.to_owned(),
        });
    };
    let layout = read(text).map_err(|source| ModelError::PublicConfig {
        path: origin.into(),
        source,
    })?;
    let parameters = parameters(device);
    let network = build(&parameters.root(), &layout);
    let named = |name: &str| vec![name.to_owned()];
    let parameters = source.load(&parameters.tensors(), named, |_| true)?;
    Ok(Loaded {
        network,
        parameters,
    })
}

/// Loads an autoencoder.
///
/// # Errors
/// As [`unet`].
pub fn autoencoder(path: &Path, device: Device) -> Result<Autoencoder, ModelError> {
    let source = Source::open_with_sibling_config(path)?;
    let layout = source.layout(config::autoencoder, || sd15().1)?;
    let parameters = parameters(device);
    let autoencoder = Autoencoder::new(&parameters.root(), &layout);
    load_autoencoder(&source, layout.widths.len(), &parameters.tensors())?;
    Ok(autoencoder)
}

fn load_autoencoder(source: &Source, levels: usize, into: &NamedTensors) -> Result<(), ModelError> {
    let tensors = &source.tensors;
    let loaded = if source.is_fastcomposer() {
        source.load_under("vae.", into, |name| diffusers_autoencoder(name, levels))
    } else if tensors.any_with_prefix(SINGLE_FILE_AUTOENCODER) {
        let expected = |name: &str| name.starts_with(SINGLE_FILE_AUTOENCODER);
        source.load(
            into,
            |name| vec![format!("{SINGLE_FILE_AUTOENCODER}{name}")],
            expected,
        )
    } else if tensors.any_with_prefix("encoder.down.") {
        source.load(into, |name| vec![name.to_owned()], |_| true)
    } else {
        source.load(into, |name| diffusers_autoencoder(name, levels), |_| true)
    };
    loaded.map(drop)
}

/// Loads a text tower, with its projection if the file contains one.
///
/// # Errors
/// As [`unet`].
pub fn text(path: &Path, device: Device) -> Result<TextEncoder, ModelError> {
    let source = Source::open_with_sibling_config(path)?;
    let projected = source.tensors.contains("text_projection.weight");
    let layout = source.layout(|text| config::text(text, projected), || sd15().2)?;
    let parameters = parameters(device);
    let encoder = TextEncoder::new(&parameters.root(), &layout);
    load_text(&source, &parameters.tensors())?;
    Ok(encoder)
}

fn load_text(source: &Source, into: &NamedTensors) -> Result<(), ModelError> {
    let loaded = if source.is_fastcomposer() {
        let names = |name: &str| tower_names("", name, "text_model.");
        source.load_under("text_encoder.", into, names)
    } else if source.tensors.any_with_prefix(SINGLE_FILE_TEXT) {
        let expected = |name: &str| name.starts_with(SINGLE_FILE_TEXT);
        source.load(
            into,
            |name| tower_names(SINGLE_FILE_TEXT, name, "text_model."),
            expected,
        )
    } else {
        source.load(
            into,
            |name| tower_names("", name, "text_model."),
            |name| !of_other_tower(name, "vision"),
        )
    };
    loaded.map(drop)
}

/// Loads an image tower with its projection.
///
/// # Errors
/// As [`unet`]; also a file without `config.json`, because there is no default layout.
pub fn image(path: &Path, device: Device) -> Result<ImageEncoder, ModelError> {
    let source = Source::open_with_sibling_config(path)?;
    let Some((text, origin)) = &source.config else {
        let expected = "config.json beside it".to_owned();
        return Err(ModelError::NoWeights {
            path: path.to_owned(),
            expected,
        });
    };
    let layout = config::image(text).map_err(|source| ModelError::PublicConfig {
        path: origin.into(),
        source,
    })?;
    let parameters = parameters(device);
    let encoder = ImageEncoder::new(&parameters.root(), &layout);
    load_image(&source, &parameters.tensors())?;
    Ok(encoder)
}

fn load_image(source: &Source, into: &NamedTensors) -> Result<(), ModelError> {
    const PREFIX: &str = "image_encoder.";
    let names = |name: &str| tower_names("", name, "vision_model.");
    let loaded = if source.any_with_prefix(PREFIX) {
        source.load_under(PREFIX, into, names)
    } else {
        source.load(into, names, |name| !of_other_tower(name, "text"))
    };
    loaded.map(drop)
}

/// Both towers of a CLIP.
#[derive(Debug)]
pub(crate) struct Towers {
    pub(crate) text: TextEncoder,
    pub(crate) image: ImageEncoder,
    pub(crate) text_layout: TextLayout,
    pub(crate) image_layout: ImageLayout,
    pub(crate) colours: Colours,
}

/// Loads both towers of a CLIP's folder, each with its projection.
///
/// # Errors
/// As [`unet`]; also a folder without `config.json`, towers of different widths, another
/// vocabulary than CLIP's, or a preprocessing of images that is not CLIP's.
pub(crate) fn towers(folder: &Path, device: Device) -> Result<Towers, ModelError> {
    let source = Source::open(folder)?;
    let (config, origin) = source.required_config(folder)?;
    let fault = |source| ModelError::PublicConfig {
        path: origin.into(),
        source,
    };
    let text_layout = config::text(config, true).map_err(fault)?;
    let image_layout = config::image(config).map_err(fault)?;
    let field = |field: &str, value: i64, expected: String| {
        fault(ConfigError::Field {
            field: field.to_owned(),
            value: value.to_string(),
            expected,
        })
    };
    if text_layout.vocabulary != CLIP_VOCABULARY {
        let expected = format!("prompts become tokens of CLIP's vocabulary, {CLIP_VOCABULARY}");
        return Err(field(
            "text_config.vocab_size",
            text_layout.vocabulary,
            expected,
        ));
    }
    let projection = text_layout.projection.unwrap_or_default();
    if projection != image_layout.projection {
        let expected = format!("the text tower's is {projection}; both must be the same");
        return Err(field(
            "vision_config.projection_dim",
            image_layout.projection,
            expected,
        ));
    }
    let mut colours = Colours::CLIP;
    for file in ["preprocessor_config.json", "processor_config.json"] {
        if let Some((text, origin)) = text_in(folder, file)? {
            colours = config::preprocessor(&text, image_layout.side).map_err(|source| {
                let path = origin.into();
                ModelError::PublicConfig { path, source }
            })?;
            break;
        }
    }
    let (texts, images) = (parameters(device), parameters(device));
    let text = TextEncoder::new(&texts.root(), &text_layout);
    load_text(&source, &texts.tensors())?;
    let image = ImageEncoder::new(&images.root(), &image_layout);
    load_image(&source, &images.tensors())?;
    Ok(Towers {
        text,
        image,
        text_layout,
        image_layout,
        colours,
    })
}

/// Loads the network of a sentence encoder's folder.
///
/// # Errors
/// As [`unet`]; also a folder without `config.json`.
pub(crate) fn bert(folder: &Path, device: Device) -> Result<(Bert, BertLayout), ModelError> {
    let source = Source::open(folder)?;
    let (config, origin) = source.required_config(folder)?;
    let layout = config::bert(config).map_err(|source| ModelError::PublicConfig {
        path: origin.into(),
        source,
    })?;
    let parameters = parameters(device);
    let network = Bert::new(&parameters.root(), &layout);
    let names = |name: &str| vec![name.to_owned(), format!("bert.{name}")];
    // The pooler and the heads of other tasks are not used.
    let ours = |name: &str| {
        let name = name.strip_prefix("bert.").unwrap_or(name);
        name.starts_with("embeddings.") || name.starts_with("encoder.")
    };
    source.load(&parameters.tensors(), names, ours)?;
    Ok((network, layout))
}

/// The possible names of a tower's tensor; some writers omit the tower's own prefix.
fn tower_names(prefix: &str, name: &str, tower: &str) -> Vec<String> {
    let short = name
        .strip_prefix(tower)
        .map(|rest| format!("{prefix}{rest}"));
    std::iter::once(format!("{prefix}{name}"))
        .chain(short)
        .collect()
}

/// True if a tensor does not belong to the requested tower. A file of a whole CLIP model contains
/// both towers, a projection for each, and the logit scale.
fn of_other_tower(name: &str, other: &str) -> bool {
    let projection = if other == "text" {
        "text_projection."
    } else {
        "visual_projection."
    };
    name == "logit_scale"
        || name.starts_with(projection)
        || name.starts_with(&format!("{other}_model."))
}
