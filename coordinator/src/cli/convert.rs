//! `coordinator convert`: weights that `torch.save` wrote as a safetensors file. Nothing of Python
//! runs.

use super::{Global, Outcome, Output, print_json};
use crate::text::outln;
use anyhow::Result;
use base_weights::convert::convert;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// A .bin, .pth or .ckpt file of weights
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The safetensors file; FILE.safetensors.json beside it records both SHA-256
    #[arg(long, value_name = "FILE.safetensors")]
    out: PathBuf,
}

pub(crate) fn run(global: &Global, args: &ConvertArgs) -> Result<Outcome> {
    let done = convert(&args.file, &args.out)?;
    match global.output {
        Output::Json => print_json(&serde_json::to_value(&done)?),
        Output::Table => {
            outln!("{}  {}", done.source_sha256, args.file.display());
            outln!("{}  {}", done.sha256, args.out.display());
            outln!("{} tensors", done.tensors);
            if !done.ignored.is_empty() {
                outln!("without {}, which are no tensors", done.ignored.join(", "));
            }
        }
    }
    Ok(Outcome::True)
}
