//! Sampling: the same request gives the same images, with the requested weights and references.

use crate::world::{TestRank, World, copy_renamed, units_of};
use proto::id::{Generation, Step};
use proto::message::{Assignment, GracefulStop, RankPhase, Stage, UnitRange};
use proto::sample::{
    Concept, ImageSource, MaskFile, NamedReference, SampleMethod, SamplePrompt, SampleWork,
};
use proto::spec::{Pairing, Task};
use proto::text::hex_sha256;
use serde_json::Value;
use std::path::Path;

#[test]
fn images_are_generated_from_a_checkpoint_and_evaluated() {
    let world = World::new();
    let trained = world.run(&world.assignment);
    let checkpoint = world.commit(&world.assignment, &trained, Step(4));
    let request = SampleWork {
        count: 5,
        method: SampleMethod::DpmSolver,
        steps: 2,
        guidance: 2.0,
        seeds: vec![3],
        prompt: SamplePrompt::Pose,
        ..SampleWork::of(world.assignment.job.clone())
    };
    let images = |job: &str, at| world.images(&world.assignment, job, &request, at);
    let (mut record, files) = images("tiny-1-sample-2", Some(checkpoint));
    assert_eq!(files.len(), 5);
    // Four identities in total: the target's and three others.
    assert_eq!(record["summary"]["of"], 4);
    assert_eq!(record["summary"]["count"], 5);
    assert_eq!(record["images"].as_array().unwrap().len(), 5);
    assert!(
        !record["images"][0]["prompt"]
            .as_str()
            .unwrap()
            .contains("_hair"),
        "{record}"
    );
    // The images do not depend on the batch size of the job.
    let batched = Assignment {
        job_toml: world
            .assignment
            .job_toml
            .replace("micro_batch = 2", "micro_batch = 3"),
        ..world.assignment.clone()
    };
    let (mut again, same) = world.images(&batched, "tiny-1-sample-3", &request, Some(checkpoint));
    for record in [&mut record, &mut again] {
        let images = record["images"].as_array_mut().unwrap();
        images.iter_mut().for_each(|it| it["job"] = "any".into());
    }
    assert_eq!((again, same), (record, files.clone()));
    let (_, base) = images("tiny-1-sample-4", None);
    assert_ne!(base, files, "the base weights give other images");
}

#[test]
fn swapped_references_are_another_characters_and_nothing_else_changes() {
    let world = World::new();
    let request = |swap_references| SampleWork {
        count: 4,
        method: SampleMethod::DpmSolver,
        steps: 2,
        swap_references,
        ..SampleWork::of(world.assignment.job.clone())
    };
    let images = |job: &str, swap| world.images(&world.assignment, job, &request(swap), None);
    let (own, files) = images("tiny-1-sample-1", false);
    let (swapped, same) = images("tiny-1-sample-2", true);
    // A RetriNet that was not trained ignores its references, so only the noise and the prompt
    // decide.
    assert_eq!(files, same);
    // The ids of synthetic figures begin with the number of their character.
    let character = |id: &Value| id.as_str().unwrap().split('-').next().unwrap().to_owned();
    for index in 0..4 {
        let [own, swapped] = [&own, &swapped].map(|record| &record["images"][index]);
        assert_eq!(own["prompt"], swapped["prompt"]);
        assert_eq!(own["target"]["id"], swapped["target"]["id"]);
        assert!(own["target"].get("references_of").is_none());
        let target = character(&own["target"]["id"]);
        let donor = character(&swapped["target"]["references_of"]);
        assert_ne!(target, donor);
        for (record, expected) in [(own, &target), (swapped, &donor)] {
            for reference in record["references"].as_array().unwrap() {
                assert_eq!(character(&reference["sample"]), *expected, "{record}");
            }
        }
        let (nearest, correct) = (&swapped["target"]["nearest"], &swapped["target"]["correct"]);
        assert_eq!(correct.as_bool().unwrap(), *nearest == 1);
    }
    assert!(own["summary"].get("old").is_none());
    let nearest = |index: usize| {
        let images = swapped["images"].as_array().unwrap().iter();
        images.filter(|it| it["target"]["nearest"] == index).count()
    };
    assert_eq!(swapped["summary"]["old"], nearest(0));
    assert_eq!(swapped["summary"]["correct"], nearest(1));
}

#[test]
fn images_are_generated_with_the_moving_average_if_there_is_one() {
    let world = World::new();
    let quick = world
        .assignment
        .job_toml
        .replace("learning_rate = 0.001", "learning_rate = 0.05");
    let averaged = Assignment {
        job_toml: quick.replace("threads = 1", "threads = 1\nema = 0.5"),
        ..world.assignment.clone()
    };
    let reports = world.run(&averaged);
    let request = SampleWork {
        method: SampleMethod::DpmSolver,
        steps: 2,
        ..SampleWork::of(world.assignment.job.clone())
    };
    let checkpoint = world.commit(&averaged, &reports, Step(4));
    let (record, images) = world.images(&averaged, "tiny-1-sample-1", &request, Some(checkpoint));
    let weights = |record: &Value| record["images"][0]["checkpoint"]["weights"].clone();
    assert_eq!(weights(&record), "moving average");
    // A job without an average, whose weights are either the averages or the last weights.
    let plain = |generation, taken: &'static str| {
        let plain = Assignment {
            job_toml: quick.clone(),
            generation: Generation(generation),
            ..world.assignment.clone()
        };
        let shard = |of: &Assignment| {
            world
                .checkpoint(of, Step(4))
                .join("rank-0-of-1.safetensors")
        };
        copy_renamed(&shard(&averaged), &shard(&plain), |name| {
            match name.strip_prefix(taken) {
                Some(name) => Some(format!("weights/{name}")),
                None => name.starts_with("optimizer/").then(|| name.to_owned()),
            }
        });
        let bytes = std::fs::read(shard(&plain)).unwrap();
        let mut report = reports[0].clone();
        let own = report
            .shards
            .iter_mut()
            .find(|shard| shard.step == Step(4))
            .unwrap();
        own.shard.size_bytes = bytes.len() as u64;
        own.shard.sha256 = hex_sha256(&bytes);
        let checkpoint = world.commit(&plain, &[report], Step(4));
        let job = format!("tiny-1-sample-{generation}");
        let (record, files) = world.images(&plain, &job, &request, Some(checkpoint));
        assert_eq!(weights(&record), "as trained");
        files
    };
    assert!(
        plain(2, "ema/") == images,
        "the average as weights gives the same images"
    );
    assert!(
        plain(3, "weights/") != images,
        "the last weights give other images"
    );
}

#[test]
fn references_are_the_sample_itself_or_others_as_requested() {
    let world = World::new();
    for (pairing, itself) in [(Pairing::A, true), (Pairing::B, false)] {
        let request = SampleWork {
            steps: 1,
            pairing: Some(pairing),
            ..SampleWork::of(world.assignment.job.clone())
        };
        let job = format!("tiny-1-sample-{itself}");
        let (record, _) = world.images(&world.assignment, &job, &request, None);
        let image = &record["images"][0];
        assert_eq!(
            image["references"][0]["sample"] == image["target"]["id"],
            itself,
            "{image}"
        );
    }
}

#[test]
fn named_references_are_sampled_with_every_prompt_and_seed_and_attention_maps_are_written() {
    let world = World::new();
    let sample = |job: &str, work: &SampleWork| world.images(&world.assignment, job, work, None);
    let plain = SampleWork {
        steps: 2,
        ..SampleWork::of(world.assignment.job.clone())
    };
    let (record, _) = sample("tiny-1-sample-1", &plain);
    let id = record["images"][0]["target"]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    // A user's file, where `coordinator sample` stores it.
    let folder = world.folder.path().join("store/jobs");
    let file = std::fs::read(folder.join("tiny-1-sample-1/images/000.png")).unwrap();
    let sha256 = put_file(&folder.join("tiny-1/references"), &file);
    let named = |concept, from| NamedReference { concept, from };
    let request = SampleWork {
        seeds: vec![7, 9],
        prompts: vec!["1girl, standing".into(), String::new(), "1girl, hat".into()],
        references: vec![
            named(Some(Concept::Face), ImageSource::Sample { id: id.clone() }),
            named(
                Some(Concept::Clothes),
                ImageSource::File {
                    name: "me.png".into(),
                    sha256: sha256.clone(),
                    face_box: None,
                    mask: None,
                },
            ),
            named(None, ImageSource::Sample { id: id.clone() }),
        ],
        task: Some(Task::Reconstruction),
        attention: vec![Concept::Face, Concept::Clothes],
        ..plain
    };
    let (record, files) = sample("tiny-1-sample-2", &request);
    assert_eq!(files.len(), 6, "three prompts with two seeds");
    assert_ne!(files[0], files[1], "another seed gives another image");
    let last = &record["images"][5];
    assert_eq!(
        (&last["prompt"], &last["seed"]),
        (&"1girl, hat".into(), &9.into())
    );
    assert_eq!(
        (&last["target"], &last["task"]),
        (&Value::Null, &"reconstruction".into())
    );
    let references = serde_json::json!([
        { "concept": "face", "sample": id },
        { "concept": "clothes", "file": {
            "name": "me.png",
            "sha256": sha256,
            "assumed": "used whole, centred on white, as if it showed only clothes: it has no face \
            box",
        } },
        { "concept": "figure", "sample": id },
    ]);
    assert_eq!(last["references"], references);
    let images = folder.join("tiny-1-sample-2/images");
    let read = |name: &str| std::fs::read(images.join(name)).unwrap();
    let sidecar: Value = serde_json::from_slice(&read("005.json")).unwrap();
    assert_eq!(&sidecar, last);
    // Generating one of the images alone gives the same image.
    let alone = SampleWork {
        seeds: vec![7],
        prompts: vec![String::new()],
        ..request.clone()
    };
    assert_eq!(sample("tiny-1-sample-3", &alone).1, [files[2].clone()]);
    // Three references, two words, three time steps, one block with attention.
    check_maps(&images, 3 * 2 * 3);
}

/// Stores a user's file where `coordinator sample` does; returns its digest.
fn put_file(folder: &Path, bytes: &[u8]) -> String {
    let sha256 = hex_sha256(bytes);
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join(&sha256), bytes).unwrap();
    sha256
}

/// A job that shows the clothes of a user's file.
fn clothes_of(
    world: &World,
    sha256: &str,
    face_box: Option<[f64; 4]>,
    mask: Option<&MaskFile>,
) -> SampleWork {
    SampleWork {
        steps: 2,
        guidance: 2.0,
        negative_prompt: "hat".into(),
        references: vec![NamedReference {
            concept: Some(Concept::Clothes),
            from: ImageSource::File {
                name: "me.png".into(),
                sha256: sha256.to_owned(),
                face_box,
                mask: mask.cloned(),
            },
        }],
        ..SampleWork::of(world.assignment.job.clone())
    }
}

#[test]
fn a_users_file_with_its_face_and_mask_is_cut_as_a_sample_is() {
    let world = World::new();
    let folder = world.folder.path().join("store/jobs/tiny-1/references");
    let put = |image: image::DynamicImage| {
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        put_file(&folder, bytes.get_ref())
    };
    let image = image::RgbImage::from_fn(40, 40, |x, y| image::Rgb([x as u8 * 6, y as u8 * 6, 90]));
    let mask = image::GrayImage::from_fn(40, 40, |x, _| {
        image::Luma([if (10..30).contains(&x) { 255 } else { 0 }])
    });
    let image = put(image.into());
    let mask = MaskFile {
        name: "mask.png".into(),
        sha256: put(mask.into()),
    };
    let small = MaskFile {
        name: "small.png".into(),
        sha256: put(image::GrayImage::from_pixel(8, 8, image::Luma([255])).into()),
    };
    let work = |face_box, mask: Option<&MaskFile>| clothes_of(&world, &image, face_box, mask);
    let face_box = Some([0.5, 0.25, 0.2, 0.2]);
    let sample = |job: &str, work: &SampleWork| world.images(&world.assignment, job, work, None);
    let (whole, _) = sample("tiny-1-sample-1", &work(None, None));
    let (record, _) = sample("tiny-1-sample-2", &work(face_box, Some(&mask)));
    let file = |record: &Value| record["images"][0]["references"][0]["file"].clone();
    assert!(
        file(&whole)["assumed"]
            .as_str()
            .unwrap()
            .starts_with("used whole")
    );
    let expected = serde_json::json!({
        "name": "me.png",
        "sha256": image,
        "face_box": [0.5, 0.25, 0.2, 0.2],
        "mask": { "name": "mask.png", "sha256": mask.sha256 },
    });
    assert_eq!(file(&record), expected);
    assert_eq!(record["images"][0]["negative_prompt"], "hat");
    // What does not fit the image is named.
    for (job, work, message) in [
        (
            "tiny-1-sample-3",
            work(Some([20.0, 10.0, 8.0, 8.0]), None),
            "me.png: the face box 20,10,8,8 leaves the image of 40x40 pixels",
        ),
        (
            "tiny-1-sample-4",
            work(face_box, Some(&small)),
            "small.png, the mask of me.png: the mask is 8x8 pixels, the image is 40x40",
        ),
    ] {
        let assignment = world.sampling(&world.assignment, job, &work, None);
        let mut rank = TestRank::start(world.folder.path(), &assignment, 0);
        let report = rank.until(|report| !report.units.failed.is_empty());
        let error = &report.units.failed[0].error;
        assert!(error.contains(message), "{error}");
        rank.stop();
        assert!(rank.child.wait().unwrap().success());
    }
}

fn check_maps(images: &Path, count: usize) {
    let read = |name: &str| std::fs::read(images.join(name)).unwrap();
    let maps: Value = serde_json::from_slice(&read("attention-000.json")).unwrap();
    let sheets = maps["sheets"].as_array().unwrap();
    assert_eq!(sheets.len(), 3 * 2, "{sheets:?}");
    let maps = maps["maps"].as_array().unwrap();
    for sheet in sheets {
        assert_eq!(
            sheet["timesteps"].as_array().unwrap().last(),
            Some(&0.into())
        );
        // One scale, from the least to the most of all maps of the sheet.
        let of = |key: &str| {
            let maps = maps.iter().filter(|map| map["sheet"] == sheet["file"]);
            maps.map(|map| map[key].as_f64().unwrap())
                .collect::<Vec<f64>>()
        };
        let least = of("least").into_iter().fold(f64::INFINITY, f64::min);
        let most = of("most").into_iter().fold(0.0, f64::max);
        let scale = (
            sheet["dark"].as_f64().unwrap(),
            sheet["bright"].as_f64().unwrap(),
        );
        assert_eq!(scale, (least, most), "{sheet}");
        assert!(
            sheet["caption"]
                .as_str()
                .unwrap()
                .contains("one scale for all maps")
        );
    }
    assert_eq!(maps.len(), count, "{maps:?}");
    for map in maps {
        assert_eq!(map["input_block"], 3);
        let (least, most) = (
            map["least"].as_f64().unwrap(),
            map["most"].as_f64().unwrap(),
        );
        assert!(0.0 < least && least < most && most < 1.0, "{map}");
        for name in ["file", "sheet"] {
            assert!(read(map[name].as_str().unwrap()).starts_with(b"\x89PNG"));
        }
    }
}

#[test]
fn a_unit_that_fails_is_named_and_its_process_goes_on() {
    let world = World::new();
    let unknown = SampleWork {
        references: vec![NamedReference {
            concept: None,
            from: ImageSource::Sample { id: "none".into() },
        }],
        seeds: vec![1, 2],
        ..SampleWork::of(world.assignment.job.clone())
    };
    let assignment = world.sampling(&world.assignment, "tiny-1-sample-1", &unknown, None);
    let mut rank = TestRank::start(world.folder.path(), &assignment, 0);
    let report = rank.until(|report| report.units.failed.len() == 2);
    for (unit, failure) in (0..).zip(&report.units.failed) {
        assert_eq!(failure.unit, unit);
        assert!(
            failure.error.contains("has no sample \"none\""),
            "{failure:?}"
        );
    }
    assert_eq!(
        (report.units.done, report.phase),
        (Vec::new(), RankPhase::Training)
    );
    rank.stop();
    assert!(rank.child.wait().unwrap().success());
}

#[test]
fn a_unit_is_reported_before_it_begins_and_existing_outputs_are_kept() {
    let world = World::new();
    let work = SampleWork {
        count: 3,
        steps: 1,
        ..SampleWork::of(world.assignment.job.clone())
    };
    let order = |lease: &[UnitRange], graceful_stop| Assignment {
        run: units_of(&world.assignment, None, lease),
        graceful_stop,
        ..world.sampling(&world.assignment, "tiny-1-sample-1", &work, None)
    };
    let range = |first, end| UnitRange { first, end };
    let mut rank = TestRank::start(world.folder.path(), &order(&[range(1, 2)], None), 0);
    let begun = rank.until(|report| report.activity.is_some());
    assert_eq!(begun.activity.unwrap().stage, Stage::Unit(1));
    rank.until(|report| report.units.done == [range(1, 2)]);
    // Another rank wrote the image of unit 0, but not its record. The image must be kept and the
    // record written.
    let folder = world
        .folder
        .path()
        .join("store/jobs/tiny-1-sample-1/images");
    let first = std::fs::read(folder.join("001.png")).unwrap();
    let record = std::fs::read(folder.join("001.json")).unwrap();
    std::fs::write(folder.join("000.png"), &first).unwrap();
    rank.order(&order(&[range(0, 3)], None));
    rank.until(|report| report.units.done == [range(0, 3)]);
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    assert!(read("000.png") == first && read("001.json") == record);
    let zeroth: Value = serde_json::from_slice(&read("000.json")).unwrap();
    assert_eq!(zeroth["file"], "000.png");
    // The image of unit 2 is missing; the closing unit must list it.
    for name in ["002.png", "002.json"] {
        std::fs::remove_file(folder.join(name)).unwrap();
    }
    rank.order(&order(&[range(3, 4)], None));
    rank.until(|report| report.units.done == [range(3, 4)]);
    let (list, files) = world.outputs("tiny-1-sample-1");
    assert_eq!(list["missing"], serde_json::json!(["002.png"]));
    assert_eq!((files.len(), &list["summary"]["count"]), (2, &2.into()));
    // After a graceful stop it begins no other unit.
    rank.order(&order(
        &[range(2, 3)],
        Some(GracefulStop::WithoutCheckpoint),
    ));
    let report = rank.until(|report| report.phase == RankPhase::Finished);
    assert_eq!(report.units.done, []);
    rank.finish();
    assert!(!folder.join("002.json").exists());
}
