//! Loads or initializes the weights that only a RetriNet has: from its own file, or from the base
//! U-Net.

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

/// Name prefixes of a base model's parameters.
const BASE_PREFIXES: [&str; 3] = ["autoencoder.", "text_encoder.", "unet."];

/// Initializes the retrieval block from `own`. Without it, the retrieval encoder is a copy of the
/// U-Net's encoder (paper, section 5.1) and the other parameters keep their initial values.
///
/// # Errors
/// A file of a RetriNet with different retrieval settings, or one that does not match.
pub(super) fn initialize(
    parameters: &Parameters,
    retrieval: Retrieval,
    own: Option<(&Path, &Source)>,
) -> Result<(), ModelError> {
    let Some((path, source)) = own else {
        return copy_encoder(parameters, "the base U-Net");
    };
    let found = source.retrieval()?;
    if found != retrieval {
        return Err(ModelError::Config {
            field: "retrieval",
            value: format!("{retrieval:?}"),
            expected: format!("{} was trained with {found:?}", path.display()),
        });
    }
    load_own(parameters, source)
}

/// Loads a U-Net and the retrieval block from [`RETRINET_FILE`] beside it. Without that file the
/// result is a RetriNet before training: its retrieval encoder is a copy of the U-Net's encoder and
/// its zero convolutions are zero.
///
/// # Errors
/// As [`public::unet`].
pub(crate) fn load(path: &Path, device: Device) -> Result<(UNet, RetrievalBlock), ModelError> {
    let source = Source::open_with_sibling_config(path)?;
    let layout = source.unet_layout()?;
    let parameters = Parameters::seeded(0, device)
        .skip_init("unet.".to_owned())
        .skip_init("retrieval.".to_owned());
    let folder = if path.is_dir() {
        path
    } else {
        path.parent().unwrap_or(path)
    };
    let file = folder.join(RETRINET_FILE);
    let trained = file.is_file().then(|| Source::open(&file)).transpose()?;
    let retrieval = trained.as_ref().map(Source::retrieval).transpose()?;
    let unet = UNet::new(&parameters.root().sub("unet"), &layout);
    let block = RetrievalBlock::new(&parameters.root(), &layout, retrieval.unwrap_or_default());
    public::load_unet(&source, &layout, &parameters.under("unet."))?;
    match trained {
        Some(trained) => load_own(&parameters, &trained)?,
        None => copy_encoder(&parameters, "the U-Net")?,
    }
    Ok((unet, block))
}

fn load_own(parameters: &Parameters, source: &Source) -> Result<(), ModelError> {
    let mut own = parameters.tensors();
    own.retain(|name, _| !BASE_PREFIXES.iter().any(|prefix| name.starts_with(prefix)));
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
