//! The page of an incident: what failed first, the last lines of the culprit, who waited, what was
//! done about it, for how long devices stood still and what that cost.

use super::curves::STEPS_MAX;
use super::logs::{LogFilter, LogRow};
use super::problem::Problem;
use super::rows::{self, EventRow, Link};
use super::show::{self, Moment};
use super::{Frame, Web};
use askama::Template;
use proto::pb;
use proto::reason::{Consequence, Ending, Fault, RankFailure};

/// Lines of the culprit's log.
const LINES: usize = 20;
/// Events before and after the incident.
const EVENTS: (usize, usize) = (5, 9);
/// Events so long before it belong to it.
const BEFORE_MS: u64 = 60_000;

#[derive(Debug, Template)]
#[template(path = "incident.html")]
struct Page {
    frame: Frame,
    job: Link,
    at: Moment,
    generation: u64,
    sentence: String,
    story: Story,
    recovery: Vec<(&'static str, String)>,
    log: Vec<LogRow>,
    log_of: String,
    events: Vec<EventRow>,
    previous: Option<String>,
    next: Option<String>,
}

/// The parts of a fault.
#[derive(Debug, Default, PartialEq, Eq)]
struct Story {
    kind: String,
    failure: String,
    rank: Option<u32>,
    worker: Option<Link>,
    waited: Vec<String>,
    more_waited: u64,
    /// How long the culprit did nothing before that was noticed: its peers stood still, too.
    unnoticed_ms: u64,
    done: String,
}

pub(super) async fn page(web: &Web, name: &str, number: &str) -> Result<String, Problem> {
    let (id, view) = web.job(name).await?;
    let found = view
        .incidents
        .iter()
        .position(|it| it.at_ms.to_string() == number);
    let Some(index) = found else {
        return Err(no_incident(&view, number));
    };
    let incident = &view.incidents[index];
    let story = story(incident);
    let filter = LogFilter {
        rank: story.rank.map(u64::from),
        generation: Some(incident.generation),
        ..LogFilter::default()
    };
    // Lines of the rank in that generation; later ones of it are of its cleanup.
    let (log, _) = web.tails.before(&id, u64::MAX, LINES, &filter).await?;
    let log_of = match story.rank {
        Some(rank) => format!("rank {rank} in generation {}", incident.generation),
        None => format!("all ranks in generation {}", incident.generation),
    };
    let events = web.jobs.handle.event_log();
    let around = events.newest(u64::MAX, usize::MAX, |it| {
        (it.job == view.job || it.job.is_empty())
            && incident.at_ms.saturating_sub(BEFORE_MS) <= it.at_ms
    });
    let recovered = incident.recovered_ms;
    let still_ms = recovered.map(|it| it.saturating_sub(incident.at_ms));
    let unnoticed_ms = story.unnoticed_ms;
    let recovery = web.curves.with(&view, STEPS_MAX, |history| {
        let before = history.generations.iter().rev();
        let before = before
            .into_iter()
            .find(|it| it.generation <= incident.generation);
        let cost = Cost {
            world: before.map(|it| it.world),
            next: history
                .after(incident.generation)
                .map(|it| (it.generation, it.world, it.from)),
            lost: history.after(incident.generation).map_or(0, |it| it.lost),
            unnoticed_ms,
            still_ms,
            pace: history.curve.pace(),
        };
        cost.rows()
    });
    let url = |index: usize| {
        view.incidents
            .get(index)
            .map(|it| rows::incident_url(&view.job, it))
    };
    // Newest first; those nearest to the incident are of it.
    let rare = around.into_iter().filter(rows::is_rare);
    let (after, before): (Vec<pb::EventLine>, Vec<pb::EventLine>) =
        rare.partition(|it| incident.at_ms <= it.at_ms);
    let later = after.len().saturating_sub(EVENTS.1);
    let near = after.into_iter().skip(later);
    let shown = near.chain(before.into_iter().take(EVENTS.0));
    let page = Page {
        frame: Frame::of("jobs"),
        job: Link::job(&view.job),
        at: Moment::of(incident.at_ms),
        generation: incident.generation,
        sentence: show::sentence(&incident.sentence()),
        story,
        recovery: recovery.await?,
        log,
        log_of,
        events: shown.map(EventRow::of).collect(),
        previous: index.checked_sub(1).and_then(url),
        next: url(index + 1),
    };
    Ok(page.render()?)
}

fn no_incident(view: &pb::JobView, number: &str) -> Problem {
    let links = view.incidents.iter().rev().take(8).map(|it| {
        let text = format!("{}: {}", Moment::of(it.at_ms).text, it.sentence());
        (text, rows::incident_url(&view.job, it))
    });
    let mut links: Vec<(String, String)> = links.collect();
    links.push((format!("job {}", view.job), Link::job(&view.job).url));
    let text = format!(
        "job {} has no incident {number:?}; the newest {} are kept",
        view.job,
        coordinator_core::event::INCIDENTS_MAX
    );
    Problem::not_found("No such incident", &text, links)
}

fn story(incident: &pb::Incident) -> Story {
    let cause = incident.cause.as_ref();
    let fault = cause.and_then(|it| serde_json::from_str::<Fault>(&it.json).ok());
    let Some(fault) = fault else {
        return Story {
            failure: incident.what.clone(),
            ..Story::default()
        };
    };
    let mut story = Story {
        kind: fault.word().replace('-', " "),
        ..Story::default()
    };
    match fault {
        Fault::Generation {
            ending,
            blocked,
            consequence,
        } => {
            story.waited = blocked.ranks.iter().map(ToString::to_string).collect();
            story.more_waited = blocked.more;
            story.done = consequence.to_string();
            story.ended(&ending);
        }
        Fault::Process {
            ending,
            unit,
            consequence,
        } => {
            story.done = match (unit, consequence) {
                (Some(unit), Consequence::Continues) => format!("unit {unit} is leased again"),
                (_, consequence) => consequence.to_string(),
            };
            story.ended(&ending);
        }
        Fault::Worker { ending } => {
            "its units are leased again".clone_into(&mut story.done);
            story.ended(&ending);
        }
        Fault::Unit { ref workers, .. } => {
            story.worker = workers.last().map(|it| Link::worker(it));
            story.failure = fault.to_string();
        }
        Fault::Text { .. } | Fault::StopOverdue { .. } | Fault::UnitsOverdue { .. } => {
            story.failure = fault.to_string();
        }
    }
    story
}

impl Story {
    fn ended(&mut self, ending: &Ending) {
        self.failure = ending.to_string();
        self.unnoticed_ms = match ending {
            Ending::RankFailed {
                failure: RankFailure::Silent { for_ms, .. },
                ..
            } => *for_ms,
            Ending::RankFailed {
                failure: RankFailure::Hangs { activity, .. },
                ..
            } => activity.for_ms,
            Ending::WorkerLost { silent_for_ms, .. } => *silent_for_ms,
            _ => 0,
        };
        match ending {
            Ending::RankFailed { rank, worker, .. }
            | Ending::GroupBroken { rank, worker, .. }
            | Ending::RankMissing { rank, worker } => {
                self.rank = Some(rank.0);
                self.worker = Some(Link::worker(&worker.name));
            }
            Ending::WorkerLost { worker, .. } | Ending::WorkerRestarted { old: worker, .. } => {
                self.worker = Some(Link::worker(&worker.name));
            }
            Ending::Partitioned { .. }
            | Ending::WeightsDisagree { .. }
            | Ending::ShardsDisagree { .. }
            | Ending::ManifestRefused { .. }
            | Ending::LastCheckpointMissing { .. } => {}
        }
    }
}

/// What an incident cost.
#[derive(Debug)]
struct Cost {
    /// Ranks of the generation that ended.
    world: Option<u32>,
    /// The next generation: its number, ranks, and the step after which it continued.
    next: Option<(u64, u32, u64)>,
    lost: u64,
    /// Until the failure was noticed.
    unnoticed_ms: u64,
    /// From then until the job did steps again.
    still_ms: Option<u64>,
    /// Seconds per step.
    pace: Option<f64>,
}

impl Cost {
    #[allow(clippy::cast_precision_loss)] // An estimate.
    fn rows(&self) -> Vec<(&'static str, String)> {
        let mut rows = Vec::new();
        match self.next {
            Some((generation, world, from)) => rows.push((
                "continued as",
                format!(
                    "generation {generation} with {world} ranks, after step {}",
                    show::count(from)
                ),
            )),
            None => rows.push((
                "continued as",
                "no generation has done a step since".to_owned(),
            )),
        }
        if 0 < self.unnoticed_ms {
            rows.push(("noticed after", show::span(self.unnoticed_ms)));
        }
        if let Some(still) = self.still_ms {
            rows.push(("did steps again after", show::span(still)));
        }
        rows.push(("steps done again", show::count(self.lost)));
        let world = f64::from(self.world.unwrap_or(0));
        let still = self
            .still_ms
            .map(|it| (it + self.unnoticed_ms) as f64 / 1000.0 * world);
        let again = self.pace.map(|pace| pace * self.lost as f64 * world);
        let cost = match (still, again) {
            (Some(still), again) => {
                let all = still + again.unwrap_or(0.0);
                format!("{} device-seconds", show::number(all))
            }
            (None, Some(again)) if 0 < self.lost => format!(
                "at least {} device-seconds; when the job did steps again is not known",
                show::number(again)
            ),
            (None, _) => {
                "not known: no step was done since, or the coordinator restarted then".to_owned()
            }
        };
        rows.push(("cost", cost));
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_is_the_time_that_devices_stood_still_and_the_steps_done_again() {
        let cost = Cost {
            world: Some(4),
            next: Some((3, 2, 40)),
            lost: 5,
            unnoticed_ms: 1_000,
            still_ms: Some(1_500),
            pace: Some(0.5),
        };
        let rows = cost.rows();
        let value = |what| rows.iter().find(|it| it.0 == what).map(|it| it.1.as_str());
        assert_eq!(value("cost"), Some("20.00 device-seconds"));
        assert_eq!(
            value("continued as"),
            Some("generation 3 with 2 ranks, after step 40")
        );
    }

    #[test]
    fn a_silent_rank_did_nothing_until_that_was_noticed() {
        let unnoticed = |failure| {
            let mut story = Story::default();
            story.ended(&Ending::RankFailed {
                rank: proto::id::Rank(0),
                worker: proto::id::WorkerId {
                    name: "w1".into(),
                    boot: 1,
                },
                failure,
            });
            story.unnoticed_ms
        };
        let silent = RankFailure::Silent {
            for_ms: 4_000,
            phase: "training".into(),
            activity: None,
        };
        assert_eq!(unnoticed(silent), 4_000);
        // The end of a process is noticed at once.
        let killed = RankFailure::Exited {
            outcome: "killed by signal 9".into(),
            success: false,
        };
        assert_eq!(unnoticed(killed), 0);
    }

    #[test]
    fn an_incident_of_an_old_release_is_its_sentence() {
        let incident = pb::Incident {
            what: "rank 1 failed".into(),
            ..Default::default()
        };
        assert_eq!(story(&incident).failure, "rank 1 failed");
    }
}
