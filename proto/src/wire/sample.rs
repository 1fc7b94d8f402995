//! Requests for pictures <-> generated protobuf; see [`super`].

use super::{WireError, bounded, job_id, text, wrong};
use crate::message::{Concept, NamedReference, PictureSource, SampleMethod, SamplePrompt, SampleRequest};
use crate::pb;
use crate::spec::{Pairing, Task};

/// Longest prompt and longest name of a file, in bytes.
const PROMPT_MAX: usize = 16 << 10;
const NAME_MAX: usize = 1024;
const PICTURES_MAX: u64 = 10_000;
const REFERENCES_MAX: usize = 64;

impl SamplePrompt {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Pose => "pose",
            Self::Empty => "empty",
        }
    }
}

impl SampleMethod {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ddim => "ddim",
            Self::Pndm => "pndm",
            Self::DpmSolver => "dpm-solver",
        }
    }
}

fn task_name(task: Task) -> &'static str {
    match task {
        Task::Reconstruction => "reconstruction",
        Task::Composition => "composition",
        Task::Multitask => "multitask",
    }
}

fn pairing_name(pairing: Pairing) -> &'static str {
    match pairing {
        Pairing::A => "a",
        Pairing::B => "b",
    }
}

impl From<&SampleRequest> for pb::SampleWork {
    fn from(request: &SampleRequest) -> Self {
        let words = |concepts: &[Concept]| concepts.iter().map(|it| it.word().to_owned()).collect();
        Self {
            source: request.source.0.clone(),
            checkpoint: request.checkpoint.map(Into::into),
            count: request.count,
            steps: request.steps,
            guidance: request.guidance,
            reference_guidance: Some(request.reference_guidance),
            seeds: request.seeds.clone(),
            prompt: request.prompt.name().into(),
            method: request.method.name().into(),
            prompts: request.prompts.clone(),
            references: request.references.iter().map(Into::into).collect(),
            task: request.task.map(task_name).unwrap_or_default().into(),
            pairing: request.pairing.map(pairing_name).unwrap_or_default().into(),
            attention: words(&request.attention),
        }
    }
}

impl TryFrom<pb::SampleWork> for SampleRequest {
    type Error = WireError;

    fn try_from(work: pb::SampleWork) -> Result<Self, WireError> {
        let method = method(&work.method)?;
        if !(1..=10_000).contains(&work.count) {
            return wrong("count", work.count, "1 to 10000 pictures can be drawn at once");
        }
        if !(1..=method.steps_max()).contains(&work.steps) {
            let expected = match method {
                SampleMethod::DpmSolver => "a picture takes 1 to 999 steps",
                SampleMethod::Ddim | SampleMethod::Pndm => "a picture takes 1 to 500 steps",
            };
            return wrong("steps", work.steps, expected);
        }
        let reference_guidance = work.reference_guidance.unwrap_or(1.0);
        for (field, scale) in [
            ("guidance", work.guidance),
            ("reference_guidance", reference_guidance),
        ] {
            // Not a number is in no range.
            if !(0.0..=100.0).contains(&scale) {
                return wrong(field, scale, "it must be between 0 and 100");
            }
        }
        let attention = work.attention.iter();
        let request = Self {
            source: job_id(work.source)?,
            checkpoint: work.checkpoint.map(Into::into),
            count: work.count,
            method,
            steps: work.steps,
            guidance: work.guidance,
            reference_guidance,
            seeds: if work.seeds.is_empty() {
                vec![0]
            } else {
                work.seeds
            },
            prompt: prompt(&work.prompt)?,
            prompts: prompts(work.prompts)?,
            references: references(work.references, work.count)?,
            task: task(&work.task)?,
            pairing: pairing(&work.pairing)?,
            attention: attention
                .map(|word| concept("attention", word))
                .collect::<Result<_, _>>()?,
        };
        if request.pictures() > PICTURES_MAX {
            let pictures = request.pictures();
            return wrong(
                "count",
                pictures,
                "samples times prompts times seeds are at most 10000",
            );
        }
        Ok(request)
    }
}

fn prompt(word: &str) -> Result<SamplePrompt, WireError> {
    let known = [SamplePrompt::Full, SamplePrompt::Pose, SamplePrompt::Empty];
    match known.into_iter().find(|prompt| prompt.name() == word) {
        Some(prompt) => Ok(prompt),
        None => wrong("prompt", format!("{word:?}"), "it must be full, pose or empty"),
    }
}

fn method(word: &str) -> Result<SampleMethod, WireError> {
    let known = [SampleMethod::Ddim, SampleMethod::Pndm, SampleMethod::DpmSolver];
    match known.into_iter().find(|method| method.name() == word) {
        Some(method) => Ok(method),
        // What a client sends that knows of no choice.
        None if word.is_empty() => Ok(SampleMethod::Ddim),
        None => wrong(
            "method",
            format!("{word:?}"),
            "it must be ddim, pndm or dpm-solver",
        ),
    }
}

fn task(word: &str) -> Result<Option<Task>, WireError> {
    let known = [Task::Reconstruction, Task::Composition, Task::Multitask];
    match known.into_iter().find(|task| task_name(*task) == word) {
        None if !word.is_empty() => wrong(
            "task",
            format!("{word:?}"),
            "it must be reconstruction, composition or multitask",
        ),
        found => Ok(found),
    }
}

fn pairing(word: &str) -> Result<Option<Pairing>, WireError> {
    match [Pairing::A, Pairing::B]
        .into_iter()
        .find(|it| pairing_name(*it) == word)
    {
        None if !word.is_empty() => wrong("pairing", format!("{word:?}"), "it must be a or b"),
        found => Ok(found),
    }
}

fn concept(field: &'static str, word: &str) -> Result<Concept, WireError> {
    match Concept::ALL.into_iter().find(|concept| concept.word() == word) {
        Some(concept) => Ok(concept),
        None => wrong(field, format!("{word:?}"), "it must be face, clothes or figure"),
    }
}

fn prompts(prompts: Vec<String>) -> Result<Vec<String>, WireError> {
    match prompts.iter().find(|prompt| prompt.len() > PROMPT_MAX) {
        Some(long) => wrong(
            "prompts",
            format!("{} bytes long", long.len()),
            "a prompt has at most 16384",
        ),
        None => bounded("prompts", prompts),
    }
}

fn references(references: Vec<pb::NamedReference>, count: u32) -> Result<Vec<NamedReference>, WireError> {
    if references.len() > REFERENCES_MAX {
        return wrong("references", references.len(), "at most 64 are taken");
    }
    if !references.is_empty() && count != 1 {
        return wrong(
            "count",
            count,
            "named references are one subject, so it must be 1",
        );
    }
    references.into_iter().map(TryInto::try_into).collect()
}

impl From<&NamedReference> for pb::NamedReference {
    fn from(reference: &NamedReference) -> Self {
        use pb::named_reference::From;
        Self {
            concept: reference.concept.map(Concept::word).unwrap_or_default().into(),
            from: Some(match &reference.from {
                PictureSource::Sample { id } => From::Id(id.clone()),
                PictureSource::File { name, sha256 } => From::File(pb::PictureFile {
                    name: name.clone(),
                    sha256: sha256.clone(),
                }),
            }),
        }
    }
}

impl TryFrom<pb::NamedReference> for NamedReference {
    type Error = WireError;

    fn try_from(reference: pb::NamedReference) -> Result<Self, WireError> {
        use pb::named_reference::From;
        let from = match reference.from {
            None => return wrong("references", "of nothing", "each needs an id or a file"),
            Some(From::Id(id)) => PictureSource::Sample {
                id: text("references.id", id, NAME_MAX)?,
            },
            Some(From::File(file)) => {
                // It becomes part of a path.
                let digits = file
                    .sha256
                    .bytes()
                    .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                if !digits || file.sha256.len() != 64 {
                    return wrong("references.sha256", file.sha256, "it must be 64 small hex digits");
                }
                PictureSource::File {
                    name: text("references.name", file.name, NAME_MAX)?,
                    sha256: file.sha256,
                }
            }
        };
        let word = reference.concept.as_str();
        let concept = (!word.is_empty()).then(|| concept("references.concept", word));
        Ok(Self {
            concept: concept.transpose()?,
            from,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::JobId;

    fn request() -> SampleRequest {
        SampleRequest {
            seeds: vec![1, 2, 3],
            prompts: vec!["1girl".into(), String::new()],
            references: vec![
                NamedReference {
                    concept: Some(Concept::Face),
                    from: PictureSource::File {
                        name: "me.png".into(),
                        sha256: "0f".repeat(32),
                    },
                },
                NamedReference {
                    concept: None,
                    from: PictureSource::Sample { id: "7".into() },
                },
            ],
            task: Some(Task::Reconstruction),
            pairing: Some(Pairing::A),
            attention: vec![Concept::Clothes, Concept::Face],
            ..SampleRequest::of(JobId("demo-1".into()))
        }
    }

    #[test]
    fn a_request_crosses_the_wire_unchanged() {
        let wire = pb::SampleWork::from(&request());
        assert_eq!(SampleRequest::try_from(wire), Ok(request()));
        assert_eq!(request().pictures(), 6);
    }

    #[test]
    fn a_wrong_field_is_named() {
        let broken = |change: fn(&mut pb::SampleWork)| {
            let mut wire = pb::SampleWork::from(&request());
            change(&mut wire);
            SampleRequest::try_from(wire)
                .map(|_| ())
                .map_err(|error| error.to_string())
        };
        let expect = |change, message: &str| assert_eq!(broken(change), Err(message.to_owned()));
        expect(
            |it| it.task = "paint".into(),
            "field `task` is \"paint\"; it must be reconstruction, composition or multitask",
        );
        expect(
            |it| it.attention.push("hat".into()),
            "field `attention` is \"hat\"; it must be face, clothes or figure",
        );
        expect(
            |it| it.count = 2,
            "field `count` is 2; named references are one subject, so it must be 1",
        );
        expect(
            |it| it.references[1].from = None,
            "field `references` is of nothing; each needs an id or a file",
        );
        let path = |it: &mut pb::SampleWork| {
            let file = pb::PictureFile {
                name: "x".into(),
                sha256: "../state".into(),
            };
            it.references[0].from = Some(pb::named_reference::From::File(file));
        };
        expect(
            path,
            "field `references.sha256` is ../state; it must be 64 small hex digits",
        );
        let many = |it: &mut pb::SampleWork| {
            it.references.clear();
            it.count = 5000;
        };
        expect(
            many,
            "field `count` is 30000; samples times prompts times seeds are at most 10000",
        );
        assert_eq!(broken(|it| it.seeds.clear()), Ok(()));
    }
}
