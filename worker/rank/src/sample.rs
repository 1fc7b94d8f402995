//! Sampling in one rank process: it loads the model and the data set once, then runs the units of
//! its lease one by one, as the rank's state machine ([`rank_core::units`]) orders. Unit n is the
//! same image on every rank, and its outputs are written once. Called by [`crate::run`].

use crate::closing;
use crate::collective::first_line;
use crate::deadline::Deadlines;
use crate::outage::is_outage;
use crate::process::Rank;
use crate::unit_runner::UnitRunner;
use proto::message::SourceJob;
use proto::sample::{SampleUnit, SampleWork};
use rank_core::units::{Effect, Input};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Instant;

/// Returns only on an error of the process. A failed unit is reported, and the next one is run.
pub(crate) fn sample(
    rank: &Rank<'_>,
    work: &SampleWork,
    source: &SourceJob,
) -> anyhow::Result<Infallible> {
    rank.link.start_units();
    let mut runner = UnitRunner::open(rank, work, source)?;
    run_units(rank, |unit| run_unit(&mut runner, unit))
}

/// Runs the units that the rank's machine orders, of any kind of work. `run` writes the outputs of
/// a unit, unless they exist.
pub(crate) fn run_units(
    rank: &Rank<'_>,
    mut run: impl FnMut(u64) -> anyhow::Result<()>,
) -> anyhow::Result<Infallible> {
    let mut effects = VecDeque::from(rank.link.handle_units(Input::Loaded));
    loop {
        let Some(effect) = effects.pop_front() else {
            effects.extend(rank.link.wait_unit_effects()?);
            continue;
        };
        match effect {
            Effect::Report => rank.link.report_units(),
            Effect::Begin(unit) => {
                rank.link.begin_unit(unit);
                let input = match run_with_retries(rank, &mut run, unit) {
                    Ok(()) => Input::Done { unit },
                    Err(error) => {
                        let error = first_line(&format!("{error:#}")).to_owned();
                        tracing::warn!(unit, error, "a unit failed");
                        Input::Failed { unit, error }
                    }
                };
                rank.link.progress().end();
                effects.extend(rank.link.handle_units(input));
            }
        }
    }
}

/// Writes the outputs of a unit, unless they exist.
fn run_unit(runner: &mut UnitRunner<'_>, unit: u64) -> anyhow::Result<()> {
    match runner.begin(unit)? {
        SampleUnit::Image {
            subject,
            prompt,
            seed,
        } => runner.image(unit, subject, prompt, seed),
        SampleUnit::Attention { subject } => runner.attention_maps(unit, subject),
        SampleUnit::Closing => closing::close(runner, unit),
    }
}

/// Runs a unit, and repeats it during an outage of the object store.
fn run_with_retries(
    rank: &Rank<'_>,
    run: &mut impl FnMut(u64) -> anyhow::Result<()>,
    unit: u64,
) -> anyhow::Result<()> {
    let deadlines = Deadlines::new(rank.task.assignment.detect_within_ms);
    let started = Instant::now();
    loop {
        let error = match run(unit) {
            Err(error) if is_outage(error.chain()) && started.elapsed() < deadlines.outage() => {
                error
            }
            outcome => return outcome,
        };
        let pause = deadlines.outage_retry_interval();
        tracing::warn!(
            unit,
            error = format!("{error:#}"),
            retry_in_s = pause.as_secs_f64(),
            "the object store is not available; retrying the unit"
        );
        rank.link.progress().wait_for_store();
        rank.runtime.block_on(tokio::time::sleep(pause));
    }
}
