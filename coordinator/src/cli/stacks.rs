//! `coordinator stacks`: where every thread of a job's ranks is now.

use super::ask::{RankAnswer, ask};
use super::{Global, Outcome, Output, print_json};
use crate::text::outln;
use anyhow::Result;
use clap::Args;
use proto::pb;
use proto::probe::{Stacks, Thread};
use serde_json::{Value, json};

#[derive(Debug, Args)]
pub(crate) struct StacksArgs {
    job: String,
    /// Only of this rank
    #[arg(long, value_name = "N")]
    rank: Option<u32>,
    /// Only the model thread, which every rank has as its first
    #[arg(long)]
    main: bool,
}

/// Exit code 1: some rank has no stacks.
pub(crate) async fn stacks(global: &Global, args: &StacksArgs) -> Result<Outcome> {
    let request = pb::ProbeRequest {
        job: args.job.clone(),
        trace: None,
    };
    let mut ranks: Vec<RankAnswer<Stacks>> = ask(global, request).await?;
    ranks.retain(|it| it.rank.is_none() || args.rank.is_none_or(|rank| it.rank == Some(rank)));
    if args.main {
        for stacks in ranks.iter_mut().filter_map(|it| it.answer.as_mut().ok()) {
            stacks.threads.truncate(1);
        }
    }
    match global.output {
        Output::Json => print_json(&json!({
            "job": args.job,
            "ranks": ranks.iter().map(as_json).collect::<Vec<_>>(),
        })),
        Output::Table => ranks.iter().for_each(print),
    }
    let complete = !ranks.is_empty() && ranks.iter().all(|it| it.answer.is_ok());
    Ok(if complete {
        Outcome::True
    } else {
        Outcome::False
    })
}

fn as_json(rank: &RankAnswer<Stacks>) -> Value {
    let stacks = rank.answer.as_ref().ok();
    json!({
        "rank": rank.rank,
        "worker": rank.worker,
        "generation": rank.generation,
        "error": rank.answer.as_ref().err(),
        "activity": stacks.map(|it| &it.activity),
        "note": stacks.map(|it| &it.note),
        "threads": stacks.map(|it| &it.threads),
    })
}

fn print(rank: &RankAnswer<Stacks>) {
    let (name, generation) = (rank.name(), rank.generation);
    let stacks = match &rank.answer {
        Ok(stacks) => stacks,
        Err(error) => {
            outln!("{name}: {error}");
            return;
        }
    };
    let activity = match stacks.activity.as_str() {
        "" => "in no step and no unit",
        activity => activity,
    };
    outln!("{name}, generation {generation}: {activity}");
    if !stacks.note.is_empty() {
        outln!("  {}", stacks.note);
    }
    for thread in &stacks.threads {
        outln!("  {}", head(thread));
        for frame in &thread.frames {
            outln!("    {frame}");
        }
    }
}

fn head(thread: &Thread) -> String {
    let mut text = match thread.id {
        // No thread, but what has one's form.
        0 => format!("{}: {}", thread.name, thread.state),
        id => format!("thread {id} {}: {}", thread.name, thread.state),
    };
    if !thread.waits_in.is_empty() {
        text += &format!(", waits in the kernel's {}", thread.waits_in);
    }
    if !thread.note.is_empty() {
        text += &format!("; {}", thread.note);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_one_line_with_what_is_known_of_it() {
        let thread = Thread {
            id: 7,
            name: "probe".into(),
            state: "S (sleeping)".into(),
            waits_in: "futex_wait_queue".into(),
            ..Thread::default()
        };
        assert_eq!(
            head(&thread),
            "thread 7 probe: S (sleeping), waits in the kernel's futex_wait_queue"
        );
        let silent = Thread {
            waits_in: String::new(),
            note: "it did not answer".into(),
            ..thread
        };
        assert_eq!(
            head(&silent),
            "thread 7 probe: S (sleeping); it did not answer"
        );
        let recorder = Thread {
            name: "NCCL's flight recorder".into(),
            state: "2 collectives have not ended".into(),
            ..Thread::default()
        };
        assert_eq!(
            head(&recorder),
            "NCCL's flight recorder: 2 collectives have not ended"
        );
    }
}
