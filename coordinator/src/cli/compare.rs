//! `coordinator compare`: two jobs beside each other: what was set differently, and how they learn
//! at equal steps; of twins, the paired difference.

use super::client::{self, connect};
use super::{Global, Outcome, Output, print_json, table};
use crate::comparison::{Means, Window, differences, windows};
use crate::paired;
use crate::text::{duration, outln};
use anyhow::{Context, Result};
use clap::Args;
use proto::account::Account;
use proto::pb;
use std::collections::BTreeMap;
use std::time::Duration;

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
    let losses = windows(&means(&a.steps), &means(&b.steps));
    let apart = paired::apart(&a.view, &b.view);
    let paired = match &apart {
        None => paired::difference(&means(&a.steps), &means(&b.steps)),
        Some(_) => None,
    };
    match global.output {
        Output::Json => print_json(&serde_json::json!({
            "jobs": [a.view.job, b.view.job],
            "settings": settings.iter().map(|(key, [a, b])| serde_json::json!({
                "key": key, "a": a, "b": b,
            })).collect::<Vec<_>>(),
            "losses": losses.iter().map(|it| serde_json::json!({
                "from_step": it.from, "to_step": it.to, "a": it.a, "b": it.b,
            })).collect::<Vec<_>>(),
            "paired": paired.map(|it| serde_json::json!({
                "mean": it.mean(), "low": it.interval().map(|it| it.0),
                "high": it.interval().map(|it| it.1), "steps": it.steps(),
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

/// The losses of single steps.
fn means(steps: &[pb::StepReport]) -> Means {
    steps.iter().map(|it| (it.step, it.step, it.loss)).collect()
}

fn print(a: &Side, b: &Side, settings: &[(String, [Option<String>; 2])], losses: &[Window]) {
    let names = [a.view.job.as_str(), b.view.job.as_str()];
    let mut rows = table(&["", names[0], names[1]]);
    for (key, [a, b]) in settings {
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
