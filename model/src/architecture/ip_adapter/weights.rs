//! Loads or initializes the adapter: from public weights, or with the keys and values of the base
//! U-Net's attentions.

use super::adapter::Adapter;
use crate::error::ModelError;
use crate::parameter::Parameters;
use crate::public::Source;
use crate::unet::transformer_names;
use crate::weights::NamedTensors;
use proto::layout::UNetLayout;
use proto::public::names::{ip_adapter_number, ip_adapter_variant};
use std::path::Path;
use tch::Device;

/// Loads the adapter from `own`. Without it, each attention's keys and values are copies of those
/// of the text, and the projection keeps its random values.
pub(super) fn initialize(
    parameters: &Parameters,
    layout: &UNetLayout,
    own: Option<(&Path, &Source)>,
) -> Result<(), ModelError> {
    match own {
        Some((path, source)) => {
            let into = parameters.under("ip_adapter.");
            load_adapter(path, source, layout, &into).map(drop)
        }
        None => {
            copy_attentions(parameters, layout);
            Ok(())
        }
    }
}

/// Loads an adapter with the names of the published files or of a training checkpoint.
///
/// # Errors
/// Another variant of IP-Adapter, or a tensor that is missing, unexpected, of the wrong shape or
/// not finite.
pub(crate) fn load_adapter(
    path: &Path,
    source: &Source,
    layout: &UNetLayout,
    into: &NamedTensors,
) -> Result<NamedTensors, ModelError> {
    let keys = [
        "ip_adapter.1.to_k_ip.weight",
        "adapter_modules.1.to_k_ip.weight",
    ];
    let width = keys
        .iter()
        .find_map(|name| source.shape(name)?.last().copied());
    if let Some(variant) = ip_adapter_variant(source.names(), width, layout.context_dim) {
        return Err(ModelError::OtherModel {
            path: path.to_owned(),
            found: variant,
            expected: "the plain IP-Adapter of Stable Diffusion 1.5 is expected".to_owned(),
        });
    }
    let named = |name: &str| {
        let trained = match name.split_once('.') {
            Some(("image_proj", rest)) => format!("image_proj_model.{rest}"),
            Some((_, rest)) => format!("adapter_modules.{rest}"),
            None => name.to_owned(),
        };
        vec![name.to_owned(), trained]
    };
    // A training checkpoint also has the frozen U-Net.
    source.load(into, named, |name| !name.starts_with("unet."))
}

/// Loads an adapter alone.
///
/// # Errors
/// As [`load_adapter`].
pub(crate) fn load(
    path: &Path,
    layout: &UNetLayout,
    device: Device,
) -> Result<Adapter, ModelError> {
    let source = Source::open(path)?;
    let embedding = ["image_proj.proj.weight", "image_proj_model.proj.weight"]
        .iter()
        .find_map(|name| source.shape(name)?.last().copied());
    let parameters = Parameters::seeded(0, device).skip_init(String::new());
    let adapter = Adapter::new(&parameters.root(), layout, embedding.unwrap_or(1024));
    load_adapter(path, &source, layout, &parameters.tensors())?;
    Ok(adapter)
}

fn copy_attentions(parameters: &Parameters, layout: &UNetLayout) {
    let own = parameters.under("ip_adapter.ip_adapter.");
    let base = parameters.under("unet.");
    for (transformer, name) in transformer_names(layout).into_iter().enumerate() {
        let number = ip_adapter_number(transformer, layout);
        for (theirs, ours) in [("to_k", "to_k_ip"), ("to_v", "to_v_ip")] {
            let from = &base[&format!("{name}transformer_blocks.0.attn2.{theirs}.weight")];
            let into = &own[&format!("{number}.{ours}.weight")];
            tch::no_grad(|| into.shallow_clone().copy_(from));
        }
    }
}
