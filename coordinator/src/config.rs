//! Settings of `coordinator serve`: [`proto::settings`] merges the layers, this module validates
//! the values. It opens nothing that they name. Called once, by `serve`.

use crate::admission::EndedQuotas;
use crate::notify::{NotifySettings, RawNotify};
use crate::quota::{self, Quota};
use crate::retention::Retention;
use coordinator_core::WaitingQuotas;
use proto::limits::{URL_BYTES, WORKERS_MAX};
use proto::settings::{self, Log, RawLog, SettingsError};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use tracing_subscriber::EnvFilter;

/// The shipped defaults, with the documentation of every field.
const DEFAULTS: &str = include_str!("../default.toml");
const PREFIX: &str = "RETRI_COORDINATOR";
/// Below this, an ordinary pause of a busy machine would look like a failure.
const DETECT_WITHIN_MS_MIN: i64 = 100;
/// One day; a longer wait would defeat failure detection.
const DETECT_WITHIN_MS_MAX: i64 = 86_400_000;

/// See `default.toml` for what each field means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) listen: SocketAddr,
    pub(crate) metrics_listen: SocketAddr,
    pub(crate) web_listen: SocketAddr,
    pub(crate) store: String,
    pub(crate) detect_within_ms: u64,
    /// Devices by team.
    pub(crate) quotas: BTreeMap<String, u32>,
    pub(crate) waiting: WaitingQuotas,
    pub(crate) ended: EndedQuotas,
    /// Workers that may be attached at a time.
    pub(crate) max_workers: u32,
    /// Drain workers that say that they are sick.
    pub(crate) drain_sick: bool,
    pub(crate) retention: Retention,
    pub(crate) notify: NotifySettings,
    pub(crate) log: Log,
}

/// The settings as written, before validation.
#[derive(Debug, Deserialize)]
struct Raw {
    listen: String,
    metrics_listen: String,
    web_listen: String,
    store: String,
    detect_within_ms: i64,
    quotas: Vec<String>,
    max_workers: i64,
    drain_sick: bool,
    retention: RawRetention,
    notify: RawNotify,
    log: RawLog,
}

#[derive(Debug, Deserialize)]
struct RawRetention {
    jobs: i64,
    days: i64,
    checkpoints: bool,
}

impl Config {
    /// Reads `file` (if any) over the defaults, and `environment` over both.
    ///
    /// # Errors
    /// The file cannot be read, a key is unknown, or a value is invalid.
    pub(crate) fn load(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, SettingsError> {
        let settings = settings::load::<Raw>(PREFIX, DEFAULTS, file, environment)?;
        let raw = &settings.values;
        let address = |key, value: &str| {
            let expected = "it must be an address and port such as 127.0.0.1:7070";
            value
                .parse()
                .map_err(|_| settings.wrong(key, format!("{value:?}"), expected))
        };
        let listen = address("listen", &raw.listen)?;
        let metrics_listen = address("metrics_listen", &raw.metrics_listen)?;
        let web_listen = address("web_listen", &raw.web_listen)?;
        if !(DETECT_WITHIN_MS_MIN..=DETECT_WITHIN_MS_MAX).contains(&raw.detect_within_ms) {
            let expected =
                format!("it must be {DETECT_WITHIN_MS_MIN} to {DETECT_WITHIN_MS_MAX} milliseconds");
            return Err(settings.wrong("detect_within_ms", raw.detect_within_ms, &expected));
        }
        let log = settings.log(&raw.log)?;
        if EnvFilter::try_new(&raw.log.filter).is_err() {
            let expected = "it must be levels by module, such as info or info,slatedb=warn";
            return Err(settings.wrong("log.filter", format!("{:?}", raw.log.filter), expected));
        }
        let quotas = raw.quotas.iter().map(|text| Quota::parse(text).ok_or(text));
        let quotas: Vec<Quota> = quotas
            .collect::<Result<_, _>>()
            .map_err(|text| settings.wrong("quotas", format!("{text:?}"), quota::EXPECTED))?;
        let max_workers = u32::try_from(raw.max_workers).unwrap_or(0);
        if !(1..=WORKERS_MAX).contains(&max_workers) {
            let expected = format!("it must be 1 to {WORKERS_MAX}");
            return Err(settings.wrong("max_workers", raw.max_workers, &expected));
        }
        if URL_BYTES < raw.store.len() {
            let (bytes, expected) = (raw.store.len(), format!("at most {URL_BYTES} are accepted"));
            return Err(settings.wrong("store", format!("{bytes} bytes long"), &expected));
        }
        let count = |key, value: i64| match u64::try_from(value) {
            Ok(0) => Ok(None),
            Ok(count) => Ok(Some(count)),
            Err(_) => Err(settings.wrong(key, value, "it must be 0 (no limit) or more")),
        };
        let retention = Retention {
            jobs: count("retention.jobs", raw.retention.jobs)?,
            days: count("retention.days", raw.retention.days)?,
            checkpoints: raw.retention.checkpoints,
        };
        Ok(Self {
            quotas: quota::devices(&quotas),
            waiting: quota::waiting(&quotas),
            ended: quota::ended(&quotas),
            max_workers,
            drain_sick: raw.drain_sick,
            retention,
            notify: NotifySettings::new(&settings, &raw.notify)?,
            listen,
            metrics_listen,
            web_listen,
            store: raw.store.clone(),
            detect_within_ms: raw.detect_within_ms.unsigned_abs(),
            log,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proto::settings::LogFormat;

    fn load(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, text).unwrap();
        let dir_prefix = format!("{}/", dir.path().display());
        Config::load(Some(&path), std::iter::empty())
            .map_err(|error| error.to_string().replace(&dir_prefix, ""))
    }

    #[test]
    fn settings_mean_what_they_say() {
        let shipped = Config::load(None, std::iter::empty()).unwrap();
        assert_eq!(shipped.detect_within_ms, 3_000);
        assert_eq!(shipped.metrics_listen.port(), 7071);
        assert_eq!(shipped.web_listen.to_string(), "127.0.0.1:7080");
        assert_eq!(shipped.quotas, BTreeMap::new());
        let quotas = load("quotas = [\"vision=16\", \"language = 8\"]")
            .unwrap()
            .quotas;
        assert_eq!(
            quotas,
            BTreeMap::from([("vision".into(), 16), ("language".into(), 8)])
        );
        let full =
            load("max_workers = 3\nquotas = [\"vision=16 waiting=5\", \"*=any ended=7\"]").unwrap();
        assert_eq!(full.max_workers, 3);
        assert_eq!((full.waiting.teams["vision"], full.ended.other), (5, 7));
        assert_eq!((shipped.max_workers, shipped.waiting.other), (1024, 500));
        assert!(shipped.notify.is_empty());
        let told = load("[notify]\nurl = \"http://127.0.0.1:9/x\"")
            .unwrap()
            .notify;
        assert!(!told.is_empty() && told.on.len() == 5);
        let config =
            load("listen = \"127.0.0.1:1\"\ndetect_within_ms = 2000\n[log]\nformat = \"json\"")
                .unwrap();
        assert_eq!((config.listen.port(), config.detect_within_ms), (1, 2000));
        let log = Log {
            filter: "info,slatedb=warn".into(),
            format: LogFormat::Json,
        };
        assert_eq!(config.log, log);
    }

    #[test]
    fn every_invalid_value_is_reported_with_its_file_and_line() {
        let expect = |text: &str, message: &str| assert_eq!(load(text).unwrap_err(), message);
        expect(
            "lisen = 3",
            "c.toml:1: lisen: there is no such setting; did you mean `listen`?",
        );
        expect(
            "detect_within_ms = 5",
            "c.toml:1: detect_within_ms: is 5; it must be 100 to 86400000 milliseconds",
        );
        expect(
            "\nlisten = \"somewhere\"",
            "c.toml:2: listen: is \"somewhere\"; it must be an address and port such as \
            127.0.0.1:7070",
        );
        expect(
            "quotas = [\"vision\"]",
            "c.toml:1: quotas: is \"vision\"; each must be a team and its devices, such as \
            \"vision=16\" or \"vision=16 waiting=50 ended=1000\"; \"any\" is no limit of devices, \
            and \"*=any waiting=50\" is for teams that are not listed",
        );
        expect(
            "max_workers = 50000",
            "c.toml:1: max_workers: is 50000; it must be 1 to 16384",
        );
        expect(
            &format!("store = \"file:///{}\"", "x".repeat(3000)),
            "c.toml:1: store: is 3008 bytes long; at most 2048 are accepted",
        );
        expect(
            "[notify]\nurl = \"ftp://user:secret@example.org\"",
            "c.toml:2: notify.url: is a URL of the scheme \"ftp\"; it must be a URL such as \
            https://hooks.example.org/path",
        );
        expect(
            "[notify]\non = [\"done\", \"dnoe\"]",
            "c.toml:2: notify.on: is \"dnoe\"; each must be one of done, failed, stalled, \
            restarted, evaluated",
        );
        expect(
            "[notify]\nstalled_after_s = 0",
            "c.toml:2: notify.stalled_after_s: is 0; it must be 1 to 604800 seconds",
        );
        expect(
            "[notify]\ncommand = [\"\"]",
            "c.toml:2: notify.command: is [\"\"]; it must be a program and its arguments, such as \
            [\"/opt/retri/bin/mail-it\", \"team@example.org\"]: at most 64 texts of 1024 bytes",
        );
        expect(
            "[log]\nformat = \"xml\"",
            "c.toml:2: log.format: is \"xml\"; it must be text or json",
        );
        expect(
            "[log]\nfilter = \"a=b=c\"",
            "c.toml:2: log.filter: is \"a=b=c\"; it must be levels by module, such as info or \
            info,slatedb=warn",
        );
    }
}
