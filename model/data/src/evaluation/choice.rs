//! The characters and prompts of a plan: a pure function of the plan and the data set.

use crate::loader::Loader;
use crate::order::SampleOrder;
use crate::tags::pose_prompt;
use proto::evaluate::{Characters, Domain, EvaluationPlan, Prompts};
use proto::sample::SamplePrompt;
use proto::spec::Pairing;
use std::collections::BTreeSet;

/// A character of an evaluation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Character {
    /// Its name in the data set, or the one that the user gave.
    pub name: String,
    pub domain: Domain,
    /// The sample that stands for it: its position and id. None for a character of files.
    pub sample: Option<(u64, String)>,
}

impl Character {
    /// Identifies it in keys: a data set and a user may give the same name.
    #[must_use]
    pub fn key(&self) -> String {
        match &self.sample {
            Some((_, id)) => format!("sample {id}"),
            None => format!("files {}", self.name),
        }
    }
}

/// Why a plan does not fit a data set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChoiceError {
    #[error("{field}: {url} has no sample {id:?}")]
    NoSample {
        field: &'static str,
        url: String,
        id: String,
    },
    #[error(
        "{field}: the samples {first:?} and {second:?} both show {character}; name one of them"
    )]
    Twice {
        field: &'static str,
        first: String,
        second: String,
        character: String,
    },
    #[error("{field}: asks for {wanted} characters, and {url} has {found} that are {which}")]
    TooFew {
        field: &'static str,
        url: String,
        wanted: u64,
        found: usize,
        which: &'static str,
    },
    #[error(
        "{field}: {url} has no other image of the character and outfit of sample {id:?}, which \
         evaluate.pairing = \"b\" needs"
    )]
    Alone {
        field: &'static str,
        url: String,
        id: String,
    },
    #[error(
        "evaluate.own_prompts: asks for {wanted} prompts, and the in-domain characters have \
         {found} different ones"
    )]
    TooFewPrompts { wanted: u64, found: usize },
    #[error("evaluate: {character} is both in-domain and out-of-domain")]
    BothDomains { character: String },
}

/// The characters of a plan in order, in-domain first. `loader` is that of the first model's job.
///
/// # Errors
/// The data set has no such samples, or too few characters.
pub fn characters(loader: &Loader, plan: &EvaluationPlan) -> Result<Vec<Character>, ChoiceError> {
    let seed = plan.seeds.first().copied().unwrap_or(0);
    let mut chosen: Vec<Character> = Vec::new();
    let domains = [
        (Domain::InDomain, "evaluate.in_domain", &plan.in_domain),
        (
            Domain::OutOfDomain,
            "evaluate.out_of_domain",
            &plan.out_of_domain,
        ),
    ];
    for (domain, field, wanted) in domains {
        let found = match wanted {
            None => continue,
            Some(Characters::Trained(count)) => {
                let which = (loader.training(), "trained on");
                in_order(
                    loader,
                    field,
                    which,
                    u64::from(*count),
                    (seed, plan.pairing),
                )?
            }
            Some(Characters::HeldOut(count)) => {
                let which = (loader.held_out(), "held out");
                in_order(
                    loader,
                    field,
                    which,
                    u64::from(*count),
                    (seed, plan.pairing),
                )?
            }
            Some(Characters::Ids(ids)) => named(loader, field, ids, plan.pairing)?,
            Some(Characters::Files(files)) => {
                let character = |name: &String| (name.clone(), None);
                files.iter().map(|it| character(&it.name)).collect()
            }
        };
        for (name, sample) in found {
            let known = |it: &&Character| it.name == name && it.sample.is_some();
            if sample.is_some() && chosen.iter().any(|it| known(&it)) {
                return Err(ChoiceError::BothDomains { character: name });
            }
            chosen.push(Character {
                name,
                domain,
                sample,
            });
        }
    }
    Ok(chosen)
}

type Named = (String, Option<(u64, String)>);

/// The first `count` different characters of `pool`, in an order that is permuted with the seed.
fn in_order(
    loader: &Loader,
    field: &'static str,
    (pool, which): (&[u64], &'static str),
    count: u64,
    (seed, pairing): (u64, Pairing),
) -> Result<Vec<Named>, ChoiceError> {
    let order = SampleOrder::new(seed, pool.len().max(1) as u64);
    let (mut seen, mut chosen) = (BTreeSet::new(), Vec::new());
    for index in 0..pool.len() as u64 {
        if chosen.len() as u64 == count {
            break;
        }
        let (_, at) = order.at(index);
        let position = pool[usize::try_from(at).expect("positions are indices")];
        let row = &loader.rows()[usize::try_from(position).expect("positions are indices")];
        if has_references(loader, position, pairing) && seen.insert(row.character.as_str()) {
            chosen.push((row.character.clone(), Some((position, row.id.clone()))));
        }
    }
    if (chosen.len() as u64) < count {
        return Err(ChoiceError::TooFew {
            field,
            url: loader.dataset().url().to_owned(),
            wanted: count,
            found: chosen.len(),
            which,
        });
    }
    Ok(chosen)
}

/// Whether a sample has references: itself, or another image of its character and outfit. All
/// models have the same characters, also those that would read no references.
fn has_references(loader: &Loader, position: u64, pairing: Pairing) -> bool {
    pairing == Pairing::A || !loader.similar(position).is_empty()
}

fn named(
    loader: &Loader,
    field: &'static str,
    ids: &[String],
    pairing: Pairing,
) -> Result<Vec<Named>, ChoiceError> {
    let mut chosen: Vec<Named> = Vec::new();
    for id in ids {
        let position = loader
            .position_of(id)
            .filter(|position| loader.uses(*position));
        let position = position.ok_or_else(|| ChoiceError::NoSample {
            field,
            url: loader.dataset().url().to_owned(),
            id: id.clone(),
        })?;
        if !has_references(loader, position, pairing) {
            return Err(ChoiceError::Alone {
                field,
                url: loader.dataset().url().to_owned(),
                id: id.clone(),
            });
        }
        let row = &loader.rows()[usize::try_from(position).expect("positions are indices")];
        if let Some((character, Some((_, first)))) =
            chosen.iter().find(|(name, _)| *name == row.character)
        {
            return Err(ChoiceError::Twice {
                field,
                first: first.clone(),
                second: row.id.clone(),
                character: character.clone(),
            });
        }
        chosen.push((row.character.clone(), Some((position, row.id.clone()))));
    }
    Ok(chosen)
}

/// The prompts of a plan, with the characters that [`characters`] chose.
///
/// # Errors
/// The characters have too few different prompts.
pub fn prompts(
    loader: &Loader,
    plan: &EvaluationPlan,
    characters: &[Character],
) -> Result<Vec<String>, ChoiceError> {
    let (count, kind) = match &plan.prompts {
        Prompts::Texts(texts) => return Ok(texts.clone()),
        Prompts::Own { count, prompt } => (u64::from(*count), *prompt),
    };
    let mut found: Vec<String> = Vec::new();
    for character in characters {
        let Some((position, _)) = character.sample else {
            continue;
        };
        if found.len() as u64 == count || character.domain != Domain::InDomain {
            break;
        }
        let full = loader.prompt(0, position);
        let prompt = match kind {
            SamplePrompt::Pose => pose_prompt(&full),
            SamplePrompt::Full | SamplePrompt::Empty => full,
        };
        if !found.contains(&prompt) {
            found.push(prompt);
        }
    }
    if (found.len() as u64) < count {
        return Err(ChoiceError::TooFewPrompts {
            wanted: count,
            found: found.len(),
        });
    }
    Ok(found)
}
