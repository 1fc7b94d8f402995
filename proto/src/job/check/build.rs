//! `[build]`: defaults and bounds. Called by [`super::check`].

use super::data::absolute;
use crate::build::{BuildWork, StageKey, UNITS_MAX};
use crate::job::faults::Faults;
use crate::job::raw::BuildToml;
use std::path::Path;

pub(super) fn build(raw: &BuildToml, directory: Option<&Path>, faults: &mut Faults) -> BuildWork {
    let is_digit = |it: char| it.is_ascii_digit() || ('a'..='f').contains(&it);
    let valid = raw.key.len() == 64 && raw.key.chars().all(is_digit);
    faults.need(valid, "build.key", || {
        format!(
            "is {:?}; it must be the 64 lower-case hexadecimal digits that `coordinator dataset \
             build` wrote",
            raw.key
        )
    });
    let units = raw.units.unwrap_or(1);
    faults.count("build.units", units, UNITS_MAX);
    BuildWork {
        out: absolute("build.out", &raw.out, directory, faults),
        key: StageKey {
            stage: raw.stage,
            key: raw.key.clone(),
        },
        units,
    }
}
