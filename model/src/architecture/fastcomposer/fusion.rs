//! FastComposer's fusion (`postfuse_module` of its authors): the text state of a subject's word and
//! the embedding of its image become one state.

use crate::layer::{LayerNorm, Linear};
use crate::parameter::Scope;
use tch::{Kind, Tensor};

/// Norm, linear, exact GELU, linear.
#[derive(Debug)]
struct Mlp {
    norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Mlp {
    fn new(scope: &Scope<'_>, inputs: i64, width: i64) -> Self {
        Self {
            norm: LayerNorm::new(&scope.sub("layernorm"), inputs),
            fc1: Linear::new(&scope.sub("fc1"), inputs, width),
            fc2: Linear::new(&scope.sub("fc2"), width, width),
        }
    }

    fn forward(&self, xs: &Tensor) -> Tensor {
        let hidden = self.fc1.forward(&self.norm.forward(xs)).gelu("none");
        self.fc2.forward(&hidden)
    }
}

/// See the module's header.
#[derive(Debug)]
pub struct Fusion {
    mlp1: Mlp,
    mlp2: Mlp,
    norm: LayerNorm,
}

impl Fusion {
    /// `width` is that of text states and of image embeddings.
    #[must_use]
    pub fn new(scope: &Scope<'_>, width: i64) -> Self {
        Self {
            mlp1: Mlp::new(&scope.sub("mlp1"), 2 * width, width),
            mlp2: Mlp::new(&scope.sub("mlp2"), width, width),
            norm: LayerNorm::new(&scope.sub("layer_norm"), width),
        }
    }

    /// States and embeddings of subjects, both [batch, width] -> [batch, width].
    pub fn fuse(&self, states: &Tensor, embeddings: &Tensor) -> Tensor {
        let joined = Tensor::cat(&[states, embeddings], -1);
        let first = states + self.mlp1.forward(&joined);
        let second = &first + self.mlp2.forward(&first);
        self.norm.forward(&second)
    }

    /// Replaces the states of subjects in text states [batch, tokens, width]. `positions` are their
    /// tokens; a text without one stays as it is.
    pub fn forward(
        &self,
        text: &Tensor,
        embeddings: &Tensor,
        positions: &[Option<usize>],
    ) -> Tensor {
        let size = text.size();
        let index = token_index(positions, text);
        let at = index.view([-1, 1, 1]).expand([-1, 1, size[2]], false);
        let states = text.gather(1, &at, false).squeeze_dim(1);
        let fused = self.fuse(&states, embeddings);
        let has: Vec<f32> = positions
            .iter()
            .map(|it| f32::from(u8::from(it.is_some())))
            .collect();
        // 1 at a subject's token. Every parameter stays in the graph, because DDP's Reducer waits
        // for all gradients.
        let replaced = Tensor::zeros([size[0], size[1]], (Kind::Float, text.device())).scatter(
            1,
            &index.view([-1, 1]),
            &Tensor::from_slice(&has)
                .view([-1, 1])
                .to_device(text.device()),
        );
        let replaced = replaced.unsqueeze(-1).to_kind(text.kind());
        text * (1 - &replaced) + fused.unsqueeze(1) * replaced
    }
}

/// The tokens of subjects, [batch]; the first token where there is none.
pub(super) fn token_index(positions: &[Option<usize>], like: &Tensor) -> Tensor {
    let index: Vec<i64> = positions.iter().map(|it| it.unwrap_or(0) as i64).collect();
    Tensor::from_slice(&index).to_device(like.device())
}
