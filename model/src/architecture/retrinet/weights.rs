//! Weights that only a RetriNet has: from its own file, or from the base U-Net.

use super::block::RetrievalBlock;
use crate::error::ModelError;
use crate::parameter::Parameters;
use crate::public::{self, Source};
use crate::unet::UNet;
use crate::weights;
use proto::public::names::RETRINET_FILE;
use proto::spec::Retrieval;
use std::path::Path;
use tch::Device;

/// Beginnings of the names of what a base model has.
const BASE: [&str; 3] = ["autoencoder.", "text_encoder.", "unet."];

/// First values of the retrieval block: those of `own`, else the retrieval encoder is a copy of the
/// U-Net's encoder (paper, section 5.1) and the rest stays as it was made.
///
/// # Errors
/// A file of a RetriNet with other choices, or that does not fit.
pub(super) fn initialize(
    parameters: &Parameters,
    choices: Retrieval,
    own: Option<(&Path, &Source)>,
) -> Result<(), ModelError> {
    let Some((path, source)) = own else {
        return copy_encoder(parameters, "the base U-Net");
    };
    let found = source.retrieval()?;
    if found != choices {
        return Err(ModelError::Config {
            field: "retrieval",
            value: format!("{choices:?}"),
            expected: format!("{} was trained with {found:?}", path.display()),
        });
    }
    load_own(parameters, source)
}

/// A U-Net with the retrieval block that lies in [`RETRINET_FILE`] beside it. Without that file it
/// is the RetriNet before training: its retrieval encoder is a copy of the U-Net's encoder and its
/// zero convolutions are zero.
///
/// # Errors
/// As [`public::unet`].
pub(crate) fn load(path: &Path, device: Device) -> Result<(UNet, RetrievalBlock), ModelError> {
    let source = Source::open_with_neighbour(path)?;
    let layout = source.unet_layout()?;
    let parameters = Parameters::seeded(0, device)
        .awaiting("unet.".to_owned())
        .awaiting("retrieval.".to_owned());
    let folder = if path.is_dir() {
        path
    } else {
        path.parent().unwrap_or(path)
    };
    let file = folder.join(RETRINET_FILE);
    let trained = file.is_file().then(|| Source::open(&file)).transpose()?;
    let choices = trained.as_ref().map(Source::retrieval).transpose()?;
    let unet = UNet::new(&parameters.root().sub("unet"), &layout);
    let block = RetrievalBlock::new(&parameters.root(), &layout, choices.unwrap_or_default());
    public::load_unet(&source, &layout, &parameters.under("unet."))?;
    match trained {
        Some(trained) => load_own(&parameters, &trained)?,
        None => copy_encoder(&parameters, "the U-Net")?,
    }
    Ok((unet, block))
}

fn load_own(parameters: &Parameters, source: &Source) -> Result<(), ModelError> {
    let mut own = parameters.tensors();
    own.retain(|name, _| !BASE.iter().any(|prefix| name.starts_with(prefix)));
    source
        .load(&own, |name| vec![name.to_owned()], |_| true)
        .map(drop)
}

fn copy_encoder(parameters: &Parameters, origin: &str) -> Result<(), ModelError> {
    let copies = parameters.under("retrieval.");
    let mut base = parameters.under("unet.");
    base.retain(|name, _| copies.contains_key(name));
    weights::load(origin, &base, &copies)
}
