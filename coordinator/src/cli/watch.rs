//! `coordinator watch`, and the second half of `submit --watch` and `sample`: follows a job until
//! it ends, with a bar on a terminal and plain lines elsewhere. Outlives a restart of the
//! coordinator.

use super::client::{Client, connect, is_lost, refusal};
use super::{Global, Outcome, Output, json, print_json};
use crate::words::{duration, say};
use anyhow::{Result, anyhow};
use indicatif::{ProgressBar, ProgressStyle};
use proto::pb;
use proto::phase::{Phase, is_over};
use std::collections::VecDeque;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How long a coordinator may be away before the watch gives up.
const LOST_MAX: Duration = Duration::from_secs(180);
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// Without a terminal, a line appears at least this often while steps are made …
const LINE_EVERY: Duration = Duration::from_secs(10);
/// … and at least at every twentieth of the job.
const LINES_PER_JOB: u64 = 20;
/// Samples/s and time left are taken over this long.
const RATE_OVER: Duration = Duration::from_secs(30);

pub(crate) async fn watch(global: &Global, job: &str) -> Result<Outcome> {
    let view = follow(global, job).await?;
    match global.output {
        Output::Json => print_json(&json::job(&view)),
        Output::Table => say!("{}", last_line(&view)),
    }
    Ok(if view.phase == Phase::Done {
        Outcome::True
    } else {
        Outcome::False
    })
}

/// Shows progress on stderr until the job has ended; its last view.
pub(crate) async fn follow(global: &Global, job: &str) -> Result<pb::JobView> {
    let mut display = Display::new(job);
    // The first connection must come about at once; later ones may take a coordinator's restart.
    let mut client = connect(global).await?;
    let mut lost_since: Option<Instant> = None;
    loop {
        let error = match views(global, &mut client, job, &mut display, &mut lost_since).await? {
            Ok(view) => return Ok(view),
            Err(status) => status,
        };
        let since = *lost_since.get_or_insert_with(|| {
            display.say(&format!(
                "connection to {} lost ({}), trying again",
                global.coordinator,
                error.message()
            ));
            Instant::now()
        });
        if LOST_MAX < since.elapsed() {
            return Err(anyhow!(
                "the coordinator at {} has been away for {}; the job goes on without being watched",
                global.coordinator,
                duration(since.elapsed())
            ));
        }
        tokio::time::sleep(RETRY_AFTER).await;
        if let Ok(again) = connect(global).await {
            client = again;
        }
    }
}

/// The job's last view; or the status that broke the stream, if asking again may help.
async fn views(
    global: &Global,
    client: &mut Client,
    job: &str,
    display: &mut Display,
    lost_since: &mut Option<Instant>,
) -> Result<Result<pb::JobView, tonic::Status>> {
    let sort = |status: tonic::Status| {
        if is_lost(&status) {
            Ok(Err(status))
        } else {
            Err(refusal(global, &status))
        }
    };
    let mut stream = match client
        .watch_job(pb::JobRequest {
            job: job.to_owned(),
        })
        .await
    {
        Ok(stream) => stream.into_inner(),
        Err(status) => return sort(status),
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
            Err(status) => return sort(status),
        }
    }
}

fn capital(word: &str) -> String {
    let mut rest = word.chars();
    rest.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(rest).collect()
    })
}

/// What the watch ends with.
fn last_line(view: &pb::JobView) -> String {
    let took = Duration::from_millis(view.ended_ms.saturating_sub(view.submitted_ms));
    let phase = capital(&view.phase);
    let loss = view
        .last_step
        .as_ref()
        .map_or_else(String::new, |it| format!(", loss {:.4}", it.loss));
    format!(
        "{phase}: {} after {}, {} {}{loss}: {}",
        view.job,
        duration(took),
        counted(view),
        super::job::progress(view),
        view.reason
    )
}

/// What the job's progress counts.
fn counted(view: &pb::JobView) -> &'static str {
    if view.units.is_some() {
        "units"
    } else {
        "step"
    }
}

/// How far the job is, and how far it is to go.
fn position(view: &pb::JobView) -> (u64, u64) {
    match &view.units {
        Some(units) => (units.done, units.total),
        None => (view.step, view.steps),
    }
}

/// `8.2 units/s, 3m20s left`.
#[allow(clippy::cast_precision_loss)] // People read two digits of it.
fn units_text(view: &pb::JobView, units: &pb::UnitsView) -> String {
    if units.per_second <= 0.0 {
        return view.reason.clone();
    }
    let left = units.total.saturating_sub(units.done + units.set_aside) as f64 / units.per_second;
    let left = duration(Duration::from_secs_f64(left.clamp(1.0, 1e9)));
    let aside = match units.set_aside {
        0 => String::new(),
        some => format!(", {some} set aside"),
    };
    format!("{:.1} units/s, {left} left{aside}", units.per_second)
}

/// One line of progress, apart from where it is shown.
#[derive(Debug, Default)]
struct Progress {
    /// When which step was seen, over the last [`RATE_OVER`].
    seen: VecDeque<(Instant, u64)>,
}

impl Progress {
    /// `loss 0.1234, 41.0 samples/s, 3m20s left`.
    #[allow(clippy::cast_precision_loss)] // People read two digits of it.
    fn text(&mut self, view: &pb::JobView, now: Instant) -> String {
        if let Some(units) = &view.units {
            return units_text(view, units);
        }
        let Some(step) = &view.last_step else {
            return view.reason.clone();
        };
        // After a restart the job goes on at an earlier step.
        if self.seen.back().is_some_and(|(_, seen)| view.step < *seen) {
            self.seen.clear();
        }
        if self.seen.back().is_none_or(|(_, seen)| *seen < view.step) {
            self.seen.push_back((now, view.step));
        }
        while 2 < self.seen.len() && RATE_OVER < now.duration_since(self.seen[0].0) {
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

/// Where progress is shown.
#[derive(Debug)]
struct Display {
    job: String,
    /// None: not a terminal.
    bar: Option<ProgressBar>,
    progress: Progress,
    phase: String,
    line_at: Instant,
    line_at_position: u64,
}

impl Display {
    fn new(job: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg}");
            let style = style.expect("the template is a constant that indicatif takes");
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
            self.say(&format!("{}: {}", view.phase, view.reason));
        }
        let (at, end) = position(view);
        if let Some(bar) = &self.bar {
            bar.set_length(end);
            bar.set_position(at);
            bar.set_message(text);
            return;
        }
        let every = (end / LINES_PER_JOB).max(1);
        let due = LINE_EVERY <= now.duration_since(self.line_at)
            || self.line_at_position / every != at / every;
        let told = view.last_step.is_some() || view.units.is_some();
        if at != self.line_at_position && told && due {
            (self.line_at, self.line_at_position) = (now, at);
            let (counted, progress) = (counted(view), super::job::progress(view));
            self.say(&format!("{counted} {progress}, {text}"));
        }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(format!("{} {text}", self.job)),
            None => eprintln!("{} {text}", self.job),
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
    }
}
