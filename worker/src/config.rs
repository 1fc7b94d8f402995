//! The daemon's settings: shipped defaults, then a file, then the environment. Read once in `main` and passed
//! down. Never read anywhere else. Every wrong key or value is an error that names the key and where it
//! stands.

use proto::spec::DeviceKind;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

const DEFAULTS: &str = include_str!("../default.toml");
const PREFIX: &str = "RETRI_WORKER";

/// See `default.toml` for what each field means.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Config {
    pub(crate) name: String,
    pub(crate) coordinator: String,
    pub(crate) device: DeviceKind,
    pub(crate) devices: u32,
    pub(crate) metrics_listen: SocketAddr,
    pub(crate) address: String,
    pub(crate) run_dir: PathBuf,
    pub(crate) cache_dir: PathBuf,
    pub(crate) store: Option<String>,
    pub(crate) detect_within_ms: u64,
    pub(crate) log: Log,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Log {
    pub(crate) filter: String,
    pub(crate) format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, thiserror::Error, PartialEq)]
pub(crate) enum ConfigError {
    #[error("cannot read the worker's settings: {0}")]
    Read(String),
    #[error("{place}: unknown key `{key}`; known keys are {known}")]
    UnknownKey {
        place: String,
        key: String,
        known: String,
    },
    #[error("worker settings: `{key}` is {value}; {expected}")]
    Value {
        key: &'static str,
        value: String,
        expected: &'static str,
    },
}

/// The text of one layer after another, before any meaning is given to it.
#[derive(Debug, Deserialize)]
struct Raw {
    name: String,
    coordinator: String,
    device: String,
    devices: u32,
    metrics_listen: String,
    address: String,
    run_dir: String,
    cache_dir: String,
    store: String,
    detect_within_ms: u64,
    log: RawLog,
}

#[derive(Debug, Deserialize)]
struct RawLog {
    filter: String,
    format: String,
}

/// Reads all layers. `environment` is the process's, handed in so that tests have their own.
pub(crate) fn load(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Config, ConfigError> {
    let known = keys(&parse("default.toml", DEFAULTS)?);
    let mut builder =
        config::Config::builder().add_source(config::File::from_str(DEFAULTS, config::FileFormat::Toml));
    if let Some(path) = file {
        let place = path.display().to_string();
        let text =
            std::fs::read_to_string(path).map_err(|error| ConfigError::Read(format!("{place}: {error}")))?;
        refuse_unknown(&place, &keys(&parse(&place, &text)?), &known)?;
        builder = builder.add_source(config::File::from_str(&text, config::FileFormat::Toml));
    }
    let ours: std::collections::HashMap<String, String> = environment
        .into_iter()
        .filter(|(key, _)| key.starts_with(&format!("{PREFIX}__")))
        .collect();
    for variable in ours.keys() {
        let key = variable[PREFIX.len() + 2..].to_lowercase().replace("__", ".");
        refuse_unknown(
            &format!("environment variable {variable}"),
            &BTreeSet::from([key]),
            &known,
        )?;
    }
    let environment = config::Environment::with_prefix(PREFIX)
        .prefix_separator("__")
        .separator("__")
        .try_parsing(true);
    let raw: Raw = builder
        .add_source(environment.source(Some(ours)))
        .build()
        .and_then(config::Config::try_deserialize)
        .map_err(|error| ConfigError::Read(error.to_string()))?;
    check(raw)
}

fn parse(place: &str, text: &str) -> Result<toml::Table, ConfigError> {
    text.parse()
        .map_err(|error: toml::de::Error| ConfigError::Read(format!("{place}: {}", error.message())))
}

/// `log.filter` for a key in a table.
fn keys(table: &toml::Table) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (key, value) in table {
        match value {
            toml::Value::Table(inner) => {
                found.extend(keys(inner).into_iter().map(|sub| format!("{key}.{sub}")))
            }
            _ => {
                found.insert(key.clone());
            }
        }
    }
    found
}

fn refuse_unknown(
    place: &str,
    given: &BTreeSet<String>,
    known: &BTreeSet<String>,
) -> Result<(), ConfigError> {
    match given.difference(known).next() {
        None => Ok(()),
        Some(key) => Err(ConfigError::UnknownKey {
            place: place.into(),
            key: key.clone(),
            known: known.iter().cloned().collect::<Vec<_>>().join(", "),
        }),
    }
}

fn check(raw: Raw) -> Result<Config, ConfigError> {
    let name = check_name(raw.name)?;
    let scheme = url::Url::parse(&raw.coordinator).map(|url| url.scheme().to_owned());
    if !matches!(scheme.as_deref(), Ok("http")) {
        return wrong(
            "coordinator",
            raw.coordinator,
            "it must be a URL such as http://127.0.0.1:7070; https:// is not there yet",
        );
    }
    let device = match raw.device.as_str() {
        "cpu" => DeviceKind::Cpu,
        "cuda" => DeviceKind::Cuda,
        _ => return wrong("device", raw.device, "it must be cpu or cuda"),
    };
    if !(1..=64).contains(&raw.devices) {
        return wrong("devices", raw.devices, "it must be 1 to 64");
    }
    if !(100..=3_600_000).contains(&raw.detect_within_ms) {
        return wrong(
            "detect_within_ms",
            raw.detect_within_ms,
            "it must be 100 to 3600000 milliseconds",
        );
    }
    let Ok(metrics_listen) = raw.metrics_listen.parse() else {
        return wrong(
            "metrics_listen",
            raw.metrics_listen,
            "it must be an address and port such as 127.0.0.1:7072",
        );
    };
    if raw.address.is_empty() || raw.address.contains([':', '/', ' ']) {
        return wrong(
            "address",
            raw.address,
            "it must be a host name or IPv4 address, without a port",
        );
    }
    let log = check_log(raw.log)?;
    let cache_dir = if raw.cache_dir.is_empty() {
        default_cache_dir()
    } else {
        raw.cache_dir.into()
    };
    let run_dir = if raw.run_dir.is_empty() {
        std::env::temp_dir().join(format!("retri-worker-{name}"))
    } else {
        raw.run_dir.into()
    };
    Ok(Config {
        name,
        coordinator: raw.coordinator,
        device,
        devices: raw.devices,
        metrics_listen,
        address: raw.address,
        run_dir,
        cache_dir,
        store: (!raw.store.is_empty()).then_some(raw.store),
        detect_within_ms: raw.detect_within_ms,
        log,
    })
}

fn check_name(given: String) -> Result<String, ConfigError> {
    let name = if given.is_empty() { host_name() } else { given };
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.len() > 64 || !name.chars().all(fits) {
        return wrong(
            "name",
            name,
            "it must be at most 64 letters, digits, dashes, underscores and dots",
        );
    }
    Ok(name)
}

fn check_log(raw: RawLog) -> Result<Log, ConfigError> {
    let format = match raw.format.as_str() {
        "text" => LogFormat::Text,
        "json" => LogFormat::Json,
        _ => return wrong("log.format", raw.format, "it must be text or json"),
    };
    if tracing_subscriber::EnvFilter::try_new(&raw.filter).is_err() {
        return wrong(
            "log.filter",
            raw.filter,
            "it must be levels by module, such as info or worker=debug,info",
        );
    }
    Ok(Log {
        filter: raw.filter,
        format,
    })
}

fn wrong<T>(key: &'static str, value: impl ToString, expected: &'static str) -> Result<T, ConfigError> {
    Err(ConfigError::Value {
        key,
        value: value.to_string(),
        expected,
    })
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "worker".into(), |name| name.trim().to_owned())
}

fn default_cache_dir() -> PathBuf {
    let home = std::env::home_dir().unwrap_or_else(std::env::temp_dir);
    home.join(".cache/retri/weights")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn load_text(text: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("worker.toml");
        std::fs::write(&path, text).unwrap();
        let environment = environment
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        load(Some(&path), environment).map_err(|error| error.to_string())
    }

    #[test]
    fn the_shipped_defaults_are_valid() {
        let config = load(None, []).unwrap();
        assert_eq!(
            (config.device, config.devices, config.detect_within_ms),
            (DeviceKind::Cpu, 1, 10_000)
        );
        assert_eq!(config.log.format, LogFormat::Text);
        assert!(!config.name.is_empty());
    }

    #[test]
    fn the_file_overrides_defaults_and_the_environment_overrides_the_file() {
        let text = "name = \"w1\"\ndevices = 2\n[log]\nformat = \"json\"\n";
        let config = load_text(
            text,
            &[
                ("RETRI_WORKER__DEVICES", "4"),
                ("RETRI_WORKER__LOG__FILTER", "debug"),
                ("OTHER", "x"),
            ],
        )
        .unwrap();
        assert_eq!((config.name.as_str(), config.devices), ("w1", 4));
        assert_eq!(
            (config.log.format, config.log.filter.as_str()),
            (LogFormat::Json, "debug")
        );
    }

    #[test]
    fn wrong_settings_name_the_key_and_what_would_be_right() {
        let cases = [
            (
                "devises = 2",
                "worker.toml: unknown key `devises`; known keys are address",
            ),
            ("[log]\nlevel = \"info\"", "unknown key `log.level`"),
            ("devices = 0", "`devices` is 0; it must be 1 to 64"),
            ("devices = \"many\"", "devices"),
            ("device = \"tpu\"", "`device` is tpu; it must be cpu or cuda"),
            (
                "[log]\nformat = \"xml\"",
                "`log.format` is xml; it must be text or json",
            ),
            ("[log]\nfilter = \"a=b=c\"", "`log.filter` is a=b=c"),
            (
                "detect_within_ms = 5",
                "`detect_within_ms` is 5; it must be 100 to 3600000",
            ),
            (
                "coordinator = \"127.0.0.1:7070\"",
                "`coordinator` is 127.0.0.1:7070; it must be a URL",
            ),
            ("metrics_listen = \"nowhere\"", "`metrics_listen` is nowhere"),
            (
                "address = \"10.0.0.1:80\"",
                "`address` is 10.0.0.1:80; it must be a host name",
            ),
            ("name = \"a b\"", "`name` is a b"),
            ("name = ", "worker.toml"),
        ];
        for (text, part) in cases {
            let error = load_text(text, &[]).unwrap_err();
            assert!(error.contains(part), "{text:?} gave {error:?}");
        }
        let error = load_text("", &[("RETRI_WORKER__DEVISES", "1")]).unwrap_err();
        assert!(
            error.contains("environment variable RETRI_WORKER__DEVISES: unknown key `devises`"),
            "{error}"
        );
    }
}
