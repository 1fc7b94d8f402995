//! CLIP from a folder, as embeddings of images and prompts (paper section 5.2; notes 6.2, 6.3).

use super::{TextEmbedding, values};
use crate::clip::unit;
use crate::error::{ModelError, catch_panic};
use crate::public::{self, Towers};
use crate::vision::{normalize_colours, unit_pixels};
use image::RgbImage;
use model_data::prompt::Prompts;
use model_data::view::clip_view;
use proto::architecture::ImageView;
use proto::public::base::CONFIG_FILE;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// What happens to a prompt with more tokens than the text tower reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LongText {
    /// It is cut before its end token, as when the model was trained. The default.
    #[default]
    KeepEnd,
    /// Its tokens are sliced, so that the end token is lost, as torchmetrics' `CLIPScore` does. The
    /// tower then reads the state of the first token (its id is the largest that is left, and where
    /// the end token is looked up by id, the first is what a search without result gives), which
    /// sees no other: all long prompts have the same embedding.
    Slice,
}

/// A CLIP: both towers, its tokenizer and its preprocessing. Computes in fp32.
#[derive(Debug)]
pub struct Clip {
    towers: Towers,
    prompts: Prompts,
    device: Device,
}

impl Clip {
    /// Opens a folder with `config.json` and `model.safetensors` of a `CLIPModel` in the layout of
    /// `transformers`, for instance of `openai/clip-vit-large-patch14`, or one that `coordinator
    /// checkpoint export` wrote for a job with the architecture `clip` (also the folder around its
    /// `clip/`).
    ///
    /// # Errors
    /// A folder without weights or config, an unsupported config field, or a tensor that is
    /// missing, unexpected, of the wrong shape or not finite.
    pub fn open(folder: &Path, device: Device) -> Result<Self, ModelError> {
        let inner = folder.join("clip");
        let exported = !folder.join(CONFIG_FILE).is_file() && inner.join(CONFIG_FILE).is_file();
        let folder = if exported { &inner } else { folder };
        let towers = catch_panic("loading a CLIP", || public::towers(folder, device))?;
        let prompts = Prompts::new(towers.text_layout.tokens as u32);
        Ok(Self {
            towers,
            prompts,
            device,
        })
    }

    /// Side of the square images that the image tower reads, in pixels.
    #[must_use]
    pub fn side(&self) -> u32 {
        self.towers.image_layout.side as u32
    }

    /// Number of tokens that the text tower reads, those at the beginning and end included.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.prompts.tokens()
    }

    /// Width of an embedding.
    #[must_use]
    pub fn width(&self) -> usize {
        self.towers.image_layout.projection as usize
    }

    /// Embeddings of images of any size, of length 1. Preprocessed as `CLIPImageProcessor` does:
    /// bicubic to a shorter side of [`Self::side`], the middle, normalized colours.
    ///
    /// # Errors
    /// libtorch fails, for instance because memory runs out.
    pub fn embed_images(&self, images: &[RgbImage]) -> Result<Vec<Vec<f32>>, ModelError> {
        images.iter().map(|image| self.embed_image(image)).collect()
    }

    /// The embedding of one image.
    ///
    /// # Errors
    /// As [`Self::embed_images`].
    pub fn embed_image(&self, image: &RgbImage) -> Result<Vec<f32>, ModelError> {
        let view = clip_view(image, ImageView::Crop, self.side());
        catch_panic("embedding an image", || {
            tch::no_grad(|| {
                let side = self.towers.image_layout.side;
                let pixels = unit_pixels(view.as_raw(), side, self.device);
                let pixels = normalize_colours(&pixels, &self.towers.colours);
                Ok(values(&unit(&self.towers.image.forward(&pixels))))
            })
        })
    }

    /// Embeddings of texts, of length 1.
    ///
    /// # Errors
    /// As [`Self::embed_images`].
    pub fn embed_texts(
        &self,
        texts: &[String],
        long: LongText,
    ) -> Result<Vec<TextEmbedding>, ModelError> {
        let texts = texts.iter();
        texts.map(|text| self.embed_text(text, long)).collect()
    }

    /// The embedding of one text.
    ///
    /// # Errors
    /// As [`Self::embed_images`].
    pub fn embed_text(&self, text: &str, long: LongText) -> Result<TextEmbedding, ModelError> {
        let ids = match long {
            LongText::KeepEnd => self.prompts.ids(text),
            LongText::Slice => self.prompts.sliced_ids(text),
        };
        let tokens = self.prompts.count(text) as usize + 2;
        catch_panic("embedding a text", || {
            tch::no_grad(|| {
                let ids = Tensor::from_slice(&ids).unsqueeze(0).to_device(self.device);
                let tower = &self.towers.text;
                let pooled = tower.pool(&ids, &tower.forward(&ids, Kind::Float));
                let embedded = tower.project(&pooled).expect("loaded with a projection");
                Ok(TextEmbedding {
                    embedding: values(&unit(&embedded)),
                    tokens,
                    cut: tokens > self.tokens(),
                })
            })
        })
    }
}
