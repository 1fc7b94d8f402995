//! `coordinator state backup` and `restore`: the coordinator's state (jobs, ledgers, curves, logs)
//! as one file. Checkpoints and images are not part of it. Both open the store, not a coordinator:
//! backup only reads and may run beside one, restore needs an empty state.

use super::{Global, Outcome, Output, print_json};
use crate::opening;
use crate::store::{StateError, StateStore, read_state};
use crate::text::{errln, outln};
use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use prost::Message;
use proto::pb::StateEntry;
use proto::text::hex_sha256;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

const MAGIC: &[u8] = b"retri-state-1\n";
/// The last entry: the SHA-256 of everything before it.
const END_KEY: &[u8] = b"";
const SAVE_WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug, Subcommand)]
pub(crate) enum StateCommand {
    /// Copy the state to a file; the coordinator may keep running
    Backup {
        /// URL of the coordinator's store, as in its settings
        #[arg(long, value_name = "URL")]
        store: String,
        /// File to write; it must not exist
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Write the state of a backup to a store that has none
    Restore {
        /// A file that `backup` wrote
        file: PathBuf,
        /// URL of the store
        #[arg(long, value_name = "URL")]
        store: String,
    },
}

pub(crate) async fn run(global: &Global, command: StateCommand) -> Result<Outcome> {
    let (entries, what) = match &command {
        StateCommand::Backup { store, out } => {
            let entries = read_state(store).await?;
            write(out, &entries)?;
            (
                entries.len(),
                format!("of {store} are in {}", out.display()),
            )
        }
        StateCommand::Restore { file, store } => {
            let entries = read(file)?;
            let count = entries.len();
            restore(store, entries).await?;
            (count, format!("of {} are in {store}", file.display()))
        }
    };
    match global.output {
        Output::Json => print_json(&serde_json::json!({ "entries": entries })),
        Output::Table => outln!("{entries} entries {what}"),
    }
    Ok(Outcome::True)
}

fn write(out: &Path, entries: &[(Vec<u8>, Vec<u8>)]) -> Result<()> {
    let name = out.display();
    let mut body = MAGIC.to_vec();
    for (key, value) in entries {
        let entry = StateEntry {
            key: key.clone(),
            value: value.clone(),
        };
        entry.encode_length_delimited(&mut body)?;
    }
    let end = StateEntry {
        key: END_KEY.to_vec(),
        value: hex_sha256(&body).into_bytes(),
    };
    end.encode_length_delimited(&mut body)?;
    let file = std::fs::File::create_new(out).with_context(|| format!("cannot create {name}"))?;
    let mut writer = BufWriter::new(file);
    writer
        .write_all(&body)
        .with_context(|| format!("cannot write {name}"))?;
    let file = writer
        .into_inner()
        .with_context(|| format!("cannot write {name}"))?;
    file.sync_all()
        .with_context(|| format!("cannot write {name}"))
}

fn read(file: &Path) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let name = file.display();
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {name}"))?;
    let Some(mut rest) = bytes.strip_prefix(MAGIC) else {
        bail!("{name} is no backup of `coordinator state backup`");
    };
    let mut entries = Vec::new();
    loop {
        let before = bytes.len() - rest.len();
        ensure!(!rest.is_empty(), "{name} is truncated after {before} bytes");
        let entry = StateEntry::decode_length_delimited(&mut rest)
            .with_context(|| format!("{name} is damaged or truncated at byte {before}"))?;
        if entry.key == END_KEY {
            let expected = hex_sha256(&bytes[..before]);
            ensure!(
                entry.value == expected.as_bytes() && rest.is_empty(),
                "{name} is damaged: its SHA-256 is {expected}, and the file says {}",
                String::from_utf8_lossy(&entry.value)
            );
            return Ok(entries);
        }
        entries.push((entry.key, entry.value));
    }
}

async fn restore(store: &str, entries: Vec<(Vec<u8>, Vec<u8>)>) -> Result<(), StateError> {
    let open = StateStore::open(store, SAVE_WITHIN);
    let state = opening::when_usable(store, &|text| errln!("{text}"), open).await?;
    let restored = state.restore(entries).await;
    let closed = state.close().await;
    restored.and(closed)
}
