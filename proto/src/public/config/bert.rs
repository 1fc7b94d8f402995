//! The files of a sentence encoder in the layout of `sentence-transformers`: `config.json` of a
//! BERT, and what is done with its states.

use super::{Fields, Found};
use crate::layout::{Activation, BertLayout, TransformerLayout};
use serde_json::json;

/// Reads the `config.json` of a `BertModel`.
///
/// # Errors
/// The first field that is not supported.
pub fn bert(text: &str) -> Found<BertLayout> {
    let mut fields = Fields::parse(text)?;
    fields.class("model_type", &["bert"])?;
    for (field, known) in [
        ("hidden_act", "gelu"),
        ("position_embedding_type", "absolute"),
    ] {
        if let Some(value) = fields.take(field).filter(|value| value != known) {
            return Err(fields.fault(field, &value, format!("only {known:?} is supported")));
        }
    }
    let layout = BertLayout {
        transformer: TransformerLayout {
            width: fields.count("hidden_size", 768)?,
            mlp_width: fields.count("intermediate_size", 3072)?,
            layers: fields.count("num_hidden_layers", 12)? as usize,
            heads: fields.count("num_attention_heads", 12)?,
            activation: Activation::Gelu,
            norm_epsilon: fields.number("layer_norm_eps", 1e-12)?,
        },
        vocabulary: fields.count("vocab_size", 30_522)?,
        tokens: fields.count("max_position_embeddings", 512)?,
        types: fields.count("type_vocab_size", 2)?,
    };
    let (width, heads) = (layout.transformer.width, layout.transformer.heads);
    if width % heads != 0 {
        let expected = format!("a divisor of hidden_size ({width}) is expected");
        return Err(fields.fault("num_attention_heads", &json!(heads), expected));
    }
    Ok(layout)
}

/// The number of tokens at which a text is cut, from `sentence_bert_config.json`; None if it does
/// not say.
///
/// # Errors
/// A value that is no number from 2 on.
pub fn sentence_tokens(text: &str) -> Found<Option<i64>> {
    const FIELD: &str = "max_seq_length";
    let mut fields = Fields::parse(text)?;
    let Some(value) = fields.take(FIELD) else {
        return Ok(None);
    };
    let tokens = value.as_i64().filter(|it| (2..=1 << 20).contains(it));
    let fault = || {
        fields.fault(
            FIELD,
            &value,
            "a whole number from 2 to 1048576 is expected",
        )
    };
    tokens.ok_or_else(fault).map(Some)
}

/// Accepts the `config.json` of a pooling that takes the mean over all tokens and nothing else.
///
/// # Errors
/// Another pooling.
pub fn mean_pooling(text: &str) -> Found<()> {
    const PREFIX: &str = "pooling_mode_";
    const MEAN: &str = "pooling_mode_mean_tokens";
    let fields = Fields::parse(text)?;
    for (field, value) in &fields.remaining {
        let expected = json!(field == MEAN);
        if field.starts_with(PREFIX) && *value != expected {
            let expected = format!("only the mean over tokens ({MEAN} alone) is supported");
            return Err(fields.fault(field, value, expected));
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The `config.json` of all-MiniLM-L6-v2.
    const MINILM: &str = r#"{"architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu", "hidden_size": 384, "intermediate_size": 1536,
        "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
        "num_attention_heads": 12, "num_hidden_layers": 6, "pad_token_id": 0,
        "position_embedding_type": "absolute", "type_vocab_size": 2, "vocab_size": 30522}"#;

    #[test]
    fn minilm_is_read_and_other_networks_are_refused_by_field() {
        let layout = bert(MINILM).unwrap();
        let transformer = &layout.transformer;
        assert_eq!(
            (transformer.width, transformer.layers, transformer.heads),
            (384, 6, 12)
        );
        assert_eq!(
            (layout.vocabulary, layout.tokens, layout.types),
            (30_522, 512, 2)
        );
        let refused =
            |from: &str, to: &str| bert(&MINILM.replace(from, to)).unwrap_err().to_string();
        assert_eq!(
            refused("\"gelu\"", "\"relu\""),
            "hidden_act is \"relu\"; only \"gelu\" is supported"
        );
        assert_eq!(
            refused("\"bert\"", "\"roberta\""),
            "model_type is \"roberta\"; \"bert\" is expected"
        );
        assert_eq!(
            refused("\"num_attention_heads\": 12", "\"num_attention_heads\": 7"),
            "num_attention_heads is 7; a divisor of hidden_size (384) is expected"
        );
    }

    #[test]
    fn only_the_mean_over_tokens_is_supported() {
        let pooling = |cls: bool, mean: bool| {
            mean_pooling(&format!(
                r#"{{"word_embedding_dimension": 384, "pooling_mode_cls_token": {cls},
                    "pooling_mode_mean_tokens": {mean}, "pooling_mode_max_tokens": false}}"#
            ))
        };
        pooling(false, true).unwrap();
        assert!(pooling(true, true).is_err() && pooling(false, false).is_err());
        assert_eq!(sentence_tokens(r#"{"max_seq_length": 256}"#), Ok(Some(256)));
        assert_eq!(sentence_tokens("{}"), Ok(None));
        assert!(sentence_tokens(r#"{"max_seq_length": 1}"#).is_err());
    }
}
