//! The first page: what needs somebody, what runs, what waits and why, who has which devices.

use super::board::{Board, JobLine};
use super::curves::STEPS_OF_ROW;
use super::problem::Problem;
use super::rows::{self, EventRow, JobRow, Link, Parts, QueueRow, RunningRow, WorkerRow};
use super::show::{self, Moment};
use super::{Frame, Web, svg};
use askama::Template;
use proto::phase::Phase;

/// Rows of each table.
const ROWS: usize = 24;
const WORKERS: usize = 48;
const ENDED: usize = 6;
const EVENTS: usize = 10;
/// Jobs that failed longer ago need nobody any more.
const FAILED_MS: u64 = 86_400_000;
/// Points and size of the curve in a row.
const SPARK: usize = 60;
pub(super) const SPARK_SIZE: (f64, f64) = (120.0, 22.0);

#[derive(Debug, Template)]
#[template(path = "now.html")]
struct Page {
    frame: Frame,
    tiles: Vec<Tile>,
    attention: Vec<Attention>,
    running: Vec<RunningRow>,
    more_running: usize,
    queue: Vec<QueueRow>,
    more_queue: usize,
    workers: Vec<WorkerRow>,
    more_workers: usize,
    ended: Vec<JobRow>,
    events: Vec<EventRow>,
}

/// A number that sums up.
#[derive(Debug)]
struct Tile {
    value: String,
    of: String,
    what: &'static str,
    url: &'static str,
    /// `bad` or empty.
    mark: &'static str,
}

/// Something that somebody should look at.
#[derive(Debug)]
struct Attention {
    /// `bad` or `warn`.
    mark: &'static str,
    word: &'static str,
    link: Link,
    at: Moment,
    text: Parts,
    remedy: Parts,
}

pub(super) async fn page(web: &Web) -> Result<String, Problem> {
    let board = web.look.board().await?;
    let is_running = |job: &&JobLine| !job.is_over() && !job.is_waiting();
    let mut running = Vec::new();
    let all = board.jobs.iter().rev().filter(is_running).count();
    for job in board.jobs.iter().rev().filter(is_running).take(ROWS) {
        let drawn = web.curves.with(&job.view, STEPS_OF_ROW, |history| {
            let points = history.curve.means("loss", SPARK);
            (history.curve.pace(), svg::lines(&points, SPARK_SIZE).lines)
        });
        let (pace, spark) = drawn.await?;
        running.push(RunningRow::of(job, pace, spark, board.at_ms));
    }
    let queue = board.queue.iter().enumerate().take(ROWS);
    let queue = queue.map(|(place, index)| QueueRow::of(place + 1, &board.jobs[*index]));
    let mut order: Vec<usize> = (0..board.workers.len()).collect();
    // Those with trouble first; the rest by name.
    order.sort_by_key(|index| board.workers[*index].state() == "up");
    let workers = order.iter().take(WORKERS);
    let workers = workers.map(|index| WorkerRow::of(&board.workers[*index]));
    let mut ended: Vec<&JobLine> = board.jobs.iter().filter(|job| job.is_over()).collect();
    ended.sort_by_key(|job| std::cmp::Reverse(job.view.ended_ms));
    let events = web
        .jobs
        .handle
        .event_log()
        .newest(u64::MAX, EVENTS, rows::is_rare);
    let page = Page {
        frame: Frame::of("now"),
        tiles: tiles(&board),
        attention: attention(&board),
        more_running: all.saturating_sub(ROWS),
        running,
        queue: queue.collect(),
        more_queue: board.queue.len().saturating_sub(ROWS),
        workers: workers.collect(),
        more_workers: board.workers.len().saturating_sub(WORKERS),
        ended: ended
            .iter()
            .take(ENDED)
            .map(|job| JobRow::of(&job.view))
            .collect(),
        events: events.into_iter().map(EventRow::of).collect(),
    };
    Ok(page.render()?)
}

fn tiles(board: &Board) -> Vec<Tile> {
    let up = || board.workers.iter().filter(|it| it.view.up);
    let devices: u64 = up().map(|it| u64::from(it.view.devices)).sum();
    let used: u64 = up().map(|it| u64::from(it.view.devices_used)).sum();
    let running = board
        .jobs
        .iter()
        .filter(|job| !job.is_over() && !job.is_waiting());
    let failed = board
        .jobs
        .iter()
        .filter(|job| failed_lately(job, board.at_ms))
        .count();
    let tile = |value: usize, what, url| Tile {
        value: show::count(value as u64),
        of: String::new(),
        what,
        url,
        mark: "",
    };
    vec![
        tile(running.count(), "running", "#running"),
        tile(board.queue.len(), "waiting", "#queue"),
        Tile {
            mark: if failed == 0 { "" } else { "bad" },
            ..tile(failed, "failed in 24 h", "/jobs?phase=failed")
        },
        Tile {
            of: format!(" / {}", show::count(devices)),
            ..tile(
                usize::try_from(used).unwrap_or(usize::MAX),
                "devices in use",
                "#workers",
            )
        },
        Tile {
            of: format!(" / {}", show::count(board.workers.len() as u64)),
            mark: if up().count() == board.workers.len() {
                ""
            } else {
                "bad"
            },
            ..tile(up().count(), "workers up", "/workers")
        },
    ]
}

fn failed_lately(job: &JobLine, now: u64) -> bool {
    job.view.phase == Phase::Failed && now < job.view.ended_ms.saturating_add(FAILED_MS)
}

/// The worst first.
fn attention(board: &Board) -> Vec<Attention> {
    let mut list = Vec::new();
    for job in board.jobs.iter().rev() {
        if let (Some(for_ms), Some(why)) = (job.overdue_ms(), &job.why) {
            list.push(Attention {
                mark: "bad",
                word: "stuck",
                link: Link::job(&job.view.job),
                at: Moment::of(board.at_ms.saturating_sub(for_ms)),
                text: show::parts(&show::sentence(&why.sentence)),
                remedy: rows::remedy(Some(why)),
            });
        }
    }
    for job in board
        .jobs
        .iter()
        .rev()
        .filter(|job| failed_lately(job, board.at_ms))
    {
        let reason = job.view.reason_sentence();
        // Some reasons say how to go on.
        let remedy = match reason.contains('`') {
            true => String::new(),
            false => format!("`coordinator retry {}`", job.view.job),
        };
        list.push(Attention {
            mark: "bad",
            word: "failed",
            link: Link::job(&job.view.job),
            at: Moment::of(job.view.ended_ms),
            text: show::parts(&show::sentence(&reason)),
            remedy: show::parts(&remedy),
        });
    }
    for worker in &board.workers {
        let row = WorkerRow::of(worker);
        if row.state != "up" && row.state != "drained" {
            list.push(Attention {
                mark: "warn",
                word: row.state,
                at: Moment::of(board.at_ms.saturating_sub(worker.view.last_heard_ms)),
                text: show::parts(&show::sentence(&row.remark)),
                link: row.link,
                remedy: Vec::new(),
            });
        }
    }
    list.truncate(ROWS);
    list
}
