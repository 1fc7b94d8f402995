//! `[sample]`: defaults and bounds. Called by [`super::check`].

use crate::id::{JobId, Step};
use crate::job::faults::Faults;
use crate::job::raw::{ReferenceToml, SampleToml, WeightsToml};
use crate::location::nearest;
use crate::sample::{ImageSource, NamedReference, SampleMethod, SamplePrompt, SampleWork, Weights};

/// Maximum lengths of a prompt and of a file name, in bytes.
const PROMPT_MAX: usize = 16 << 10;
const NAME_MAX: usize = 1024;
/// Maximum number of prompts, and of seeds.
const LIST_MAX: usize = 4096;
const IMAGES_MAX: u64 = 1_000_000;
const REFERENCES_MAX: usize = 64;
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
        references: references(&raw.references, is_local, faults),
        task: raw.task,
        pairing: raw.pairing,
        attention: raw.attention.clone(),
        on_failed_unit: raw.on_failed_unit.unwrap_or_default(),
    };
    let max = method.steps_max();
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
    lists(&work, faults);
    work
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
        faults.need(length <= LIST_MAX, field, || {
            format!("has {length} entries; at most {LIST_MAX} are allowed")
        });
    }
    if let Some(long) = work.prompts.iter().find(|prompt| prompt.len() > PROMPT_MAX) {
        faults.add(
            "sample.prompts",
            format!(
                "has a prompt of {} bytes; at most {PROMPT_MAX} are allowed",
                long.len()
            ),
        );
    }
    if work.seeds.len() <= LIST_MAX && work.prompts.len() <= LIST_MAX {
        let images = work.images();
        faults.need(images <= IMAGES_MAX, "sample.count", || {
            format!(
                "results in {images} images (count times prompts times seeds); at most \
                {IMAGES_MAX} are allowed"
            )
        });
    }
}

fn job(text: &str, faults: &mut Faults) -> JobId {
    if let Err(error) = crate::wire::job_id(text.to_owned()) {
        faults.add(
            "sample.job",
            format!("is {}; {}", error.value, error.expected),
        );
    }
    JobId(text.to_owned())
}

fn weights(raw: Option<&WeightsToml>, faults: &mut Faults) -> Weights {
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

fn references(raw: &[ReferenceToml], is_local: bool, faults: &mut Faults) -> Vec<NamedReference> {
    let field = "sample.references";
    faults.need(raw.len() <= REFERENCES_MAX, field, || {
        format!(
            "has {} entries; at most {REFERENCES_MAX} are allowed",
            raw.len()
        )
    });
    raw.iter()
        .filter_map(|reference| {
            let from = match (&reference.id, &reference.file) {
                (Some(id), None) => {
                    check_name(id, faults);
                    faults.need(reference.sha256.is_none(), field, || {
                        format!("has a sha256 for id {id:?}; only a file has one: leave it out")
                    });
                    ImageSource::Sample { id: id.clone() }
                }
                (None, Some(file)) => {
                    check_name(file, faults);
                    ImageSource::File {
                        name: file.clone(),
                        sha256: digest(reference.sha256.as_deref(), file, is_local, faults),
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

fn check_name(name: &str, faults: &mut Faults) {
    faults.need(
        (1..=NAME_MAX).contains(&name.len()),
        "sample.references",
        || {
            format!(
                "has an id or file name of {} bytes; it must have 1 to {NAME_MAX}",
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
