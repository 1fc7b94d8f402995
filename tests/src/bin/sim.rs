//! Lives through simulated worlds by seed, for people: `sim SEED [--trace]` tells one, `sim --seeds COUNT [FIRST]` runs many and
//! names those that break.

use anyhow::{Context, bail};
use tests::world::{self, Story};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [seed] => one(number(seed)?, Story::Hashed),
        [seed, "--trace"] => one(number(seed)?, Story::Told),
        ["--seeds", count] => many(0, number(count)?),
        ["--seeds", count, first] => many(number(first)?, number(count)?),
        _ => bail!("usage: sim SEED [--trace] | sim --seeds COUNT [FIRST]"),
    }
}

fn number(text: &str) -> anyhow::Result<u64> {
    text.parse().with_context(|| format!("`{text}` is not a number of 0 or more"))
}

fn one(seed: u64, story: Story) -> anyhow::Result<()> {
    match world::run(seed, None, story) {
        Ok(outcome) => println!("seed {seed}: {outcome:?}"),
        Err(broken) => bail!("{broken}"),
    }
    Ok(())
}

fn many(first: u64, count: u64) -> anyhow::Result<()> {
    let mut broken = 0;
    let (mut events, mut done, mut failed, mut cancelled, mut restarts) = (0, 0, 0, 0, 0);
    for seed in first..first.saturating_add(count) {
        match world::run(seed, None, Story::Dropped) {
            Ok(outcome) => {
                events += outcome.events;
                done += outcome.done;
                failed += outcome.failed;
                cancelled += outcome.cancelled;
                restarts += outcome.restarts;
            }
            Err(what) => {
                broken += 1;
                println!("{what}");
            }
        }
    }
    println!(
        "{count} worlds, {broken} broken; {events} events, {restarts} restarts; jobs: {done} done, {failed} failed, \
         {cancelled} cancelled"
    );
    if broken != 0 {
        bail!("{broken} worlds broke");
    }
    Ok(())
}
