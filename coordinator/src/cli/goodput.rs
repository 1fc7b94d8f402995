//! `coordinator goodput` and `usage`: where the time of devices went.

use super::client::{self, connect, request_error};
use super::{Form, Global, Outcome, Output, print_json, table};
use crate::text::{csv, duration, now_ms, outln};
use crate::time::{Since, rfc3339};
use anyhow::{Result, anyhow};
use clap::Args;
use proto::account::{Account, Bucket};
use proto::pb;
use std::time::Duration;

/// Characters of the bar of one bucket.
const BAR: usize = 30;

#[derive(Debug, Args)]
pub(crate) struct GoodputArgs {
    job: String,
}

pub(crate) async fn goodput(global: &Global, args: &GoodputArgs) -> Result<Outcome> {
    let mut client = connect(global).await?;
    let view = client::describe(global, &mut client, &args.job).await?;
    let account = view.account.as_ref().map(Account::from).unwrap_or_default();
    match global.output {
        Output::Json => print_json(&json(&view.job, &account)),
        Output::Table => print(&view, &account),
    }
    Ok(Outcome::True)
}

/// The account, for programs.
pub(super) fn json(job: &str, account: &Account) -> serde_json::Value {
    let buckets = Bucket::ALL.into_iter();
    let spent: serde_json::Map<String, serde_json::Value> = buckets
        .map(|bucket| (bucket.word().to_owned(), account.of(bucket).into()))
        .collect();
    let day = |it: &proto::account::DayUse| {
        let date = rfc3339(u64::from(it.day) * proto::account::DAY_MS);
        serde_json::json!({ "date": date[..10.min(date.len())], "device_ms": it.device_ms })
    };
    serde_json::json!({
        "job": job,
        "held_device_ms": account.held_ms(),
        "spent_device_ms": spent,
        "open_device_ms": account.open_ms,
        "goodput": account.goodput(),
        "waited_ms": account.waited_ms,
        "until_ms": account.until_ms,
        "days": account.days.iter().map(day).collect::<Vec<_>>(),
    })
}

#[allow(clippy::cast_precision_loss)] // Shares of whole milliseconds.
fn print(view: &pb::JobView, account: &Account) {
    let held = account.held_ms();
    let share = |ms: u64| {
        if held == 0 {
            0.0
        } else {
            ms as f64 / held as f64
        }
    };
    match account.goodput() {
        Some(goodput) => outln!(
            "{}: {:.1} % of {} device-time went into work that counts",
            view.job,
            100.0 * goodput,
            duration(Duration::from_millis(held))
        ),
        None => outln!("{}: no device has spent time on it yet", view.job),
    }
    let mut rows = table(&["BUCKET", "DEVICE-TIME", "SHARE", ""]);
    let open = [("in progress", account.open_ms)];
    let buckets = Bucket::ALL.into_iter();
    let buckets = buckets.map(|bucket| (bucket.word(), account.of(bucket)));
    for (word, ms) in buckets.chain(open).filter(|(_, ms)| 0 < *ms) {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let filled = (share(ms) * BAR as f64).round() as usize;
        rows.add_row([
            word.to_owned(),
            exact(ms),
            format!("{:.1} %", 100.0 * share(ms)),
            "#".repeat(filled),
        ]);
    }
    rows.add_row(["sum".to_owned(), exact(held), String::new(), String::new()]);
    rows.print();
    let waited = duration(Duration::from_millis(account.waited_ms));
    outln!("it has waited {waited} for workers, in which it had no devices");
}

/// Seconds with milliseconds, because the buckets must be seen to add up.
fn exact(ms: u64) -> String {
    format!("{}.{:03} s", ms / 1000, ms % 1000)
}

#[derive(Debug, Args)]
pub(crate) struct UsageArgs {
    /// What a row is: team, user, job, name, or label:KEY
    #[arg(long, default_value = "team", value_name = "KEY")]
    by: String,
    /// From this day on, in UTC: a date, or a time, or a duration such as 7d
    #[arg(long, default_value = "30d", value_name = "TIME")]
    since: String,
    /// Up to and including this day
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
}

pub(crate) async fn usage(global: &Global, args: &UsageArgs) -> Result<Outcome> {
    let now = now_ms();
    let time = |field: &str, text: &str| {
        let since = Since::parse(text).map_err(|why| anyhow!("--{field} is {text:?}; {why}"))?;
        anyhow::Ok(since.at(now))
    };
    let since_ms = time("since", &args.since)?;
    let until_ms = match &args.until {
        Some(text) => time("until", text)?,
        None => now,
    };
    let mut client = connect(global).await?;
    let request = pb::UsageRequest {
        by: args.by.clone(),
        since_ms,
        until_ms,
    };
    let reply = client.usage(request).await;
    let usage = reply
        .map_err(|status| request_error(global, &status))?
        .into_inner();
    if global.form == Form::Csv {
        outln!("{},jobs,device_hours", csv(&args.by));
        for row in &usage.rows {
            outln!("{},{},{:.4}", csv(&row.key), row.jobs, hours(row.device_ms));
        }
        return Ok(Outcome::True);
    }
    match global.output {
        Output::Json => print_json(&serde_json::json!({
            "by": args.by,
            "from_ms": usage.from_ms,
            "to_ms": usage.to_ms,
            "rows": usage.rows.iter().map(|row| serde_json::json!({
                "key": row.key,
                "jobs": row.jobs,
                "device_ms": row.device_ms,
            })).collect::<Vec<_>>(),
        })),
        Output::Table => {
            let mut rows = table(&[&args.by.to_uppercase(), "JOBS", "DEVICE-HOURS"]);
            for row in &usage.rows {
                let key = if row.key.is_empty() { "-" } else { &row.key };
                rows.add_row([
                    key.to_owned(),
                    row.jobs.to_string(),
                    format!("{:.2}", hours(row.device_ms)),
                ]);
            }
            rows.print();
            let (from, to) = (rfc3339(usage.from_ms), rfc3339(usage.to_ms));
            outln!("from {from} to {to}, in whole UTC days");
        }
    }
    Ok(Outcome::True)
}

#[allow(clippy::cast_precision_loss)]
fn hours(ms: u64) -> f64 {
    ms as f64 / 3_600_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_are_shown_so_that_sums_can_be_checked() {
        assert_eq!(exact(61_005), "61.005 s");
    }
}
