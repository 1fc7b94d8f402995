//! Sampling as one rank process sees it: it loads model and data once, then makes the units of its
//! lease one by one, as the rank's machine ([`rank_core::units`]) wants. Which image unit n is
//! follows from n alone; its outputs are put once. Called by [`crate::run`].

use crate::closing;
use crate::collective::first_line;
use crate::deadline::Deadlines;
use crate::outage::is_outage;
use crate::process::Rank;
use crate::studio::Studio;
use proto::message::SourceJob;
use proto::sample::{SampleUnit, SampleWork};
use rank_core::units::{Effect, Input};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Instant;

/// Leaves only by an error of the process: one of a unit is reported, and the next is taken.
pub(crate) fn sample(
    rank: &Rank<'_>,
    work: &SampleWork,
    source: &SourceJob,
) -> anyhow::Result<Infallible> {
    rank.link.take_units();
    let mut studio = Studio::open(rank, work, source)?;
    let mut wanted = VecDeque::from(rank.link.tell_units(Input::Loaded));
    loop {
        let Some(effect) = wanted.pop_front() else {
            wanted.extend(rank.link.wait_units()?);
            continue;
        };
        match effect {
            Effect::Report => rank.link.news(),
            Effect::Begin(unit) => {
                rank.link.begin_unit(unit);
                let event = match make(rank, &mut studio, unit) {
                    Ok(()) => Input::Done { unit },
                    Err(error) => {
                        let error = first_line(&format!("{error:#}")).to_owned();
                        tracing::warn!(unit, error, "a unit failed");
                        Input::Failed { unit, error }
                    }
                };
                rank.link.progress().leave();
                wanted.extend(rank.link.tell_units(event));
            }
        }
    }
}

/// Makes the outputs of a unit, unless they are there.
fn outputs(studio: &mut Studio<'_>, unit: u64) -> anyhow::Result<()> {
    match studio.begin(unit)? {
        SampleUnit::Image {
            subject,
            prompt,
            seed,
        } => studio.image(unit, subject, prompt, seed),
        SampleUnit::Attention { subject } => studio.maps(unit, subject),
        SampleUnit::Closing => closing::close(studio, unit),
    }
}

/// Makes a unit. An object store that is away for a while costs time and no unit: it is made again.
fn make(rank: &Rank<'_>, studio: &mut Studio<'_>, unit: u64) -> anyhow::Result<()> {
    let deadlines = Deadlines::new(rank.task.assignment.detect_within_ms);
    let begun = Instant::now();
    loop {
        let error = match outputs(studio, unit) {
            Err(error) if is_outage(error.chain()) && begun.elapsed() < deadlines.outage() => error,
            outcome => return outcome,
        };
        let pause = deadlines.outage_pause();
        tracing::warn!(
            unit,
            error = format!("{error:#}"),
            again_in_s = pause.as_secs_f64(),
            "the object store does not do it; the unit is tried again"
        );
        rank.link.progress().waits();
        rank.runtime.block_on(tokio::time::sleep(pause));
    }
}
