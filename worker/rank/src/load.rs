//! Loads the model with its base weights, and the data set.

use crate::init;
use crate::process::{Permanent, Rank};
use model::trainer::Trainer;
use model_data::loader::{Loader, LoaderOptions};
use proto::spec::TrainWork;
use tch::Device;

/// Sample cache of one rank. A data set that fits stays decoded in memory.
const CACHE_BYTES: usize = 1 << 30;

/// Builds the model with its base weights on `device`, and sets the job's thread count.
pub(crate) fn build(rank: &Rank<'_>, spec: &TrainWork, device: Device) -> anyhow::Result<Trainer> {
    tch::set_num_threads(i32::try_from(spec.train.threads).unwrap_or(i32::MAX));
    let weights = match &spec.model.init {
        Some(url) => Some(rank.runtime.block_on(init::fetch(
            url,
            &spec.model,
            &rank.settings.cache_dir,
        ))?),
        None => None,
    };
    Trainer::new(spec, weights.as_ref(), device).map_err(|error| {
        let permanent = error.is_permanent();
        let mut error = anyhow::Error::from(error);
        if let Some(url) = &spec.model.init {
            error = error.context(format!("model.init {url}"));
        }
        if permanent {
            Permanent(format!("{error:#}")).into()
        } else {
            error
        }
    })
}

pub(crate) async fn open_data(spec: &TrainWork, version: &str) -> anyhow::Result<Loader> {
    let version = Some(version.to_owned());
    let options = LoaderOptions::new(&spec.model.architecture, CACHE_BYTES, version);
    let loader = Loader::open(&spec.data, options).await?;
    for note in loader.notes() {
        tracing::info!("{note}");
    }
    Ok(loader)
}
