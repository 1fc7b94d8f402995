//! `make chaos KILLS=n SEED=n`: see `tests/src/chaos/mod.rs`. Exits with 0 only if every job ends
//! with the weights of an undisturbed run. `make chaos FLOOD=1`: see `tests/src/flood/mod.rs`.
//! Exits with 0 only if a job beside every flood loses no step.

use anyhow::{Context, Result, bail};
use std::process::ExitCode;
use std::time::Duration;
use tests::chaos::{Faults, Options, run};
use tests::flood::{self, Kind, Length};

/// Steps of one job, enough for about ten faults.
const STEPS: u64 = 400;
/// The longest time that anything stays stopped or down: more than two `detect_within`.
const LONGEST: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    match run_arguments() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_arguments() -> Result<()> {
    let (mut kills, mut seed, mut flood) = (100, 1, None);
    let mut kinds = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments
            .next()
            .with_context(|| format!("{flag} needs a value"))?;
        if flag == "--only" {
            kinds.push(Kind::named(&value).with_context(|| {
                let all = Kind::ALL.map(Kind::description).join(", ");
                format!("--only `{value}` is in the name of no flood; they are: {all}")
            })?);
            continue;
        }
        let value: u64 = value
            .parse()
            .with_context(|| format!("{flag} `{value}` is not a number of 0 or more"))?;
        match flag.as_str() {
            "--kills" => kills = usize::try_from(value)?,
            "--seed" => seed = value,
            "--flood" => flood = Some(Duration::from_secs(value)),
            _ => bail!(
                "`{flag}`: usage: chaos [--kills COUNT] [--seed N] | --flood SECONDS [--only NAME]"
            ),
        }
    }
    if let Some(time) = flood {
        if kinds.is_empty() {
            kinds.extend(Kind::ALL);
        }
        println!("{}", flood::run(&kinds, Length::Time(time))?);
        return Ok(());
    }
    let summary = run(&Options {
        seed,
        faults: Faults::Kills(kills),
        steps: STEPS,
        longest: LONGEST,
    })?;
    println!("{summary}");
    Ok(())
}
