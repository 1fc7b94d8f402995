//! `worker tokenize`: prompts as the text encoder reads them. The tokenizer is `model-data`'s; here
//! is its door.

use anyhow::Context;
use model_data::prompt::Prompts;
use std::io::{BufRead, Write};

/// Print the token ids of prompts: one JSON string on each line of standard input, one JSON list
/// for each.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Length of a line, begin and end included; the rest of it is filled with the end token
    #[arg(long, default_value_t = 77, value_parser = clap::value_parser!(u32).range(2..=1024))]
    tokens: u32,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let prompts = Prompts::new(options.tokens);
    let mut out = std::io::stdout().lock();
    for (number, line) in std::io::stdin().lock().lines().enumerate() {
        let prompt: String = serde_json::from_str(&line?)
            .with_context(|| format!("line {} of standard input is no JSON string", number + 1))?;
        writeln!(out, "{}", serde_json::to_string(&prompts.ids(&prompt))?)?;
    }
    Ok(())
}
