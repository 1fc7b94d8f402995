//! `coordinator compare`: two jobs beside each other: what was set differently, and how they learn
//! at equal steps; of twins, the paired difference.

use super::client::{self, connect};
use super::{Global, Outcome, Output, print_json, table};
use crate::paired;
use crate::text::{duration, outln};
use anyhow::{Context, Result};
use clap::Args;
use proto::account::Account;
use proto::pb;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Steps at which losses are compared: so many, evenly spaced, means over a window of each.
const POINTS: u64 = 8;

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    a: String,
    b: String,
}

struct Side {
    view: pb::JobView,
    steps: Vec<pb::StepReport>,
    settings: BTreeMap<String, String>,
}

pub(crate) async fn compare(global: &Global, args: &CompareArgs) -> Result<Outcome> {
    let mut client = connect(global).await?;
    let mut sides = Vec::new();
    for job in [&args.a, &args.b] {
        let view = client::describe(global, &mut client, job).await?;
        let steps = client::steps(global, &mut client, job).await?;
        let settings = proto::job::overrides::flat(&view.job_toml);
        let settings = settings.with_context(|| format!("the job.toml of {job}"))?;
        sides.push(Side {
            view,
            steps,
            settings,
        });
    }
    let [a, b] = &sides[..] else {
        unreachable!("two jobs were described");
    };
    let settings = differences(&a.settings, &b.settings);
    let losses = losses(&a.steps, &b.steps);
    let apart = paired::apart(&a.view, &b.view);
    let paired = match &apart {
        None => paired::difference(&a.steps, &b.steps),
        Some(_) => None,
    };
    match global.output {
        Output::Json => print_json(&serde_json::json!({
            "jobs": [a.view.job, b.view.job],
            "settings": settings.iter().map(|(key, a, b)| serde_json::json!({
                "key": key, "a": a, "b": b,
            })).collect::<Vec<_>>(),
            "losses": losses.iter().map(|it| serde_json::json!({
                "from_step": it.from, "to_step": it.to, "a": it.a, "b": it.b,
            })).collect::<Vec<_>>(),
            "paired": paired.map(|it| serde_json::json!({
                "mean": it.mean, "low": it.low, "high": it.high, "steps": it.images,
            })),
            "not_paired": apart,
        })),
        Output::Table => {
            print(a, b, &settings, &losses);
            let names = [a.view.job.as_str(), b.view.job.as_str()];
            match (paired, apart) {
                (Some(found), _) => outln!("{}", paired::text(&found, names)),
                (None, Some(because)) => outln!("not paired, because {because}"),
                (None, None) => outln!(
                    "not paired yet: they need {} steps in common",
                    paired::STEPS_MIN
                ),
            }
        }
    }
    Ok(Outcome::True)
}

/// Keys that only one of them sets, or that they set differently.
fn differences(
    a: &BTreeMap<String, String>,
    b: &BTreeMap<String, String>,
) -> Vec<(String, Option<String>, Option<String>)> {
    let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    keys.into_iter()
        .filter(|key| a.get(*key) != b.get(*key))
        .map(|key| (key.clone(), a.get(key).cloned(), b.get(key).cloned()))
        .collect()
}

/// Mean losses of both over the same steps.
#[derive(Debug, Clone, PartialEq)]
struct Window {
    from: u64,
    to: u64,
    a: f64,
    b: f64,
}

fn losses(a: &[pb::StepReport], b: &[pb::StepReport]) -> Vec<Window> {
    let last = |steps: &[pb::StepReport]| steps.last().map_or(0, |step| step.step);
    let common = last(a).min(last(b));
    let size = common.div_ceil(POINTS).max(1);
    let mean = |steps: &[pb::StepReport], from, to| {
        let within = |step: &&pb::StepReport| from <= step.step && step.step <= to;
        let losses: Vec<f64> = steps.iter().filter(within).map(|step| step.loss).collect();
        #[allow(clippy::cast_precision_loss)] // Steps of a window.
        (!losses.is_empty()).then(|| losses.iter().sum::<f64>() / losses.len() as f64)
    };
    let windows = (0..POINTS).map(|index| (index * size + 1, ((index + 1) * size).min(common)));
    let windows = windows.filter(|(from, to)| from <= to);
    windows
        .filter_map(|(from, to)| {
            Some(Window {
                from,
                to,
                a: mean(a, from, to)?,
                b: mean(b, from, to)?,
            })
        })
        .collect()
}

fn print(
    a: &Side,
    b: &Side,
    settings: &[(String, Option<String>, Option<String>)],
    losses: &[Window],
) {
    let names = [a.view.job.as_str(), b.view.job.as_str()];
    let mut rows = table(&["", names[0], names[1]]);
    for (key, a, b) in settings {
        let cell = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        rows.add_row([key.clone(), cell(a), cell(b)]);
    }
    let side = |side: &Side| {
        let account = side
            .view
            .account
            .as_ref()
            .map(Account::from)
            .unwrap_or_default();
        let goodput = account.goodput();
        [
            side.view.phase.clone(),
            side.view.step.to_string(),
            side.view.restarts.to_string(),
            duration(Duration::from_millis(account.held_ms())),
            goodput.map_or_else(|| "-".to_owned(), |it| format!("{:.1} %", 100.0 * it)),
        ]
    };
    let titles = ["phase", "step", "restarts", "device-time", "goodput"];
    for (title, (a, b)) in titles.into_iter().zip(side(a).into_iter().zip(side(b))) {
        rows.add_row([title.to_owned(), a, b]);
    }
    rows.print();
    if losses.is_empty() {
        outln!("they have no steps in common to compare");
        return;
    }
    let mut rows = table(&["MEAN LOSS OF STEPS", names[0], names[1], "DIFFERENCE"]);
    for it in losses {
        rows.add_row([
            format!("{} to {}", it.from, it.to),
            format!("{:.4}", it.a),
            format!("{:.4}", it.b),
            format!("{:+.4}", it.b - it.a),
        ]);
    }
    rows.print_below();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(count: u64, loss: impl Fn(u64) -> f64) -> Vec<pb::StepReport> {
        let step = |step| pb::StepReport {
            step,
            loss: loss(step),
            ..Default::default()
        };
        (1..=count).map(step).collect()
    }

    #[test]
    fn losses_are_means_over_the_steps_that_both_have() {
        let found = losses(&steps(16, |_| 2.0), &steps(40, |step| step as f64));
        assert_eq!(found.len(), 8);
        let first = Window {
            from: 1,
            to: 2,
            a: 2.0,
            b: 1.5,
        };
        assert_eq!(found[0], first);
        assert_eq!((found[7].from, found[7].to), (15, 16));
        assert_eq!(losses(&[], &steps(3, |_| 1.0)), []);
        assert_eq!(losses(&steps(3, |_| 1.0), &steps(5, |_| 1.0)).len(), 3);
    }

    #[test]
    fn only_what_differs_is_shown() {
        let of = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs
                .iter()
                .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
                .collect()
        };
        let a = of(&[("train.steps", "4"), ("data.seed", "1")]);
        let b = of(&[
            ("train.steps", "4"),
            ("data.seed", "2"),
            ("train.clip", "1.0"),
        ]);
        let found = differences(&a, &b);
        let keys: Vec<&str> = found.iter().map(|(key, ..)| key.as_str()).collect();
        assert_eq!(keys, ["data.seed", "train.clip"]);
    }
}
