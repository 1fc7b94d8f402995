//! Workers: all of them in pages, and one with what its devices do and what happened there.

use super::board::{Board, WorkerLine};
use super::problem::Problem;
use super::query::Query;
use super::rows::{EventRow, Link, WorkerRow};
use super::show::{self, Moment};
use super::{Frame, Web};
use askama::Template;
use proto::limits::{TEXT_BYTES, cut};

const ROWS: usize = 100;
const EVENTS: usize = 40;
const INCIDENTS: usize = 20;

#[derive(Debug, Template)]
#[template(path = "workers.html")]
struct List {
    frame: Frame,
    name: String,
    states: Vec<(&'static str, bool)>,
    rows: Vec<WorkerRow>,
    shown: String,
    previous: Option<String>,
    next: Option<String>,
}

#[derive(Debug, Template)]
#[template(path = "worker.html")]
struct Page {
    frame: Frame,
    name: String,
    boot: String,
    row: WorkerRow,
    heard: Moment,
    sentence: String,
    remedy: String,
    devices: Vec<DeviceRow>,
    unreachable: Vec<Link>,
    incidents: Vec<(Moment, Link, String, String)>,
    events: Vec<EventRow>,
    doctor: String,
}

#[derive(Debug)]
struct DeviceRow {
    number: usize,
    job: Option<Link>,
    phase: String,
    rank: String,
    doing: String,
    step: String,
    loss: String,
}

const STATES: [&str; 5] = ["", "up", "drained", "cut off", "down"];

pub(super) async fn list(web: &Web, query: &Query) -> Result<String, Problem> {
    let board = web.look.board().await?;
    let state = query.word("state", &STATES, "up, drained, cut off or down")?;
    let name = cut(query.text("name").trim(), TEXT_BYTES);
    let page = query.number("page")?.unwrap_or(1).max(1);
    let matching: Vec<&WorkerLine> = board
        .workers
        .iter()
        .filter(|it| state.is_empty() || it.state() == state)
        .filter(|it| it.name().contains(name.as_str()))
        .collect();
    let first = usize::try_from(page - 1)
        .unwrap_or(usize::MAX)
        .saturating_mul(ROWS);
    let rows: Vec<WorkerRow> = matching
        .iter()
        .skip(first)
        .take(ROWS)
        .map(|it| WorkerRow::of(it))
        .collect();
    let url = |page: u64| query.with(&[("page", &page.to_string())]);
    let shown = match rows.len() {
        0 => format!("none of {}", show::count(matching.len() as u64)),
        count => format!(
            "{} to {} of {}",
            show::count(first as u64 + 1),
            show::count((first + count) as u64),
            show::count(matching.len() as u64)
        ),
    };
    let page = List {
        frame: Frame::of("workers"),
        states: STATES
            .into_iter()
            .skip(1)
            .map(|it| (it, it == state))
            .collect(),
        name,
        shown,
        previous: (1 < page).then(|| url(page - 1)),
        next: (first.saturating_add(ROWS) < matching.len()).then(|| url(page + 1)),
        rows,
    };
    Ok(page.render()?)
}

pub(super) async fn page(web: &Web, name: &str) -> Result<String, Problem> {
    let board = web.look.board().await?;
    let boot = |it: &WorkerLine| it.view.worker.as_ref().map_or(0, |it| it.boot);
    // A restarted one is there once more; the one that is up is meant, or else the newest.
    let same = board.workers.iter().filter(|it| it.name() == name);
    let Some(worker) = same.max_by_key(|it| (it.view.up, boot(it))) else {
        return Err(no_worker(&board, name));
    };
    let row = WorkerRow::of(worker);
    let (sentence, remedy) = explained(worker);
    let events = web.jobs.handle.event_log();
    let mut incidents = Vec::new();
    for line in board.jobs.iter().rev() {
        if let Some(it) = &line.last_incident {
            let text = it.sentence();
            if text
                .split(|it: char| !is_of_name(it))
                .any(|word| word == name)
            {
                let url = super::rows::incident_url(&line.view.job, it);
                incidents.push((Moment::of(it.at_ms), Link::job(&line.view.job), url, text));
            }
        }
    }
    incidents.truncate(INCIDENTS);
    let page = Page {
        frame: Frame::of("workers"),
        boot: boot(worker).to_string(),
        heard: Moment::of(match worker.view.last_heard_ms {
            0 => 0,
            ago => board.at_ms.saturating_sub(ago),
        }),
        sentence,
        remedy,
        devices: devices(worker, &board),
        unreachable: worker
            .view
            .unreachable
            .iter()
            .map(|it| Link::worker(it))
            .collect(),
        incidents,
        events: events
            .newest(u64::MAX, EVENTS, |it| it.worker == name)
            .into_iter()
            .map(EventRow::of)
            .collect(),
        doctor: "worker doctor".to_owned(),
        row,
        name: name.to_owned(),
    };
    Ok(page.render()?)
}

fn is_of_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || "-_.".contains(character)
}

fn explained(worker: &WorkerLine) -> (String, String) {
    let (view, name) = (&worker.view, worker.name());
    if let Some(displaced) = &view.displaced {
        let address = displaced.address.as_deref().unwrap_or("an unknown address");
        let text = format!("an older daemon at {address} has the same name and was told to leave");
        return (
            show::sentence(&text),
            "give each worker its own name".to_owned(),
        );
    }
    let text = match worker.state() {
        "down" => format!("it has not reported for {}", show::span(view.last_heard_ms)),
        "drained" => "it gets no new work, and its work moves away".to_owned(),
        "cut off" => "it cannot reach workers that it shares a job with".to_owned(),
        _ => match view.devices.saturating_sub(view.devices_used) {
            0 => "all its devices are in use".to_owned(),
            free => format!("{free} of its {} devices are free", view.devices),
        },
    };
    let remedy = match worker.state() {
        "down" => format!("systemctl status retri-worker, on {name}"),
        "drained" => format!("coordinator undrain {name}"),
        "cut off" => "worker doctor, on both".to_owned(),
        _ => String::new(),
    };
    (show::sentence(&text), remedy)
}

fn devices(worker: &WorkerLine, board: &Board) -> Vec<DeviceRow> {
    let devices = worker.devices.iter().enumerate();
    devices
        .map(|(number, device)| {
            let line = board.job(&device.job);
            let of_rank = |line: &super::board::JobLine| {
                let found = line
                    .ranks
                    .iter()
                    .find(|it| it.rank == device.rank && it.worker == worker.name());
                found.cloned()
            };
            let rank = line.and_then(of_rank).unwrap_or_default();
            let is_free = device.job.is_empty();
            DeviceRow {
                number,
                job: (!is_free).then(|| Link::job(&device.job)),
                phase: match (is_free, device.standby) {
                    (true, _) => "free".to_owned(),
                    (false, true) => "standby".to_owned(),
                    (false, false) => rank.phase,
                },
                rank: if is_free {
                    String::new()
                } else {
                    device.rank.to_string()
                },
                doing: rank.activity.map_or_else(String::new, |(stage, for_ms)| {
                    format!("{stage}, {}", show::span(for_ms))
                }),
                step: line.map_or_else(String::new, |it| show::count(it.view.step)),
                loss: line.map_or_else(String::new, |it| super::rows::loss(&it.view)),
            }
        })
        .collect()
}

fn no_worker(board: &Board, name: &str) -> Problem {
    let known = board.workers.iter().take(8).map(|it| {
        let link = Link::worker(it.name());
        (link.text, link.url)
    });
    let known: Vec<(String, String)> = known.collect();
    let text = format!(
        "there is no worker {:?}; {}",
        cut(name, 200),
        if known.is_empty() {
            "none has come yet"
        } else {
            "these are some of those that there are"
        }
    );
    Problem::not_found("No such worker", &text, known)
}
