//! Rows that several pages show. Pure.

use super::board::{DeviceLine, JobLine, WorkerLine};
use super::show::{self, Moment, colour, in_url};
use coordinator_core::Why;
use proto::message::PhaseSeconds;
use proto::pb;

/// A link and what it says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) text: String,
    pub(super) url: String,
}

impl Link {
    pub(super) fn job(job: &str) -> Self {
        Self {
            text: job.to_owned(),
            url: format!("/jobs/{}", in_url(job)),
        }
    }

    pub(super) fn worker(name: &str) -> Self {
        Self {
            text: name.to_owned(),
            url: format!("/workers/{}", in_url(name)),
        }
    }
}

#[derive(Debug)]
pub(super) struct EventRow {
    pub(super) at: Moment,
    /// Its mark: `bad`, `warn`, `good` or `plain`.
    pub(super) mark: &'static str,
    pub(super) kind: String,
    pub(super) job: Option<Link>,
    pub(super) worker: Option<Link>,
    pub(super) text: String,
}

impl EventRow {
    pub(super) fn of(line: pb::EventLine) -> Self {
        let some = |text: &str| !text.is_empty();
        Self {
            at: Moment::of(line.at_ms),
            mark: mark(&line.kind),
            job: some(&line.job).then(|| Link::job(&line.job)),
            worker: some(&line.worker).then(|| Link::worker(&line.worker)),
            kind: line.kind,
            text: line.text,
        }
    }
}

/// Commits are so many that nothing else would be seen among them.
pub(super) fn is_rare(line: &pb::EventLine) -> bool {
    line.kind != "committed"
}

/// How much an event of this kind matters.
fn mark(kind: &str) -> &'static str {
    match kind {
        "job-failed" | "unit-set-aside" => "bad",
        "worker-down"
        | "generation-ended"
        | "standby-lost"
        | "unit-failed"
        | "unreachable"
        | "worker-displaced"
        | "report-ignored"
        | "evaluation-unscored" => "warn",
        "job-done" | "recovered" | "worker-up" | "generation-formed" | "evaluation-scored" => {
            "good"
        }
        _ => "plain",
    }
}

/// A device in a row of squares.
#[derive(Debug)]
pub(super) struct Square {
    /// `free`, `standby`, `drained`, `sick`, `down`, or `job`.
    pub(super) state: &'static str,
    /// Of its job.
    pub(super) colour: usize,
    /// What it does, in words.
    pub(super) title: String,
}

#[derive(Debug)]
pub(super) struct WorkerRow {
    pub(super) link: Link,
    pub(super) state: &'static str,
    pub(super) class: String,
    pub(super) device: String,
    pub(super) squares: Vec<Square>,
    pub(super) used: u32,
    pub(super) devices: u32,
    /// Its jobs, each with its number of devices and colour.
    pub(super) jobs: Vec<(Link, usize, usize)>,
    pub(super) remark: String,
}

/// Devices that are drawn of one worker.
const SQUARES: usize = 64;

impl WorkerRow {
    pub(super) fn of(worker: &WorkerLine) -> Self {
        let state = worker.state();
        let squares = worker.devices.iter().enumerate().take(SQUARES);
        let mut jobs: Vec<(Link, usize, usize)> = Vec::new();
        for device in worker.devices.iter().filter(|it| !it.job.is_empty()) {
            match jobs.iter_mut().find(|(link, ..)| link.text == device.job) {
                Some((_, count, _)) => *count += 1,
                None => jobs.push((Link::job(&device.job), 1, colour(&device.job))),
            }
        }
        let view = &worker.view;
        let remark = match (&view.displaced, view.unreachable.as_slice()) {
            _ if state == "sick" => view.sick.clone().unwrap_or_default(),
            (Some(_), _) => "two daemons have its name".to_owned(),
            (None, []) if !view.up => format!("silent for {}", show::span(view.last_heard_ms)),
            (None, []) => String::new(),
            (None, [one]) => format!("cannot reach {one}"),
            (None, [one, rest @ ..]) => format!("cannot reach {one} and {} more", rest.len()),
        };
        Self {
            link: Link::worker(worker.name()),
            state,
            class: state.replace(' ', "-"),
            device: view.device.clone(),
            squares: squares
                .map(|(index, device)| square(index, device, state))
                .collect(),
            used: view.devices_used,
            devices: view.devices,
            jobs,
            remark,
        }
    }
}

fn square(index: usize, device: &DeviceLine, worker: &str) -> Square {
    let DeviceLine { job, rank, standby } = device;
    let (state, what) = match (job.is_empty(), worker) {
        (_, "down") => ("down", "down".to_owned()),
        (true, "drained") => ("drained", "drained".to_owned()),
        (true, "sick") => ("sick", "sick".to_owned()),
        (true, _) => ("free", "free".to_owned()),
        (false, _) if *standby => ("standby", format!("standby {rank} of {job}")),
        (false, _) => ("job", format!("rank {rank} of {job}")),
    };
    Square {
        state,
        colour: colour(job),
        title: format!("device {index}: {what}"),
    }
}

/// A job that runs.
#[derive(Debug)]
pub(super) struct RunningRow {
    pub(super) link: Link,
    pub(super) phase: String,
    pub(super) overdue: Option<String>,
    pub(super) colour: usize,
    pub(super) owner: String,
    /// Thousandths of the work that is done.
    pub(super) done: u64,
    pub(super) progress: String,
    pub(super) loss: String,
    pub(super) spark: Vec<String>,
    pub(super) rate: String,
    pub(super) left: String,
    pub(super) end: Moment,
    /// The same to the minute; without the day if it is today.
    pub(super) ends: String,
    pub(super) world: u32,
    pub(super) why: Parts,
    pub(super) incident: Option<(Moment, String, Link)>,
}

impl RunningRow {
    /// `pace`: seconds per step lately. `spark`: lines of its loss.
    pub(super) fn of(job: &JobLine, pace: Option<f64>, spark: Vec<String>, now: u64) -> Self {
        let view = &job.view;
        let (at, all) = position(view);
        let left_ms = left_ms(view, pace);
        let why = job.why.as_ref();
        let overdue = job.overdue_ms().map(show::span);
        let end = Moment::of(left_ms.map_or(0, |left| now + left));
        Self {
            link: Link::job(&view.job),
            phase: view.phase.clone(),
            colour: colour(&view.job),
            owner: view.owner.clone(),
            done: per_mille(at, all),
            progress: format!("{} / {}", show::count(at), show::count(all)),
            loss: loss(view),
            spark,
            rate: rate(view),
            left: left_ms.map_or_else(|| show::NONE.to_owned(), show::span),
            ends: end.to_minute(&Moment::of(now)),
            end,
            world: view.world,
            why: explained(view, why),
            overdue,
            incident: job.last_incident.as_ref().map(|it| {
                let all: u64 = view.faults.values().sum();
                let text = match all {
                    1 => "1 incident".to_owned(),
                    all => format!("{all} incidents"),
                };
                let url = incident_url(&view.job, it);
                (Moment::of(it.at_ms), it.sentence(), Link { text, url })
            }),
        }
    }
}

/// A sentence with its commands marked.
pub(super) type Parts = Vec<(bool, String)>;

fn explained(view: &pb::JobView, why: Option<&Why>) -> Parts {
    let sentence = why.map_or_else(|| view.reason_sentence(), |it| show::sentence(&it.sentence));
    show::parts(&sentence)
}

/// What would help; empty if nothing is needed.
pub(super) fn remedy(why: Option<&Why>) -> Parts {
    let remedy = why.and_then(|it| it.remedy.as_deref());
    show::parts(remedy.unwrap_or_default())
}

/// An incident is known by its time: only the newest of a job are kept.
pub(super) fn incident_url(job: &str, incident: &pb::Incident) -> String {
    format!("/jobs/{}/incidents/{}", in_url(job), incident.at_ms)
}

/// Steps or units that are done, and that there are.
pub(super) fn position(view: &pb::JobView) -> (u64, u64) {
    match &view.units {
        Some(units) => (units.done, units.total),
        None => (view.step, view.steps),
    }
}

pub(super) fn per_mille(part: u64, whole: u64) -> u64 {
    if whole == 0 {
        0
    } else {
        (u128::from(part.min(whole)) * 1000 / u128::from(whole))
            .try_into()
            .unwrap_or(1000)
    }
}

pub(super) fn loss(view: &pb::JobView) -> String {
    let last = view.last_step.as_ref();
    last.map_or_else(|| show::NONE.to_owned(), |step| show::number(step.loss))
}

/// Samples or units per second.
pub(super) fn rate(view: &pb::JobView) -> String {
    if let Some(units) = &view.units {
        return match units.per_second {
            rate if 0.0 < rate => format!("{} units/s", show::number(rate)),
            _ => show::NONE.to_owned(),
        };
    }
    let Some(step) = &view.last_step else {
        return show::NONE.to_owned();
    };
    let seconds = step
        .seconds
        .map_or(0.0, |it| PhaseSeconds::from(it).total());
    if seconds <= 0.0 {
        return show::NONE.to_owned();
    }
    show::number(f64::from(step.samples) / seconds)
}

/// Milliseconds until it is done, at its pace. None: nothing says how fast it is.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)] // An estimate.
pub(super) fn left_ms(view: &pb::JobView, pace: Option<f64>) -> Option<u64> {
    let (at, all) = position(view);
    let left = all.saturating_sub(at) as f64;
    let seconds = match &view.units {
        Some(units) if 0.0 < units.per_second => left / units.per_second,
        Some(_) => return None,
        None => left * pace?,
    };
    Some((1000.0 * seconds).clamp(0.0, 1e15) as u64)
}

/// A job that waits.
#[derive(Debug)]
pub(super) struct QueueRow {
    pub(super) place: usize,
    pub(super) link: Link,
    pub(super) phase: String,
    pub(super) asks: String,
    pub(super) priority: i32,
    pub(super) team: String,
    pub(super) since: Moment,
    pub(super) why: Parts,
    pub(super) remedy: Parts,
}

impl QueueRow {
    pub(super) fn of(place: usize, job: &JobLine) -> Self {
        let view = &job.view;
        let why = job.why.as_ref();
        Self {
            place,
            link: Link::job(&view.job),
            phase: view.phase.clone(),
            asks: job.asks.clone(),
            priority: job.priority,
            team: view.team.clone(),
            since: Moment::of(view.submitted_ms),
            why: explained(view, why),
            remedy: remedy(why),
        }
    }
}

/// A job in a list.
#[derive(Debug)]
pub(super) struct JobRow {
    pub(super) link: Link,
    pub(super) phase: String,
    pub(super) work: String,
    pub(super) owner: String,
    pub(super) team: String,
    pub(super) progress: String,
    pub(super) loss: String,
    pub(super) submitted: Moment,
    pub(super) ended: Moment,
    pub(super) took: String,
    pub(super) reason: Parts,
}

impl JobRow {
    pub(super) fn of(view: &pb::JobView) -> Self {
        let (at, all) = position(view);
        let took = view.ended_ms.saturating_sub(view.submitted_ms);
        Self {
            link: Link::job(&view.job),
            phase: view.phase.clone(),
            work: view.work.clone(),
            owner: view.owner.clone(),
            team: view.team.clone(),
            progress: format!("{} / {}", show::count(at), show::count(all)),
            loss: loss(view),
            submitted: Moment::of(view.submitted_ms),
            ended: Moment::of(view.ended_ms),
            took: match view.ended_ms {
                0 => show::NONE.to_owned(),
                _ => show::span(took),
            },
            reason: show::parts(&view.reason_sentence()),
        }
    }
}
