//! `coordinator top`: jobs and workers at a glance. On a terminal it redraws until Ctrl-C; into a
//! pipe it prints once.

use super::client::{Client, connect, request_error};
use super::{Global, Outcome, Output, job, json, print_json};
use crate::text::{duration, out_lines};
use anyhow::Result;
use clap::Args;
use proto::account::Account;
use proto::message::PhaseSeconds;
use proto::pb;
use proto::phase::{Phase, is_over};
use proto::printable::printable;
use shell::terminal;
use std::time::Duration;

/// Rows and columns of what is no terminal.
const PLAIN: (usize, usize) = (usize::MAX, 160);
/// A name that is longer is cut, so that a row stays one line.
const CELL_CHARS: usize = 32;

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = parse_every)]
    every: f64,
    /// Print once, as into a pipe
    #[arg(long)]
    once: bool,
}

fn parse_every(text: &str) -> Result<f64, String> {
    let seconds = text.parse::<f64>().ok();
    let seconds = seconds.filter(|seconds| (0.2..=3600.0).contains(seconds));
    seconds.ok_or_else(|| format!("{text:?} is not 0.2 to 3600 seconds"))
}

pub(crate) async fn top(global: &Global, args: &TopArgs) -> Result<Outcome> {
    let mut client = connect(global).await?;
    if global.output == Output::Json {
        let (jobs, workers) = look(global, &mut client).await?;
        print_json(&serde_json::json!({
            "jobs": jobs.iter().map(json::job).collect::<Vec<_>>(),
            "workers": workers.iter().map(json::worker).collect::<Vec<_>>(),
        }));
        return Ok(Outcome::True);
    }
    if args.once || !terminal::can_redraw_output() {
        let (jobs, workers) = look(global, &mut client).await?;
        out_lines(&page(&jobs, &workers, PLAIN).join("\n"));
        return Ok(Outcome::True);
    }
    loop {
        let (jobs, workers) = look(global, &mut client).await?;
        let size = terminal::size().unwrap_or((24, 80));
        shell::print::redraw(&page(&jobs, &workers, size));
        tokio::time::sleep(Duration::from_secs_f64(args.every)).await;
    }
}

async fn look(
    global: &Global,
    client: &mut Client,
) -> Result<(Vec<pb::JobView>, Vec<pb::WorkerView>)> {
    let failed = |status: tonic::Status| request_error(global, &status);
    let jobs = client.list_jobs(pb::ListJobsRequest::default()).await;
    let workers = client.list_workers(pb::ListWorkersRequest {}).await;
    let jobs = jobs.map_err(failed)?.into_inner().jobs;
    let workers = workers.map_err(failed)?.into_inner().workers;
    Ok((jobs, workers))
}

/// As many lines as there are rows, of as many characters as there are columns.
fn page(
    jobs: &[pb::JobView],
    workers: &[pb::WorkerView],
    (rows, columns): (usize, usize),
) -> Vec<String> {
    let (mut live, mut waiting): (Vec<&pb::JobView>, Vec<&pb::JobView>) = jobs
        .iter()
        .filter(|job| !is_over(&job.phase))
        .partition(|job| 0 < job.world);
    live.sort_by_key(|job| (std::cmp::Reverse(job.world), job.submitted_ms));
    waiting.sort_by_key(|job| job.submitted_ms);
    let mut lines = vec![summary(jobs, workers)];
    let live: Vec<[String; 8]> = live.into_iter().map(row).collect();
    if !live.is_empty() {
        lines.push(String::new());
        lines.extend(aligned(HEADER, &live));
    }
    if !waiting.is_empty() {
        lines.push(String::new());
        lines.push(format!("{} jobs wait:", waiting.len()));
        lines.extend(waiting.iter().map(|job| {
            let reason = job.reason_sentence();
            format!("{}  {}: {}", cell(&job.job), job.phase, printable(&reason))
        }));
    }
    let lost = workers
        .iter()
        .filter(|it| !it.up || it.drained || it.sick.is_some());
    let lost: Vec<String> = lost.map(lost_worker).collect();
    if !lost.is_empty() {
        lines.push(String::new());
        lines.extend(lost);
    }
    fitted(lines, rows, columns)
}

/// The last row says how many lines have no room.
fn fitted(mut lines: Vec<String>, rows: usize, columns: usize) -> Vec<String> {
    let rows = rows.max(2);
    if rows < lines.len() {
        let rest = lines.len() - (rows - 1);
        lines.truncate(rows - 1);
        lines.push(format!(
            "… {rest} more lines; `coordinator jobs` and `workers` list all"
        ));
    }
    for line in &mut lines {
        if columns < line.chars().count() {
            *line = line.chars().take(columns.saturating_sub(1)).collect();
            line.push('…');
        }
    }
    lines
}

fn summary(jobs: &[pb::JobView], workers: &[pb::WorkerView]) -> String {
    let up = || workers.iter().filter(|it| it.up);
    let used: u32 = up().map(|it| it.devices_used).sum();
    let devices: u32 = up().map(|it| it.devices).sum();
    let count = |phase: Phase| jobs.iter().filter(|job| job.phase == phase).count();
    let running = jobs
        .iter()
        .filter(|job| !is_over(&job.phase) && 0 < job.world);
    format!(
        "{running} jobs run, {} wait, {} are paused; {up} of {} workers are up; \
         {used} of {devices} devices are used",
        count(Phase::Queued),
        count(Phase::Paused),
        workers.len(),
        running = running.count(),
        up = up().count(),
    )
}

const HEADER: [&str; 8] = [
    "JOB", "PHASE", "PROGRESS", "LEFT", "RATE", "LOSS", "RANKS", "GOODPUT",
];

fn row(job: &pb::JobView) -> [String; 8] {
    let dash = || "-".to_owned();
    let (rate, left) = pace(job);
    let account = job.account.as_ref().map(Account::from);
    let goodput = account.and_then(|account| account.goodput());
    [
        cell(&job.job),
        cell(&job.phase),
        job::progress(job),
        left.map_or_else(dash, duration),
        rate.unwrap_or_else(dash),
        job.last_step
            .as_ref()
            .map_or_else(dash, |it| format!("{:.4}", it.loss)),
        job.world.to_string(),
        goodput.map_or_else(dash, |part| format!("{:.0} %", 100.0 * part)),
    ]
}

/// Its rate, and for how long it goes on at that rate.
#[allow(clippy::cast_precision_loss)] // A few digits are shown.
fn pace(job: &pb::JobView) -> (Option<String>, Option<Duration>) {
    let left = |count: u64, each: f64| {
        let seconds = count as f64 * each;
        (seconds.is_finite() && 0.0 <= seconds).then(|| Duration::from_secs_f64(seconds.min(1e9)))
    };
    if let Some(units) = &job.units {
        if units.per_second <= 0.0 {
            return (None, None);
        }
        let rest = units.total.saturating_sub(units.done + units.set_aside);
        let rate = format!("{:.1} units/s", units.per_second);
        return (Some(rate), left(rest, 1.0 / units.per_second));
    }
    let Some(step) = &job.last_step else {
        return (None, None);
    };
    let seconds = step.seconds.map_or_else(PhaseSeconds::default, Into::into);
    let each = seconds.total();
    if each <= 0.0 {
        return (None, None);
    }
    let rate = format!("{:.1} samples/s", f64::from(step.samples) / each);
    (Some(rate), left(job.steps.saturating_sub(job.step), each))
}

fn lost_worker(worker: &pb::WorkerView) -> String {
    let name = worker.worker.as_ref().map_or("", |it| it.name.as_str());
    let since = duration(Duration::from_millis(worker.last_heard_ms));
    if let Some(sick) = &worker.sick {
        return format!("worker {} is sick: {}", cell(name), printable(sick));
    }
    match (worker.up, worker.drained) {
        (true, _) => format!("worker {} is drained", cell(name)),
        (false, false) => format!("worker {} is down, silent for {since}", cell(name)),
        (false, true) => format!("worker {} is down, and was drained", cell(name)),
    }
}

fn cell(text: &str) -> String {
    let shown = printable(text);
    if shown.chars().count() <= CELL_CHARS {
        return shown.into_owned();
    }
    let cut: String = shown.chars().take(CELL_CHARS - 1).collect();
    format!("{cut}…")
}

/// Columns as wide as their widest cell.
fn aligned<const COLUMNS: usize>(
    header: [&str; COLUMNS],
    rows: &[[String; COLUMNS]],
) -> Vec<String> {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([header[column].len()]).max().unwrap_or(0)
    };
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| {
            format!(
                "{cell}{}",
                " ".repeat(width.saturating_sub(cell.chars().count()))
            )
        });
        let padded: Vec<String> = padded.collect();
        padded.join("  ").trim_end().to_owned()
    };
    let header = header.map(str::to_owned);
    std::iter::once(line(&header))
        .chain(rows.iter().map(|row| line(row)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(job: &str) -> pb::JobView {
        pb::JobView {
            job: job.into(),
            phase: "training".into(),
            step: 40,
            steps: 100,
            world: 2,
            last_step: Some(pb::StepReport {
                step: 40,
                loss: 0.25,
                samples: 8,
                seconds: Some(pb::PhaseSeconds {
                    forward: 2.0,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn waiting() -> pb::JobView {
        pb::JobView {
            job: "late-2".into(),
            phase: "queued".into(),
            reason: "too few\u{1b}[2J workers".into(),
            ..Default::default()
        }
    }

    fn workers() -> Vec<pb::WorkerView> {
        let worker = |name: &str, up, drained| pb::WorkerView {
            worker: Some(pb::WorkerId {
                name: name.into(),
                boot: 1,
            }),
            up,
            drained,
            devices: 8,
            devices_used: 2,
            last_heard_ms: 61_000,
            ..Default::default()
        };
        vec![
            worker("w1", true, false),
            worker("w2", false, false),
            worker("w3", true, true),
        ]
    }

    #[test]
    fn a_page_shows_who_runs_who_waits_and_what_is_down() {
        let page = page(&[waiting(), running("demo-1")], &workers(), PLAIN);
        assert_eq!(
            page.join("\n"),
            "1 jobs run, 1 wait, 0 are paused; 2 of 3 workers are up; 4 of 16 devices are used\n\n\
             JOB     PHASE     PROGRESS  LEFT   RATE           LOSS    RANKS  GOODPUT\n\
             demo-1  training  40/100    2m00s  4.0 samples/s  0.2500  2      -\n\n\
             1 jobs wait:\n\
             late-2  queued: too few\\u{1b}[2J workers\n\n\
             worker w2 is down, silent for 1m01s\n\
             worker w3 is drained"
        );
    }

    #[test]
    fn a_page_fits_into_a_small_terminal() {
        let long = "x".repeat(200);
        let jobs: Vec<pb::JobView> = (0..50).map(|_| running(&long)).collect();
        let page = page(&jobs, &workers(), (10, 40));
        assert_eq!(page.len(), 10);
        assert!(
            page.iter().all(|line| line.chars().count() <= 40),
            "{page:?}"
        );
        assert!(page[9].starts_with("… "), "{page:?}");
        assert!(page[0].ends_with('…'), "{page:?}");
    }

    #[test]
    fn nothing_is_one_line() {
        assert_eq!(page(&[], &[], PLAIN).len(), 1);
        assert!(parse_every("0").is_err() && parse_every("x").is_err());
        assert_eq!(parse_every("0.5"), Ok(0.5));
    }
}
