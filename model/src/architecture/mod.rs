//! The architectures, each in its own folder: networks, loss terms, sampling, and the component of
//! each parameter. Only this file knows all architectures; the trainer uses [`interface`].

pub(crate) mod autoencoder;
pub(crate) mod clip;
pub mod controlnet;
pub mod fastcomposer;
pub(crate) mod interface;
pub mod ip_adapter;
pub mod kandinsky_decoder;
pub mod kandinsky_prior;
pub mod retrinet;
pub(crate) mod text_to_image;

use interface::Architecture;
use proto::spec::ArchitectureSpec;

/// The architecture of a job.
pub(crate) fn of(spec: &ArchitectureSpec) -> Box<dyn Architecture> {
    match spec {
        ArchitectureSpec::Autoencoder(spec) => Box::new(autoencoder::Autoencoder(spec.clone())),
        ArchitectureSpec::TextToImage(spec) => Box::new(text_to_image::TextToImage(spec.clone())),
        ArchitectureSpec::Retrinet(spec) => Box::new(retrinet::Retrinet(spec.clone())),
        ArchitectureSpec::Clip(spec) => Box::new(clip::Clip(spec.clone())),
        ArchitectureSpec::ControlNet(spec) => Box::new(controlnet::ControlNet(spec.clone())),
        ArchitectureSpec::IpAdapter(spec) => Box::new(ip_adapter::IpAdapter(spec.clone())),
        ArchitectureSpec::FastComposer(spec) => Box::new(fastcomposer::FastComposer(spec.clone())),
        ArchitectureSpec::KandinskyPrior(spec) => {
            Box::new(kandinsky_prior::KandinskyPrior(spec.clone()))
        }
        ArchitectureSpec::KandinskyDecoder(spec) => {
            Box::new(kandinsky_decoder::KandinskyDecoder(spec.clone()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameter::Parameters;
    use proto::spec::{Architecture, Component};
    use std::collections::BTreeSet;
    use tch::{Device, Kind};

    #[test]
    fn prefixes_cover_every_parameter_and_the_components_of_the_job() {
        for name in Architecture::ALL.map(Architecture::name) {
            let references = match name {
                "autoencoder" | "text-to-image" | "clip" | "kandinsky-prior" => 0,
                _ => 1,
            };
            let (prompt_drop, init) = match name {
                "clip" => (0.0, ""),
                _ => (0.5, "init = \"file:///none\"\n"),
            };
            let text = format!(
                "name = \"a\"\n[data]\ndataset = \"file:///none\"\nresolution = 32\nreferences = \
                {references}\nprompt_drop = {prompt_drop}\n\
                 [model]\narchitecture = \"{name}\"\nsize = \"tiny\"\n{init}\
                 [train]\nsteps = 4\nglobal_batch = 1\nmicro_batch = 1\n"
            );
            let spec = proto::job::parse_training("job.toml", &text).expect("the job is valid");
            let architecture = of(&spec.model.architecture);
            let parameters = Parameters::seeded(1, Device::Cpu);
            let options = interface::TensorOptions {
                dtype: Kind::Float,
                device: Device::Cpu,
            };
            let network = architecture.build(&parameters.root(), &spec, options);
            network.expect("the job can be built");
            let prefixes = architecture.prefixes();
            let names = parameters.tensors().into_keys();
            let components: BTreeSet<Component> =
                names.map(|name| prefixes.component_of(&name)).collect();
            let expected = spec.model.architecture.facts().components.iter().copied();
            assert_eq!(components, expected.collect());
            assert!(!architecture.terms().is_empty());
        }
    }
}
