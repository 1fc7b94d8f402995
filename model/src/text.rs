//! CLIP's text tower (notes 5.1) with Hugging Face weight names: token ids -> text states. Caching
//! and the choice of texts are up to the caller.

use crate::clip::Transformer;
use crate::layer::{LayerNorm, Linear};
use crate::parameter::{Init, Scope};
use model_data::prompt::Prompts;
use proto::layout::TextLayout;
use tch::{Device, Kind, Tensor};

/// The token ids of texts on a device, [texts, tokens].
pub fn token_ids(prompts: &Prompts, texts: &[&str], device: Device) -> Tensor {
    let ids: Vec<i64> = texts.iter().flat_map(|text| prompts.ids(text)).collect();
    Tensor::from_slice(&ids)
        .view([texts.len() as i64, prompts.tokens() as i64])
        .to_device(device)
}

/// Token ids -> text states.
#[derive(Debug)]
pub struct TextEncoder {
    token: Tensor,
    position: Tensor,
    transformer: Transformer,
    norm: LayerNorm,
    projection: Option<Linear>,
    end_token: Option<i64>,
}

impl TextEncoder {
    #[must_use]
    pub fn new(scope: &Scope<'_>, layout: &TextLayout) -> Self {
        let (tower, width) = (scope.sub("text_model"), layout.transformer.width);
        let embeddings = tower.sub("embeddings");
        let table = |name: &str, rows: i64, deviation: f64| {
            embeddings
                .sub(name)
                .parameter("weight", &[rows, width], Init::Normal(deviation))
        };
        let norm = LayerNorm::new(&tower.sub("final_layer_norm"), width);
        let projection = |to| Linear::unbiased(&scope.sub("text_projection"), width, to);
        Self {
            token: table("token_embedding", layout.vocabulary, 0.02),
            position: table("position_embedding", layout.tokens, 0.01),
            transformer: Transformer::new(&tower, &layout.transformer, true),
            norm: norm.epsilon(layout.transformer.norm_epsilon),
            projection: layout.projection.map(projection),
            end_token: layout.end,
        }
    }

    /// [batch, tokens] ids -> states after the final norm, [batch, tokens, width], computed in
    /// `dtype`.
    pub fn forward(&self, ids: &Tensor, dtype: Kind) -> Tensor {
        let positions = self.position.narrow(0, 0, ids.size()[1]);
        let embedded = Tensor::embedding(&self.token, ids, -1, false, false) + positions;
        self.norm
            .forward(&self.transformer.forward(embedded.to_kind(dtype)))
    }

    /// The state at each text's end token: ids [batch, tokens] and their states -> [batch, width].
    pub fn pool(&self, ids: &Tensor, states: &Tensor) -> Tensor {
        // argmax returns the first maximum.
        let end = match self.end_token {
            Some(end) => ids.eq(end).to_kind(Kind::Int).argmax(-1, false),
            None => ids.argmax(-1, false),
        };
        let index = end
            .view([-1, 1, 1])
            .expand([-1, 1, states.size()[2]], false);
        states.gather(1, &index, false).squeeze_dim(1)
    }

    /// Pooled states [batch, width] -> embeddings [batch, projection]; None without a
    /// projection.
    pub fn project(&self, pooled: &Tensor) -> Option<Tensor> {
        Some(self.projection.as_ref()?.forward(pooled))
    }
}
