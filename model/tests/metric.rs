//! CLIP-I and CLIP-T of a small CLIP against torchmetrics, the sentence encoder's folder, and the
//! refusal of what is not theirs.
#![allow(clippy::unwrap_used)]

mod golden_file;

use golden_file::{fill, values};
use image::{Rgb, RgbImage};
use metric::cosine;
use model::metric::{Clip, LongText, Lpips, SentenceEncoder};
use model::parameter::Parameters;
use model::text::TextEncoder;
use model::vision::ImageEncoder;
use model::weights::{NamedTensors, Storage, write};
use proto::public::config;
use serde_json::{Value, json};
use std::path::Path;
use tch::Device;
use tempfile::TempDir;

/// Both towers as tests/golden/make_metric.py has them.
fn clip_config(end: i64) -> Value {
    let tower = |more: Value| {
        let mut tower = json!({"hidden_size": 32, "intermediate_size": 64,
            "num_attention_heads": 4, "num_hidden_layers": 2});
        let fields = tower.as_object_mut().unwrap();
        fields.extend(more.as_object().unwrap().clone());
        tower
    };
    json!({"model_type": "clip", "projection_dim": 16,
        "text_config": tower(json!({"vocab_size": 49408, "max_position_embeddings": 77,
            "eos_token_id": end})),
        "vision_config": tower(json!({"image_size": 32, "patch_size": 8}))})
}

/// A folder with this config and weights that the script computes, too.
fn clip_folder(config: &Value) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let text = config.to_string();
    let parameters = Parameters::seeded(0, Device::Cpu);
    let _ = TextEncoder::new(&parameters.root(), &config::text(&text, true).unwrap());
    let _ = ImageEncoder::new(&parameters.root(), &config::image(&text).unwrap());
    fill(&parameters);
    let mut tensors = parameters.tensors();
    tensors.insert("logit_scale".into(), values("logit_scale", &[1]).get(0));
    save(folder.path(), config, &tensors);
    folder
}

fn save(folder: &Path, config: &Value, tensors: &NamedTensors) {
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    write(&folder.join("model.safetensors"), tensors, Storage::Float32).unwrap();
}

/// Pixels as `noise` in tests/parity/clip_tools.py.
fn noise(width: u32, height: u32) -> RgbImage {
    let mut state = width.wrapping_mul(0x9e37_79b9) ^ height;
    RgbImage::from_fn(width, height, |_, _| {
        Rgb([0; 3].map(|_: u8| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        }))
    })
}

#[test]
fn cosines_are_those_of_torchmetrics() {
    tch::set_num_threads(1);
    let golden: Value =
        serde_json::from_str(include_str!("../../tests/golden/metric.json")).unwrap();
    let strings = |name: &str| -> Vec<String> { from(&golden[name]) };
    let sizes: Vec<(u32, u32)> = from(&golden["sizes"]);
    let images: Vec<RgbImage> = sizes.iter().map(|(w, h)| noise(*w, *h)).collect();
    for (end, expected) in golden["end_tokens"].as_object().unwrap() {
        let folder = clip_folder(&clip_config(end.parse().unwrap()));
        let clip = Clip::open(folder.path(), Device::Cpu).unwrap();
        let images = clip.embed_images(&images).unwrap();
        let texts = |prompts: &[String], long| -> Vec<Vec<f32>> {
            let found = clip.embed_texts(prompts, long).unwrap();
            found.into_iter().map(|it| it.embedding).collect()
        };
        let check = |name: &str, first: &[Vec<f32>], second: &[Vec<f32>]| {
            let expected: Vec<f64> = from(&expected[name]);
            for (index, expected) in expected.iter().enumerate() {
                let found = cosine(&first[index], &second[index]).unwrap();
                let off = (found - expected).abs();
                assert!(off < 1e-5, "{end} {name} {index}: {found} {expected}");
            }
        };
        let prompts = strings("prompts");
        check("clip_t", &images, &texts(&prompts, LongText::KeepEnd));
        check("clip_t", &images, &texts(&prompts, LongText::Slice));
        let mut rotated = images.clone();
        rotated.rotate_left(1);
        check("clip_i", &images, &rotated);
        let long = strings("long_prompts");
        check("clip_t_sliced", &images, &texts(&long, LongText::Slice));
        // With its end token a long prompt means what its first 75 tokens mean.
        let kept = texts(&long, LongText::KeepEnd);
        let sliced = texts(&long, LongText::Slice);
        assert!((0..long.len()).all(|i| cosine(&kept[i], &sliced[i]).unwrap() < 0.999));
        // Sliced, all long prompts are the same to the tower.
        assert!(sliced.iter().all(|it| *it == sliced[0]), "{end}");
        assert_ne!(kept[0], kept[1]);
    }
}

fn from<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn embeddings_have_length_one_and_do_not_depend_on_neighbours() {
    let folder = clip_folder(&clip_config(49407));
    let clip = Clip::open(folder.path(), Device::Cpu).unwrap();
    assert_eq!((clip.side(), clip.tokens(), clip.width()), (32, 77, 16));
    let images = [noise(40, 30), noise(30, 40), noise(1, 500)];
    let together = clip.embed_images(&images).unwrap();
    for (image, embedding) in images.iter().zip(&together) {
        assert_eq!(clip.embed_image(image).unwrap(), *embedding);
        let length: f32 = embedding.iter().map(|it| it * it).sum();
        assert!((length - 1.0).abs() < 1e-5);
    }
    let texts = [
        "a",
        "word ".repeat(76).as_str(),
        "word ".repeat(75).as_str(),
    ]
    .map(str::to_owned);
    let found = clip.embed_texts(&texts, LongText::KeepEnd).unwrap();
    let lengths: Vec<(usize, bool)> = found.iter().map(|it| (it.tokens, it.cut)).collect();
    assert_eq!(lengths, [(3, false), (78, true), (77, false)]);
}

#[test]
fn an_exported_folder_is_opened_from_outside_too() {
    let folder = clip_folder(&clip_config(49407));
    let outer = tempfile::tempdir().unwrap();
    std::fs::rename(folder.path(), outer.path().join("clip")).unwrap();
    assert!(Clip::open(outer.path(), Device::Cpu).is_ok());
    std::fs::rename(outer.path().join("clip"), folder.path()).unwrap();
}

#[test]
fn a_folder_that_is_no_clip_is_refused_by_file_and_field() {
    let folder = clip_folder(&clip_config(49407));
    let path = folder.path();
    let refused = || Clip::open(path, Device::Cpu).unwrap_err().to_string();
    let with = |pointer: &str, value: Value| {
        let mut config = clip_config(49407);
        *config.pointer_mut(pointer).unwrap() = value;
        std::fs::write(path.join("config.json"), config.to_string()).unwrap();
        refused()
    };
    let error = with("/text_config/vocab_size", json!(1000));
    assert!(
        error.contains("text_config.vocab_size is 1000; prompts become tokens"),
        "{error}"
    );
    let error = with("/projection_dim", json!(24));
    assert!(
        error.contains("has shape [16, 32]; expected [24, 32]"),
        "{error}"
    );
    let error = with("/vision_config/patch_size", json!(16));
    assert!(error.contains("model.safetensors"), "{error}");
    let error = with("/model_type", json!("siglip"));
    assert!(error.contains("model_type is \"siglip\""), "{error}");
    std::fs::write(path.join("config.json"), clip_config(49407).to_string()).unwrap();
    std::fs::write(path.join("preprocessor_config.json"), r#"{"resample": 2}"#).unwrap();
    let error = refused();
    assert!(
        error.contains("preprocessor_config.json: resample is 2; only 3 (bicubic)"),
        "{error}"
    );
    std::fs::remove_file(path.join("preprocessor_config.json")).unwrap();
    std::fs::remove_file(path.join("config.json")).unwrap();
    assert!(refused().contains("expected: config.json beside them"));
    let error = Clip::open(Path::new("/none"), Device::Cpu).unwrap_err();
    assert!(error.to_string().starts_with("/none"), "{error}");
}

/// Weights of names; those of the heads are not negative.
fn lpips_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let layers = [
        (0, 3, 64, 11),
        (3, 64, 192, 5),
        (6, 192, 384, 3),
        (8, 384, 256, 3),
        (10, 256, 256, 3),
    ];
    let (mut backbone, mut heads) = (NamedTensors::new(), NamedTensors::new());
    for (index, (number, inputs, outputs, kernel)) in layers.into_iter().enumerate() {
        let weight = format!("features.{number}.weight");
        let fan_in = (inputs * kernel * kernel) as f64;
        let values_of = values(&weight, &[outputs, inputs, kernel, kernel]);
        backbone.insert(weight, values_of * (12.0 / fan_in).sqrt());
        let bias = format!("features.{number}.bias");
        backbone.insert(bias.clone(), values(&bias, &[outputs]) * 0.2);
        let head = format!("lin{index}.model.1.weight");
        let values_of = values(&head, &[1, outputs, 1, 1]) * (12.0 / outputs as f64).sqrt();
        heads.insert(head, values_of.abs());
    }
    // Of the classifier, which is not used.
    backbone.insert("classifier.6.bias".into(), values("x", &[10]));
    let path = |name: &str| folder.path().join(name);
    write(&path("alexnet.safetensors"), &backbone, Storage::Float32).unwrap();
    write(&path("lpips.safetensors"), &heads, Storage::Float32).unwrap();
    folder
}

#[test]
fn lpips_is_that_of_torchmetrics() {
    tch::set_num_threads(1);
    let golden: Value =
        serde_json::from_str(include_str!("../../tests/golden/metric.json")).unwrap();
    let folder = lpips_folder();
    let lpips = Lpips::open(folder.path(), Device::Cpu).unwrap();
    let cases: Vec<(u32, u32, f64)> = from(&golden["lpips"]);
    assert_eq!(cases.len(), 3);
    for (width, height, expected) in cases {
        let image = noise(width, height);
        let mirrored = image::imageops::flip_horizontal(&image);
        let found = lpips.distance(&image, &mirrored).unwrap();
        assert!((found / expected - 1.0).abs() < 1e-4, "{found} {expected}");
        assert_eq!(lpips.distance(&image, &image).unwrap(), 0.0);
    }
    // Another size is brought to the first image's.
    assert!(lpips.distance(&noise(48, 40), &noise(96, 96)).unwrap() > 0.0);
    let error = lpips.distance(&noise(31, 40), &noise(31, 40)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the image is 31x40 pixels; at least 32 in each direction are compared"
    );
    std::fs::remove_file(folder.path().join("lpips.safetensors")).unwrap();
    let error = Lpips::open(folder.path(), Device::Cpu)
        .unwrap_err()
        .to_string();
    assert!(error.contains("lpips.safetensors"), "{error}");
}

const WORDS: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\nleft\nright\nsmile\n";

/// A sentence encoder with weights of names.
fn sentence_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({"model_type": "bert", "hidden_size": 8, "intermediate_size": 16,
        "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 7,
        "max_position_embeddings": 16});
    let mut tensors = NamedTensors::new();
    let mut add = |name: String, shape: &[i64]| {
        tensors.insert(name.clone(), values(&name, shape));
    };
    for (name, rows) in [("word", 7), ("position", 16), ("token_type", 2)] {
        add(format!("embeddings.{name}_embeddings.weight"), &[rows, 8]);
    }
    let mut norms = vec!["embeddings".to_owned()];
    for layer in 0..2 {
        let layer = format!("encoder.layer.{layer}");
        let linear = [
            ("attention.self.query", 8, 8),
            ("attention.self.key", 8, 8),
            ("attention.self.value", 8, 8),
            ("attention.output.dense", 8, 8),
            ("intermediate.dense", 16, 8),
            ("output.dense", 8, 16),
        ];
        for (name, outputs, inputs) in linear {
            add(format!("{layer}.{name}.weight"), &[outputs, inputs]);
            add(format!("{layer}.{name}.bias"), &[outputs]);
        }
        norms.extend(["attention.output", "output"].map(|it| format!("{layer}.{it}")));
    }
    for norm in norms {
        add(format!("{norm}.LayerNorm.weight"), &[8]);
        add(format!("{norm}.LayerNorm.bias"), &[8]);
    }
    add("pooler.dense.weight".to_owned(), &[8, 8]);
    save(folder.path(), &config, &tensors);
    std::fs::write(folder.path().join("vocab.txt"), WORDS).unwrap();
    folder
}

#[test]
fn sentences_become_vectors_of_length_one_and_long_ones_are_cut() {
    let folder = sentence_folder();
    let limit = folder.path().join("sentence_bert_config.json");
    std::fs::write(limit, r#"{"max_seq_length": 5}"#).unwrap();
    let encoder = SentenceEncoder::open(folder.path(), Device::Cpu).unwrap();
    let texts = [
        "left smile",
        "Left, Smile",
        "left",
        "",
        "left right smile",
        "left right smile right",
    ];
    let texts = texts.map(str::to_owned);
    let found = encoder.embed(&texts).unwrap();
    for text in &found {
        let length: f32 = text.embedding.iter().map(|it| it * it).sum();
        assert!((length - 1.0).abs() < 1e-5);
    }
    assert_eq!(found[0].tokens, 4);
    assert_ne!(found[0].embedding, found[2].embedding);
    // The comma is unknown here.
    assert_eq!((found[1].tokens, found[3].tokens), (5, 2));
    assert!(!found[4].cut && found[5].cut && found[5].tokens == 6);
    assert_eq!(found[4].embedding, found[5].embedding);
    assert_eq!(encoder.embed_text("left").unwrap(), found[2]);
}

#[test]
fn a_folder_that_is_no_sentence_encoder_is_refused_by_file() {
    let folder = sentence_folder();
    let path = folder.path();
    let refused = || {
        SentenceEncoder::open(path, Device::Cpu)
            .unwrap_err()
            .to_string()
    };
    std::fs::write(path.join("vocab.txt"), format!("{WORDS}more\n")).unwrap();
    let error = refused();
    assert!(
        error.ends_with("vocab.txt: it has 8 tokens; config.json names 7"),
        "{error}"
    );
    std::fs::write(path.join("vocab.txt"), "a\nb").unwrap();
    assert!(refused().contains("vocab.txt: it has no token \"[CLS]\""));
    std::fs::remove_file(path.join("vocab.txt")).unwrap();
    assert!(refused().contains("expected: vocab.txt beside them"));
    std::fs::write(path.join("vocab.txt"), WORDS).unwrap();
    std::fs::create_dir(path.join("1_Pooling")).unwrap();
    let pooling = r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#;
    std::fs::write(path.join("1_Pooling/config.json"), pooling).unwrap();
    assert!(refused().contains("pooling_mode_cls_token is true"));
}
