//! `coordinator checkpoints` and `coordinator checkpoint verify|digest|export`: gets the list of
//! checkpoints from the coordinator and reads them directly from the object store.

use super::client::{self, connect};
use super::{Global, Outcome, Output, Target, print_json, table};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::export::ExportOptions;
use crate::text::{bytes, outln};
use anyhow::Result;
use clap::Subcommand;
use proto::checkpoint::{CheckpointManifest, CheckpointRef};
use proto::id::JobId;
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(crate) enum CheckpointCommand {
    /// Re-read every byte and compare with the manifest; exit code 0 only if there is no fault
    Verify {
        /// The job's newest checkpoint, or that of a step
        #[arg(value_name = "JOB[@STEP]")]
        target: Target,
    },
    /// Print one SHA-256 over trained weights and optimizer state, sorted by name; bit-identical
    /// runs have equal digests
    Digest {
        /// The job's newest checkpoint, or that of a step
        #[arg(value_name = "JOB[@STEP]")]
        target: Target,
    },
    /// Write the weights as a folder that `diffusers` and `transformers` can load: unet/, vae/,
    /// text_encoder/, and RetriNet's own weights in unet/retrinet.safetensors. Another job can use
    /// it as `model.init`
    Export {
        /// The job's newest checkpoint, or that of a step
        #[arg(value_name = "JOB[@STEP]")]
        target: Target,
        /// Output folder; created if it is missing, and otherwise empty
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Write f16 weights, which halves the size
        #[arg(long)]
        half: bool,
        /// Write the trained weights even if the checkpoint has a moving average
        #[arg(long)]
        as_trained: bool,
    },
}

pub(crate) async fn checkpoint(global: &Global, command: &CheckpointCommand) -> Result<Outcome> {
    match command {
        CheckpointCommand::Verify { target } => verify(global, target).await,
        CheckpointCommand::Digest { target } => digest(global, target).await,
        CheckpointCommand::Export {
            target,
            out,
            half,
            as_trained,
        } => {
            let options = ExportOptions {
                half: *half,
                average: !as_trained,
            };
            export(global, target, out, options).await
        }
    }
}

/// Opens the checkpoint that `target` selects.
async fn open(global: &Global, target: &Target) -> Result<(Checkpoint, CheckpointRef)> {
    let mut client = connect(global).await?;
    let view = client::describe(global, &mut client, &target.job.0).await?;
    let reference = target.select(&view)?;
    Ok((
        Checkpoint::at(&view.store_url, &target.job, reference)?,
        reference,
    ))
}

async fn verify(global: &Global, target: &Target) -> Result<Outcome> {
    let (checkpoint, reference) = open(global, target).await?;
    let (_, verified) = checkpoint.verify().await?;
    let good = verified.findings.is_empty();
    match global.output {
        Output::Json => print_json(&json!({
            "job": target.job,
            "step": reference.step,
            "generation": reference.generation,
            "shards": verified.shards,
            "bytes": verified.bytes,
            "good": good,
            "findings": verified.findings,
        })),
        Output::Table => {
            for finding in &verified.findings {
                outln!("{finding}");
            }
            let result = if good {
                "all good".into()
            } else {
                format!("{} faults", verified.findings.len())
            };
            outln!(
                "{}@{}: {} shards, {}: {result}",
                target.job,
                reference.step,
                verified.shards,
                bytes(verified.bytes)
            );
        }
    }
    Ok(if good { Outcome::True } else { Outcome::False })
}

async fn digest(global: &Global, target: &Target) -> Result<Outcome> {
    let (checkpoint, reference) = open(global, target).await?;
    let digest = checkpoint.digest().await?;
    match global.output {
        Output::Json => {
            print_json(&json!({ "job": target.job, "step": reference.step, "digest": digest }))
        }
        Output::Table => outln!("{digest}"),
    }
    Ok(Outcome::True)
}

async fn export(
    global: &Global,
    target: &Target,
    out: &Path,
    options: ExportOptions,
) -> Result<Outcome> {
    let (checkpoint, _) = open(global, target).await?;
    let origin = checkpoint.export(out, options).await?;
    match global.output {
        Output::Json => print_json(&serde_json::to_value(&origin)?),
        Output::Table => {
            for (file, sha256) in &origin.files {
                outln!("{sha256}  {}", out.join(file).display());
            }
        }
    }
    Ok(Outcome::True)
}

pub(crate) async fn checkpoints(global: &Global, job: &str) -> Result<Outcome> {
    let mut client = connect(global).await?;
    let view = client::describe(global, &mut client, job).await?;
    let mut rows: Vec<CheckpointManifest> = Vec::new();
    for reference in &view.checkpoints {
        let checkpoint = Checkpoint::at(
            &view.store_url,
            &JobId(view.job.clone()),
            (*reference).into(),
        )?;
        rows.push(checkpoint.manifest().await?);
    }
    let size =
        |it: &CheckpointManifest| it.shards.iter().map(|shard| shard.size_bytes).sum::<u64>();
    let is_best = |it: &CheckpointManifest| {
        let mut best = view.evaluations.iter().filter(|other| other.best);
        best.any(|best| best.step == it.step.0)
    };
    if global.output == Output::Json {
        let value = |it: &CheckpointManifest| {
            json!({
                "step": it.step,
                "generation": it.generation,
                "shards": it.shards.len(),
                "bytes": size(it),
                "environment": it.environment,
                "ranks": it.ranks,
                "best": is_best(it),
                "folder": proto::checkpoint::checkpoint_folder(&it.job, it.step, it.generation),
            })
        };
        print_json(&rows.iter().map(value).collect());
        return Ok(Outcome::True);
    }
    let mut table = table(&[
        "STEP",
        "GENERATION",
        "SHARDS",
        "SIZE",
        "BEST",
        "ENVIRONMENT",
    ]);
    for row in &rows {
        table.add_row([
            row.step.to_string(),
            row.generation.to_string(),
            row.shards.len().to_string(),
            bytes(size(row)),
            if is_best(row) { "best" } else { "" }.to_owned(),
            row.environment.clone(),
        ]);
    }
    table.print();
    Ok(Outcome::True)
}
