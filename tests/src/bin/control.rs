//! `make bench-control`: the coordinator with 10,000 workers as real streams, 1,000 submits, a job
//! of a million steps, and `/metrics` and pages with 100,000 ended jobs; see `tests/src/control`.
//! Smaller: `--workers 1000 --jobs 100 --ended 1000 --steps 10000 --seconds 10`.

use anyhow::{Context, Result, bail};
use std::process::ExitCode;
use std::time::Duration;
use tests::control::{Load, run};

fn main() -> ExitCode {
    match load().and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn load() -> Result<Load> {
    let mut load = Load::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments
            .next()
            .with_context(|| format!("{flag} needs a value"))?;
        let value: u32 = value
            .parse()
            .with_context(|| format!("{flag} is {value}; it must be a number"))?;
        match flag.as_str() {
            "--workers" => load.workers = value,
            "--jobs" => load.jobs = value,
            "--ended" => load.ended = value,
            "--steps" => load.steps = value.into(),
            "--pages" => load.open_pages = value,
            "--seconds" => load.reports_for = Duration::from_secs(value.into()),
            _ => bail!(
                "{flag} is unknown; --workers, --jobs, --ended, --steps, --pages and --seconds are \
                 known"
            ),
        }
    }
    Ok(load)
}
