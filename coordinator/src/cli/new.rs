//! `coordinator new`: a commented job file to start from. The texts are the examples of
//! `deploy/jobs` and `deploy/pipelines`, which document every field and are checked by tests.

use super::{Global, Outcome};
use crate::text::outln;
use anyhow::{Context, Result, anyhow};
use clap::{Args, ValueEnum};
use proto::job::is_name;
use shell::print::out_lines;
use std::io::Write as _;
use std::path::PathBuf;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    Train,
    Sample,
    Evaluate,
    /// A data set in stages: for `coordinator dataset build`
    Build,
}

#[derive(Debug, Args)]
pub(crate) struct NewArgs {
    /// What the job does
    kind: Kind,
    /// Its name
    #[arg(long)]
    name: Option<String>,
    /// Write it into this file, which must not exist; it is printed otherwise
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Kind {
    fn text(self) -> &'static str {
        match self {
            Self::Train => include_str!("../../../deploy/jobs/demo.toml"),
            Self::Sample => include_str!("../../../deploy/jobs/sample.toml"),
            Self::Evaluate => include_str!("../../../deploy/jobs/evaluate.toml"),
            Self::Build => include_str!("../../../deploy/pipelines/danbooru.toml"),
        }
    }

    /// What the user does next.
    fn next(self) -> &'static str {
        match self {
            Self::Train | Self::Sample => "coordinator submit --dry-run",
            Self::Evaluate => "coordinator evaluate --dry-run",
            Self::Build => "coordinator dataset build --dry-run",
        }
    }
}

pub(crate) fn new(_: &Global, args: &NewArgs) -> Result<Outcome> {
    let text = match &args.name {
        Some(name) => named(args.kind.text(), name)?,
        None => args.kind.text().to_owned(),
    };
    match &args.out {
        None => out_lines(text.trim_end()),
        Some(path) => {
            let mut file = std::fs::File::create_new(path)
                .with_context(|| format!("cannot create {}", path.display()))?;
            file.write_all(text.as_bytes())
                .with_context(|| format!("cannot write {}", path.display()))?;
            outln!(
                "{path} is a start: adapt it, then `{} {path}`",
                args.kind.next(),
                path = path.display()
            );
        }
    }
    Ok(Outcome::True)
}

/// The text with another name.
fn named(text: &str, name: &str) -> Result<String> {
    if !is_name(name) {
        return Err(anyhow!(
            "--name is {name:?}; it must be 1 to 40 lower-case letters, digits and dashes, \
            starting with a \
             letter"
        ));
    }
    let mut found = false;
    let lines = text.lines().map(|line| {
        if !found && (line.starts_with("name = ") || line.starts_with("# name = ")) {
            found = true;
            format!("name = \"{name}\"\n")
        } else {
            format!("{line}\n")
        }
    });
    Ok(lines.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_start_has_a_name_that_can_be_replaced() {
        for kind in Kind::value_variants() {
            let text = named(kind.text(), "mine").unwrap_or_default();
            let names = text
                .lines()
                .filter(|line| line.starts_with("name = \"mine\""));
            assert_eq!(names.count(), 1, "{kind:?}");
        }
        let error = named("", "Not A Name").map_err(|error| error.to_string());
        assert!(
            error.is_err_and(|it| it.contains("lower-case")),
            "refused by name"
        );
    }
}
