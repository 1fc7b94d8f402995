//! ONNX models on ONNX Runtime. Its library is loaded when a model is: it is not linked, so that
//! stages without models need none. `deploy/setup/onnx.py` installs it, the models and the detector
//! that are the defaults.

mod pixels;

pub(crate) use pixels::{bilinear, cubic, lanczos, lanczos_gray, planes};

use crate::error::{BuildError, Result};
use crate::sources::{join, unchanged};
use ort::logging::LogLevel;
use ort::session::Session;
use ort::value::{Tensor, TensorElementType, ValueType};
use proto::build::image_stages::Model as ModelSource;
use proto::build::settings::NamedFile;
use proto::text::hex_sha256;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use storage::read::read_bounded;

/// Largest model; larger ones have their weights in further files, which are not read.
const MODEL_BYTES_MAX: u64 = 2 << 30;
const LIBRARY: &str = "libonnxruntime.so";
/// Names another library than that which setup installs. The variable is ONNX Runtime's bindings'.
const LIBRARY_VARIABLE: &str = "ORT_DYLIB_PATH";

/// A file that setup installs: in `../onnx` of the program's folder, or in the cache of setup.
///
/// # Errors
/// It is in neither.
pub fn installed(name: &str) -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let program = std::env::current_exe().ok();
    let beside = program.and_then(|it| Some(it.parent()?.parent()?.join("onnx")));
    let cache = match set("RETRI_CACHE") {
        Some(cache) => Some(PathBuf::from(cache)),
        None => set("HOME").map(|home| PathBuf::from(home).join(".cache/retri")),
    };
    let folders = [beside, cache.map(|cache| cache.join("onnx"))];
    let places = folders.into_iter().flatten().map(|it| it.join(name));
    let places: Vec<PathBuf> = places.collect();
    if let Some(found) = places.iter().find(|it| it.exists()) {
        return Ok(found.clone());
    }
    let places = places.iter().map(|it| it.display().to_string());
    Err(BuildError::Input(format!(
        "there is no {}: run `python3 deploy/setup/onnx.py` on this worker, which installs it",
        places.collect::<Vec<_>>().join(", and no ")
    )))
}

/// Loads the library once for this process.
fn load_library() -> Result<()> {
    static LOADED: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let loaded = LOADED.get_or_init(|| {
        let named = std::env::var_os(LIBRARY_VARIABLE).filter(|value| !value.is_empty());
        let path = match named {
            Some(named) => PathBuf::from(named),
            None => installed(LIBRARY).map_err(|error| error.to_string())?,
        };
        let failed = |error: ort::Error| {
            format!(
                "{} cannot be loaded as ONNX Runtime 1.18 or later: {error}",
                path.display()
            )
        };
        let _ = ort::init_from(&path).map_err(failed)?.commit();
        Ok(())
    });
    loaded.clone().map_err(BuildError::Input)
}

/// An input or output as a model declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    pub name: String,
    /// None: no tensor of 32-bit floats. A dimension that is None is free.
    pub shape: Option<Vec<Option<usize>>>,
    text: String,
}

impl Port {
    fn of(outlet: &ort::value::Outlet) -> Self {
        let name = outlet.name().to_owned();
        let ValueType::Tensor { ty, shape, .. } = outlet.dtype() else {
            let text = format!("{name:?}, which is no tensor");
            return Self {
                name,
                shape: None,
                text,
            };
        };
        let dimensions = shape.iter().map(|it| usize::try_from(*it).ok());
        let dimensions: Vec<Option<usize>> = dimensions.collect();
        let shown = dimensions.iter().map(|it| match it {
            Some(size) => size.to_string(),
            None => "?".to_owned(),
        });
        let shown = shown.collect::<Vec<_>>().join(", ");
        Self {
            text: format!("{name:?} of {ty} [{shown}]"),
            shape: (*ty == TensorElementType::Float32).then_some(dimensions),
            name,
        }
    }
}

/// A model's input for images, whose sizes are None where it takes any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageInput {
    /// `[N, H, W, 3]`; otherwise `[N, 3, H, W]`.
    pub channels_last: bool,
    pub batch: Option<usize>,
    pub height: Option<usize>,
    pub width: Option<usize>,
}

impl ImageInput {
    /// The shape of a batch of images.
    #[must_use]
    pub fn shape(&self, batch: usize, width: usize, height: usize) -> [usize; 4] {
        if self.channels_last {
            [batch, height, width, 3]
        } else {
            [batch, 3, height, width]
        }
    }
}

/// A tensor that a model gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    pub name: String,
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// A model that was loaded.
#[derive(Debug)]
pub struct Model {
    /// Its file, for messages.
    pub name: String,
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
    session: Session,
}

fn listed(ports: &[Port]) -> String {
    let texts = ports.iter().map(|port| port.text.as_str());
    texts.collect::<Vec<_>>().join(", ")
}

impl Model {
    /// Reads and loads a model.
    ///
    /// # Errors
    /// It, or ONNX Runtime, is missing or damaged.
    pub async fn open(source: &ModelSource) -> Result<Self> {
        match source {
            ModelSource::File(file) => Self::open_file(file).await,
            ModelSource::Installed { name, sha256 } => {
                let path = installed(&format!("{name}.onnx"))?;
                let shown = path.display().to_string();
                let bytes = std::fs::read(&path)
                    .map_err(|error| BuildError::input(&shown, error.to_string()))?;
                let found = hex_sha256(&bytes);
                if found != *sha256 {
                    let reason = format!(
                        "has the SHA-256 {found}, and {name} has {sha256}: delete the file and \
                         run `python3 deploy/setup/onnx.py` again"
                    );
                    return Err(BuildError::input(&shown, reason));
                }
                Self::load(&shown, &bytes)
            }
        }
    }

    /// As [`Self::open`].
    pub async fn open_file(file: &NamedFile) -> Result<Self> {
        let bytes = read_file(file, MODEL_BYTES_MAX).await?;
        Self::load(&format!("{}/{}", file.folder, file.file.path), &bytes)
    }

    /// Loads a model from the bytes of its file.
    ///
    /// # Errors
    /// ONNX Runtime refuses it, or is missing.
    pub fn load(name: &str, bytes: &[u8]) -> Result<Self> {
        load_library()?;
        let session = || -> std::result::Result<Session, String> {
            let text = |error: &dyn std::fmt::Display| error.to_string();
            let builder = Session::builder().map_err(|error| text(&error))?;
            // Warnings are about speed; a rank takes what is on standard error for a failure.
            let builder = builder.with_log_level(LogLevel::Error);
            let builder = builder.map_err(|error| text(&error))?;
            // Threads that wait would take a whole core each from the jobs beside this one.
            let builder = builder.with_intra_op_spinning(false);
            let builder = builder.map_err(|error| text(&error))?;
            let builder = builder.with_deterministic_compute(true);
            let mut builder = builder.map_err(|error| text(&error))?;
            builder
                .commit_from_memory(bytes)
                .map_err(|error| text(&error))
        };
        let session = session().map_err(|error| {
            BuildError::input(name, format!("ONNX Runtime cannot load it: {error}"))
        })?;
        Ok(Self {
            name: name.to_owned(),
            inputs: session.inputs().iter().map(Port::of).collect(),
            outputs: session.outputs().iter().map(Port::of).collect(),
            session,
        })
    }

    /// An error about what this model declares. `right` says what would be right.
    pub(crate) fn unfit(&self, ports: &[Port], kind: &str, right: &str) -> BuildError {
        let reason = format!("its {kind} are {}; {right}", listed(ports));
        BuildError::input(&self.name, reason)
    }

    /// The input of a model that takes images and nothing else.
    ///
    /// # Errors
    /// It takes something else; names its inputs. `right` says what would be right.
    pub fn image_input(&self, right: &str) -> Result<ImageInput> {
        let unfit = || self.unfit(&self.inputs, "inputs", right);
        let [input] = self.inputs.as_slice() else {
            return Err(unfit());
        };
        match input.shape.as_deref() {
            Some([batch, Some(3), height, width]) => Ok(ImageInput {
                channels_last: false,
                batch: *batch,
                height: *height,
                width: *width,
            }),
            Some([batch, height, width, Some(3)]) => Ok(ImageInput {
                channels_last: true,
                batch: *batch,
                height: *height,
                width: *width,
            }),
            _ => Err(unfit()),
        }
    }

    /// Runs it. The input has the shape of [`ImageInput::shape`].
    ///
    /// # Errors
    /// ONNX Runtime fails.
    pub fn run(&mut self, shape: [usize; 4], values: Vec<f32>) -> Result<Vec<Output>> {
        let name = self.name.clone();
        let failed = |error: ort::Error| {
            let reason = format!("ONNX Runtime cannot run it on a tensor of {shape:?}: {error}");
            BuildError::input(&name, reason)
        };
        let tensor = Tensor::from_array((shape, values)).map_err(failed)?;
        let outputs = self.session.run(ort::inputs![tensor]).map_err(failed)?;
        let mut found = Vec::new();
        for (output, value) in &outputs {
            // Others are named when they are looked for.
            if let Ok((shape, values)) = value.try_extract_tensor::<f32>() {
                let shape = shape.iter().map(|it| usize::try_from(*it).unwrap_or(0));
                found.push(Output {
                    name: output.to_owned(),
                    shape: shape.collect(),
                    values: values.to_vec(),
                });
            }
        }
        Ok(found)
    }
}

/// The bytes of a file that a pipeline names.
pub(crate) async fn read_file(file: &NamedFile, bytes_max: u64) -> Result<Vec<u8>> {
    let (store, prefix) = storage::open(&file.folder)?;
    let path = join(&prefix, &file.file.path);
    unchanged(&*store, &path, &file.file).await?;
    let bytes = read_bounded(&*store, &path, bytes_max).await;
    let bytes = bytes.map_err(|error| BuildError::input(path.as_ref(), error))?;
    Ok(bytes.to_vec())
}

/// The version of the library, for reports.
pub(crate) fn runtime() -> String {
    let info = ort::info();
    let commit = info.split(", ").find(|it| it.contains("git-commit-id="));
    let commit = commit.and_then(|it| it.split('=').nth(1)).unwrap_or("?");
    format!("ONNX Runtime (commit {commit})")
}

/// The last part of a file's name, for reports.
pub(crate) fn short(name: &str) -> &str {
    Path::new(name)
        .file_name()
        .and_then(|it| it.to_str())
        .unwrap_or(name)
}
