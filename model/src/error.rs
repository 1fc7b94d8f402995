//! The errors of this crate. Each message names the item, its value and the expected value.

use std::path::PathBuf;
use storage::confined::ConfinedError;

#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("{path}: cannot be read as a weights file")]
    ReadWeights {
        path: PathBuf,
        #[source]
        source: WeightsFault,
    },
    #[error("{path}: cannot be written")]
    WriteWeights {
        path: PathBuf,
        #[source]
        source: WeightsFault,
    },
    #[error("{path}: {tensor:?} {found}; expected: {expected}")]
    Input {
        path: PathBuf,
        tensor: String,
        found: String,
        expected: String,
    },
    #[error("{path}: no weights found; expected: {expected}")]
    NoWeights { path: PathBuf, expected: String },
    #[error("{path}: cannot be read")]
    ReadConfig {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path}: {source}")]
    PublicConfig {
        path: PathBuf,
        source: proto::public::config::ConfigError,
    },
    #[error("{path}: {source}")]
    Vocabulary {
        path: PathBuf,
        source: model_data::wordpiece::VocabularyError,
    },
    #[error("{path}: it has {found} tokens; config.json names {expected}")]
    VocabularySize {
        path: PathBuf,
        found: usize,
        expected: i64,
    },
    #[error("{path}: {source}")]
    ArchitectureMismatch {
        path: PathBuf,
        source: proto::public::agree::Disagreement,
    },
    #[error("{origin}: tensor {tensor:?} holds a value that is not finite")]
    NonfiniteTensor { origin: String, tensor: String },
    #[error(
        "{}: latent channel {channel} does not vary, so it cannot be normalised; train the \
         autoencoder longer, or with fewer latent channels",
        path.display()
    )]
    ConstantLatent { path: PathBuf, channel: usize },
    #[error("{origin}: tensor {tensor:?} is missing; expected shape {expected:?}")]
    MissingTensor {
        origin: String,
        tensor: String,
        expected: Vec<i64>,
    },
    #[error("{origin}: tensor {tensor:?} does not belong to this model")]
    ExtraTensor { origin: String, tensor: String },
    #[error("{origin}: tensor {tensor:?} has shape {found:?}; expected {expected:?}")]
    TensorShape {
        origin: String,
        tensor: String,
        found: Vec<i64>,
        expected: Vec<i64>,
    },
    #[error("the base weights have no {component:?}; a {architecture} job needs {needed}")]
    MissingInit {
        component: &'static str,
        architecture: &'static str,
        needed: String,
    },
    #[error("model.{field} is {value}; {expected}")]
    Config {
        field: &'static str,
        value: String,
        expected: String,
    },
    #[error("{}: it is {found}; {expected}", path.display())]
    OtherModel {
        path: PathBuf,
        found: String,
        expected: String,
    },
    #[error("example at position {position}: {field} is {found}; {expected}")]
    Example {
        position: u64,
        field: &'static str,
        found: String,
        expected: String,
    },
    #[error("the loss is not finite; nothing was changed{}", skipped_before(*skips))]
    NonfiniteLoss { skips: u64 },
    #[error("the gradient norm is {norm}; nothing was changed{}", skipped_before(*skips))]
    NonfiniteGradient { norm: f64, skips: u64 },
    #[error(
        "step {step}: parameter {parameter:?} has no gradient; call zero_gradients before the \
        first forward"
    )]
    NoGradient { step: u64, parameter: String },
    #[error(
        "the image is {width}x{height} pixels; at least {least} in each direction are compared"
    )]
    ImageSize { width: u32, height: u32, least: u32 },
    #[error("{steps} sampling steps requested; the schedule allows 1 to {max}")]
    SamplingSteps { steps: u32, max: u32 },
    #[error("{architecture} does not support {feature}")]
    Unsupported {
        architecture: &'static str,
        feature: &'static str,
    },
    #[error("libtorch failed while {action}: {message}")]
    Library {
        action: &'static str,
        message: String,
    },
}

impl ModelError {
    /// True if a retry from the same state and the same files would fail in the same way. A step is
    /// deterministic, and so are the checks of weight files.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::NonfiniteLoss { .. }
            | Self::NonfiniteGradient { .. }
            | Self::NoWeights { .. }
            | Self::PublicConfig { .. }
            | Self::Vocabulary { .. }
            | Self::VocabularySize { .. }
            | Self::ArchitectureMismatch { .. }
            | Self::NonfiniteTensor { .. }
            | Self::ConstantLatent { .. }
            | Self::MissingTensor { .. }
            | Self::ExtraTensor { .. }
            | Self::OtherModel { .. }
            | Self::TensorShape { .. }
            | Self::MissingInit { .. }
            | Self::Config { .. }
            | Self::ImageSize { .. }
            | Self::Unsupported { .. } => true,
            Self::ReadWeights { .. }
            | Self::WriteWeights { .. }
            | Self::Input { .. }
            | Self::ReadConfig { .. }
            | Self::Example { .. }
            | Self::NoGradient { .. }
            | Self::SamplingSteps { .. }
            | Self::Library { .. } => false,
        }
    }
}

fn skipped_before(skips: u64) -> String {
    match skips {
        0 => String::new(),
        _ => format!(", and the {skips} steps before it were skipped"),
    }
}

/// Why a weights file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WeightsFault {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Format(#[from] safetensors::SafeTensorError),
    #[error(transparent)]
    Index(#[from] serde_json::Error),
    #[error("it names {file:?}, which {source}")]
    Outside { file: String, source: ConfinedError },
    #[error("tensor {tensor:?} is stored as {found:?}; F32 or F16 is expected")]
    Kind { tensor: String, found: String },
}

/// Runs libtorch code and converts a panic (shape mismatch, out of memory) into an error with the
/// first line of its message, so that a rank can report it before it exits.
pub(crate) fn catch_panic<T>(
    action: &'static str,
    work: impl FnOnce() -> Result<T, ModelError>,
) -> Result<T, ModelError> {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    outcome.unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("panic without a message");
        let text = text.replace("\\n", "\n");
        let message = text.lines().next().unwrap_or_default().to_owned();
        Err(ModelError::Library { action, message })
    })
}
