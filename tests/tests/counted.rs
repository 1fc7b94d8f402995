//! What becomes of samples without a fault is counted and said wherever a data set is looked at: by
//! import, `describe`, `verify` and `submit`, in real processes.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};
use tests::cluster::binary;

fn run(program: &str, folder: &Path, arguments: &[&str]) -> Output {
    Command::new(binary(program).unwrap())
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

/// Stdout of a command that must succeed.
fn succeed(program: &str, folder: &Path, arguments: &[&str]) -> String {
    let output = run(program, folder, arguments);
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn prompts_that_are_cut_are_counted_wherever_a_data_set_is_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let input = here.join("in");
    std::fs::create_dir(&input).unwrap();
    image::RgbImage::from_pixel(32, 32, image::Rgb([200, 30, 30]))
        .save(input.join("p.png"))
        .unwrap();
    image::GrayImage::from_fn(32, 32, |x, _| image::Luma([if x < 24 { 255 } else { 0 }]))
        .save(input.join("m.png"))
        .unwrap();
    let long: Vec<String> = (10..50).map(|n| format!("tag_number_{n}")).collect();
    let row = |id: &str, prompts: &str| {
        format!(
            "{{\"id\":\"{id}\",\"character\":\"c\",\"artists\":\"x\",\"outfit\":\"o\",\
             \"prompts\":\"{prompts}\",\"bbox\":[0.5,0.25,0.5,0.3],\"image\":\"p.png\",\
             \"mask\":\"m.png\"}}\n"
        )
    };
    let rows = row("a", &(long.join(", ") + ", white_dress")) + &row("b", "1girl, white_dress");
    std::fs::write(input.join("samples.jsonl"), rows).unwrap();
    let counted = "1 of 2 prompts are longer than the 77 tokens that the model reads";
    let text = succeed(
        "coordinator",
        here,
        &["dataset", "import", "in", "--out", "d"],
    );
    assert!(
        text.contains(counted) && text.contains("lost most often: "),
        "{text}"
    );
    let describe = ["dataset", "describe", "d"];
    let text = succeed("coordinator", here, &describe);
    let lost = text.split_once("LOST TAG").map_or("", |(_, table)| table);
    assert!(
        text.contains(counted) && lost.contains("tag_number_39"),
        "{text}"
    );
    let json = [&describe[..], &["--output", "json"]].concat();
    let json: Value = serde_json::from_str(&succeed("coordinator", here, &json)).unwrap();
    assert_eq!(json["cut_prompts"]["cut"], 1);
    let job = "name = \"demo\"\n[data]\ndataset = \"d\"\nresolution = 32\nholdout = 0\n[model]\n\
               architecture = \"text-to-image\"\nsize = \"tiny\"\n[train]\nsteps = 1\n\
               global_batch = 1\nmicro_batch = 1\n";
    std::fs::write(here.join("job.toml"), job).unwrap();
    let submit = ["submit", "job.toml", "--dry-run", "--offline"];
    let text = succeed("coordinator", here, &submit);
    assert!(text.contains(&format!("\nnote: {counted}")), "{text}");
    // Of short prompts a line says so.
    std::fs::write(input.join("samples.jsonl"), row("b", "1girl, white_dress")).unwrap();
    let again = ["dataset", "import", "in", "--out", "d", "--replace"];
    let text = succeed("coordinator", here, &again);
    assert!(
        text.contains("no prompt is longer than the 77 tokens"),
        "{text}"
    );
    assert!(!succeed("coordinator", here, &describe).contains("LOST TAG"));
}

/// A figure of `width` x `height` pixels with its mask, and its row.
fn row(input: &Path, id: &str, outfit: &str, (width, height): (u32, u32)) -> String {
    image::RgbImage::from_pixel(width, height, image::Rgb([200, 30, 30]))
        .save(input.join(format!("{id}.png")))
        .unwrap();
    image::GrayImage::from_fn(width, height, |x, _| {
        image::Luma([if x < width / 2 { 255 } else { 0 }])
    })
    .save(input.join(format!("{id}-mask.png")))
    .unwrap();
    format!(
        "{{\"id\":\"{id}\",\"character\":\"c\",\"artists\":\"x\",\"outfit\":\"{outfit}\",\
         \"prompts\":\"1girl\",\"bbox\":[0.25,0.25,0.5,0.3],\"image\":\"{id}.png\",\
         \"mask\":\"{id}-mask.png\"}}\n"
    )
}

#[test]
fn small_and_narrow_images_and_too_few_references_are_counted_wherever_a_data_set_is_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let input = here.join("in");
    std::fs::create_dir(&input).unwrap();
    let rows = [
        row(&input, "large", "o", (800, 800)),
        row(&input, "small", "o", (40, 50)),
        row(&input, "strip", "o", (800, 80)),
        row(&input, "alone", "other", (64, 64)),
    ];
    std::fs::write(input.join("samples.jsonl"), rows.concat()).unwrap();
    let small = "of 4 images are smaller in pixels: 2 than 256, 2 than 384, 2 than 512, 2 than \
                 768; a job with a larger data.resolution enlarges them (the smallest, small, has \
                 50)";
    let padded = "1 of 4 images are more than 4 times as long as they are wide or high";
    for command in [
        &["dataset", "import", "in", "--out", "d"][..],
        &["dataset", "describe", "d"],
        &["dataset", "verify", "d"],
    ] {
        let text = succeed("coordinator", here, command);
        assert!(text.contains(small) && text.contains(padded), "{text}");
    }
    let json = ["dataset", "describe", "d", "--output", "json"];
    let json: Value = serde_json::from_str(&succeed("coordinator", here, &json)).unwrap();
    assert_eq!(json["sizes"]["smaller"]["256"], 2);
    assert_eq!(json["sizes"]["narrowest"][0], "strip");

    let job = "name = \"demo\"\n[data]\ndataset = \"d\"\nresolution = 64\nholdout = 0\n\
               references = 3\npairing = \"b\"\n[model]\narchitecture = \"retrinet\"\n\
               size = \"tiny\"\n[train]\nsteps = 1\nglobal_batch = 1\nmicro_batch = 1\n";
    std::fs::write(here.join("job.toml"), job).unwrap();
    let submit = ["submit", "job.toml", "--dry-run", "--offline"];
    let text = succeed("coordinator", here, &submit);
    for note in [
        "1 samples are left out, because pairing b needs another image",
        "3 of 3 samples have fewer other images than data.references",
        "1 of 3 images are smaller than the 64 pixels of data.resolution, and are enlarged (the \
         smallest, small, has 50)",
        "1 of 3 images are more than 4 times as long as they are wide or high",
    ] {
        assert!(text.contains(&format!("\nnote: {note}")), "{note}: {text}");
    }
}
