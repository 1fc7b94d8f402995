//! The tabs of a job's page: its log, checkpoints, ledger, and its text with what differs from the
//! defaults.

use super::Web;
use super::logs::{LogFilter, LogRow};
use super::problem::Problem;
use super::query::Query;
use super::show;
use crate::budget::blocking;
use proto::id::JobId;
use proto::job::defaults::defaults;
use proto::job::overrides::flat;
use proto::ledger::{Entry, Line};
use proto::pb;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const TABS: [&str; 4] = ["logs", "checkpoints", "ledger", "toml"];
/// Lines, and entries of the ledger or checkpoints, on a page.
const LINES: usize = 200;
const ENTRIES: usize = 100;
/// Longer texts, with prompts in them, are not compared with the defaults.
const COMPARED_BYTES: usize = 32 << 10;
/// Texts whose defaults are kept.
const COMPARED: usize = 16;

#[derive(Debug)]
pub(super) enum Tab {
    Logs {
        rows: Vec<LogRow>,
        filter: Filled,
        /// The URL of earlier lines.
        earlier: String,
        /// The URL of the newest ones, on a page of earlier ones.
        newest: String,
    },
    Checkpoints {
        rows: Vec<CheckpointRow>,
        earlier: String,
        ledger: String,
    },
    Ledger {
        rows: Vec<LedgerRow>,
        entries: String,
        hash: String,
        earlier: String,
    },
    Toml {
        lines: Vec<TomlLine>,
        overrides: Vec<(String, String)>,
        changed: usize,
        note: &'static str,
    },
}

/// What the fields of the form of a log hold.
#[derive(Debug)]
pub(super) struct Filled {
    pub(super) rank: String,
    pub(super) level: &'static str,
    pub(super) search: String,
}

#[derive(Debug)]
pub(super) struct CheckpointRow {
    pub(super) step: String,
    pub(super) generation: u64,
    pub(super) folder: String,
    pub(super) best: bool,
    /// The command that exports it.
    pub(super) export: String,
}

#[derive(Debug)]
pub(super) struct LedgerRow {
    pub(super) number: u64,
    pub(super) what: &'static str,
    pub(super) text: String,
    pub(super) hash: String,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct TomlLine {
    pub(super) text: String,
    /// The default, if the value is another one.
    pub(super) default: Option<String>,
    /// The table's name, for a heading.
    pub(super) heading: bool,
}

impl Tab {
    /// Whether the log is in the tab already.
    pub(super) fn is_logs(&self) -> bool {
        matches!(self, Self::Logs { .. })
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Logs { .. } => "logs",
            Self::Checkpoints { .. } => "checkpoints",
            Self::Ledger { .. } => "ledger",
            Self::Toml { .. } => "toml",
        }
    }
}

/// All tabs: what they are called, their URLs, and which one is open.
pub(super) fn list(open: &Tab, query: &Query) -> Vec<(&'static str, String, bool)> {
    let others = [("before", ""), ("rank", ""), ("level", ""), ("q", "")];
    let tab = |name: &'static str| {
        let mut changes = vec![("tab", if name == TABS[0] { "" } else { name })];
        changes.extend(others);
        let url = query.with(&changes);
        let url = if url.is_empty() { "?".to_owned() } else { url };
        let text = if name == "toml" { "job.toml" } else { name };
        (text, url + "#tabs", open.name() == name)
    };
    TABS.into_iter().map(tab).collect()
}

pub(super) async fn open(
    web: &Web,
    id: &JobId,
    view: &pb::JobView,
    query: &Query,
) -> Result<Tab, Problem> {
    let expected = "logs, checkpoints, ledger or toml";
    Ok(match query.word("tab", &TABS, expected)? {
        "checkpoints" => checkpoints(view, query)?,
        "ledger" => ledger(web, id, view, query).await?,
        "toml" => toml(web, view).await,
        _ => logs(web, id, query).await?,
    })
}

async fn logs(web: &Web, id: &JobId, query: &Query) -> Result<Tab, Problem> {
    let level = query.word("level", &["", "warn", "error"], "warn or error")?;
    let rank = query.number("rank")?;
    let search = query.text("q").trim().to_owned();
    let filter = LogFilter {
        rank,
        generation: None,
        level,
        search: search.to_lowercase(),
    };
    let before = query.number("before")?;
    let (rows, earlier) = match before {
        // The newest of a job that is looked at are in memory.
        None if search.is_empty() && rank.is_none() && level.is_empty() => {
            let rows = web.tails.last(id, LINES, &filter).await?;
            let earlier = rows.first().is_some_and(|it| 0 < it.number);
            (rows, earlier)
        }
        None => web.tails.before(id, u64::MAX, LINES, &filter).await?,
        Some(before) => web.tails.before(id, before, LINES, &filter).await?,
    };
    let first = rows.first().map_or(0, |it| it.number).to_string();
    let page = |before: &str| query.with(&[("before", before)]) + "#tabs";
    Ok(Tab::Logs {
        earlier: if earlier { page(&first) } else { String::new() },
        newest: before.map_or_else(String::new, |_| page("")),
        rows,
        filter: Filled {
            rank: rank.map_or_else(String::new, |it| it.to_string()),
            level,
            search,
        },
    })
}

fn checkpoints(view: &pb::JobView, query: &Query) -> Result<Tab, Problem> {
    let id = JobId(view.job.clone());
    let best = view.evaluations.iter().find(|it| it.best).map(|it| it.step);
    let before = query.number("before")?.unwrap_or(u64::MAX);
    let mut found = view.checkpoints.iter().rev().filter(|it| it.step < before);
    let rows: Vec<&pb::CheckpointRef> = found.by_ref().take(ENTRIES).collect();
    let last = rows.last().filter(|_| found.next().is_some());
    let earlier = last.map_or_else(String::new, |it| {
        query.with(&[("before", &it.step.to_string())]) + "#tabs"
    });
    let rows = rows.into_iter().map(|it| {
        let (step, generation) = (
            proto::id::Step(it.step),
            proto::id::Generation(it.generation),
        );
        let folder = proto::checkpoint::checkpoint_folder(&id, step, generation);
        CheckpointRow {
            step: show::count(it.step),
            generation: it.generation,
            folder: format!("{}/{folder}", view.store_url),
            best: best == Some(it.step),
            export: format!("coordinator checkpoint export {}@{}", view.job, it.step),
        }
    });
    Ok(Tab::Checkpoints {
        rows: rows.collect(),
        earlier,
        ledger: format!("coordinator audit {}", view.job),
    })
}

async fn ledger(web: &Web, id: &JobId, view: &pb::JobView, query: &Query) -> Result<Tab, Problem> {
    let tip = view.ledger.clone().unwrap_or_default();
    let before = query.number("before")?.unwrap_or(u64::MAX).min(tip.entries);
    let from = before.saturating_sub(ENTRIES as u64);
    let count = usize::try_from(before - from).unwrap_or(ENTRIES);
    let lines = web.jobs.journal.ledger(id, from, count).await?;
    let entries = lines
        .iter()
        .rev()
        .filter_map(|it| serde_json::from_str::<Entry>(it).ok());
    Ok(Tab::Ledger {
        rows: entries.map(|it| ledger_row(&it)).collect(),
        entries: show::count(tip.entries),
        hash: tip.hash,
        earlier: match from {
            0 => String::new(),
            from => query.with(&[("before", &from.to_string())]) + "#tabs",
        },
    })
}

fn ledger_row(entry: &Entry) -> LedgerRow {
    let (what, text) = match &entry.line {
        Line::Generation {
            generation,
            world,
            from,
        } => (
            "generation",
            format!("{generation} of {world} ranks continues after step {from}"),
        ),
        Line::Step {
            step,
            first,
            samples,
            loss,
            ..
        } => {
            let loss = loss.map_or_else(|| "not finite".to_owned(), show::number);
            let end = first + u64::from(*samples);
            (
                "step",
                format!("{step}, samples {first} to {end}, loss {loss}"),
            )
        }
        Line::Unheard { through, .. } => ("unheard", format!("steps through {through}")),
        Line::Override { key, value } => ("override", format!("{key}={value}")),
        Line::Digest { step, sha256, .. } => ("digest", format!("of step {step}: {sha256}")),
    };
    LedgerRow {
        number: entry.number,
        what,
        text,
        hash: entry.hash.chars().take(12).collect(),
    }
}

async fn toml(web: &Web, view: &pb::JobView) -> Tab {
    let text = &view.job_toml;
    let is_compared = text.len() <= COMPARED_BYTES;
    let lines = if is_compared {
        let defaults = web.compared.defaults(text).await;
        toml_lines(text, &defaults)
    } else {
        toml_lines(text, &BTreeMap::new())
    };
    let overrides = view.overrides.iter();
    Tab::Toml {
        changed: lines.iter().filter(|it| it.default.is_some()).count(),
        lines,
        overrides: overrides
            .map(|it| (it.key.clone(), it.value.clone()))
            .collect(),
        note: if is_compared {
            ""
        } else {
            "it is too long to be compared with the defaults here"
        },
    }
}

/// Defaults of texts that were shown lately: to find them a text is parsed once for every key, and
/// a page that is looked at is made every second. Cheap to clone; all clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Compared(Arc<Mutex<VecDeque<(String, Defaults)>>>);

/// By dotted key.
type Defaults = Arc<BTreeMap<String, String>>;

impl Compared {
    async fn defaults(&self, text: &str) -> Defaults {
        let known = |kept: &VecDeque<(String, Defaults)>| {
            let found = kept.iter().find(|(known, _)| known == text);
            found.map(|(_, defaults)| Arc::clone(defaults))
        };
        if let Some(found) = known(&self.lock()) {
            return found;
        }
        let owned = text.to_owned();
        // Many parses, off the runtime's threads.
        let found = blocking(move || defaults(&owned)).await;
        let found = Arc::new(found.unwrap_or_default());
        let mut kept = self.lock();
        kept.push_front((text.to_owned(), Arc::clone(&found)));
        kept.truncate(COMPARED);
        found
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(String, Defaults)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lines of a canonical text, those of keys with another value than the default marked.
fn toml_lines(text: &str, defaults: &BTreeMap<String, String>) -> Vec<TomlLine> {
    let keys = flat(text).unwrap_or_default();
    let mut table = String::new();
    text.lines()
        .map(|line| {
            let heading = line.starts_with('[');
            if heading {
                table = line.trim_matches(['[', ']']).to_owned();
            }
            let key = line.split(" = ").next().unwrap_or("");
            let key = if table.is_empty() {
                key.to_owned()
            } else {
                format!("{table}.{key}")
            };
            let default = defaults.get(&key);
            let differs = default.is_some() && keys.get(&key) != default;
            TomlLine {
                text: line.to_owned(),
                default: default.filter(|_| differs).cloned(),
                heading,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_differs_from_the_defaults_is_marked_with_them() {
        let text = crate::fixture::job_toml("file:///data") + "clip = 0.25\n";
        let spec = proto::job::parse("job.toml", &text, None).unwrap();
        let text = proto::job::to_toml(&spec);
        let lines = toml_lines(&text, &defaults(&text));
        let marked = |begin: &str| {
            let found = lines.iter().find(|it| it.text.starts_with(begin));
            found
                .unwrap_or_else(|| panic!("{begin}: {text}"))
                .default
                .clone()
        };
        assert_eq!(marked("clip = 0.25"), Some("0.0".to_owned()), "{text}");
        assert_eq!(marked("warmup = 0"), None, "it is the default");
        assert_eq!(marked("steps = 4"), None, "it has no default");
        assert_eq!(lines.len(), text.lines().count());
        assert!(lines.iter().any(|it| it.heading && it.text == "[train]"));
    }
}
