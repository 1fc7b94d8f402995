//! Public weights into our networks: a folder of `diffusers` or `transformers` with its
//! `config.json`, or one safetensors file in their naming or CompVis' (notes 3.2, 5.2, 5.5). Strict
//! both ways, as [`crate::weights`] is; what a Stable Diffusion single file holds beside the
//! component (other components, averages, schedule buffers) is not looked at. Called for a job's
//! base weights and by `worker forward`.

use crate::autoencoder::Autoencoder;
use crate::error::ModelError;
use crate::mapped::Mapped;
use crate::parameter::Parameters;
use crate::text::TextEncoder;
use crate::unet::UNet;
use crate::vision::ImageEncoder;
use crate::weights::{self, NamedTensors};
use proto::layout::{AutoencoderLayout, TextLayout, UNetLayout};
use proto::public::agree::agree;
use proto::public::base::{CONFIG_FILE, WEIGHT_FILES};
use proto::public::config::{self, ConfigError};
use proto::public::names::{
    RETRIEVAL_NOTE, SINGLE_FILE_AUTOENCODER, SINGLE_FILE_TEXT, SINGLE_FILE_UNET,
    diffusers_autoencoder, diffusers_unet,
};
use proto::spec::{Model, Retrieval};
use std::path::Path;
use tch::Device;

/// An opened folder or file.
#[derive(Debug)]
pub(crate) struct Source {
    tensors: Mapped,
    /// Text of `config.json`, and where it lies.
    config: Option<(String, String)>,
}

impl Source {
    /// A folder with its config, or a file without one.
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

    /// As [`Self::open`], and a file obeys the config that lies beside it.
    pub(crate) fn open_with_neighbour(path: &Path) -> Result<Self, ModelError> {
        let mut source = Self::open(path)?;
        if let (None, Some(folder)) = (&source.config, path.parent()) {
            source.config = config_in(folder)?;
        }
        Ok(source)
    }

    /// The choices that a RetriNet's own file was trained with; files that do not say it have the
    /// defaults.
    ///
    /// # Errors
    /// What it says cannot be read.
    pub(crate) fn retrieval(&self) -> Result<Retrieval, ModelError> {
        let said = self.tensors.note(RETRIEVAL_NOTE);
        said.map_or(Ok(Retrieval::default()), |text| {
            serde_json::from_str(text).map_err(|error| ModelError::ReadWeights {
                path: self.tensors.origin("").to_owned(),
                source: error.into(),
            })
        })
    }

    /// The files with their bytes.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        self.tensors.files()
    }

    /// The layout that `config.json` says; without one it is Stable Diffusion 1.5's.
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

    /// The U-Net's.
    ///
    /// # Errors
    /// A config field that cannot be obeyed.
    pub(crate) fn unet_layout(&self) -> Result<UNetLayout, ModelError> {
        self.layout(config::unet, || sd15().0)
    }

    /// Copies into parameters, whose names `theirs` turns into those that a file may use. Names
    /// that `expected` does not hold of are another component's. Gives the parameters by their
    /// names in the file.
    pub(crate) fn load(
        &self,
        into: &NamedTensors,
        theirs: impl Fn(&str) -> Vec<String>,
        expected: impl Fn(&str) -> bool,
    ) -> Result<NamedTensors, ModelError> {
        // 1. all names and shapes, before anything is copied
        let mut used = std::collections::BTreeSet::new();
        let mut pairs = Vec::with_capacity(into.len());
        for (name, parameter) in into {
            let names = theirs(name);
            let shown = names.first().unwrap_or(name).clone();
            let Some(found) = names.into_iter().find(|name| self.tensors.contains(name)) else {
                return Err(ModelError::MissingTensor {
                    origin: self.tensors.origin("").display().to_string(),
                    tensor: shown,
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
        // 2. the values
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

/// The text of a folder's config and where it lies; None where it has none.
fn config_in(folder: &Path) -> Result<Option<(String, String)>, ModelError> {
    let file = folder.join(CONFIG_FILE);
    if !file.is_file() {
        return Ok(None);
    }
    match std::fs::read_to_string(&file) {
        Ok(text) => Ok(Some((text, file.display().to_string()))),
        Err(source) => Err(ModelError::ReadConfig { path: file, source }),
    }
}

/// A 1x1 convolution and a linear layer hold the same weight.
fn same_weight(found: &[i64], expected: &[i64]) -> bool {
    let bare = |shape: &[i64]| match shape {
        [outputs, inputs, 1, 1] => vec![*outputs, *inputs],
        other => other.to_vec(),
    };
    bare(found) == bare(expected)
}

fn sd15() -> (UNetLayout, AutoencoderLayout, TextLayout) {
    let (unet, autoencoder, text) = proto::size::named("sd15").expect("it is a named size");
    ((&unet).into(), (&autoencoder).into(), (&text).into())
}

/// Parameters whose values a file will give.
fn parameters(device: Device) -> Parameters {
    Parameters::seeded(0, device).awaiting(String::new())
}

/// Loads a component ("autoencoder", "text_encoder" or "unet") of a job into its parameters. A
/// config must say what the job's tables say.
///
/// # Errors
/// A config that differs, or as [`unet`].
pub(crate) fn load(
    source: &Source,
    component: &str,
    model: &Model,
    into: &NamedTensors,
) -> Result<(), ModelError> {
    if let Some((text, origin)) = &source.config {
        agree(component, text, model).map_err(|source| ModelError::OtherArchitecture {
            path: origin.into(),
            source,
        })?;
    }
    match component {
        "autoencoder" => load_autoencoder(
            source,
            model.architecture.autoencoder().channel_mult.len(),
            into,
        ),
        "text_encoder" => load_text(source, into),
        _ => match model.architecture.unet() {
            Some(unet) => load_unet(source, &unet.into(), into).map(drop),
            None => Ok(()),
        },
    }
}

/// Loads a U-Net of this layout, in whichever naming the file has.
///
/// # Errors
/// As [`unet`].
pub(crate) fn load_unet(
    source: &Source,
    layout: &UNetLayout,
    into: &NamedTensors,
) -> Result<NamedTensors, ModelError> {
    let tensors = &source.tensors;
    if tensors.any_under(SINGLE_FILE_UNET) {
        let expected = |name: &str| name.starts_with(SINGLE_FILE_UNET);
        source.load(
            into,
            |name| vec![format!("{SINGLE_FILE_UNET}{name}")],
            expected,
        )
    } else if tensors.any_under("input_blocks.") {
        source.load(into, |name| vec![name.to_owned()], |_| true)
    } else {
        source.load(
            into,
            |name| diffusers_unet(name, layout).into_iter().collect(),
            |_| true,
        )
    }
}

/// A network with its weights, and these by their names in the file.
#[derive(Debug)]
pub struct Loaded<T> {
    pub network: T,
    pub parameters: NamedTensors,
}

/// A U-Net with its weights.
///
/// # Errors
/// A file that cannot be read, a config field that cannot be obeyed, a tensor that is missing,
/// misshapen, not finite or does not belong there.
pub fn unet(path: &Path, device: Device) -> Result<Loaded<UNet>, ModelError> {
    let source = Source::open_with_neighbour(path)?;
    let layout = source.unet_layout()?;
    let parameters = parameters(device);
    let network = UNet::new(&parameters.root(), &layout);
    let parameters = load_unet(&source, &layout, &parameters.tensors())?;
    Ok(Loaded {
        network,
        parameters,
    })
}

/// An autoencoder with its weights.
///
/// # Errors
/// As [`unet`].
pub fn autoencoder(path: &Path, device: Device) -> Result<Autoencoder, ModelError> {
    let source = Source::open_with_neighbour(path)?;
    let layout = source.layout(config::autoencoder, || sd15().1)?;
    let parameters = parameters(device);
    let autoencoder = Autoencoder::new(&parameters.root(), &layout);
    load_autoencoder(&source, layout.widths.len(), &parameters.tensors())?;
    Ok(autoencoder)
}

fn load_autoencoder(source: &Source, levels: usize, into: &NamedTensors) -> Result<(), ModelError> {
    let tensors = &source.tensors;
    let loaded = if tensors.any_under(SINGLE_FILE_AUTOENCODER) {
        let expected = |name: &str| name.starts_with(SINGLE_FILE_AUTOENCODER);
        source.load(
            into,
            |name| vec![format!("{SINGLE_FILE_AUTOENCODER}{name}")],
            expected,
        )
    } else if tensors.any_under("encoder.down.") {
        source.load(into, |name| vec![name.to_owned()], |_| true)
    } else {
        source.load(into, |name| diffusers_autoencoder(name, levels), |_| true)
    };
    loaded.map(drop)
}

/// A text tower with its weights, and with its projection where the file holds one.
///
/// # Errors
/// As [`unet`].
pub fn text(path: &Path, device: Device) -> Result<TextEncoder, ModelError> {
    let source = Source::open_with_neighbour(path)?;
    let projected = source.tensors.contains("text_projection.weight");
    let layout = source.layout(|text| config::text(text, projected), || sd15().2)?;
    let parameters = parameters(device);
    let encoder = TextEncoder::new(&parameters.root(), &layout);
    load_text(&source, &parameters.tensors())?;
    Ok(encoder)
}

fn load_text(source: &Source, into: &NamedTensors) -> Result<(), ModelError> {
    let loaded = if source.tensors.any_under(SINGLE_FILE_TEXT) {
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

/// An image tower with its projection and its weights.
///
/// # Errors
/// As [`unet`]; a file without `config.json`, because none is known by heart.
pub fn image(path: &Path, device: Device) -> Result<ImageEncoder, ModelError> {
    let source = Source::open_with_neighbour(path)?;
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
    source.load(
        &parameters.tensors(),
        |name| tower_names("", name, "vision_model."),
        |name| !of_other_tower(name, "text"),
    )?;
    Ok(encoder)
}

/// Some writers leave the tower's own prefix away.
fn tower_names(prefix: &str, name: &str, tower: &str) -> Vec<String> {
    let short = name
        .strip_prefix(tower)
        .map(|rest| format!("{prefix}{rest}"));
    std::iter::once(format!("{prefix}{name}"))
        .chain(short)
        .collect()
}

/// A file of a whole CLIP model holds both towers, a projection for each, and the scale of its
/// score.
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
