//! The VQA client with the stand-in for a model: answers about true images come from their
//! attributes, guesses about others from their pixels, and faults are retried or counted.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use figures::synthetic::{Backgrounds, Similar, SynthesizeOptions, synthesize};
use image::{ImageFormat, Rgb, RgbImage};
use metric::AnswerTable;
use std::io::Cursor;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tests::vqa::attributes::Attribute;
use tests::vqa::{Behaviour, Knowledge, MODEL, VqaServer};
use vqa::{Client, Image, Options, Questions, Reply};

const QUESTIONS: &str = include_str!("../../deploy/vqa/questions.toml");

fn figures() -> SynthesizeOptions {
    SynthesizeOptions {
        characters: 3,
        outfits: 1,
        images: 4,
        size: 48,
        seed: 11,
        similar: Similar::All,
        backgrounds: Backgrounds::Plain,
    }
}

/// Training takes a moment; all tests use the same.
static KNOWLEDGE: LazyLock<Arc<Knowledge>> = LazyLock::new(|| {
    let knowledge = Knowledge::new(&figures(), 120).unwrap();
    for found in knowledge.accuracy() {
        println!("{found:?}");
    }
    Arc::new(knowledge)
});

fn client(behaviour: Behaviour) -> (Client, VqaServer) {
    let server = VqaServer::start(Arc::clone(&KNOWLEDGE), behaviour, 0).unwrap();
    let options = Options {
        attempts: 2,
        first_wait: Duration::from_millis(1),
        ..Options::new(server.endpoint(), MODEL)
    };
    (Client::new(options, None).unwrap(), server)
}

fn questions() -> Questions {
    Questions::parse("questions.toml", QUESTIONS).unwrap()
}

/// The figures as images to ask about, with their tags.
fn images() -> (Vec<Image>, Vec<String>) {
    let samples = synthesize(&figures());
    let pairs = samples.map(|it| {
        let name = it.metadata.id;
        let bytes = it.image;
        (Image { name, bytes }, it.metadata.prompts)
    });
    pairs.unzip()
}

fn png(image: &RgbImage) -> Bytes {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).unwrap();
    Bytes::from(bytes.into_inner())
}

#[tokio::test]
async fn true_images_are_answered_from_their_attributes() {
    let (client, server) = client(Behaviour::default());
    assert!(client.server().await.unwrap().lists(MODEL));
    let (images, tags) = images();
    let rows = client.ask_all(&questions(), &images).await;
    for (row, tags) in rows.iter().zip(&tags) {
        for (answer, attribute) in row.iter().zip(Attribute::ALL) {
            let expected = attribute.answer(attribute.class(tags));
            let found = answer.as_ref().unwrap().text();
            assert_eq!(found.as_deref(), Some(expected), "{attribute:?} {tags}");
        }
    }
    assert_eq!((server.served().known, server.served().guessed), (48, 0));
    // The same pixels in another file are the same image.
    let pixels = image::load_from_memory(&images[0].bytes)
        .unwrap()
        .into_rgb8();
    let rewritten = Image {
        name: "rewritten".to_owned(),
        bytes: png(&pixels),
    };
    let again = client.ask_all(&questions(), &[rewritten]).await;
    let texts = |row: &[Result<vqa::Answer, vqa::VqaError>]| -> Vec<Option<String>> {
        row.iter().map(|it| it.as_ref().unwrap().text()).collect()
    };
    assert_eq!(texts(&again[0]), texts(&rows[0]));
    assert_eq!(server.served().known, 52);
}

#[tokio::test]
async fn other_images_are_guessed_from_their_pixels_better_than_by_chance() {
    for found in KNOWLEDGE.accuracy() {
        assert!(found.images >= 100);
        // Where a part is seen at 48 pixels at all.
        if matches!(found.attribute, Attribute::Gesture | Attribute::Activity) {
            assert!(found.right > found.most_frequent + 0.05, "{found:?}");
        }
    }
    let (client, server) = client(Behaviour::default());
    let grey = Image {
        name: "grey".to_owned(),
        bytes: png(&RgbImage::from_pixel(48, 48, Rgb([90; 3]))),
    };
    let rows = client.ask_all(&questions(), &[grey]).await;
    for (answer, attribute) in rows[0].iter().zip(Attribute::ALL) {
        let text = answer.as_ref().unwrap().text().unwrap();
        let known = (0..attribute.classes()).any(|class| attribute.answer(class) == text);
        assert!(known, "{text}");
    }
    assert_eq!((server.served().known, server.served().guessed), (0, 4));
}

#[tokio::test]
async fn faults_are_repeated_counted_or_left_out() {
    let behaviour = Behaviour {
        errors: 0.3,
        nonsense: 0.1,
        broken: 0.1,
        refusals: 0.15,
        empty: 0.1,
        seed: 5,
        ..Behaviour::default()
    };
    let (client, server) = client(behaviour);
    let (images, _) = images();
    let rows = client.ask_all(&questions(), &images).await;
    let counts = client.counts();
    let sum = |of: fn(&vqa::QuestionCounts) -> u64| counts.questions.values().map(of).sum::<u64>();
    let answers = [
        sum(|it| it.answered),
        sum(|it| it.refused),
        sum(|it| it.empty),
    ];
    let failed = sum(|it| it.failed);
    assert!(answers.iter().all(|it| *it > 0) && failed > 0 && counts.retries > 0);
    assert_eq!(answers.iter().sum::<u64>() + failed, 48);
    assert_eq!(answers[0], server.served().known);
    assert!((counts.failed_fraction() - failed as f64 / 48.0).abs() < 1e-12);
    // Nothing but an answer is in a mean.
    let mut table = AnswerTable::new(questions().names());
    for (image, row) in images.iter().zip(&rows) {
        let answers = row.iter().map(|it| it.as_ref().ok()?.text());
        table.insert(&image.name, answers.collect()).unwrap();
    }
    for (index, text) in table.texts().into_iter().enumerate() {
        table.embed(text, vec![1.0, index as f32]);
    }
    let all: Vec<&str> = images.iter().map(|it| it.name.as_str()).collect();
    let readings = all
        .iter()
        .map(|it| table.among_generated(it, all.clone()).unwrap());
    let readings: Vec<_> = readings.collect();
    let pairs: u64 = readings.iter().map(|it| it.pairs + it.left_out).sum();
    assert_eq!(pairs, 12 * 11 * 4);
    assert!(readings.iter().any(|it| it.left_out > 0));
}

#[tokio::test]
async fn noise_is_another_answer_and_always_the_same() {
    let noisy = Behaviour {
        noise: 1.0,
        ..Behaviour::default()
    };
    let (images, tags) = images();
    let mut found = Vec::new();
    for _ in 0..2 {
        let (client, _server) = client(noisy);
        let rows = client.ask_all(&questions(), &images[..3]).await;
        let texts = rows
            .into_iter()
            .flatten()
            .map(|it| it.unwrap().text().unwrap());
        found.push(texts.collect::<Vec<String>>());
    }
    assert_eq!(found[0], found[1]);
    for (index, text) in found[0].iter().enumerate() {
        let attribute = Attribute::ALL[index % 4];
        assert_ne!(text, attribute.answer(attribute.class(&tags[index / 4])));
    }
}

#[tokio::test]
async fn a_question_about_something_else_is_unanswerable() {
    let (client, _server) = client(Behaviour::default());
    let text = "[[question]]\nname = \"weather\"\ntext = \"How is the weather?\"\n";
    let questions = Questions::parse("q.toml", text).unwrap();
    let rows = client.ask_all(&questions, &images().0[..1]).await;
    let reply = &rows[0][0].as_ref().unwrap().reply;
    assert_eq!(*reply, Reply::Text("unanswerable".to_owned()));
}
