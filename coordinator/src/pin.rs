//! Checks that a job's data set and base weights exist and give it something to train on, and
//! returns the data set version that the job pins. Called by `submit` on the user's machine, and
//! again for the coordinator, in a process of its own ([`crate::inspect`]).

use anyhow::Chain;
use base_weights::base::{Base, BaseError};
use coordinator_core::event::{Adapted, LostTag};
use model_data::dataset::Dataset;
use model_data::loader::LoadError;
use model_data::prepare::ExampleConfig;
use model_data::prompt_length::{CutPrompts, short};
use model_data::roles::Counts;
use proto::spec::TrainWork;
use serde::{Deserialize, Serialize};
use storage::local_folder;

#[derive(Debug, thiserror::Error)]
pub(crate) enum PinError {
    #[error("{}", proto::text::chain(.0))]
    Dataset(#[from] LoadError),
    #[error("there is no folder {url}; create the data set first, or correct the path")]
    NoFolder { url: String },
    #[error("is {every}, but no sample of {url} is held out: data.holdout is {holdout}; raise it")]
    NothingHeldOut {
        every: u64,
        url: String,
        holdout: f64,
    },
    #[error("{}", proto::text::chain(.0))]
    Init(#[from] BaseError),
}

impl PinError {
    /// Whether this machine may be unable to see the input, which may exist elsewhere: no folder,
    /// no connection, no permission.
    pub(crate) fn is_unreachable(&self) -> bool {
        use object_store::Error as ObjectError;
        if matches!(
            self,
            Self::NoFolder { .. } | Self::Init(BaseError::NoFolder { .. })
        ) {
            return true;
        }
        Chain::new(self).any(|cause| {
            matches!(
                cause.downcast_ref::<ObjectError>(),
                Some(
                    ObjectError::Generic { .. }
                        | ObjectError::PermissionDenied { .. }
                        | ObjectError::Unauthenticated { .. }
                )
            )
        })
    }

    /// The field of job.toml that caused the error.
    pub(crate) fn field(&self) -> &'static str {
        match self {
            Self::Dataset(_) | Self::NoFolder { .. } => "data.dataset",
            Self::NothingHeldOut { .. } => "train.validate_every",
            Self::Init(_) => "model.init",
        }
    }
}

/// Number of lost tags that a sentence about prompts names.
pub(crate) const LOST_TAGS: usize = 5;

/// What was found out about a job's inputs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Pinned {
    /// SHA-256 of `dataset.json`; empty if only base weights were looked into.
    pub(crate) version: String,
    /// None if the architecture reads no prompts.
    pub(crate) cut_prompts: Option<CutPrompts>,
    /// What else becomes of its samples.
    pub(crate) adapted: Option<Adapted>,
    /// The same, one sentence each.
    pub(crate) of_samples: Vec<String>,
    /// Of the base weights, one sentence each.
    pub(crate) of_init: Vec<String>,
}

impl Pinned {
    /// The tags that are cut off most often. Few and short, because a job's record keeps them.
    pub(crate) fn lost_tags(&self) -> Vec<LostTag> {
        let cut = self.cut_prompts.iter();
        let lost = cut.flat_map(|it| it.lost.iter().take(LOST_TAGS));
        lost.map(|(tag, samples)| LostTag {
            tag: short(tag),
            samples: *samples,
        })
        .collect()
    }

    /// What the user should know, one sentence each.
    pub(crate) fn notes(&self) -> Vec<String> {
        let prompts = self.cut_prompts.as_ref();
        let prompts = prompts.and_then(|it| it.sentence(LOST_TAGS));
        let of_dataset = self.of_samples.iter().cloned().chain(prompts);
        of_dataset.chain(self.of_init.clone()).collect()
    }
}

/// Checks the job's inputs.
pub(crate) async fn pin(spec: &TrainWork) -> Result<Pinned, PinError> {
    let pinned = pin_dataset(spec).await?;
    let of_init = check_init(spec).await?;
    Ok(Pinned { of_init, ..pinned })
}

/// Checks the job's data set.
pub(crate) async fn pin_dataset(spec: &TrainWork) -> Result<Pinned, PinError> {
    let url = &spec.data.dataset;
    // Opening a local store creates its folder; a mistyped path must not create one.
    if let Ok(Some(folder)) = local_folder(url)
        && !folder.is_dir()
    {
        return Err(PinError::NoFolder { url: url.clone() });
    }
    let dataset = Dataset::open(url).await.map_err(LoadError::from)?;
    // Read it as a rank does, so that an empty training set fails now and not after queueing.
    let examples = ExampleConfig::from(&spec.model.architecture);
    let tokens = spec.model.architecture.text_encoder().map(|it| it.tokens);
    let (counts, cut_prompts) = Counts::of(&dataset, &spec.data, &examples, tokens).await?;
    if spec.train.validate_every != 0 && counts.held_out == 0 {
        return Err(PinError::NothingHeldOut {
            every: spec.train.validate_every,
            url: url.clone(),
            holdout: spec.data.holdout,
        });
    }
    Ok(Pinned {
        version: dataset.version().to_owned(),
        cut_prompts,
        adapted: Some(Adapted {
            training: counts.training,
            held_out: counts.held_out,
            left_out: counts.left_out.values().sum::<u64>() + counts.without_similar,
            enlarged: counts.sizes.smaller.values().sum(),
            padded: counts.sizes.narrow,
            repeated: counts.repeated,
        }),
        of_samples: counts.notes(&spec.data),
        of_init: Vec::new(),
    })
}

/// Checks the job's base weights, if it names any. Returns what the user should know of them.
pub(crate) async fn check_init(spec: &TrainWork) -> Result<Vec<String>, PinError> {
    let Some(init) = &spec.model.init else {
        return Ok(Vec::new());
    };
    let base = Base::find(init).await?;
    base.suits(&spec.model).await?;
    Ok(base.notes(&spec.model))
}
