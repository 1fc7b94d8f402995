//! The page of a worker: what its devices do, what they did in the last 24 hours, what happened
//! there, and what its doctor found.

mod day;
mod doctor;

use super::board::{Board, JobLine, WorkerLine};
use super::problem::Problem;
use super::rows::{EventRow, Link, WorkerRow, incident_url};
use super::show::{self, Moment};
use super::{Frame, Web};
use askama::Template;
use day::{Day, day};
pub(super) use doctor::Doctors;
use doctor::Found;
use proto::id::JobId;
use proto::limits::cut;
use proto::pb;

const EVENTS: usize = 40;
const INCIDENTS: usize = 20;

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
    day: Day,
    unreachable: Vec<Link>,
    incidents: Vec<(Moment, Link, String, String)>,
    events: Vec<EventRow>,
    doctor: Found,
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
    let incidents = web
        .jobs
        .handle
        .incidents(name.to_owned(), INCIDENTS)
        .await?;
    let incident = |(job, it): (JobId, pb::Incident)| {
        let url = incident_url(&job.0, &it);
        (Moment::of(it.at_ms), Link::job(&job.0), url, it.sentence())
    };
    let (spans, since_ms) = web.look.history().of(name);
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
        incidents: incidents.into_iter().map(incident).collect(),
        day: day(&spans, since_ms, board.at_ms),
        doctor: web.doctors.findings(&web.jobs.checkpoints, name).await,
        events: events
            .newest(u64::MAX, EVENTS, |it| it.worker == name)
            .into_iter()
            .map(EventRow::of)
            .collect(),
        row,
        name: name.to_owned(),
    };
    Ok(page.render()?)
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
        "sick" => {
            let reason = view.sick.as_deref().unwrap_or_default();
            let then = match view.drained {
                true => "; it gets no new work",
                false => "",
            };
            format!("it says that it should not be used: {reason}{then}")
        }
        "drained" => "it gets no new work, and its work moves away".to_owned(),
        "cut off" => "it cannot reach workers that it shares a job with".to_owned(),
        _ => match view.devices.saturating_sub(view.devices_used) {
            0 => "all its devices are in use".to_owned(),
            free => format!("{free} of its {} devices are free", view.devices),
        },
    };
    let remedy = match worker.state() {
        "down" => format!("systemctl status retri-worker, on {name}"),
        "sick" => format!("worker doctor, on {name}; when it is well: coordinator undrain {name}"),
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
            let of_rank = |line: &JobLine| {
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
                loss: line.map_or_else(String::new, |it| crate::web::rows::loss(&it.view)),
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
