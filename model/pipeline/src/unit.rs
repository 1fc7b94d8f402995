//! Runs one unit of a stage. A unit whose output exists does nothing.

use crate::error::{BuildError, Result};
use crate::output::Outputs;
use crate::sources::{LINES, Piece, Span, read_piece, recognise};
use crate::{clusters, crops, dataset, faces, filter, folders, masks, outfits, tagger, truth};
use proto::build::report::{Report, StageManifest, UnitOutput};
use proto::build::settings::{PostsSettings, Settings, SourcesSettings};
use proto::build::{BuildWork, Stage, StagePlan};
use std::collections::BTreeMap;
use std::path::Path;

/// Writes the output of a unit; the one after the last closes the stage. `scratch` is a folder for
/// files that are deleted at the end.
///
/// # Errors
/// Input is missing, damaged or bad, or storage fails. Nothing that is written is taken for whole.
pub async fn run(work: &BuildWork, unit: u64, scratch: &Path) -> Result<()> {
    let outputs = Outputs::open(&work.out)?;
    let folder = outputs.stage(&work.key);
    let plan = folder.plan(&work.key).await?;
    let units = work.units;
    let Some(unit) = u32::try_from(unit).ok().filter(|unit| *unit < units) else {
        return close(&plan, units, &outputs).await;
    };
    if folder.unit(units, unit).await?.is_some() {
        return Ok(());
    }
    crate::scratch::sweep(scratch)?;
    let output = match &plan.settings {
        Settings::Sources(settings) => sources(settings).await?,
        Settings::Posts(settings) => posts(&plan, settings, (unit, units), &outputs).await?,
        Settings::Filter(settings) => filter::run(&plan, settings, &outputs, scratch).await?,
        Settings::Folders(settings) => folders::run(&plan, settings, &outputs).await?,
        Settings::Figures(settings) => {
            crops::run(&plan, settings, &outputs, (unit, units), scratch).await?
        }
        Settings::Outfits(settings) => {
            let units = (unit, units);
            outfits::run(&plan, settings, (&outputs, &work.out), units, scratch).await?
        }
        Settings::Tagger(settings) => {
            tagger::run(&plan, settings, &outputs, (unit, units), scratch).await?
        }
        Settings::Masks(settings) => {
            masks::run(&plan, settings, &outputs, (unit, units), scratch).await?
        }
        Settings::Faces(settings) => {
            faces::run(&plan, settings, &outputs, (unit, units), scratch).await?
        }
        Settings::Clusters(settings) => clusters::run(&plan, settings, &outputs, scratch).await?,
        Settings::Dataset(settings) => {
            dataset::run(&plan, settings, (&outputs, &work.out), scratch).await?
        }
    };
    folder.put_unit(units, unit, &output).await
}

/// Writes the manifest of a stage whose units are complete.
async fn close(plan: &StagePlan, units: u32, outputs: &Outputs) -> Result<()> {
    let folder = outputs.stage(&plan.key());
    if plan.stage() != Stage::Posts {
        folder.close(plan, units, truth::conclude).await?;
        return Ok(());
    }
    let (_, sources) = outputs.input(plan, Stage::Sources).await?;
    let pieces = pieces(&sources)?;
    folder
        .close(plan, units, |report| number_rows(report, &pieces))
        .await?;
    Ok(())
}

fn lines_of(piece: usize) -> String {
    format!("{LINES} of piece {piece}")
}

/// Rows of lines are numbered from the first line of their piece. Numbers them from that of their
/// file, which is known when all pieces are read.
fn number_rows(report: &mut Report, pieces: &[Piece]) {
    let (mut before, mut starts) = (BTreeMap::<&str, u64>::new(), Vec::new());
    for (number, piece) in pieces.iter().enumerate() {
        let lines = report.counts.remove(&lines_of(number)).unwrap_or(0);
        if let Span::Lines { start, end } = piece.span {
            let first = before.entry(&piece.file).or_insert(0);
            starts.push((piece.file.as_str(), start, end, *first));
            *first += lines;
        }
    }
    for row in &mut report.bad_rows {
        let inside = starts.iter().find(|(file, start, end, _)| {
            let begins = |it: u64| (*start..*end).contains(&it);
            row.file.ends_with(&format!("/{file}")) && row.offset.is_some_and(begins)
        });
        if let Some((.., first)) = inside {
            row.row += first;
        }
    }
    report.bad_rows.sort();
    report.losses.sort_by(|a, b| a.reason.cmp(&b.reason));
}

/// Pieces are stored as sentences of the report would be: they are few, and small.
const PIECES: &str = "pieces";

async fn sources(settings: &SourcesSettings) -> Result<UnitOutput> {
    let (pieces, found) = recognise(settings).await?;
    let mut report = Report {
        found,
        rows_in: pieces.len() as u64,
        rows_out: pieces.len() as u64,
        ..Report::default()
    };
    let list = pieces.iter().map(|piece| {
        let text = serde_json::to_string(piece).expect("a piece is plain values");
        (text, 1)
    });
    report.tables.insert(PIECES.to_owned(), list.collect());
    Ok(UnitOutput {
        parts: Vec::new(),
        report,
    })
}

/// The pieces that the stage `sources` found.
///
/// # Errors
/// The manifest is damaged.
pub fn pieces(manifest: &StageManifest) -> Result<Vec<Piece>> {
    let list = manifest.report.tables.get(PIECES).into_iter().flatten();
    let pieces = list.map(|(text, _)| serde_json::from_str(text));
    let pieces: std::result::Result<Vec<Piece>, _> = pieces.collect();
    pieces.map_err(|error| BuildError::Damaged(format!("the list of pieces: {error}")))
}

/// Reads the pieces of a unit, each into a part of its own.
async fn posts(
    plan: &StagePlan,
    settings: &PostsSettings,
    (unit, units): (u32, u32),
    outputs: &Outputs,
) -> Result<UnitOutput> {
    let (_, manifest) = outputs.input(plan, Stage::Sources).await?;
    let Settings::Sources(sources) = &manifest.plan.settings else {
        return Err(BuildError::Damaged(
            "the stage sources has other settings".to_owned(),
        ));
    };
    let folder = outputs.stage(&plan.key());
    let mut output = UnitOutput::default();
    let pieces = pieces(&manifest)?;
    for (number, piece) in pieces.iter().enumerate() {
        if number % units as usize != unit as usize {
            continue;
        }
        let source = sources.sources.get(piece.source as usize).ok_or_else(|| {
            BuildError::Damaged(format!("piece {number} is of source {}", piece.source))
        })?;
        let (table, mut report) = read_piece(source, piece, settings.on_bad_row).await?;
        if let Some(lines) = report.counts.remove(LINES) {
            report.count(&lines_of(number), lines);
        }
        if 0 < table.rows() {
            let stem = format!("piece-{number:06}");
            let part = folder.put_part(&stem, table.rows(), table.finish()).await?;
            output.parts.push(part);
        }
        output.report.add(&report);
    }
    Ok(output)
}
