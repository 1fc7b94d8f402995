//! `coordinator watch`, also used by `submit --watch` and `sample`: follows a job until it ends,
//! with a progress bar on a terminal that can redraw and plain lines elsewhere. Reconnects after a
//! restart of the coordinator. A signal ends the watch, not the job, and the watch says so.

use super::client::{Client, connect, is_retryable, request_error};
use super::interrupt::Interrupt;
use super::spark::sparkline;
use super::{Global, Outcome, Output, evaluations, json, print_json};
use crate::text::{duration, errln, outln};
use anyhow::{Result, anyhow};
use indicatif::{ProgressBar, ProgressStyle};
use proto::pb;
use proto::phase::{Phase, is_over};
use proto::printable::Printable;
use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// How long the coordinator may be unreachable before the watch gives up.
const UNREACHABLE_MAX: Duration = Duration::from_secs(180);
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// Without a terminal, a line is printed at least this often while the job progresses …
const LINE_EVERY: Duration = Duration::from_secs(10);
/// … and at least this many times over the whole job.
const LINES_PER_JOB: u64 = 20;
/// Window over which samples/s and time left are measured.
const RATE_WINDOW: Duration = Duration::from_secs(30);
/// Steps whose losses are drawn.
const LOSSES: usize = 16;
/// A narrower terminal has no room for the bar.
const BAR_COLUMNS: usize = 72;

pub(crate) async fn watch(global: &Global, job: &str) -> Result<Outcome> {
    let view = follow(global, job).await?;
    match global.output {
        Output::Json => print_json(&json::job(&view)),
        Output::Table => outln!("{}", last_line(&view)),
    }
    Ok(if view.phase == Phase::Done {
        Outcome::True
    } else {
        Outcome::False
    })
}

/// Shows progress on stderr until the job has ended; returns its last view.
pub(crate) async fn follow(global: &Global, job: &str) -> Result<pb::JobView> {
    let mut display = Display::new(job);
    let bar = display.bar.clone();
    let id = job.to_owned();
    let waiting = Interrupt::catch(move || {
        if let Some(bar) = bar {
            bar.abandon();
        }
        errln!(
            "{id} goes on without this watch; `coordinator watch {id}` follows it again, \
            `coordinator cancel {id}` stops it"
        );
    })?;
    let view = follow_to_end(global, job, &mut display).await;
    waiting.release();
    view
}

async fn follow_to_end(global: &Global, job: &str, display: &mut Display) -> Result<pb::JobView> {
    // The first connection must succeed at once; later ones are retried while the coordinator
    // restarts.
    let mut client = connect(global).await?;
    let mut lost_since: Option<Instant> = None;
    loop {
        let error = match show_views(global, &mut client, job, display, &mut lost_since).await? {
            Ok(view) => return Ok(view),
            Err(status) => status,
        };
        let since = *lost_since.get_or_insert_with(|| {
            display.print(&format!(
                "connection to {} lost ({}), retrying",
                global.coordinator,
                error.message()
            ));
            Instant::now()
        });
        if UNREACHABLE_MAX < since.elapsed() {
            return Err(anyhow!(
                "the coordinator at {} has been unreachable for {}; the watch ends, the job does \
                not",
                global.coordinator,
                duration(since.elapsed())
            ));
        }
        tokio::time::sleep(RETRY_AFTER).await;
        if let Ok(reconnected) = connect(global).await {
            client = reconnected;
        }
    }
}

/// Shows views until the job ends and returns the last one. The inner error is the status that
/// broke the stream, if a retry may succeed.
async fn show_views(
    global: &Global,
    client: &mut Client,
    job: &str,
    display: &mut Display,
    lost_since: &mut Option<Instant>,
) -> Result<Result<pb::JobView, tonic::Status>> {
    let classify = |status: tonic::Status| {
        if is_retryable(&status) {
            Ok(Err(status))
        } else {
            Err(request_error(global, &status))
        }
    };
    let mut stream = match client
        .watch_job(pb::JobRequest {
            job: job.to_owned(),
        })
        .await
    {
        Ok(stream) => stream.into_inner(),
        Err(status) => return classify(status),
    };
    loop {
        match stream.message().await {
            Ok(Some(view)) => {
                *lost_since = None;
                display.show(&view);
                if is_over(&view.phase) {
                    display.end();
                    return Ok(Ok(view));
                }
            }
            Ok(None) => return Ok(Err(tonic::Status::unavailable("the stream ended"))),
            Err(status) => return classify(status),
        }
    }
}

fn capital(word: &str) -> String {
    let mut rest = word.chars();
    rest.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(rest).collect()
    })
}

/// The summary line that the watch ends with.
fn last_line(view: &pb::JobView) -> String {
    let took = Duration::from_millis(view.ended_ms.saturating_sub(view.submitted_ms));
    let phase = capital(&view.phase);
    let loss = view
        .last_step
        .as_ref()
        .map_or_else(String::new, |it| format!(", loss {:.4}", it.loss));
    let best = evaluations::best_text(view);
    let best = best.map_or_else(String::new, |best| format!(", {best}"));
    let images = match view.work.as_str() {
        "sample" | "evaluate" => format!("; images in {}", evaluations::images_of(view, &view.job)),
        _ => String::new(),
    };
    format!(
        "{phase}: {} after {}, {} {}{loss}{best}: {}{images}",
        view.job,
        duration(took),
        progress_noun(view),
        super::job::progress(view),
        view.reason_sentence()
    )
}

/// The noun for what the job's progress counts.
fn progress_noun(view: &pb::JobView) -> &'static str {
    if view.units.is_some() {
        "units"
    } else {
        "step"
    }
}

/// Finished and total steps or units.
fn position(view: &pb::JobView) -> (u64, u64) {
    match &view.units {
        Some(units) => (units.done, units.total),
        None => (view.step, view.steps),
    }
}

/// `8.2 units/s, 3m20s left`.
#[allow(clippy::cast_precision_loss)] // A few digits are printed.
fn units_text(view: &pb::JobView, units: &pb::UnitsView) -> String {
    if units.per_second <= 0.0 {
        return view.reason_sentence();
    }
    let left = units.total.saturating_sub(units.done + units.set_aside) as f64 / units.per_second;
    let left = duration(Duration::from_secs_f64(left.clamp(1.0, 1e9)));
    let set_aside = match units.set_aside {
        0 => String::new(),
        some => format!(", {some} set aside"),
    };
    format!("{:.1} units/s, {left} left{set_aside}", units.per_second)
}

/// Formats progress as text and measures its rate.
#[derive(Debug, Default)]
struct Progress {
    /// Steps and when they were first seen, over the last [`RATE_WINDOW`].
    seen: VecDeque<(Instant, u64)>,
    /// The newest losses that were seen, oldest first.
    losses: VecDeque<f64>,
}

impl Progress {
    /// `loss 0.1234, 41.0 samples/s, 3m20s left`.
    #[allow(clippy::cast_precision_loss)] // A few digits are printed.
    fn text(&mut self, view: &pb::JobView, now: Instant) -> String {
        if let Some(units) = &view.units {
            return units_text(view, units);
        }
        let Some(step) = &view.last_step else {
            return view.reason_sentence();
        };
        // After a restart the job may resume from an earlier step.
        if self.seen.back().is_some_and(|(_, seen)| view.step < *seen) {
            self.seen.clear();
        }
        if self.seen.back().is_none_or(|(_, seen)| *seen < view.step) {
            self.seen.push_back((now, view.step));
            if self.losses.len() == LOSSES {
                self.losses.pop_front();
            }
            self.losses.push_back(step.loss);
        }
        while 2 < self.seen.len() && RATE_WINDOW < now.duration_since(self.seen[0].0) {
            self.seen.pop_front();
        }
        let loss = format!("loss {:.4}", step.loss);
        let (Some(first), Some(last)) = (self.seen.front(), self.seen.back()) else {
            return loss;
        };
        let seconds = last.0.duration_since(first.0).as_secs_f64();
        if seconds <= 0.0 {
            return loss;
        }
        let rate = (last.1 - first.1) as f64 / seconds;
        let left = view.steps.saturating_sub(view.step) as f64 / rate;
        let left = duration(Duration::from_secs_f64(left.clamp(1.0, 1e9)));
        format!(
            "{loss}, {:.1} samples/s, {left} left",
            rate * f64::from(step.samples)
        )
    }
}

/// Prints progress to stderr.
#[derive(Debug)]
struct Display {
    job: String,
    /// None if stderr is not a terminal that can redraw.
    bar: Option<ProgressBar>,
    progress: Progress,
    phase: String,
    /// The ends of evaluations that were printed, or were there from the beginning.
    evaluated: Option<BTreeSet<String>>,
    /// When the newest incident was that was printed, or was there from the beginning.
    incident_ms: Option<u64>,
    line_at: Instant,
    line_at_position: u64,
}

impl Display {
    fn new(job: &str) -> Self {
        let bar = shell::terminal::can_redraw().then(|| {
            // The message is cut to what is left of the line, so that none wraps.
            let template = match shell::terminal::size() {
                Some((_, columns)) if columns < BAR_COLUMNS => "{prefix} {pos}/{len} {wide_msg}",
                _ => "{prefix} {bar:20} {pos}/{len} {wide_msg}",
            };
            let style = ProgressStyle::with_template(template);
            let style = style.expect("the template is a valid constant");
            let bar = ProgressBar::new(0)
                .with_style(style)
                .with_prefix(job.to_owned());
            bar.enable_steady_tick(Duration::from_secs(1));
            bar
        });
        let now = Instant::now();
        Self {
            job: job.to_owned(),
            bar,
            progress: Progress::default(),
            phase: String::new(),
            evaluated: None,
            incident_ms: None,
            line_at: now,
            line_at_position: 0,
        }
    }

    fn show(&mut self, view: &pb::JobView) {
        let now = Instant::now();
        let text = self.progress.text(view, now);
        let new_phase = self.phase != view.phase;
        if new_phase {
            self.phase.clone_from(&view.phase);
            self.print(&format!("{}: {}", view.phase, view.reason_sentence()));
        }
        let ended = evaluations::ended(view);
        let lines: BTreeSet<String> = ended.collect();
        if let Some(known) = &self.evaluated {
            for line in lines.difference(known) {
                self.print(line);
            }
        }
        self.evaluated = Some(lines);
        self.show_incidents(view);
        let (at, end) = position(view);
        if let Some(bar) = &self.bar {
            bar.set_length(end);
            bar.set_position(at);
            let losses = sparkline(self.progress.losses.iter().copied());
            let text = if losses.is_empty() {
                text
            } else {
                format!("{losses} {text}")
            };
            bar.set_message(Printable(text).to_string());
            return;
        }
        let every = (end / LINES_PER_JOB).max(1);
        let due = LINE_EVERY <= now.duration_since(self.line_at)
            || self.line_at_position / every != at / every;
        let has_progress = view.last_step.is_some() || view.units.is_some();
        if at != self.line_at_position && has_progress && due {
            (self.line_at, self.line_at_position) = (now, at);
            let (noun, progress) = (progress_noun(view), super::job::progress(view));
            self.print(&format!("{noun} {progress}, {text}"));
        }
    }

    /// Those since the last view.
    fn show_incidents(&mut self, view: &pb::JobView) {
        let newest = view.incidents.iter().map(|it| it.at_ms).max();
        if let Some(known) = self.incident_ms {
            for incident in view.incidents.iter().filter(|it| known < it.at_ms) {
                self.print(&format!("incident: {}", incident.sentence()));
            }
        }
        self.incident_ms = newest.max(self.incident_ms).or(Some(0));
    }

    fn print(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(Printable(format!("{} {text}", self.job)).to_string()),
            // Nobody reads the progress any more (`… 2>&1 | head -3`).
            None if !shell::print::err(format_args!("{} {text}", self.job)) => {
                std::process::exit(shell::print::READER_GONE)
            }
            None => {}
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(step: u64) -> pb::JobView {
        let last_step = pb::StepReport {
            step,
            loss: 0.5,
            samples: 8,
            ..Default::default()
        };
        pb::JobView {
            job: "demo-1".into(),
            step,
            steps: 100,
            last_step: Some(last_step),
            ..Default::default()
        }
    }

    #[test]
    fn rate_and_time_left_come_from_the_steps_seen() {
        let (mut progress, start) = (Progress::default(), Instant::now());
        assert_eq!(progress.text(&view(10), start), "loss 0.5000");
        let later = start + Duration::from_secs(5);
        assert_eq!(
            progress.text(&view(20), later),
            "loss 0.5000, 16.0 samples/s, 40s left"
        );
        // A restart from an earlier checkpoint must not give a negative rate.
        assert_eq!(progress.text(&view(15), later), "loss 0.5000");
    }

    #[test]
    fn losses_are_drawn_and_incidents_are_told_once() {
        let (mut progress, now) = (Progress::default(), Instant::now());
        for step in 1..=LOSSES as u64 + 4 {
            progress.text(&view(step), now);
        }
        assert_eq!(
            sparkline(progress.losses.iter().copied()),
            "▁".repeat(LOSSES)
        );
        let incident = |at_ms| pb::Incident {
            at_ms,
            what: "a rank failed".into(),
            ..Default::default()
        };
        let mut display = Display::new("demo-1");
        let mut show = |times: &[u64]| {
            display.show_incidents(&pb::JobView {
                incidents: times.iter().map(|at| incident(*at)).collect(),
                ..view(1)
            });
            display.incident_ms
        };
        assert_eq!(show(&[]), Some(0), "from now on every incident is new");
        assert_eq!(show(&[5]), Some(5));
        assert_eq!(show(&[5, 9]), Some(9));
        assert_eq!(
            show(&[]),
            Some(9),
            "old ones are forgotten by the coordinator"
        );
    }

    #[test]
    fn the_last_line_says_how_it_ended() {
        let ended = pb::JobView {
            phase: Phase::Failed.to_string(),
            reason: "no space".into(),
            ended_ms: 61_000,
            ..view(7)
        };
        assert_eq!(
            last_line(&ended),
            "Failed: demo-1 after 1m01s, step 7/100, loss 0.5000: no space"
        );
        let sampled = pb::JobView {
            work: "sample".into(),
            store_url: "file:///store/".into(),
            last_step: None,
            ..ended
        };
        let line = last_line(&sampled);
        assert!(
            line.ends_with("; images in file:///store/jobs/demo-1/images"),
            "{line}"
        );
    }
}
