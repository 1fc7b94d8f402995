//! Kandinsky 2.2's decoder, the second half of one of the paper's four peers: a U-Net that draws an
//! image embedding. In training it draws the target from the embedding of its reference. Its images
//! may move that embedding towards a prompt with a trained prior.

pub(crate) mod unet;

pub use unet::{ImageConditions, ImageUNet};

use super::interface::{Architecture, Network, SampleLosses, SampleOptions, TensorOptions};
use super::kandinsky_prior::{Prior, PriorPrompts};
use crate::batch::kept;
use crate::component::Prefixes;
use crate::diffusion::{Coder, LatentDiffusion, PLAIN_TERMS};
use crate::error::ModelError;
use crate::parameter::{Parameters, Scope};
use crate::public::Source;
use crate::unet::{UNet, UNetInputs, repeat_batch};
use crate::vision::Tower;
use image::RgbImage;
use model_data::example::Example;
use proto::architecture::{DecoderVariant, IMAGE_TOKENS, KandinskyDecoder as Job, PRIOR, UNCLIP};
use proto::layout::UNetLayout;
use proto::spec::{Component, TrainWork};
use std::path::Path;
use tch::{Kind, Tensor};

/// References of a sample: the one that is drawn.
const REFERENCES: usize = 1;

pub(crate) struct KandinskyDecoder(pub(crate) Job);

impl Architecture for KandinskyDecoder {
    fn prefixes(&self) -> Prefixes {
        Prefixes(&[
            ("autoencoder.", Component::Autoencoder),
            ("image_encoder.", Component::ImageEncoder),
            // A prior and its text encoder are built for images alone and frozen as the image
            // encoder is.
            ("text_encoder.", Component::ImageEncoder),
            ("prior.", Component::ImageEncoder),
            ("unclip.", Component::Adapter),
            ("unet.encoder_hid_proj.", Component::Adapter),
            ("unet.add_embedding.", Component::Adapter),
            ("unet.time_embedding.", Component::Encoder),
            ("unet.conv_in.", Component::Encoder),
            ("unet.down_blocks.", Component::Encoder),
            ("unet.mid_block.", Component::Middle),
            // The U-Net of Stable Diffusion's shape.
            ("unet.time_embed.", Component::Encoder),
            ("unet.input_blocks.", Component::Encoder),
            ("unet.middle_block.", Component::Middle),
            ("unet.", Component::Decoder),
        ])
    }

    fn terms(&self) -> &'static [&'static str] {
        &PLAIN_TERMS
    }

    fn required(&self) -> &'static [&'static str] {
        if self.0.with_prior {
            &[PRIOR, "text_encoder"]
        } else {
            &[]
        }
    }

    fn build(
        &self,
        scope: &Scope<'_>,
        spec: &TrainWork,
        options: TensorOptions,
    ) -> Result<Box<dyn Network>, ModelError> {
        let job = &self.0;
        let (text, image) = (&job.diffusion.text_encoder, &job.image_encoder);
        let autoencoder = scope.sub("autoencoder");
        let (coder, drawer) = match job.variant {
            DecoderVariant::Kandinsky22 => (
                Coder::movq(&autoencoder, &job.movq_layout()),
                Drawer::Kandinsky(ImageUNet::new(&scope.sub("unet"), &job.unet_layout())),
            ),
            DecoderVariant::UnclipSd15 => (
                Coder::kl(&autoencoder, &(&job.diffusion.autoencoder).into()),
                Drawer::unclip(scope, job, image.projection.into()),
            ),
        };
        Ok(Box::new(DecoderNetwork {
            diffusion: LatentDiffusion::without_text(coder, &job.diffusion, spec, options)?,
            drawer,
            image: Tower::new(scope, image),
            prior: job.with_prior.then(|| {
                let prompts = PriorPrompts::new(scope, &job.prior.text_layout(text, image));
                let prior = Prior::new(&scope.sub(PRIOR), &job.prior.layout(text, image));
                (prompts, prior)
            }),
        }))
    }

    /// The embedding's part of the time embedding begins at zero, so that the base's time embedding
    /// is its own at first (ours).
    fn initialize(
        &self,
        parameters: &Parameters,
        own: Option<(&Path, &Source)>,
    ) -> Result<(), ModelError> {
        if self.0.variant == DecoderVariant::Kandinsky22 {
            return Ok(());
        }
        let into = parameters.under(&format!("{UNCLIP}."));
        if let Some((_, source)) = own {
            let named = |name: &str| vec![name.to_owned()];
            return source.load(&into, named, |_| true).map(drop);
        }
        let weight = &into["add_embedding.image_norm.weight"];
        let _ = tch::no_grad(|| weight.shallow_clone().zero_());
        Ok(())
    }
}

/// The U-Net that draws an embedding.
#[derive(Debug)]
enum Drawer {
    Kandinsky(ImageUNet),
    /// A U-Net of Stable Diffusion's shape.
    Unclip(UNet, ImageConditions),
}

impl Drawer {
    fn unclip(scope: &Scope<'_>, job: &Job, embedding: i64) -> Self {
        let layout = UNetLayout::from(&job.diffusion.unet);
        let sizes = [
            i64::from(IMAGE_TOKENS),
            layout.context_dim,
            4 * layout.widths[0],
        ];
        Self::Unclip(
            UNet::new(&scope.sub("unet"), &layout),
            ImageConditions::new(&scope.sub(UNCLIP), embedding, sizes),
        )
    }

    /// The prediction for latents [batch, c, h, w] and embeddings [branches * batch, embedding],
    /// fp32.
    fn predict(&self, latents: &Tensor, timesteps: &Tensor, embeddings: &Tensor) -> Tensor {
        let branches = embeddings.size()[0] / latents.size()[0];
        match self {
            Self::Kandinsky(unet) => unet.noise(
                &repeat_batch(latents, branches),
                &repeat_batch(timesteps, branches),
                embeddings,
            ),
            Self::Unclip(unet, conditions) => {
                let context = conditions.context(embeddings);
                let added = conditions.added(embeddings).to_kind(Kind::Float);
                let inputs = UNetInputs {
                    added: Some(&added),
                    ..UNetInputs::new(latents, timesteps, &context)
                };
                unet.forward(&inputs).to_kind(Kind::Float)
            }
        }
    }
}

#[derive(Debug)]
struct DecoderNetwork {
    diffusion: LatentDiffusion,
    drawer: Drawer,
    image: Tower,
    prior: Option<(PriorPrompts, Prior)>,
}

impl DecoderNetwork {
    /// Embeddings of the references, [B, projection].
    fn embeddings(&self, examples: &[Example]) -> Result<Tensor, ModelError> {
        let options = (self.diffusion.dtype(), self.diffusion.device());
        self.image.references(examples, REFERENCES, options)
    }

    /// The embedding of an image whose normalized values are zero, [1, projection]: what images are
    /// guided away from.
    fn nothing(&self) -> Tensor {
        let options = (self.diffusion.dtype(), self.diffusion.device());
        self.image.nothing(options)
    }
}

impl Network for DecoderNetwork {
    fn losses(&mut self, examples: &[Example]) -> Result<SampleLosses, ModelError> {
        let batch = self.diffusion.batch(examples, Some(REFERENCES))?;
        let mut embeddings = self.embeddings(examples)?;
        if let Some(kept) = kept(&batch, embeddings.device()) {
            let kept = kept.flatten(1, -1).to_kind(embeddings.kind());
            embeddings = &embeddings * &kept + self.nothing() * (1 - &kept);
        }
        let (batch, _) = batch.split_references();
        let latents = self.diffusion.training_latents(&batch).targets;
        let noisy = self.diffusion.noisy(&batch, &latents);
        let timesteps = self.diffusion.timesteps(&batch.timesteps);
        let latents = noisy.latents.to_kind(self.diffusion.dtype());
        let predicted = self.drawer.predict(&latents, &timesteps, &embeddings);
        Ok(self.diffusion.plain_losses(&batch, &noisy, &predicted))
    }

    fn sample(
        &mut self,
        example: &Example,
        options: &SampleOptions,
    ) -> Result<RgbImage, ModelError> {
        let examples = std::slice::from_ref(example);
        self.diffusion.batch(examples, Some(REFERENCES))?;
        let mut embedding = self.embeddings(examples)?;
        let knobs = &options.knobs;
        if knobs.prior_strength.is_some() {
            let Some((prompts, prior)) = &self.prior else {
                return Err(ModelError::Unsupported {
                    architecture: "a kandinsky-decoder that is built without a prior",
                    feature: "the knob prior_strength",
                });
            };
            let texts = [example.prompt.as_str(), options.negative_prompt.as_str()];
            let seed = options.noise_seed(example.position);
            embedding = prompts.moved(prior, &embedding, texts, knobs, seed)?;
        }
        let (guidance, nothing) = (options.guided(), self.nothing());
        // The prompt reaches the U-Net through the embedding alone.
        let embeddings = guidance.halves(&embedding, &nothing);
        self.diffusion
            .sample(example, options, |latents, timesteps| {
                let latents = latents.to_kind(self.diffusion.dtype());
                let predicted = self.drawer.predict(&latents, timesteps, &embeddings);
                guidance.guided(predicted, || {
                    self.drawer.predict(&latents, timesteps, &nothing)
                })
            })
    }
}
