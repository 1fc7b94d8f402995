//! Configuration of `coordinator serve`: shipped defaults, then a file, then the environment. It never
//! opens anything it names. Called once, by `serve`.

use crate::words::nearest;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The shipped defaults, with the documentation of every field.
const DEFAULTS: &str = include_str!("../default.toml");
const PREFIX: &str = "RETRI_COORDINATOR__";
/// Below this, a heartbeat is shorter than an ordinary pause of a busy machine.
const DETECT_WITHIN_MS_MIN: u64 = 100;

/// See `default.toml` for what each field means.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) listen: SocketAddr,
    pub(crate) metrics_listen: SocketAddr,
    pub(crate) store: String,
    pub(crate) detect_within_ms: u64,
    pub(crate) log: Log,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Log {
    pub(crate) filter: String,
    pub(crate) format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is no TOML: {reason}", path.display())]
    NotToml { path: PathBuf, reason: String },
    #[error("{origin}: unknown key `{key}`; {hint}")]
    UnknownKey {
        origin: String,
        key: String,
        hint: String,
    },
    #[error("configuration: {reason}")]
    Value { reason: String },
    #[error("configuration: `detect_within_ms` is {value}; it must be at least {DETECT_WITHIN_MS_MIN}")]
    DetectWithin { value: u64 },
}

impl Config {
    /// Reads `file` (if any) over the defaults, and `environment` over both.
    ///
    /// # Errors
    /// The file cannot be read, a key is unknown, or a value cannot be what it is.
    pub(crate) fn load(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let known = known_keys();
        let mut builder =
            config::Config::builder().add_source(config::File::from_str(DEFAULTS, config::FileFormat::Toml));
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
                path: path.to_owned(),
                source,
            })?;
            check_file(path, &text, &known)?;
            builder = builder.add_source(config::File::from_str(&text, config::FileFormat::Toml));
        }
        let variables: BTreeMap<String, String> =
            environment.filter(|(name, _)| name.starts_with(PREFIX)).collect();
        check_variables(&variables, &known)?;
        let source = config::Environment::with_prefix("RETRI_COORDINATOR")
            .prefix_separator("__")
            .separator("__")
            .try_parsing(true)
            .source(Some(variables.into_iter().collect()));
        let config: Self = builder
            .add_source(source)
            .build()
            .and_then(config::Config::try_deserialize)
            .map_err(|error| ConfigError::Value {
                reason: error.to_string(),
            })?;
        if config.detect_within_ms < DETECT_WITHIN_MS_MIN {
            return Err(ConfigError::DetectWithin {
                value: config.detect_within_ms,
            });
        }
        Ok(config)
    }
}

/// Every key of the shipped file, dotted. That it is complete is a test.
fn known_keys() -> Vec<String> {
    let table = DEFAULTS.parse().expect("the shipped defaults are TOML");
    let mut keys = Vec::new();
    collect_keys(&table, "", &mut keys);
    keys
}

fn collect_keys(table: &toml::Table, prefix: &str, keys: &mut Vec<String>) {
    for (name, value) in table {
        let key = format!("{prefix}{name}");
        match value.as_table() {
            Some(inner) => collect_keys(inner, &format!("{key}."), keys),
            None => keys.push(key),
        }
    }
}

fn check_file(path: &Path, text: &str, known: &[String]) -> Result<(), ConfigError> {
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| ConfigError::NotToml {
            path: path.to_owned(),
            reason: error.to_string().trim_end().to_owned(),
        })?;
    let mut keys = Vec::new();
    collect_keys(&table, "", &mut keys);
    for key in keys {
        check_key(&path.display().to_string(), &key, known)?;
    }
    Ok(())
}

fn check_variables(variables: &BTreeMap<String, String>, known: &[String]) -> Result<(), ConfigError> {
    for name in variables.keys() {
        let key = name[PREFIX.len()..].to_lowercase().replace("__", ".");
        check_key(&format!("environment variable {name}"), &key, known)?;
    }
    Ok(())
}

fn check_key(origin: &str, key: &str, known: &[String]) -> Result<(), ConfigError> {
    if known.iter().any(|it| it == key) {
        return Ok(());
    }
    let hint = match nearest(key, known.iter().map(String::as_str)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("known keys are {}", known.join(", ")),
    };
    Err(ConfigError::UnknownKey {
        origin: origin.to_owned(),
        key: key.to_owned(),
        hint,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn load(text: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, text).unwrap();
        let variables = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let folder = format!("{}/", dir.path().display());
        Config::load(Some(&path), variables).map_err(|error| error.to_string().replace(&folder, ""))
    }

    #[test]
    fn the_environment_beats_the_file_and_the_file_beats_the_defaults() {
        let text = "listen = \"127.0.0.1:1\"\ndetect_within_ms = 2000\n[log]\nformat = \"json\"";
        let config = load(
            text,
            &[("RETRI_COORDINATOR__LISTEN", "127.0.0.1:2"), ("HOME", "/x")],
        )
        .unwrap();
        assert_eq!(config.listen.port(), 2);
        assert_eq!(config.detect_within_ms, 2000);
        assert_eq!(
            config.log,
            Log {
                filter: "info,slatedb=warn".into(),
                format: LogFormat::Json
            }
        );
        assert_eq!(config.metrics_listen.port(), 7071);
    }

    #[test]
    fn every_wrong_key_or_value_is_named_with_its_origin() {
        let expect = |text: &str, variables: &[(&str, &str)], message: &str| {
            assert_eq!(load(text, variables).unwrap_err(), message);
        };
        expect(
            "lisen = 3",
            &[],
            "c.toml: unknown key `lisen`; did you mean `listen`?",
        );
        expect(
            "[log]\nfilters = \"x\"",
            &[],
            "c.toml: unknown key `log.filters`; did you mean `log.filter`?",
        );
        expect(
            "",
            &[("RETRI_COORDINATOR__STOR", "x")],
            "environment variable RETRI_COORDINATOR__STOR: unknown key `stor`; did you mean `store`?",
        );
        expect(
            "detect_within_ms = 5",
            &[],
            "configuration: `detect_within_ms` is 5; it must be at least 100",
        );
        assert!(
            load("listen = \"somewhere\"", &[])
                .unwrap_err()
                .contains("listen")
        );
        assert!(load("= 3", &[]).unwrap_err().starts_with("c.toml is no TOML"));
        let missing = Config::load(Some(Path::new("/nowhere/c.toml")), std::iter::empty()).unwrap_err();
        assert!(missing.to_string().contains("/nowhere/c.toml"));
    }
}
