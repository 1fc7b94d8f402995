//! `coordinator trace`: what the ranks of a job did in some steps, as a file of Chrome's Trace
//! Event Format, which <https://ui.perfetto.dev> and chrome://tracing open. Every rank is a process
//! of it, and what its threads did are spans; incidents are marks.

use super::ask::{RankAnswer, ask};
use super::client::{connect, request_error};
use super::{Global, Outcome, Output, print_json};
use crate::text::{errln, outln};
use anyhow::{Context, Result, bail};
use clap::Args;
use proto::pb;
use proto::printable::printable_json;
use proto::probe::{Lane, Span, Trace};
use serde_json::{Value, json};
use std::ops::RangeInclusive;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    job: String,
    /// First and last step, both included: 100..120. Of a job of units, their numbers. Ranks
    /// remember some thousand steps
    #[arg(long, value_name = "A..B", value_parser = parse_steps)]
    steps: RangeInclusive<u64>,
    /// The file to write
    #[arg(long, value_name = "FILE", default_value = "trace.json")]
    out: PathBuf,
}

fn parse_steps(text: &str) -> Result<RangeInclusive<u64>, String> {
    let wrong = || format!("{text:?} is no range of steps; it must be such as 100..120");
    let (first, last) = text.split_once("..").ok_or_else(wrong)?;
    let last = last.strip_prefix('=').unwrap_or(last);
    let parse = |number: &str| number.parse::<u64>().map_err(|_| wrong());
    let (first, last) = (parse(first)?, parse(last)?);
    if last < first {
        return Err(format!("{text:?} ends before it begins"));
    }
    Ok(first..=last)
}

/// Exit code 1: some rank is missing in the file.
pub(crate) async fn trace(global: &Global, args: &TraceArgs) -> Result<Outcome> {
    let (first, last) = (*args.steps.start(), *args.steps.end());
    let request = pb::ProbeRequest {
        job: args.job.clone(),
        trace: Some(pb::StepRange { first, last }),
    };
    let ranks: Vec<RankAnswer<Trace>> = ask(global, request).await?;
    let view = connect(global)
        .await?
        .describe_job(pb::JobRequest {
            job: args.job.clone(),
        })
        .await
        .map_err(|status| request_error(global, &status))?
        .into_inner();
    let spans: usize = ranks.iter().map(count).sum();
    if spans == 0 {
        bail!(
            "no rank remembers steps {first}..{last} of {}: {}",
            args.job,
            remembered(&ranks)
        );
    }
    let text = document(&ranks, &view).to_string();
    let file = args.out.display();
    std::fs::write(&args.out, printable_json(&text).as_bytes())
        .with_context(|| format!("cannot write {file}"))?;
    let missing: Vec<String> = ranks
        .iter()
        .filter(|it| count(it) == 0)
        .map(|it| match &it.answer {
            Ok(_) => format!("{}: {}", it.name(), memory(it)),
            Err(error) => format!("{}: {error}", it.name()),
        })
        .collect();
    match global.output {
        Output::Json => print_json(&json!({
            "job": args.job,
            "file": file.to_string(),
            "ranks": ranks.len() - missing.len(),
            "spans": spans,
            "missing": missing,
        })),
        Output::Table => {
            let present = ranks.len() - missing.len();
            outln!("{file}: {spans} spans of {present} ranks; open it at https://ui.perfetto.dev");
            for missing in &missing {
                errln!("missing: {missing}");
            }
        }
    }
    Ok(if missing.is_empty() {
        Outcome::True
    } else {
        Outcome::False
    })
}

fn count(rank: &RankAnswer<Trace>) -> usize {
    rank.answer.as_ref().map_or(0, |trace| trace.spans.len())
}

fn memory(rank: &RankAnswer<Trace>) -> String {
    match rank.answer.as_ref().ok().and_then(|it| it.remembers) {
        Some((first, last)) => format!("it remembers {first}..{last}"),
        None => "it remembers none".to_owned(),
    }
}

fn remembered(ranks: &[RankAnswer<Trace>]) -> String {
    let each = ranks.iter().map(|it| match &it.answer {
        Ok(_) => format!("{}: {}", it.name(), memory(it)),
        Err(error) => format!("{}: {error}", it.name()),
    });
    let each: Vec<String> = each.take(4).collect();
    match each.as_slice() {
        [] => "no rank answered".to_owned(),
        each => each.join("; "),
    }
}

/// Times are microseconds since the first span: numbers of this size keep their fractions.
fn document(ranks: &[RankAnswer<Trace>], view: &pb::JobView) -> Value {
    let spans = || {
        ranks
            .iter()
            .filter_map(|it| Some((it, it.answer.as_ref().ok()?)))
    };
    let all = || spans().flat_map(|(_, trace)| &trace.spans);
    let start = all().map(|it| it.start_us).min().unwrap_or(0);
    let end = all().map(|it| it.start_us.saturating_add(it.micros)).max();
    let mut events = Vec::new();
    for (rank, trace) in spans() {
        let process = rank.rank.unwrap_or(0);
        let name = format!("{} of {}", rank.name(), view.job);
        events.push(meta("process_name", process, 0, &name));
        events.push(json!({
            "ph": "M", "name": "process_sort_index", "pid": process,
            "args": { "sort_index": process },
        }));
        for (thread, name) in ROWS {
            events.push(meta("thread_name", process, thread, name));
        }
        events.extend(trace.spans.iter().map(|span| {
            json!({
                "ph": "X", "cat": span.lane.word(), "name": span.name,
                "pid": process, "tid": row(span),
                "ts": span.start_us - start, "dur": span.micros,
                "args": { "step": span.step, "generation": span.generation },
            })
        }));
    }
    let within = |at_us: u64| start <= at_us && end.is_some_and(|end| at_us <= end);
    for incident in &view.incidents {
        let at_us = incident.at_ms.saturating_mul(1000);
        if within(at_us) {
            events.push(json!({
                "ph": "i", "s": "g", "cat": "incident", "name": incident.sentence(),
                "pid": 0, "tid": 0, "ts": at_us - start,
                "args": { "generation": incident.generation },
            }));
        }
    }
    json!({
        "displayTimeUnit": "ms",
        "otherData": {
            "job": view.job, "name": view.name, "epoch_us": start,
            "clocks": "each rank's times are by the clock of its node",
        },
        "traceEvents": events,
    })
}

/// The threads of the file, by number. Spans of one must be nested, and the backward pass ends
/// after the reduction that it overlaps has begun.
const ROWS: [(u32, &str); 3] = [
    (1, "stages of the model thread"),
    (2, "forward and backward"),
    (3, Lane::Prefetch.word()),
];

fn row(span: &Span) -> u32 {
    match (span.lane, span.name.as_str()) {
        (Lane::Model, "forward" | "backward") => 2,
        (Lane::Model, _) => 1,
        (Lane::Prefetch, _) => 3,
    }
}

fn meta(kind: &str, process: u32, thread: u32, name: &str) -> Value {
    json!({
        "ph": "M", "name": kind, "pid": process, "tid": thread, "args": { "name": name },
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn steps_are_a_range_that_includes_both_ends() {
        assert_eq!(parse_steps("3..7"), Ok(3..=7));
        assert_eq!(parse_steps("3..=3"), Ok(3..=3));
        for wrong in ["", "3", "..", "7..3", "a..b", "-1..2"] {
            assert!(parse_steps(wrong).is_err(), "{wrong}");
        }
    }

    fn rank(rank: u32, start_us: u64) -> RankAnswer<Trace> {
        let span = |lane, name: &str, start_us, micros| Span {
            lane,
            name: name.into(),
            step: 7,
            generation: 2,
            start_us,
            micros,
        };
        RankAnswer {
            rank: Some(rank),
            worker: "w1\u{1b}[2J".into(),
            generation: 2,
            answer: Ok(Trace {
                spans: vec![
                    span(Lane::Model, "micro-batch", start_us, 40),
                    span(Lane::Prefetch, "read samples", start_us + 10, 5),
                ],
                remembers: Some((1, 9)),
            }),
        }
    }

    #[test]
    fn ranks_are_processes_and_times_count_from_the_first_span() {
        let view = pb::JobView {
            job: "demo-1".into(),
            incidents: vec![
                pb::Incident {
                    at_ms: 5,
                    what: "within".into(),
                    ..Default::default()
                },
                pb::Incident {
                    at_ms: 9_000,
                    what: "later".into(),
                    ..Default::default()
                },
            ],
            ..Default::default()
        };
        let document = document(&[rank(1, 5_010), rank(0, 4_990)], &view);
        let events = document["traceEvents"].as_array().unwrap();
        let with = |key: &str, value: &str| {
            let of = |event: &&Value| event[key] == value;
            events.iter().filter(of).collect::<Vec<_>>()
        };
        let batches = with("name", "micro-batch");
        let times: Vec<_> = batches
            .iter()
            .map(|it| (&it["pid"], &it["ts"], &it["dur"]))
            .collect();
        assert_eq!(
            times,
            [
                (&json!(1), &json!(20), &json!(40)),
                (&json!(0), &json!(0), &json!(40))
            ]
        );
        assert_eq!(batches[0]["args"], json!({ "step": 7, "generation": 2 }));
        assert_eq!(with("name", "read samples")[0]["tid"], 3);
        let marks = with("ph", "i");
        assert_eq!(marks.len(), 1);
        assert_eq!(
            (&marks[0]["name"], &marks[0]["ts"]),
            (&json!("within"), &json!(10))
        );
        let text = document.to_string();
        let shown = printable_json(&text);
        assert!(!shown.contains('\u{1b}') && serde_json::from_str::<Value>(&shown).is_ok());
    }
}
