//! Loads or initializes ControlNet's branch: from public weights, or as a copy of the base U-Net.

use super::branch::ControlBranch;
use crate::error::ModelError;
use crate::parameter::Parameters;
use crate::public::{self, Source};
use crate::unet::UNet;
use crate::weights::{self, NamedTensors};
use proto::architecture::Diffusion;
use proto::layout::{UNetLayout, hint_widths};
use proto::public::names::{SINGLE_FILE_CONTROLNET, diffusers_controlnet};
use std::path::Path;
use tch::Device;

/// Name prefixes of the parameters that begin as copies of the U-Net's.
pub(super) const COPIES: [&str; 3] = [
    "controlnet.time_embed.",
    "controlnet.input_blocks.",
    "controlnet.middle_block.",
];

/// Loads the branch from `own`. Without it, it is a copy of the U-Net whose hint and zero
/// convolutions keep their initial values.
pub(super) fn initialize(
    parameters: &Parameters,
    job: &Diffusion,
    own: Option<(&Path, &Source)>,
) -> Result<(), ModelError> {
    match own {
        Some((_, source)) => {
            let hint = hint_widths(job.autoencoder.factor()).len();
            let into = parameters.under("controlnet.");
            load_branch(source, &(&job.unet).into(), hint, &into).map(drop)
        }
        None => copy_unet(parameters, "the base U-Net"),
    }
}

/// Loads a branch in any of the known namings. `hint` is the number of the hint's widths.
///
/// # Errors
/// A tensor that is missing, unexpected, of the wrong shape or not finite.
pub(crate) fn load_branch(
    source: &Source,
    layout: &UNetLayout,
    hint: usize,
    into: &NamedTensors,
) -> Result<NamedTensors, ModelError> {
    if source.any_with_prefix(SINGLE_FILE_CONTROLNET) {
        let expected = |name: &str| name.starts_with(SINGLE_FILE_CONTROLNET);
        let named = |name: &str| vec![format!("{SINGLE_FILE_CONTROLNET}{name}")];
        source.load(into, named, expected)
    } else if source.any_with_prefix("input_hint_block.") {
        source.load(into, |name| vec![name.to_owned()], |_| true)
    } else {
        let named = |name: &str| {
            diffusers_controlnet(name, layout, hint)
                .into_iter()
                .collect()
        };
        source.load(into, named, |_| true)
    }
}

/// Loads a U-Net, and the branch in the folder `controlnet` beside it.
///
/// # Errors
/// As [`public::unet`].
pub(crate) fn load(path: &Path, device: Device) -> Result<(UNet, ControlBranch), ModelError> {
    let unet = public::unet(&path.join("unet"), device)?.network;
    let source = Source::open(&path.join("controlnet"))?;
    let (layout, hint) = source.controlnet_layout()?;
    let parameters = Parameters::seeded(0, device).skip_init(String::new());
    let branch = ControlBranch::new(&parameters.root(), &layout, &hint);
    load_branch(&source, &layout, hint.len(), &parameters.tensors())?;
    Ok((unet, branch))
}

fn copy_unet(parameters: &Parameters, origin: &str) -> Result<(), ModelError> {
    let mut copies = parameters.under("controlnet.");
    copies.retain(|name, _| {
        let name = format!("controlnet.{name}");
        COPIES.iter().any(|prefix| name.starts_with(prefix))
    });
    let mut base = parameters.under("unet.");
    base.retain(|name, _| copies.contains_key(name));
    weights::load(origin, &base, &copies)
}
