//! A daemon's settings in layers: shipped defaults, then a file, then the environment
//! (`PREFIX__TABLE__KEY`). Errors name the location of a wrong key or value, the value, and what is
//! allowed. Only the given settings file is read; files that settings refer to are not opened.

use crate::location::{line_of, nearest, of_toml_error};
use config::{Environment, File, FileFormat};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::fmt::Display;
use std::path::Path;
use toml::{Table, Value};

/// An invalid setting and where it was set, for instance `worker.toml:3: devices: …`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{location}: {message}")]
pub struct SettingsError {
    pub location: String,
    pub message: String,
}

/// The table `[log]` of a daemon's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Levels by module. Validated by the daemon, which knows its logging library.
    pub filter: String,
    pub format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// [`Log`] before validation.
#[derive(Debug, Deserialize)]
pub struct RawLog {
    pub filter: String,
    pub format: String,
}

/// Settings as parsed, and where each of them was set.
#[derive(Debug)]
pub struct Settings<T> {
    pub values: T,
    layers: Layers,
}

#[derive(Debug)]
struct Layers {
    prefix: &'static str,
    /// Name and text.
    file: Option<(String, String)>,
    /// Environment variables with the prefix.
    variables: HashMap<String, String>,
}

/// Merges `defaults`, `file` (if any) and the variables of `environment` that start with `prefix`;
/// later layers override earlier ones. The defaults define all keys and their types.
///
/// # Errors
/// The file cannot be read or is not TOML, a key is unknown, or a value has another type than its
/// default.
///
/// # Panics
/// If the shipped defaults are not TOML.
pub fn load<T: DeserializeOwned>(
    prefix: &'static str,
    defaults: &str,
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Settings<T>, SettingsError> {
    let known: Table = defaults.parse().expect("the shipped defaults are TOML");
    let full_prefix = format!("{prefix}__");
    let layers = Layers {
        prefix,
        file: file.map(read).transpose()?,
        variables: environment
            .into_iter()
            .filter(|(name, _)| name.starts_with(&full_prefix))
            .collect(),
    };
    let mut builder =
        config::Config::builder().add_source(File::from_str(defaults, FileFormat::Toml));
    if let Some((name, text)) = &layers.file {
        check_file(name, text, &known)?;
        builder = builder.add_source(File::from_str(text, FileFormat::Toml));
    }
    for (name, value) in &layers.variables {
        check_variable(name, value, &key_of(name, prefix), &known)?;
    }
    let environment = Environment::with_prefix(prefix)
        .prefix_separator("__")
        .separator("__")
        .try_parsing(true);
    let values = builder
        .add_source(environment.source(Some(layers.variables.clone())))
        .build()
        .and_then(config::Config::try_deserialize)
        .map_err(|error| SettingsError {
            location: layers
                .file
                .as_ref()
                .map_or("settings", |(name, _)| name)
                .to_owned(),
            message: error.to_string(),
        })?;
    Ok(Settings { values, layers })
}

impl<T> Settings<T> {
    /// The error for a value of the right type that is not allowed, with the location that set it.
    pub fn wrong(&self, key: &str, value: impl Display, expected: &str) -> SettingsError {
        SettingsError {
            location: self.layers.location_of(key),
            message: format!("{key}: is {value}; {expected}"),
        }
    }

    /// Validates the table `[log]`.
    ///
    /// # Errors
    /// The format is unknown.
    pub fn log(&self, raw: &RawLog) -> Result<Log, SettingsError> {
        let format = match raw.format.as_str() {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            other => {
                return Err(self.wrong(
                    "log.format",
                    format!("{other:?}"),
                    "it must be text or json",
                ));
            }
        };
        Ok(Log {
            filter: raw.filter.clone(),
            format,
        })
    }
}

impl Layers {
    fn location_of(&self, key: &str) -> String {
        let set_by = |name: &&String| key_of(name, self.prefix) == key;
        if let Some(name) = self.variables.keys().find(set_by) {
            return format!("environment variable {name}");
        }
        let Some((name, text)) = &self.file else {
            return "shipped default".to_owned();
        };
        format!("{name}:{}", line_of(text, key))
    }
}

/// `log.filter` for `RETRI_WORKER__LOG__FILTER`.
fn key_of(variable: &str, prefix: &str) -> String {
    variable[prefix.len() + 2..]
        .to_lowercase()
        .replace("__", ".")
}

fn read(path: &Path) -> Result<(String, String), SettingsError> {
    let location = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => Ok((location, text)),
        Err(error) => Err(SettingsError {
            location,
            message: format!("cannot be read: {error}"),
        }),
    }
}

fn check_file(name: &str, text: &str, known: &Table) -> Result<(), SettingsError> {
    let table: Table = text.parse().map_err(|error| {
        let (line, _, message) = of_toml_error(text, &error);
        SettingsError {
            location: format!("{name}:{line}"),
            message: format!("not valid TOML: {message}"),
        }
    })?;
    check_table(&table, known, "").map_err(|(key, message)| SettingsError {
        location: format!("{name}:{}", line_of(text, &key)),
        message,
    })
}

/// Fails with the first wrong key and a message about it.
fn check_table(table: &Table, known: &Table, parent: &str) -> Result<(), (String, String)> {
    for (name, value) in table {
        let key = format!("{parent}{name}");
        match (value, known.get(name)) {
            (_, None) => {
                let message = unknown(&key, &keys(known, parent));
                return Err((key, message));
            }
            (Value::Table(inner), Some(Value::Table(known))) => {
                check_table(inner, known, &format!("{key}."))?;
            }
            (value, Some(default)) if !value.same_type(default) => {
                let message = format!("{key}: is {value}; it must be {}", type_name(default));
                return Err((key, message));
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_variable(name: &str, value: &str, key: &str, known: &Table) -> Result<(), SettingsError> {
    let wrong = |message| SettingsError {
        location: format!("environment variable {name}"),
        message,
    };
    let mut default = Value::Table(known.clone());
    for part in key.split('.') {
        default = default
            .get(part)
            .cloned()
            .ok_or_else(|| wrong(unknown(key, &keys(known, ""))))?;
    }
    let fits = match &default {
        Value::Integer(_) => value.parse::<i64>().is_ok(),
        Value::Float(_) => value.parse::<f64>().is_ok(),
        Value::Boolean(_) => value.parse::<bool>().is_ok(),
        Value::Table(_) => return Err(wrong(unknown(key, &keys(known, "")))),
        _ => true,
    };
    if fits {
        return Ok(());
    }
    Err(wrong(format!(
        "{key}: is {value:?}; it must be {}",
        type_name(&default)
    )))
}

/// All keys of the shipped defaults, dotted.
fn keys(known: &Table, parent: &str) -> Vec<String> {
    known
        .iter()
        .flat_map(|(name, value)| match value {
            Value::Table(inner) => keys(inner, &format!("{parent}{name}.")),
            _ => vec![format!("{parent}{name}")],
        })
        .collect()
}

fn unknown(key: &str, known: &[String]) -> String {
    let words: Vec<&str> = known.iter().map(String::as_str).collect();
    match nearest(key, &words) {
        Some(near) => format!("{key}: there is no such setting; did you mean `{near}`?"),
        None => format!(
            "{key}: there is no such setting; the settings are {}",
            known.join(", ")
        ),
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a quoted string",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Table(_) => "a table of settings",
        Value::Array(_) => "a list in square brackets",
        Value::Datetime(_) => "a date",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    struct Toy {
        name: String,
        devices: i64,
        log: Log,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    struct Log {
        filter: String,
    }

    const DEFAULTS: &str = "name = \"\"\ndevices = 1\n[log]\nfilter = \"info\"\n";

    fn toy(text: &str, variables: &[(&str, &str)]) -> Result<Settings<Toy>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("toy.toml");
        std::fs::write(&path, text).unwrap();
        let variables = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        load("TOY", DEFAULTS, Some(&path), variables).map_err(|error| {
            error
                .to_string()
                .replace(&format!("{}/", folder.path().display()), "")
        })
    }

    #[test]
    fn the_environment_beats_the_file_and_the_file_beats_the_defaults() {
        let text = "name = \"file\"\ndevices = 2\n";
        let settings = toy(text, &[("TOY__DEVICES", "3"), ("TOYS", "x"), ("HOME", "/")]).unwrap();
        let expected = Toy {
            name: "file".into(),
            devices: 3,
            log: Log {
                filter: "info".into(),
            },
        };
        assert_eq!(settings.values, expected);
        let error_of = |key| {
            settings
                .wrong(key, 0, "it must be more")
                .to_string()
                .replace('/', "")
        };
        assert!(error_of("name").ends_with("toy.toml:1: name: is 0; it must be more"));
        assert_eq!(
            error_of("devices"),
            "environment variable TOY__DEVICES: devices: is 0; it must be more"
        );
        let settings = load::<Toy>("TOY", DEFAULTS, None, []).unwrap();
        assert_eq!(
            settings.wrong("name", "\"\"", "give one").to_string(),
            "shipped default: name: is \"\"; give one"
        );
    }

    #[test]
    fn numbers_and_words_of_the_environment_keep_the_type_of_their_key() {
        assert_eq!(toy("", &[("TOY__NAME", "7")]).unwrap().values.name, "7");
        assert_eq!(
            toy("", &[("TOY__LOG__FILTER", "true")])
                .unwrap()
                .values
                .log
                .filter,
            "true"
        );
    }

    #[test]
    fn every_wrong_key_or_value_is_named_with_its_place() {
        let expect = |text: &str, variables: &[(&str, &str)], message: &str| {
            assert_eq!(toy(text, variables).unwrap_err(), message);
        };
        expect(
            "\ndevises = 3",
            &[],
            "toy.toml:2: devises: there is no such setting; did you mean `devices`?",
        );
        expect(
            "[log]\nfilters = \"x\"",
            &[],
            "toy.toml:2: log.filters: there is no such setting; did you mean `log.filter`?",
        );
        expect(
            "[banana]",
            &[],
            "toy.toml:1: banana: there is no such setting; the settings are devices, log.filter, \
            name",
        );
        expect(
            "log = 3",
            &[],
            "toy.toml:1: log: is 3; it must be a table of settings",
        );
        expect(
            "devices = \"many\"",
            &[],
            "toy.toml:1: devices: is \"many\"; it must be a whole number",
        );
        expect(
            "name = 7",
            &[],
            "toy.toml:1: name: is 7; it must be a quoted string",
        );
        expect(
            "",
            &[("TOY__NAEM", "x")],
            "environment variable TOY__NAEM: naem: there is no such setting; did you mean `name`?",
        );
        expect(
            "",
            &[("TOY__LOG", "x")],
            "environment variable TOY__LOG: log: there is no such setting; the settings are \
            devices, log.filter, name",
        );
        expect(
            "",
            &[("TOY__DEVICES", "many")],
            "environment variable TOY__DEVICES: devices: is \"many\"; it must be a whole number",
        );
        assert!(
            toy("= 3", &[])
                .unwrap_err()
                .starts_with("toy.toml:1: not valid TOML: ")
        );
        let missing =
            load::<Toy>("TOY", DEFAULTS, Some(Path::new("/nowhere/c.toml")), []).unwrap_err();
        assert_eq!(
            missing.to_string(),
            "/nowhere/c.toml: cannot be read: No such file or directory (os error 2)"
        );
    }
}
