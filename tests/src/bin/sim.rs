//! Lives through simulated worlds, for people: `sim --seeds COUNT` lives the first COUNT and names those that
//! break, `sim --seed N --trace` tells one.

use anyhow::{Context, bail};
use tests::world::{self, Outcome, Story};

fn main() -> anyhow::Result<()> {
    let (mut seeds, mut seed, mut story) = (1_000, None, Story::Hashed);
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        match flag.as_str() {
            "--seeds" => seeds = number(&flag, arguments.next())?,
            "--seed" => seed = Some(number(&flag, arguments.next())?),
            "--trace" => story = Story::Told,
            _ => bail!("`{flag}`: usage: sim [--seeds COUNT] [--seed N] [--trace]"),
        }
    }
    match seed {
        Some(seed) => one(seed, story),
        None => many(seeds),
    }
}

fn number(flag: &str, value: Option<String>) -> anyhow::Result<u64> {
    let value = value.with_context(|| format!("{flag} needs a number"))?;
    value
        .parse()
        .with_context(|| format!("{flag} `{value}` is not a number of 0 or more"))
}

fn one(seed: u64, story: Story) -> anyhow::Result<()> {
    match world::run(seed, None, story) {
        Ok(outcome) => println!("seed {seed}: {outcome:?}"),
        Err(broken) => bail!("{broken}"),
    }
    Ok(())
}

fn many(count: u64) -> anyhow::Result<()> {
    let mut broken = 0;
    let mut sum = Outcome::default();
    for seed in 0..count {
        match world::run(seed, None, Story::Dropped) {
            Ok(outcome) => sum.add(&outcome),
            Err(what) => {
                broken += 1;
                println!("{what}");
            }
        }
    }
    let Outcome {
        done,
        failed,
        cancelled,
        restarts,
        events,
        ..
    } = sum;
    println!(
        "{count} worlds, {broken} broken; {events} events, {restarts} restarts; jobs: {done} done, \
         {failed} failed, {cancelled} cancelled"
    );
    if broken != 0 {
        bail!("{broken} worlds broke");
    }
    Ok(())
}
