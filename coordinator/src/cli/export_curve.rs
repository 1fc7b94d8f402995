//! `coordinator curve`: a job's steps for other programs, as CSV, JSON lines, or an event file of
//! TensorBoard.

use super::client::{self, connect};
use super::tensorboard::EventFile;
use super::{Global, Outcome, json};
use crate::text::csv;
use crate::text::outln;
use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use proto::message::PhaseSeconds;
use proto::pb;
use proto::wire::loss_terms;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(crate) struct CurveArgs {
    job: String,
    /// What is printed, one line per step
    #[arg(
        long,
        value_enum,
        default_value = "csv",
        conflicts_with = "tensorboard"
    )]
    format: Format,
    /// Write an event file of TensorBoard into this folder, below the job's id, instead
    #[arg(long, value_name = "DIR")]
    tensorboard: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Csv,
    Jsonl,
}

pub(crate) async fn curve(global: &Global, args: &CurveArgs) -> Result<Outcome> {
    let mut client = connect(global).await?;
    let view = client::describe(global, &mut client, &args.job).await?;
    let steps = client::steps(global, &mut client, &args.job).await?;
    match (&args.tensorboard, args.format) {
        (Some(folder), _) => {
            let file = write(folder, &view, &steps)?;
            outln!("{} steps in {}", steps.len(), file.display());
        }
        (None, Format::Jsonl) => {
            for step in &steps {
                outln!("{}", json::step(step));
            }
        }
        (None, Format::Csv) => {
            for line in table(&steps) {
                outln!("{line}");
            }
        }
    }
    Ok(Outcome::True)
}

/// Every figure of a step by name, in TensorBoard's way: a slash groups.
fn scalars(step: &pb::StepReport) -> Vec<(String, f64)> {
    #[allow(clippy::cast_precision_loss)] // Steps.
    let mut all = vec![
        ("loss/total".to_owned(), step.loss),
        ("gradient_norm".to_owned(), step.gradient_norm),
        ("learning_rate".to_owned(), step.learning_rate),
        ("loss_scale".to_owned(), step.loss_scale),
        ("skipped_steps".to_owned(), step.skipped_steps as f64),
    ];
    let terms = loss_terms(step).into_iter();
    all.extend(terms.map(|term| (format!("loss/{}", term.name), term.value)));
    let seconds = step.seconds.map_or_else(PhaseSeconds::default, Into::into);
    let phases = seconds.phases().into_iter();
    all.extend(phases.map(|(phase, value)| (format!("seconds/{phase}"), value)));
    all
}

/// Lines of CSV with a header. Terms that only some steps have (validation) are empty in the
/// others.
fn table(steps: &[pb::StepReport]) -> Vec<String> {
    let names: BTreeSet<String> = steps
        .iter()
        .flat_map(|step| scalars(step).into_iter().map(|(name, _)| name))
        .collect();
    let header = names.iter().map(|name| csv(&name.replace('/', "_")));
    let header: Vec<String> = ["step".to_owned(), "samples".to_owned()]
        .into_iter()
        .chain(header)
        .collect();
    let line = |step: &pb::StepReport| {
        let values = scalars(step);
        let value = |name: &String| {
            let found = values.iter().find(|(known, _)| known == name);
            found.map_or_else(String::new, |(_, value)| value.to_string())
        };
        let cells = [step.step.to_string(), step.samples.to_string()];
        let cells: Vec<String> = cells.into_iter().chain(names.iter().map(value)).collect();
        cells.join(",")
    };
    let lines = steps.iter().map(line);
    std::iter::once(header.join(",")).chain(lines).collect()
}

/// Steps have no time of their own: they are placed after the submission by how long they took.
fn write(folder: &Path, view: &pb::JobView, steps: &[pb::StepReport]) -> Result<PathBuf> {
    let folder = folder.join(&view.job);
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    let seconds = view.submitted_ms / 1000;
    #[allow(clippy::cast_precision_loss)] // Seconds since 1970.
    let mut time = seconds as f64;
    let mut events = EventFile::new(time);
    for step in steps {
        let took: PhaseSeconds = step.seconds.map_or_else(PhaseSeconds::default, Into::into);
        time += took.total();
        events.scalars(time, step.step, &scalars(step));
    }
    let file = folder.join(format!("events.out.tfevents.{seconds}.retri"));
    std::fs::write(&file, events.bytes())
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_has_one_line_per_step_and_a_gap_where_a_step_has_no_validation() {
        let step = |number, terms: &[(&str, f64)]| pb::StepReport {
            step: number,
            loss: 0.5,
            samples: 8,
            seconds: Some(pb::PhaseSeconds::default()),
            terms: terms
                .iter()
                .map(|(name, value)| pb::LossTerm {
                    name: (*name).to_owned(),
                    value: *value,
                })
                .collect(),
            ..Default::default()
        };
        let lines = table(&[step(1, &[]), step(2, &[("validation", 0.25)])]);
        let column = lines[0].split(',').position(|it| it == "loss_validation");
        let cell = |line: &str| line.split(',').nth(column.unwrap_or(99)).map(str::to_owned);
        assert_eq!(lines.len(), 3);
        assert_eq!(cell(&lines[1]), Some(String::new()));
        assert_eq!(cell(&lines[2]), Some("0.25".to_owned()));
    }
}
