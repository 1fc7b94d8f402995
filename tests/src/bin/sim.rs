//! Runs simulated worlds. `sim --seeds COUNT` runs the first COUNT seeds on all cores and prints
//! one line for each that breaks; `sim --seed N --trace` prints the trace of one; `--bug NAME`
//! plants a bug; `sim --bugs` plants every bug in turn and prints the seed that finds it. `sim
//! --hash` prints one stable hash over all worlds, to compare two versions of the code; `--each`
//! also one per world. `--gangs` leaves out sampling jobs, `--mixed` adds jobs of many units.
//! `--million` runs one world with a job of a million units.

use anyhow::{Context, anyhow, bail};
use std::process::ExitCode;
use std::time::Instant;
use tests::world::{self, Bug, Kinds, TraceMode};

/// Each planted bug must be found within this many worlds.
const BUG_WORLDS: u64 = 5_000;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        // One line, even if the environment asks for backtraces.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let (mut seeds, mut seed, mut bug, mut mode, mut bugs) =
        (1_000, None, None, TraceMode::Hashed, false);
    let (mut hash, mut each, mut kinds, mut million) = (false, false, Kinds::All, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        match flag.as_str() {
            "--seeds" => seeds = number(&flag, arguments.next())?,
            "--seed" => seed = Some(number(&flag, arguments.next())?),
            "--bug" => bug = Some(planted(&arguments.next().unwrap_or_default())?),
            "--bugs" => bugs = true,
            "--trace" => mode = TraceMode::Printed,
            "--hash" => hash = true,
            "--each" => each = true,
            "--gangs" => kinds = Kinds::Gangs,
            "--mixed" => kinds = Kinds::Mixed,
            "--archived" => kinds = Kinds::Archived,
            "--evaluated" => kinds = Kinds::Evaluated,
            "--million" => million = true,
            _ => bail!(
                "`{flag}`: usage: sim [--seeds COUNT] [--seed N] [--bug NAME] [--trace] [--bugs] \
                 [--hash [--each]] [--gangs | --mixed] [--million]"
            ),
        }
    }
    // A panic of a machine is reported in the one line of its world.
    std::panic::set_hook(Box::new(|_| {}));
    match seed {
        Some(seed) => one(kinds, seed, bug, mode),
        None if million => many_units(),
        None if hash => hashes(seeds, kinds, each),
        None if bugs => bug_table(),
        None => many(kinds, seeds, bug),
    }
}

fn number(flag: &str, value: Option<String>) -> anyhow::Result<u64> {
    let value = value.with_context(|| format!("{flag} needs a number"))?;
    value
        .parse()
        .with_context(|| format!("{flag} `{value}` is not a number of 0 or more"))
}

fn planted(name: &str) -> anyhow::Result<Bug> {
    let found = Bug::ALL.into_iter().find(|bug| format!("{bug:?}") == name);
    found.with_context(|| format!("there is no planted bug `{name}`, only {:?}", Bug::ALL))
}

fn one(kinds: Kinds, seed: u64, bug: Option<Bug>, mode: TraceMode) -> anyhow::Result<()> {
    match world::run_of(kinds, seed, bug, mode) {
        Ok(outcome) => println!("seed {seed} ends well: {outcome}"),
        Err(broken) => bail!("{broken}"),
    }
    Ok(())
}

fn many(kinds: Kinds, count: u64, bug: Option<Bug>) -> anyhow::Result<()> {
    let began = Instant::now();
    let sweep = world::sweep(kinds, count, bug, |broken| println!("{broken}"));
    println!(
        "{count} worlds, {} broken, in {:.0} s on {} cores; {}; the shortest world had {} events",
        sweep.broken.len(),
        began.elapsed().as_secs_f64(),
        sweep.threads,
        sweep.sum,
        sweep.shortest
    );
    if !sweep.broken.is_empty() {
        bail!("{} worlds broke", sweep.broken.len());
    }
    Ok(())
}

fn many_units() -> anyhow::Result<()> {
    let many = world::many_units(1_000_000).map_err(|broken| anyhow!("{broken}"))?;
    println!(
        "{} units in {:.0} s of virtual time: {} events, {:.0} per second; {} saves, the largest \
        record of the job has {} bytes{}",
        many.units,
        many.lasted_ms as f64 / 1000.0,
        many.events,
        many.events as f64 / many.seconds,
        many.saves,
        many.record_bytes,
        many.resident_kib
            .map_or_else(String::new, |kib| format!("; {} MiB resident", kib / 1024)),
    );
    Ok(())
}

fn hashes(count: u64, kinds: Kinds, each: bool) -> anyhow::Result<()> {
    let hashes = world::hashes(count, kinds);
    for (seed, hash) in &hashes.each {
        match hash {
            Ok(hash) if each => println!("{seed} {hash:016x}"),
            Ok(_) => {}
            Err(broken) => println!("{broken}"),
        }
    }
    println!("stable hash of seeds 0..{count}: {:016x}", hashes.all);
    let broken = hashes.each.values().filter(|hash| hash.is_err()).count();
    if broken != 0 {
        bail!("{broken} worlds broke");
    }
    Ok(())
}

fn bug_table() -> anyhow::Result<()> {
    let mut missed = Vec::new();
    println!("{:<20} {:>6}  violation", "planted bug", "seed");
    for bug in Bug::ALL {
        let found = (0..BUG_WORLDS)
            .find_map(|seed| world::run_of(bug.kinds(), seed, Some(bug), TraceMode::Off).err());
        match found {
            Some(broken) => println!(
                "{:<20} {:>6}  {}",
                format!("{bug:?}"),
                broken.seed,
                broken.what
            ),
            None => missed.push(bug),
        }
    }
    if !missed.is_empty() {
        bail!("no world of {BUG_WORLDS} finds {missed:?}");
    }
    Ok(())
}
