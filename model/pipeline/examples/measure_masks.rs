//! How well the defaults of `[masks]` and `[faces]` find what is drawn, and how fast:
//! `measure_masks SOURCE FOLDER COUNT`. SOURCE is `figures`, for synthetic figures, or what
//! `deploy/data/wesnoth.py --out` has written: frames with alpha, which have no known faces. They
//! are put over white and over a meadow of noise. FOLDER gets the images and the outputs.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "../tests/danbooru/mod.rs"]
mod danbooru;

use image::{Rgb, RgbImage, RgbaImage};
use model_data::pipeline_inputs::inputs;
use pipeline::output::Outputs;
use proto::build::pipeline::Pipeline;
use proto::build::{BuildWork, Stage};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

const TEXT: &str = "out = \"out\"\n[[posts]]\nfrom = \"posts\"\n[dataset]\nimages = \"images\"\n\
    [masks]\ntruth = \"truth\"\n";
const FACES: &str = "[faces]\ntruth = \"boxes\"\n";

/// A sprite over a background, of which each pixel depends on its place alone.
fn over(sprite: &RgbaImage, is_meadow: bool) -> RgbImage {
    RgbImage::from_fn(sprite.width(), sprite.height(), |x, y| {
        let noise = (x.wrapping_mul(0x9E37_79B9) ^ y.wrapping_mul(0x85EB_CA6B)) >> 7;
        let noise = u8::try_from(noise % 48).unwrap();
        let under = if is_meadow {
            [60 + noise, 110 + noise, 40 + noise / 2]
        } else {
            [255; 3]
        };
        let pixel = sprite.get_pixel(x, y).0;
        let alpha = u16::from(pixel[3]);
        let mixed = [0, 1, 2].map(|it| {
            let sum = u16::from(pixel[it]) * alpha + u16::from(under[it]) * (255 - alpha);
            u8::try_from(sum / 255).unwrap()
        });
        Rgb(mixed)
    })
}

fn write(sprites: &Path, folder: &Path, count: usize, is_meadow: bool) {
    let rows = std::fs::read_to_string(sprites.join("samples.jsonl")).unwrap();
    let rows: Vec<Value> = rows
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let every = (rows.len() / count).max(1);
    for part in ["images", "truth"] {
        std::fs::create_dir_all(folder.join(part)).unwrap();
    }
    let mut posts = std::fs::File::create(folder.join("posts")).unwrap();
    for (id, row) in (1..).zip(rows.iter().step_by(every).take(count)) {
        let file = sprites.join(row["image"].as_str().unwrap());
        let sprite = image::open(file).unwrap().into_rgba8();
        sprite.save(folder.join(format!("truth/{id}.png"))).unwrap();
        let shown = over(&sprite, is_meadow);
        shown.save(folder.join(format!("images/{id}.png"))).unwrap();
        let post = json!({"id": id, "md5": "", "rating": "g", "image_width": sprite.width(),
            "image_height": sprite.height(), "file_ext": "png", "parent_id": null,
            "has_children": false, "is_deleted": false, "is_banned": false,
            "tag_string_general": "1other armor dress", "tag_string_character": "unit",
            "tag_string_artist": "wesnoth"});
        writeln!(posts, "{post}").unwrap();
    }
}

/// Synthetic figures of 192 pixels, four pictures of each outfit.
fn write_figures(folder: &Path, count: usize) {
    let drawn = danbooru::drawn(u32::try_from(count.div_ceil(8)).unwrap(), 4, 192);
    for part in ["images", "truth"] {
        std::fs::create_dir_all(folder.join(part)).unwrap();
    }
    for (post, sample) in &drawn {
        let name = format!("{}.png", post.id);
        std::fs::write(folder.join("images").join(&name), &sample.image).unwrap();
        std::fs::write(folder.join("truth").join(&name), &sample.mask).unwrap();
    }
    let posts = danbooru::lines(drawn.iter().map(|(post, _)| danbooru::new(post)));
    std::fs::write(folder.join("posts"), posts).unwrap();
    let boxes = drawn
        .iter()
        .map(|(post, it)| json!({"id": post.id, "bbox": it.metadata.bbox}));
    std::fs::write(folder.join("boxes"), danbooru::lines(boxes)).unwrap();
}

async fn measure(folder: &Path, text: &str) {
    let pipeline = Pipeline::parse("measure", text, folder).unwrap();
    for planned in pipeline.stages(&inputs(&pipeline).await.unwrap()) {
        let stage = planned.plan.stage();
        if stage == Stage::Dataset {
            return;
        }
        let work = BuildWork {
            out: pipeline.out.clone(),
            key: planned.plan.key(),
            units: 1,
        };
        let output = Outputs::open(&work.out).unwrap().stage(&work.key);
        output.put_plan(&planned.plan).await.unwrap();
        let begun = Instant::now();
        for unit in 0..=1 {
            pipeline::unit::run(&work, unit, &folder.join("scratch"))
                .await
                .unwrap();
        }
        let report = output.manifest().await.unwrap().unwrap().report;
        if matches!(stage, Stage::Masks | Stage::Faces) {
            let seconds = begun.elapsed().as_secs_f64();
            for sentence in &report.found {
                println!("{sentence}");
            }
            println!("{:.2} images a second", report.rows_in as f64 / seconds);
            println!("{:?} {:?}", report.losses, report.counts);
            println!("{}/{}", folder.join("out").display(), work.key.folder());
        }
    }
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let (sprites, folder) = (PathBuf::from(&arguments[1]), PathBuf::from(&arguments[2]));
    let count: usize = arguments[3].parse().unwrap();
    if arguments[1] == "figures" {
        let folder = folder.join("figures");
        std::fs::create_dir_all(&folder).unwrap();
        write_figures(&folder, count);
        println!("synthetic figures:");
        return measure(&folder, &format!("{TEXT}{FACES}")).await;
    }
    for (name, is_meadow) in [("white", false), ("meadow", true)] {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        write(&sprites, &folder, count, is_meadow);
        println!("sprites over {name}:");
        measure(&folder, TEXT).await;
    }
}
