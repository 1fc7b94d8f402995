//! The daemon's settings. [`proto::settings`] merges the layers; this file validates them. Read
//! once in `main` and passed down; never read anywhere else.

use proto::limits::{DEVICES, is_worker_name};
use proto::settings::{self, Log, RawLog, Settings, SettingsError};
use proto::spec::DeviceKind;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

const DEFAULTS: &str = include_str!("../default.toml");
const PREFIX: &str = "RETRI_WORKER";

/// `default.toml` documents the fields.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Config {
    pub(crate) name: String,
    pub(crate) coordinator: String,
    pub(crate) device: DeviceKind,
    pub(crate) devices: u32,
    pub(crate) metrics_listen: SocketAddr,
    pub(crate) address: String,
    pub(crate) peer_port: u16,
    /// None: a folder with a random name.
    pub(crate) run_dir: Option<PathBuf>,
    pub(crate) cache_dir: PathBuf,
    pub(crate) store: Option<String>,
    /// None: where the system has it.
    pub(crate) nvml: Option<PathBuf>,
    pub(crate) log: Log,
}

/// [`Config`] before validation.
#[derive(Debug, Deserialize)]
struct Raw {
    name: String,
    coordinator: String,
    device: String,
    devices: i64,
    metrics_listen: String,
    address: String,
    peer_port: i64,
    run_dir: String,
    cache_dir: String,
    store: String,
    nvml: String,
    log: RawLog,
}

/// Reads all layers. `environment` is a parameter so that tests can set it.
pub(crate) fn load(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Config, SettingsError> {
    check(&settings::load(PREFIX, DEFAULTS, file, environment)?)
}

fn check(settings: &Settings<Raw>) -> Result<Config, SettingsError> {
    let raw = &settings.values;
    let wrong =
        |key, value: &str, expected: &str| Err(settings.wrong(key, format!("{value:?}"), expected));
    let name = if raw.name.is_empty() {
        host_name()
    } else {
        raw.name.clone()
    };
    if !is_worker_name(&name) {
        let expected = "it must be at most 64 letters, digits, dashes, underscores and dots";
        return wrong("name", &name, expected);
    }
    let scheme = url::Url::parse(&raw.coordinator).map(|url| url.scheme().to_owned());
    if !matches!(scheme.as_deref(), Ok("http")) {
        let expected =
            "it must be a URL such as http://127.0.0.1:7070; https:// is not supported yet";
        return wrong("coordinator", &raw.coordinator, expected);
    }
    let device = match raw.device.as_str() {
        "cpu" => DeviceKind::Cpu,
        "cuda" => DeviceKind::Cuda,
        other => return wrong("device", other, "it must be cpu or cuda"),
    };
    let Some(devices) = u32::try_from(raw.devices)
        .ok()
        .filter(|it| (1..=DEVICES).contains(it))
    else {
        let expected = format!("it must be 1 to {DEVICES}");
        return Err(settings.wrong("devices", raw.devices, &expected));
    };
    let Ok(metrics_listen) = raw.metrics_listen.parse() else {
        let expected = "it must be an address and port such as 127.0.0.1:7072";
        return wrong("metrics_listen", &raw.metrics_listen, expected);
    };
    if raw.address.is_empty() || raw.address.contains([':', '/', ' ']) {
        let expected = "it must be a host name or IPv4 address, without a port";
        return wrong("address", &raw.address, expected);
    }
    let Ok(peer_port) = u16::try_from(raw.peer_port) else {
        return Err(settings.wrong("peer_port", raw.peer_port, "it must be 0 to 65535"));
    };
    let log = settings.log(&raw.log)?;
    if tracing_subscriber::EnvFilter::try_new(&raw.log.filter).is_err() {
        let expected = "it must be levels by module, such as info or worker=debug,info";
        return wrong("log.filter", &raw.log.filter, expected);
    }
    let folder = |given: &str| (!given.is_empty()).then(|| PathBuf::from(given));
    Ok(Config {
        run_dir: folder(&raw.run_dir),
        cache_dir: folder(&raw.cache_dir).unwrap_or_else(default_cache_dir),
        nvml: folder(&raw.nvml),
        name,
        coordinator: raw.coordinator.clone(),
        device,
        devices,
        metrics_listen,
        address: raw.address.clone(),
        peer_port,
        store: (!raw.store.is_empty()).then(|| raw.store.clone()),
        log,
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
    use proto::settings::LogFormat;

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
        assert_eq!((config.device, config.devices), (DeviceKind::Cpu, 1));
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
    fn every_wrong_value_is_named_with_its_location() {
        let cases = [
            (
                "devises = 2",
                "1: devises: there is no such setting; did you mean `devices`?",
            ),
            ("devices = 0", "1: devices: is 0; it must be 1 to 64"),
            ("devices = -3", "1: devices: is -3; it must be 1 to 64"),
            (
                "devices = 5000000000",
                "1: devices: is 5000000000; it must be 1 to 64",
            ),
            (
                "device = \"tpu\"",
                "1: device: is \"tpu\"; it must be cpu or cuda",
            ),
            (
                "[log]\nformat = \"xml\"",
                "2: log.format: is \"xml\"; it must be text or json",
            ),
            (
                "[log]\nfilter = \"a=b=c\"",
                "2: log.filter: is \"a=b=c\"; it must be levels by module, such as info or \
                worker=debug,info",
            ),
            (
                "coordinator = \"127.0.0.1:7070\"",
                "1: coordinator: is \"127.0.0.1:7070\"; it must be a URL such as \
                http://127.0.0.1:7070; https:// is not supported yet",
            ),
            (
                "metrics_listen = \"nowhere\"",
                "1: metrics_listen: is \"nowhere\"; it must be an address and port such as \
                127.0.0.1:7072",
            ),
            (
                "address = \"10.0.0.1:80\"",
                "1: address: is \"10.0.0.1:80\"; it must be a host name or IPv4 address, without \
                a port",
            ),
            (
                "peer_port = 70000",
                "1: peer_port: is 70000; it must be 0 to 65535",
            ),
            (
                "\nname = \"a b\"",
                "2: name: is \"a b\"; it must be at most 64 letters, digits, dashes, underscores \
                and dots",
            ),
        ];
        for (text, expected) in cases {
            let error = load_text(text, &[]).unwrap_err();
            let (_, message) = error.split_once("worker.toml:").unwrap();
            assert_eq!(message, expected);
        }
        assert_eq!(
            load_text("", &[("RETRI_WORKER__DEVICES", "99")]).unwrap_err(),
            "environment variable RETRI_WORKER__DEVICES: devices: is 99; it must be 1 to 64"
        );
    }
}
