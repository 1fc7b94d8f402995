//! A stand-in for a VQA model, for benchmarks without one: see `tests/src/vqa/mod.rs`. Prints the
//! accuracy of its guesses and its endpoint, then serves until it is killed.
//!
//! The figures' options are those of `coordinator dataset synthesize`, so that its images are
//! known.

use anyhow::{Context, Result, bail};
use figures::synthetic::{Backgrounds, Similar, SynthesizeOptions};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tests::vqa::{Behaviour, Knowledge, MODEL, VqaServer};

const USAGE: &str = "usage: vqa_server [--characters N] [--outfits N] [--images N] [--size PIXELS] \
    [--seed N] [--plain 1] [--training CHARACTERS] [--port N] [--delay-ms N] [--noise FRACTION] \
    [--errors FRACTION] [--broken FRACTION] [--refusals FRACTION] [--empty FRACTION] \
    [--nonsense FRACTION]";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut figures = SynthesizeOptions {
        characters: 40,
        outfits: 2,
        images: 8,
        size: 64,
        seed: 0,
        similar: Similar::All,
        backgrounds: Backgrounds::All,
    };
    let (mut training, mut port, mut behaviour) = (160, 0, Behaviour::default());
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments
            .next()
            .with_context(|| format!("{flag} needs a value"))?;
        let number: f64 = value
            .parse()
            .with_context(|| format!("{flag} `{value}` is not a number"))?;
        let is_fraction = (0.0..=1.0).contains(&number);
        let fraction = || {
            let fault = format!("{flag} `{value}` is not between 0 and 1");
            is_fraction.then_some(number).context(fault)
        };
        let count = || {
            value
                .parse::<u32>()
                .with_context(|| format!("{flag} `{value}`"))
        };
        match flag.as_str() {
            "--characters" => figures.characters = count()?,
            "--outfits" => figures.outfits = count()?,
            "--images" => figures.images = count()?,
            "--size" => figures.size = count()?,
            "--seed" => figures.seed = u64::from(count()?),
            "--plain" if count()? == 1 => figures.backgrounds = Backgrounds::Plain,
            "--training" => training = count()?,
            "--port" => port = value.parse().context("--port")?,
            "--delay-ms" => behaviour.delay = Duration::from_millis(u64::from(count()?)),
            "--noise" => behaviour.noise = fraction()?,
            "--errors" => behaviour.errors = fraction()?,
            "--broken" => behaviour.broken = fraction()?,
            "--refusals" => behaviour.refusals = fraction()?,
            "--empty" => behaviour.empty = fraction()?,
            "--nonsense" => behaviour.nonsense = fraction()?,
            _ => bail!("`{flag}`: {USAGE}"),
        }
    }
    let knowledge = Arc::new(Knowledge::new(&figures, training)?);
    println!("not a vision model: it knows the synthetic figures, and guesses other images");
    for found in knowledge.accuracy() {
        println!(
            "guesses of {:?} are right for {:.1} % of {} images of characters held out; the most \
             frequent answer would be for {:.1} %",
            found.attribute,
            100.0 * found.right,
            found.images,
            100.0 * found.most_frequent
        );
    }
    let server = VqaServer::start(knowledge, behaviour, port)?;
    println!("serving {MODEL} at {}", server.endpoint());
    loop {
        std::thread::park();
    }
}
