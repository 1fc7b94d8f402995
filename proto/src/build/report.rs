//! What stages write beside their rows: `unit-<number>.json` after a unit's parts, and
//! `manifest.json` at the end. The same input gives the same bytes, so there are no times in them.

use super::{StageKey, StagePlan};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Most rows that a report names; all are counted.
pub const EXAMPLES_MAX: usize = 100;

/// A file of rows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// In the stage's folder.
    pub path: String,
    pub rows: u64,
    pub size: u64,
    pub sha256: String,
}

/// Rows that a stage leaves out for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    pub reason: String,
    pub rows: u64,
}

/// A row that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BadRow {
    pub file: String,
    /// Of the file, from 1.
    pub row: u64,
    /// In bytes from the beginning of the file; None where rows have no such place.
    pub offset: Option<u64>,
    pub reason: String,
}

/// What a unit or a stage has done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Sentences about what was found.
    pub found: Vec<String>,
    pub rows_in: u64,
    pub rows_out: u64,
    /// In the order in which rows are left out. Together with `rows_out` they make `rows_in`.
    pub losses: Vec<Loss>,
    /// Further counts, by name.
    pub counts: BTreeMap<String, u64>,
    /// Frequent or ordered values, by title.
    pub tables: BTreeMap<String, Vec<(String, u64)>>,
    /// The first bad rows.
    pub bad_rows: Vec<BadRow>,
}

impl Report {
    /// Counts rows that are left out.
    pub fn lose(&mut self, reason: &str, rows: u64) {
        match self.losses.iter_mut().find(|loss| loss.reason == reason) {
            Some(loss) => loss.rows += rows,
            None => self.losses.push(Loss {
                reason: reason.to_owned(),
                rows,
            }),
        }
    }

    pub fn count(&mut self, name: &str, more: u64) {
        *self.counts.entry(name.to_owned()).or_insert(0) += more;
    }

    #[must_use]
    pub fn lost(&self, reason: &str) -> u64 {
        let loss = self.losses.iter().find(|loss| loss.reason == reason);
        loss.map_or(0, |loss| loss.rows)
    }

    /// Adds the report of a further unit. Tables are the closing unit's own.
    pub fn add(&mut self, other: &Self) {
        for sentence in &other.found {
            if !self.found.contains(sentence) {
                self.found.push(sentence.clone());
            }
        }
        self.rows_in += other.rows_in;
        self.rows_out += other.rows_out;
        for loss in &other.losses {
            self.lose(&loss.reason, loss.rows);
        }
        for (name, more) in &other.counts {
            self.count(name, *more);
        }
        self.tables.extend(other.tables.clone());
        self.bad_rows.extend(other.bad_rows.iter().cloned());
        self.bad_rows.sort();
        self.bad_rows.truncate(EXAMPLES_MAX);
    }
}

/// The output of a unit, written after its parts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitOutput {
    pub parts: Vec<Part>,
    pub report: Report,
}

/// The output of a stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageManifest {
    pub key: StageKey,
    pub plan: StagePlan,
    /// In the order of their rows.
    pub parts: Vec<Part>,
    pub report: Report,
}

impl StageManifest {
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.parts.iter().map(|part| part.rows).sum()
    }
}
