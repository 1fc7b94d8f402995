//! `[sample]`: defaults and bounds. Called by [`super::check`].

use crate::id::{JobId, Step};
use crate::job::faults::Faults;
use crate::job::raw::{ReferenceToml, SampleToml, WeightsToml};
use crate::limits::{LIST, PROMPT_BYTES, TEXT_BYTES};
use crate::location::nearest;
use crate::sample::{
    Concept, ImageSource, MaskFile, NamedReference, SampleMethod, SamplePrompt, SampleWork, Weights,
};

const IMAGES_MAX: u64 = 1_000_000;
const REFERENCES_MAX: usize = 64;
/// Maximum number of characters that an error quotes.
const QUOTED_MAX: usize = 80;
/// Default number of subjects of a job that names no references.
const COUNT: u32 = 16;

/// `is_local`: the user's files are readable here. Otherwise each file must already have its
/// digest.
pub(super) fn sample(raw: &SampleToml, is_local: bool, faults: &mut Faults) -> SampleWork {
    let count = if raw.references.is_empty() { COUNT } else { 1 };
    let method = raw.method.unwrap_or(SampleMethod::Ddim);
    let work = SampleWork {
        job: job(&raw.job, faults),
        weights: weights(raw.weights.as_ref(), faults),
        count: raw.count.unwrap_or(count),
        method,
        steps: raw.steps.unwrap_or(50),
        guidance: raw.guidance.unwrap_or(7.5),
        reference_guidance: raw.reference_guidance.unwrap_or(1.0),
        seeds: raw.seeds.clone().unwrap_or_else(|| vec![0]),
        prompt: raw.prompt.unwrap_or(SamplePrompt::Full),
        prompts: raw.prompts.clone(),
        negative_prompt: raw.negative_prompt.clone().unwrap_or_default(),
        knobs: raw.knobs.clone().unwrap_or_default(),
        references: references(&raw.references, is_local, faults),
        swap_references: raw.swap_references.unwrap_or(false),
        task: raw.task,
        pairing: raw.pairing,
        attention: raw.attention.clone(),
        on_failed_unit: raw.on_failed_unit.unwrap_or_default(),
    };
    check_settings(&work, faults);
    let swapped_by_name = work.swap_references && !work.references.is_empty();
    faults.need(!swapped_by_name, "sample.swap_references", || {
        "is true; it has no effect with named references: leave it out".into()
    });
    lists(&work, faults);
    work
}

/// Checks how images are generated, apart from whose and of what.
pub(super) fn check_settings(work: &SampleWork, faults: &mut Faults) {
    let (method, max) = (work.method, work.method.steps_max());
    faults.need((1..=max).contains(&work.steps), "sample.steps", || {
        format!(
            "is {}; {} takes 1 to {max} steps per image",
            work.steps,
            method.name()
        )
    });
    for (field, scale) in [
        ("sample.guidance", work.guidance),
        ("sample.reference_guidance", work.reference_guidance),
    ] {
        // The range also rejects NaN.
        faults.need((0.0..=100.0).contains(&scale), field, || {
            format!("is {scale}; it must be between 0 and 100")
        });
    }
    work.knobs.check(faults);
    negative_prompt(work, faults);
}

fn negative_prompt(work: &SampleWork, faults: &mut Faults) {
    let (field, text) = ("sample.negative_prompt", &work.negative_prompt);
    faults.need(text.len() <= PROMPT_BYTES, field, || {
        format!(
            "has {} bytes; at most {PROMPT_BYTES} are allowed",
            text.len()
        )
    });
    // Guidance of exactly 1 is no guidance.
    faults.need(text.is_empty() || work.guidance != 1.0, field, || {
        let quoted: String = text.chars().take(QUOTED_MAX).collect();
        format!(
            "is {quoted:?}; it has no effect because sample.guidance is 1: leave it out, or guide \
            by more than 1"
        )
    });
}

fn lists(work: &SampleWork, faults: &mut Faults) {
    faults.positive("sample.count", work.count.into());
    faults.need(
        work.references.is_empty() || work.count <= 1,
        "sample.count",
        || {
            format!(
                "is {}; with named references there is one subject, so it must be 1",
                work.count
            )
        },
    );
    faults.need(!work.seeds.is_empty(), "sample.seeds", || {
        "is empty; at least one seed is needed, such as [0]".into()
    });
    let lists = [
        ("sample.seeds", work.seeds.len()),
        ("sample.prompts", work.prompts.len()),
    ];
    for (field, length) in lists {
        faults.need(length <= LIST, field, || {
            format!("has {length} entries; at most {LIST} are allowed")
        });
    }
    if let Some(long) = work
        .prompts
        .iter()
        .find(|prompt| prompt.len() > PROMPT_BYTES)
    {
        faults.add(
            "sample.prompts",
            format!(
                "has a prompt of {} bytes; at most {PROMPT_BYTES} are allowed",
                long.len()
            ),
        );
    }
    if work.seeds.len() <= LIST && work.prompts.len() <= LIST {
        let images = work.images();
        faults.need(images <= IMAGES_MAX, "sample.count", || {
            format!(
                "results in {images} images (count times prompts times seeds); at most \
                {IMAGES_MAX} are allowed"
            )
        });
    }
}

pub(super) fn job(text: &str, faults: &mut Faults) -> JobId {
    if let Err(error) = crate::wire::job_id(text.to_owned()) {
        faults.add(
            "sample.job",
            format!("is {}; {}", error.value, error.expected),
        );
    }
    JobId(text.to_owned())
}

pub(super) fn weights(raw: Option<&WeightsToml>, faults: &mut Faults) -> Weights {
    match raw {
        None => Weights::Newest,
        Some(WeightsToml::Step(step)) => Weights::Step(Step(*step)),
        Some(WeightsToml::Word(word)) if word == "newest" => Weights::Newest,
        Some(WeightsToml::Word(word)) if word == "base" => Weights::Base,
        Some(WeightsToml::Word(word)) => {
            let hint = nearest(word, &["newest", "base"])
                .map(|it| format!("; did you mean {it:?}?"))
                .unwrap_or_default();
            faults.add(
                "sample.weights",
                format!(
                    "is {word:?}; it must be \"newest\", \"base\" or the step of a checkpoint{hint}"
                ),
            );
            Weights::Newest
        }
    }
}

pub(super) fn references(
    raw: &[ReferenceToml],
    is_local: bool,
    faults: &mut Faults,
) -> Vec<NamedReference> {
    let field = "sample.references";
    if REFERENCES_MAX < raw.len() {
        let found = raw.len();
        faults.add(
            field,
            format!("has {found} entries; at most {REFERENCES_MAX} are allowed"),
        );
        return Vec::new();
    }
    raw.iter()
        .filter_map(|reference| {
            let from = match (&reference.id, &reference.file) {
                (Some(id), None) => {
                    check_name(id, faults);
                    for (key, set) in [
                        ("sha256", reference.sha256.is_some()),
                        ("face_box", reference.face_box.is_some()),
                        ("mask", reference.mask.is_some()),
                        ("mask_sha256", reference.mask_sha256.is_some()),
                    ] {
                        faults.need(!set, field, || {
                            format!("has a {key} for id {id:?}; only a file has one: leave it out")
                        });
                    }
                    ImageSource::Sample { id: id.clone() }
                }
                (None, Some(file)) => {
                    check_name(file, faults);
                    check_annotations(reference, file, faults);
                    let mask = reference.mask.as_ref().map(|mask| {
                        check_name(mask, faults);
                        MaskFile {
                            name: mask.clone(),
                            sha256: digest(
                                reference.mask_sha256.as_deref(),
                                mask,
                                is_local,
                                faults,
                            ),
                        }
                    });
                    ImageSource::File {
                        name: file.clone(),
                        sha256: digest(reference.sha256.as_deref(), file, is_local, faults),
                        face_box: reference.face_box,
                        mask,
                    }
                }
                (Some(_), Some(_)) | (None, None) => {
                    faults.add(
                        field,
                        "has an entry that does not have exactly one of id and file",
                    );
                    return None;
                }
            };
            let concept = reference.concept;
            Some(NamedReference { concept, from })
        })
        .collect()
}

/// Checks what can be checked of a face box and a mask without the image.
fn check_annotations(reference: &ReferenceToml, file: &str, faults: &mut Faults) {
    let field = "sample.references";
    if let Some(face_box) = reference.face_box {
        let [x, y, width, height] = face_box;
        // The comparisons also reject NaN.
        let valid = face_box.iter().all(|it| it.is_finite()) && width > 0.0 && height > 0.0;
        faults.need(valid && x >= 0.0 && y >= 0.0, field, || {
            format!(
                "has the face_box {face_box:?} for {file}; it must be the face's centre x, centre \
                y, width and height, as fractions of the image's width and height"
            )
        });
    }
    let annotated = match (&reference.face_box, &reference.mask) {
        (Some(_), _) => "face_box",
        (None, Some(_)) => "mask",
        (None, None) => {
            faults.need(reference.mask_sha256.is_none(), field, || {
                format!("has a mask_sha256 for {file}, but no mask: leave it out")
            });
            return;
        }
    };
    faults.need(reference.concept != Some(Concept::Figure), field, || {
        format!(
            "has a {annotated} for {file}; it has no effect because a figure is shown whole: leave \
            it out"
        )
    });
    let needs_box = annotated == "mask" && reference.concept != Some(Concept::Clothes);
    faults.need(!needs_box, field, || {
        format!(
            "has a mask for {file} without a face_box; only concept clothes can do without: add \
            the box, or name the concept"
        )
    });
}

fn check_name(name: &str, faults: &mut Faults) {
    faults.need(
        (1..=TEXT_BYTES).contains(&name.len()),
        "sample.references",
        || {
            format!(
                "has an id or file name of {} bytes; it must have 1 to {TEXT_BYTES}",
                name.len()
            )
        },
    );
}

/// Validates the digest strictly, because it becomes part of a path.
fn digest(given: Option<&str>, file: &str, is_local: bool, faults: &mut Faults) -> String {
    let Some(digits) = given else {
        faults.need(is_local, "sample.references", || {
            format!(
                "names {file} without its sha256; `coordinator submit` stores the file and adds \
                the digest"
            )
        });
        return String::new();
    };
    let valid = digits.len() == 64
        && digits
            .bytes()
            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    faults.need(valid, "sample.references", || {
        format!("names {file} with the sha256 {digits:?}; it must be 64 lower-case hex digits")
    });
    digits.to_owned()
}
