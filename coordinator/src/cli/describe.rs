//! `coordinator describe`: shows one job in full.

use super::client::{self, connect};
use super::curve::{Summary, validation_terms};
use super::job::progress;
use super::{Global, Outcome, Output, evaluations, json, print_json, table};
use crate::checkpoint::Checkpoint;
use crate::text::{ago, duration, now_ms, outln};
use anyhow::{Context, Result, anyhow};
use clap::Args;
use figures::curve::{Curves, loss_and_scores, loss_curve};
use proto::environment::RankEnvironment;
use proto::id::{JobId, Rank};
use proto::message::LossTerm;
use proto::pb;
use proto::wire::loss_terms;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, Args)]
pub(crate) struct DescribeArgs {
    job: String,
    /// Also plot the loss curve into this file
    #[arg(long, value_name = "FILE.png")]
    curve: Option<PathBuf>,
}

/// Size of the plot in pixels.
const CURVE_SIZE: (u32, u32) = (960, 540);

pub(crate) async fn describe(global: &Global, args: &DescribeArgs) -> Result<Outcome> {
    let mut client = connect(global).await?;
    let view = client::describe(global, &mut client, &args.job).await?;
    let steps = client::steps(global, &mut client, &args.job).await?;
    let summary = Summary::of(&steps);
    if let Some(file) = &args.curve {
        plot(&view, &steps, file)?;
    }
    let made_by = match view.checkpoints.last() {
        Some(newest) => Some(read_ranks(&view, *newest).await),
        None => None,
    };
    match global.output {
        Output::Json => {
            let mut value = json::job(&view);
            value["curve"] = summary.map_or(serde_json::Value::Null, |it| it.json());
            value["steps_done"] = steps.iter().map(json::step).collect();
            // None: there is no checkpoint, or it cannot be read from here.
            value["ranks_of_checkpoint"] = match made_by {
                Some(Ok(ranks)) => serde_json::to_value(ranks)?,
                Some(Err(_)) | None => serde_json::Value::Null,
            };
            print_json(&value);
        }
        Output::Table => {
            print(&view, summary.as_ref());
            match made_by {
                Some(Ok(ranks)) => print_ranks(&ranks),
                Some(Err(error)) => line(
                    "made by",
                    &format!("unknown; the newest checkpoint cannot be read: {error:#}"),
                ),
                None => {}
            }
            print_members(&view);
            evaluations::print(&view);
            print_incidents(&view, now_ms());
        }
    }
    Ok(Outcome::True)
}

fn plot(view: &pb::JobView, steps: &[pb::StepReport], file: &Path) -> Result<()> {
    let job = &view.job;
    if steps.is_empty() {
        return Err(anyhow!(
            "job {job} has no finished step yet, so there is no curve to plot"
        ));
    }
    let points: Vec<(u64, f64)> = steps.iter().map(|it| (it.step, it.loss)).collect();
    let validation: Vec<(u64, f64)> = steps
        .iter()
        .filter_map(|step| Some((step.step, validation_terms(step).first()?.value)))
        .collect();
    let curves = Curves {
        training: &points,
        validation: &validation,
    };
    let (width, height) = CURVE_SIZE;
    let title = format!("loss of {job}");
    let image = match evaluations::curves(view) {
        scores if scores.is_empty() => loss_curve(curves, &title, width, height),
        scores => loss_and_scores(curves, &scores, &title, width, height),
    };
    image
        .save_with_format(file, image::ImageFormat::Png)
        .with_context(|| format!("cannot write {}", file.display()))
}

/// `place 2 of 5; may start in about 1h20m`.
pub(crate) fn queue_text(queue: &pb::QueuePlace) -> String {
    let place = format!("place {} of {}", queue.place, queue.waiting);
    match queue.starts_in_ms {
        Some(ms) => {
            let starts = duration(Duration::from_secs((ms / 1000).max(1)));
            format!("{place}; may start in about {starts}, if running jobs go on as they do now")
        }
        None => format!("{place}; when it starts cannot be said yet"),
    }
}

fn print(view: &pb::JobView, summary: Option<&Summary>) {
    let now = now_ms();
    line("job", &view.job);
    line(
        "phase",
        &format!("{}: {}", view.phase, view.reason_sentence()),
    );
    for sentence in view.pressure.iter().filter_map(pb::Reason::sentence) {
        line("meanwhile", &sentence);
    }
    if let Some(queue) = &view.queue {
        line("queue", &queue_text(queue));
    }
    line("submitted", &ago(view.submitted_ms, now));
    if view.ended_ms != 0 {
        let took = Duration::from_millis(view.ended_ms.saturating_sub(view.submitted_ms));
        line(
            "ended",
            &format!(
                "{}, {} after submission",
                ago(view.ended_ms, now),
                duration(took)
            ),
        );
    }
    line("step", &progress(view));
    line(
        "generation",
        &format!(
            "{}, {} ranks now, {} restarts",
            view.generation, view.world, view.restarts
        ),
    );
    for it in &view.overrides {
        line("set since", &format!("{}={}", it.key, it.value));
    }
    line("data set", &format!("version {}", view.dataset_version));
    if let Some(cut) = view.cut_prompts.filter(|cut| *cut > 0) {
        print_cut_prompts(cut, &view.lost_tags);
    }
    if let Some(adapted) = &view.adapted {
        print_adapted(adapted);
    }
    if let Some(units) = &view.units {
        print_units(units);
    }
    if let Some(parent) = &view.parent {
        line("evaluates", &format!("a checkpoint of {parent}"));
    }
    for text in evaluations::open_text(view)
        .iter()
        .chain(&evaluations::best_text(view))
    {
        line("evaluation", text);
    }
    if let Some(step) = &view.last_step {
        let terms = loss_terms(step).into_iter();
        let terms = format!("({})", terms_text(terms.filter(|it| !it.is_validation())));
        let (norm, rate) = (step.gradient_norm, step.learning_rate);
        line(
            "loss",
            &format!(
                "{:.4} {terms}, gradient norm {norm:.3}, learning rate {rate:.2e}",
                step.loss
            ),
        );
    }
    if let Some(summary) = summary {
        print_summary(summary);
    }
    let steps: Vec<String> = view
        .checkpoints
        .iter()
        .map(|it| it.step.to_string())
        .collect();
    line(
        "checkpoints",
        if steps.is_empty() {
            "none".into()
        } else {
            steps.join(", ")
        }
        .as_str(),
    );
    line("store", &view.store_url);
}

fn print_summary(summary: &Summary) {
    line(
        "curve",
        &format!(
            "{:.4} -> {:.4} over {} steps",
            summary.loss_first, summary.loss_last, summary.steps
        ),
    );
    if let Some((step, terms)) = &summary.validation {
        let terms = terms_text(terms.iter().cloned());
        line("validation", &format!("{terms} after step {step}"));
    }
    line(
        "speed",
        &format!("{:.1} samples/s", summary.samples_per_second),
    );
    line("step time", &summary.fractions_text());
    line("memory", &summary.memory_text());
}

/// How the samples are used.
fn print_adapted(it: &pb::Adapted) {
    let parts = [
        (it.held_out, "held out"),
        (
            it.left_out,
            "left out (rating, or no other image for pairing b)",
        ),
        (it.enlarged, "enlarged to data.resolution"),
        (it.padded, "shown with more padding than image"),
        (it.repeated, "with a reference shown twice"),
    ];
    let parts = parts.iter().filter(|(count, _)| 0 < *count);
    let parts: String = parts
        .map(|(count, what)| format!(", {count} {what}"))
        .collect();
    line("samples", &format!("{} to train on{parts}", it.training));
}

fn print_cut_prompts(cut: u64, lost: &[pb::LostTag]) {
    let what = "training samples are longer than what the model reads, and cut";
    let lost: Vec<String> = lost
        .iter()
        .map(|it| format!("{} ({})", it.tag, it.samples))
        .collect();
    let lost = match lost.as_slice() {
        [] => String::new(),
        tags => format!("; lost most often: {}", tags.join(", ")),
    };
    line("prompts", &format!("of {cut} {what}{lost}"));
}

/// The environments of the ranks that wrote a checkpoint.
async fn read_ranks(
    view: &pb::JobView,
    checkpoint: pb::CheckpointRef,
) -> Result<BTreeMap<Rank, RankEnvironment>> {
    let job = JobId(view.job.clone());
    let checkpoint = Checkpoint::at(&view.store_url, &job, checkpoint.into())?;
    Ok(checkpoint.manifest().await?.ranks)
}

/// Which machines and libraries the newest checkpoint was made with. Equal ones are one line.
fn print_ranks(ranks: &BTreeMap<Rank, RankEnvironment>) {
    let mut groups: Vec<(&RankEnvironment, Vec<String>)> = Vec::new();
    for (rank, environment) in ranks {
        match groups.iter_mut().find(|(known, _)| *known == environment) {
            Some((_, group)) => group.push(rank.to_string()),
            None => groups.push((environment, vec![rank.to_string()])),
        }
    }
    for (environment, ranks) in groups {
        let RankEnvironment {
            release,
            libtorch,
            device,
            numerics,
            driver,
            ..
        } = environment;
        let driver = match driver.as_str() {
            "" => String::new(),
            version => format!(", driver {version}"),
        };
        let what = format!(
            "{}: {device}{driver}, libtorch {libtorch}, {numerics}, release {release}",
            environment.location()
        );
        line(&format!("rank {}", ranks.join(", ")), &what);
    }
}

/// `target 0.1234, face 0.0123`.
fn terms_text(terms: impl Iterator<Item = LossTerm>) -> String {
    let terms: Vec<String> = terms
        .map(|it| format!("{} {:.4}", it.name, it.value))
        .collect();
    terms.join(", ")
}

fn line(name: &str, value: &str) {
    outln!("{name:<12} {value}");
}

fn print_units(units: &pb::UnitsView) {
    line(
        "units",
        &format!(
            "{} of {} are done, {} leased, {} set aside, {:.2} per second",
            units.done, units.total, units.leased, units.set_aside, units.per_second
        ),
    );
    for failed in &units.failed {
        line(&format!("unit {}", failed.unit), &failed.error);
    }
}

fn print_members(view: &pb::JobView) {
    if view.members.is_empty() {
        return;
    }
    let mut table = table(&["RANK", "WORKER", "PHASE"]);
    for member in &view.members {
        let worker = member
            .worker
            .as_ref()
            .map_or_else(String::new, |it| it.name.clone());
        for (rank, phase) in (member.first_rank..).zip(&member.phases) {
            table.add_row([rank.to_string(), worker.clone(), phase.clone()]);
        }
    }
    table.print_below();
}

fn print_incidents(view: &pb::JobView, now: u64) {
    if view.incidents.is_empty() {
        return;
    }
    let mut table = table(&["WHEN", "GENERATION", "INCIDENT"]);
    for incident in &view.incidents {
        table.add_row([
            ago(incident.at_ms, now),
            incident.generation.to_string(),
            incident.sentence(),
        ]);
    }
    table.print_below();
}
