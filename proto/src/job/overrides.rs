//! Changes of a stored job by `coordinator retry --set key=value`. Its text stays as it was
//! submitted; the overrides are stored beside it and applied whenever it is parsed.

use super::check::DEFAULT_TEAM;
use super::{JobErrors, Origin, admission, parse_from, to_toml};
use crate::id::JobId;
use crate::spec::{JobSpec, Work};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use toml::{Table, Value};

/// One override: a dotted key of job.toml and its value as TOML.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Override {
    pub key: String,
    pub value: String,
}

/// Tables whose keys may be set: none of them changes the samples of a step.
const ALLOWED: [&str; 3] = ["resources", "train", "checkpoint"];
/// Keys of these tables that may not, and why.
const FORBIDDEN: [(&str, &str); 2] = [
    (
        "train.global_batch",
        "it changes the samples of every step; submit a new job",
    ),
    (
        "checkpoint.keep_best",
        "the evaluations so far have scores of the former one; submit a new job",
    ),
];

impl FromStr for Override {
    type Err = String;

    /// Parses `key=value`. A value that is not TOML is taken as a string.
    fn from_str(text: &str) -> Result<Self, String> {
        let Some((key, value)) = text.split_once('=') else {
            return Err(format!("`{text}` is not of the form key=value"));
        };
        let (key, value) = (key.trim(), value.trim());
        if key.is_empty() || value.is_empty() {
            return Err(format!("`{text}` needs a key and a value: key=value"));
        }
        Ok(Self {
            key: key.to_owned(),
            value: toml_value(value).to_string(),
        })
    }
}

/// The value that the text means as TOML, or else the text as a string.
fn toml_value(text: &str) -> Value {
    let parsed = toml::from_str::<Table>(&format!("value = {text}"));
    let value = parsed.ok().and_then(|mut table| table.remove("value"));
    value.unwrap_or_else(|| Value::String(text.to_owned()))
}

impl Override {
    fn check(&self) -> Result<(), String> {
        let key = &self.key;
        let table = key.split('.').next().unwrap_or_default();
        if !ALLOWED.contains(&table) || !key.contains('.') {
            return Err(format!(
                "{key}: only keys of [resources], [train] and [checkpoint] can be set for a job \
                 that exists, because others change what it trains on or what it is; submit a new \
                 job"
            ));
        }
        match FORBIDDEN.iter().find(|(forbidden, _)| forbidden == key) {
            Some((_, why)) => Err(format!("{key}: {why}")),
            None => Ok(()),
        }
    }

    fn set(&self, table: &mut Table) -> Result<(), String> {
        let mut keys: Vec<&str> = self.key.split('.').collect();
        let last = keys.pop().unwrap_or_default();
        let mut table = table;
        for key in keys {
            let entry = table
                .entry(key)
                .or_insert_with(|| Value::Table(Table::new()));
            let Value::Table(inner) = entry else {
                return Err(format!("{}: `{key}` is not a table", self.key));
            };
            table = inner;
        }
        table.insert(last.to_owned(), toml_value(&self.value));
        Ok(())
    }
}

impl fmt::Display for Override {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

/// Parses a stored job and applies its overrides, the last one of a key wins.
///
/// # Errors
/// Names the key that cannot be set, or the field that is invalid with the overrides.
pub fn parse_with_overrides(
    job: &JobId,
    text: &str,
    overrides: &[Override],
) -> Result<JobSpec, String> {
    let file = format!("job.toml of {job}");
    let invalid = |errors: JobErrors| errors.to_string();
    if overrides.is_empty() {
        return parse_from(&file, text, None, Origin::Stored).map_err(invalid);
    }
    let mut table: Table = toml::from_str(text).map_err(|error| format!("{file}: {error}"))?;
    for it in overrides {
        it.check()?;
        it.set(&mut table)?;
    }
    let text = toml::to_string(&table).map_err(|error| format!("{file}: {error}"))?;
    parse_from(&file, &text, None, Origin::Stored).map_err(invalid)
}

/// The name and the team of a stored job. The rest of it is not looked at: a coordinator that keeps
/// fewer ended jobs than before archives a hundred thousand of them at once.
///
/// # Errors
/// The text is not TOML, or has no name.
pub fn name_and_team(text: &str, overrides: &[Override]) -> Result<(String, String), String> {
    #[derive(Deserialize)]
    struct Heading {
        name: String,
        #[serde(default)]
        resources: Team,
    }
    #[derive(Default, Deserialize)]
    struct Team {
        team: Option<String>,
    }
    let text = if overrides.is_empty() {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(with_settings(text, overrides)?)
    };
    let found: Heading = toml::from_str(&text).map_err(|error| error.to_string())?;
    let team = found.resources.team;
    Ok((found.name, team.unwrap_or_else(|| DEFAULT_TEAM.to_owned())))
}

/// The text of a job that is not submitted yet with these keys set; any key may be. Its comments
/// are lost.
///
/// # Errors
/// The text is not TOML, or a part of a key is no table.
pub fn with_settings(text: &str, settings: &[Override]) -> Result<String, String> {
    let mut table: Table = toml::from_str(text).map_err(|error| error.to_string())?;
    for it in settings {
        it.set(&mut table)?;
    }
    toml::to_string(&table).map_err(|error| error.to_string())
}

/// Every key of a job's text, dotted, with its value as TOML.
///
/// # Errors
/// The text is not TOML.
pub fn flat(text: &str) -> Result<BTreeMap<String, String>, toml::de::Error> {
    fn add(prefix: &str, table: Table, keys: &mut BTreeMap<String, String>) {
        for (key, value) in table {
            let key = if prefix.is_empty() {
                key
            } else {
                format!("{prefix}.{key}")
            };
            match value {
                Value::Table(inner) => add(&key, inner, keys),
                value => drop(keys.insert(key, value.to_string())),
            }
        }
    }
    let mut keys = BTreeMap::new();
    add("", toml::from_str(text)?, &mut keys);
    Ok(keys)
}

/// Refuses a job with overrides whose size could not have been submitted so.
///
/// # Errors
/// Names the field, its length and the limit.
pub fn check_limits(spec: &JobSpec, overrides: &[Override]) -> Result<(), String> {
    admission::check_overrides(spec, overrides)
}

/// The text that ranks get: the stored text, or the canonical text with the overrides.
#[must_use]
pub fn effective_text(text: &str, spec: &JobSpec, overrides: &[Override]) -> String {
    if overrides.is_empty() {
        text.to_owned()
    } else {
        to_toml(spec)
    }
}

/// Refuses overrides that would contradict what a training job has already done.
///
/// # Errors
/// Names the key, its value and the smallest valid one.
pub fn check_progress(spec: &JobSpec, committed: u64) -> Result<(), String> {
    match &spec.work {
        Work::Train(work) if work.train.steps < committed.max(1) => Err(format!(
            "train.steps: {} is less than the {committed} steps of its last checkpoint",
            work.train.steps
        )),
        Work::Train(_) | Work::Sample(_) | Work::Evaluate(_) | Work::Build(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::parse;
    use super::*;

    const TEXT: &str = "name = \"a\"\n[data]\ndataset = \"file:///d\"\nresolution = 32\n\
        [model]\narchitecture = \"autoencoder\"\nsize = \"tiny\"\n\
        [train]\nsteps = 10\nglobal_batch = 4\nmicro_batch = 1\n";

    fn with(settings: &[&str]) -> Result<JobSpec, String> {
        let overrides: Vec<Override> = settings.iter().map(|it| it.parse().unwrap()).collect();
        let id = JobId("a-1".to_owned());
        let stored = to_toml(&parse("job.toml", TEXT, None).unwrap());
        parse_with_overrides(&id, &stored, &overrides)
    }

    #[test]
    fn name_and_team_are_those_of_the_whole_job() {
        for settings in [&[][..], &["resources.team=blue"][..]] {
            let spec = with(settings).unwrap();
            let settings: Vec<Override> = settings.iter().map(|it| it.parse().unwrap()).collect();
            let found = name_and_team(TEXT, &settings);
            assert_eq!(found, Ok((spec.name, spec.resources.team)));
        }
        assert!(name_and_team("name = ", &[]).is_err());
    }

    #[test]
    fn overrides_change_the_fields_that_they_name_and_no_other() {
        let plain = with(&[]).unwrap();
        let spec = with(&[
            "train.steps=20",
            "train.learning_rate = 1e-5",
            "resources.workers.max=3",
            "resources.team=blue",
            "train.steps=30",
        ])
        .unwrap();
        let train = &spec.training().unwrap().train;
        assert_eq!((train.steps, train.learning_rate), (30, 1e-5));
        assert_eq!(spec.resources.workers_max, 3);
        assert_eq!(spec.resources.team, "blue");
        assert_eq!(
            spec.training().unwrap().data,
            plain.training().unwrap().data
        );
        assert_eq!(train.global_batch, 4);
    }

    #[test]
    fn what_changes_the_samples_or_the_model_is_refused_by_name() {
        for (setting, part) in [
            (
                "train.global_batch=8",
                "train.global_batch: it changes the samples",
            ),
            (
                "data.seed=3",
                "data.seed: only keys of [resources], [train] and [checkpoint]",
            ),
            ("model.size=\"full\"", "model.size: only keys"),
            ("name=\"b\"", "name: only keys"),
            ("train.stepz=3", "stepz"),
            ("train.steps=\"many\"", "steps"),
            (
                "resources.team.x=1",
                "resources.team.x: `team` is not a table",
            ),
        ] {
            let error = with(&[setting]).unwrap_err();
            assert!(error.contains(part), "{setting}: {error}");
        }
        assert!("train.steps".parse::<Override>().is_err());
        assert!("=3".parse::<Override>().is_err());
    }

    #[test]
    fn fewer_steps_than_are_done_are_refused() {
        let spec = with(&["train.steps=5"]).unwrap();
        assert_eq!(check_progress(&spec, 5), Ok(()));
        let error = check_progress(&spec, 6).unwrap_err();
        assert!(
            error.contains("train.steps: 5 is less than the 6 steps"),
            "{error}"
        );
    }
}
