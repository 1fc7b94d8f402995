//! A stage of a data set in one rank process. Each unit is run by the program `worker-build`, which
//! is beside this one: it links an engine and readers that no other job needs, and a file that
//! takes its memory ends that process alone. Called by [`crate::run`].

use crate::process::{Permanent, Rank};
use crate::sample::run_units;
use anyhow::{Context, bail};
use proto::build::BuildWork;
use std::convert::Infallible;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Names another program than the one beside this one.
const PROGRAM_VARIABLE: &str = "RETRI_WORKER_BUILD";
/// Most of an error message that is read.
const MESSAGE_BYTES_MAX: u64 = 16 << 10;
/// Between two looks at the program.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Between two signs that the unit goes on.
const SIGN_EVERY: Duration = Duration::from_secs(1);

/// Returns only on an error of the process. A failed unit is reported, and the next one is run.
pub(crate) fn build(rank: &Rank<'_>, work: &BuildWork) -> anyhow::Result<Infallible> {
    rank.link.start_units();
    let program = program()?;
    let order = serde_json::to_vec(work)?;
    let scratch = rank.settings.cache_dir.join("build");
    std::fs::create_dir_all(&scratch)
        .with_context(|| format!("cannot create {}", scratch.display()))?;
    run_units(rank, |unit| {
        rank.link.progress().begin_unit(unit);
        run(rank, &program, &order, (unit, &scratch))
    })
}

fn program() -> anyhow::Result<PathBuf> {
    let named = std::env::var_os(PROGRAM_VARIABLE).map(PathBuf::from);
    let program = match named {
        Some(named) => named,
        None => std::env::current_exe()?.with_file_name("worker-build"),
    };
    if !program.is_file() {
        let why = format!(
            "there is no {}, which runs [build]; install it beside worker-rank, or name it in \
             {PROGRAM_VARIABLE}",
            program.display()
        );
        return Err(Permanent(why).into());
    }
    Ok(program)
}

/// Runs the program until it ends.
fn run(
    rank: &Rank<'_>,
    program: &Path,
    order: &[u8],
    (unit, scratch): (u64, &Path),
) -> anyhow::Result<()> {
    let parent = std::process::id().to_string();
    let mut child = Command::new(program)
        .args([
            "unit",
            "--unit",
            &unit.to_string(),
            "--parent",
            &parent,
            "--scratch",
        ])
        .arg(scratch)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    if let Some(mut input) = child.stdin.take() {
        // A program that ends before it reads says why.
        input.write_all(order).ok();
    }
    let errors = child.stderr.take();
    let message = std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(errors) = errors {
            errors.take(MESSAGE_BYTES_MAX).read_to_end(&mut text).ok();
        }
        String::from_utf8_lossy(&text).trim().to_owned()
    });
    let mut looks = 0_u32;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        std::thread::sleep(LOOK_EVERY);
        looks += 1;
        // It is not this process that may hang, and how long a stage takes depends on its input.
        if LOOK_EVERY * looks >= SIGN_EVERY {
            looks = 0;
            rank.link.progress().begin_unit(unit);
        }
    };
    if status.success() {
        return Ok(());
    }
    let message = message.join().unwrap_or_default();
    if message.is_empty() {
        bail!("worker-build ended with {status} and without a message");
    }
    bail!("{message}")
}
