//! The table `[notify]` of the settings: who is told, and of what. Opens nothing.

use proto::limits::{TEXT_BYTES, URL_BYTES};
use proto::settings::{Settings, SettingsError};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::time::Duration;
use url::Url;

/// Longest wait for a step or a unit that can be asked for: a week.
const STALLED_AFTER_S_MAX: i64 = 7 * 86_400;
/// Arguments of the command, with its name.
const ARGUMENTS_MAX: usize = 64;

/// What a notification tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    Done,
    Failed,
    Stalled,
    Restarted,
    Evaluated,
}

impl What {
    const ALL: [Self; 5] = [
        Self::Done,
        Self::Failed,
        Self::Stalled,
        Self::Restarted,
        Self::Evaluated,
    ];

    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Stalled => "stalled",
            Self::Restarted => "restarted",
            Self::Evaluated => "evaluated",
        }
    }
}

/// See `default.toml` for what each field means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NotifySettings {
    pub(crate) url: Option<Url>,
    /// A program and its arguments; empty: none is run.
    pub(crate) command: Vec<String>,
    pub(crate) on: BTreeSet<What>,
    pub(crate) stalled_after: Duration,
}

/// [`NotifySettings`] before validation.
#[derive(Debug, Deserialize)]
pub(crate) struct RawNotify {
    url: String,
    command: Vec<String>,
    on: Vec<String>,
    stalled_after_s: i64,
}

impl NotifySettings {
    /// # Errors
    /// A value is invalid. The message does not repeat the URL, which may be a secret.
    pub(crate) fn new<T>(settings: &Settings<T>, raw: &RawNotify) -> Result<Self, SettingsError> {
        let url = if raw.url.is_empty() {
            None
        } else {
            Some(
                parse_url(&raw.url)
                    .map_err(|(value, expected)| settings.wrong("notify.url", value, &expected))?,
            )
        };
        let fits = |text: &String| text.len() <= TEXT_BYTES && !text.contains('\0');
        if raw.command.first().is_some_and(String::is_empty)
            || ARGUMENTS_MAX < raw.command.len()
            || !raw.command.iter().all(fits)
        {
            let expected = format!(
                "it must be a program and its arguments, such as [\"/opt/retri/bin/mail-it\", \
                \"team@example.org\"]: at most {ARGUMENTS_MAX} texts of {TEXT_BYTES} bytes"
            );
            return Err(settings.wrong("notify.command", format!("{:?}", raw.command), &expected));
        }
        let mut on = BTreeSet::new();
        for word in &raw.on {
            let Some(what) = What::ALL.into_iter().find(|what| what.word() == word) else {
                let words: Vec<&str> = What::ALL.iter().map(|what| what.word()).collect();
                let expected = format!("each must be one of {}", words.join(", "));
                return Err(settings.wrong("notify.on", format!("{word:?}"), &expected));
            };
            on.insert(what);
        }
        if !(1..=STALLED_AFTER_S_MAX).contains(&raw.stalled_after_s) {
            let expected = format!("it must be 1 to {STALLED_AFTER_S_MAX} seconds");
            let value = raw.stalled_after_s;
            return Err(settings.wrong("notify.stalled_after_s", value, &expected));
        }
        Ok(Self {
            url,
            command: raw.command.clone(),
            on,
            stalled_after: Duration::from_secs(raw.stalled_after_s.unsigned_abs()),
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        (self.url.is_none() && self.command.is_empty()) || self.on.is_empty()
    }
}

fn parse_url(text: &str) -> Result<Url, (String, String)> {
    if URL_BYTES < text.len() {
        let expected = format!("at most {URL_BYTES} are accepted");
        return Err((format!("{} bytes long", text.len()), expected));
    }
    let expected = || "it must be a URL such as https://hooks.example.org/path".to_owned();
    let url = Url::parse(text).map_err(|error| (format!("no URL: {error}"), expected()))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err((
            format!("a URL of the scheme {:?}", url.scheme()),
            expected(),
        ));
    }
    Ok(url)
}
