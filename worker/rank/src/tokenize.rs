//! `worker tokenize`: the token ids of prompts, as the text encoder receives them. The tokenizer is
//! in `model-data`; this module has the command.

use anyhow::Context;
use model_data::prompt::Prompts;
use shell::outln;
use std::io::BufRead;

/// Print the token ids of prompts. Reads one JSON string per line of standard input and prints one
/// JSON list for each.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Token ids per prompt, including the begin and end tokens; padded with the end token
    #[arg(long, default_value_t = 77, value_parser = clap::value_parser!(u32).range(2..=1024))]
    tokens: u32,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let prompts = Prompts::new(options.tokens);
    for (number, line) in std::io::stdin().lock().lines().enumerate() {
        let prompt: String = serde_json::from_str(&line?)
            .with_context(|| format!("line {} of the input is not a JSON string", number + 1))?;
        outln!("{}", serde_json::to_string(&prompts.ids(&prompt))?);
    }
    Ok(())
}
