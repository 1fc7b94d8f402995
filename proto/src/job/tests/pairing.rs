//! The transforms of pairing a, the drop of references, and what latents are.

use super::{GOOD, check_canonical, job, read};
use crate::architecture::Latents;
use crate::id::JobId;
use crate::job::{parse_stored, to_toml};
use crate::spec::{References, TrainWork, Transform};

fn with(section: &str, lines: &str) -> String {
    GOOD.replacen(section, &format!("{section}\n{lines}"), 1)
}

fn references(spec: &TrainWork) -> References {
    *spec.model.architecture.references().unwrap()
}

fn refused(section: &str, lines: &str, message: &str) {
    let error = read(&with(section, lines)).unwrap_err();
    assert_eq!(error, format!("job.toml:{message}"));
}

#[test]
fn pairing_a_has_random_transforms_and_pairing_b_has_none() {
    assert_eq!(references(&read(GOOD).unwrap()).transform(), None);
    let a = references(&read(&with("[data]", "pairing = \"a\"")).unwrap());
    let default = Transform {
        crop: [0.8, 1.0],
        flip: 0.5,
        target_scale: 0.8,
    };
    assert_eq!(a.transform(), Some(default));
    let text = with(
        "[data]",
        "pairing = \"a\"\ntransform = { crop = [0.5, 0.75], flip = 0 }",
    );
    let changed = Transform {
        crop: [0.5, 0.75],
        flip: 0.0,
        target_scale: 0.8,
    };
    assert_eq!(references(&read(&text).unwrap()).transform(), Some(changed));
    check_canonical(&text);
    let off = "pairing = \"a\"\ntransform = { crop = [1, 1], flip = 0, target_scale = 1 }";
    let off = with("[data]", off);
    assert_eq!(references(&read(&off).unwrap()).transform(), None);
    check_canonical(&off);
}

#[test]
fn a_transform_that_is_impossible_or_unused_is_refused() {
    refused(
        "[data]",
        "pairing = \"a\"\ntransform = { crop = [0.9, 0.8] }",
        "8: data.transform.crop: is [0.9, 0.8]; it must be the smallest and the largest fraction \
        of each side that is kept, both between 0.1 and 1",
    );
    refused(
        "[data]",
        "pairing = \"a\"\ntransform = { crop = [nan, 1] }",
        "8: data.transform.crop: is [NaN, 1]; it must be the smallest and the largest fraction of \
        each side that is kept, both between 0.1 and 1",
    );
    refused(
        "[data]",
        "pairing = \"a\"\ntransform = { flip = 1.5 }",
        "8: data.transform.flip: is 1.5; it must lie between 0 and 1",
    );
    refused(
        "[data]",
        "pairing = \"a\"\ntransform = { target_scale = 0 }",
        "8: data.transform.target_scale: is 0; it must lie between 0.1 and 1",
    );
    refused(
        "[data]",
        "transform = { flip = 0 }",
        "7: data.transform.flip: is 0.0; it has no effect because data.pairing is b: leave it out",
    );
    let error = read(&with("[data]", "transform = { flp = 0 }")).unwrap_err();
    assert!(error.contains("did you mean `flip`?"), "{error}");
    let error = read(&with("[data]", "transform = { crop = [1] }")).unwrap_err();
    assert!(
        error.starts_with("job.toml:7: data.transform.crop: "),
        "{error}"
    );
}

#[test]
fn a_job_that_an_older_release_stored_keeps_its_meaning() {
    let stored = |spec: &str| parse_stored(&JobId("demo-1".into()), spec).unwrap();
    // Pairing a without a transform is a job of an older release, which had none.
    let new = to_toml(&job(&with("[data]", "pairing = \"a\"")).unwrap());
    let lines: Vec<&str> = new.lines().collect();
    let table = lines
        .iter()
        .position(|line| *line == "[data.transform]")
        .unwrap();
    let end = table
        + 1
        + lines[table + 1..]
            .iter()
            .position(|it| it.starts_with('['))
            .unwrap();
    let old = [&lines[..table], &lines[end..]].concat().join("\n");
    let transform = |spec: &str| references(stored(spec).training().unwrap()).transform();
    assert_eq!(transform(&old), None);
    assert_eq!(transform(&new), Some(Transform::default()));
    // A job that uses no new field has the text that older releases read.
    let text = to_toml(&job(GOOD).unwrap());
    for field in ["transform", "reference_drop", "latents"] {
        assert!(
            !text
                .lines()
                .any(|line| line.contains(field) && !line.contains("latent_c"))
        );
    }
}

#[test]
fn references_are_dropped_only_where_the_job_says_so() {
    assert!(references(&read(GOOD).unwrap()).drop.abs() < 1e-12);
    let text = with("[data]", "reference_drop = 0.25");
    assert!((references(&read(&text).unwrap()).drop - 0.25).abs() < 1e-12);
    check_canonical(&text);
    refused(
        "[data]",
        "reference_drop = 1.5",
        "7: data.reference_drop: is 1.5; it must lie between 0 and 1",
    );
}

#[test]
fn latents_are_means_unless_the_job_says_sample() {
    let latents = |text: &str| {
        let spec = read(text).unwrap();
        spec.model.architecture.diffusion().unwrap().latents
    };
    assert_eq!(latents(GOOD), Latents::Mean);
    let text = with("[model]", "latents = \"sample\"");
    assert_eq!(latents(&text), Latents::Sample);
    check_canonical(&text);
    refused(
        "[model]",
        "latents = \"meen\"",
        "12: model.latents: unknown variant `meen`, expected `mean` or `sample`; did you mean \
        `mean`?",
    );
    let autoencoder = GOOD
        .replace("references = 2\n", "")
        .replace("\"retrinet\"", "\"autoencoder\"\nlatents = \"sample\"");
    assert_eq!(
        read(&autoencoder).unwrap_err(),
        "job.toml:12: model.latents: is \"sample\"; it has no effect because an autoencoder trains \
        on images only, without prompts and noise: leave it out"
    );
}
