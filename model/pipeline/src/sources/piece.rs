//! Reads one piece into a table of posts.

use super::json::{self, Lines};
use super::recognise::{join, local_file, name};
use super::row::RowSink;
use super::{Piece, Span, parquet, sqlite};
use crate::error::{BuildError, Result};
use crate::table::Table;
use futures::StreamExt;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore};
use proto::build::report::Report;
use proto::build::settings::{OnBadRow, Source, SourceFile};

/// The count of a report that has the lines of a piece. Rows of later pieces are numbered with it.
pub const LINES: &str = "lines";

/// The posts of a piece, and what was wrong with others. Row numbers of lines count from the first
/// line of the piece, and all others from that of the file.
///
/// # Errors
/// The piece cannot be read, or a row of it is bad and `on_bad_row` says to stop.
pub async fn read_piece(
    source: &Source,
    piece: &Piece,
    on_bad_row: OnBadRow,
) -> Result<(Table, Report)> {
    let (store, prefix) = storage::open(&source.folder)?;
    let file = source.files.iter().find(|it| it.path == piece.file);
    let file = file.ok_or_else(|| {
        BuildError::Damaged(format!("{}: it is not a file of the source", piece.file))
    })?;
    let label = name(source, file);
    let path = join(&prefix, &file.path);
    let mut sink = RowSink::new(&label, piece, on_bad_row);
    match piece.span {
        Span::Lines { start, end } => {
            let lines = Lines::new(piece.edition, start, end);
            read_lines(&*store, &path, lines, (start, file.size), &mut sink).await?;
        }
        Span::Document => {
            let bytes =
                storage::read::read_bounded(&*store, &path, super::recognise::DOCUMENT_BYTES_MAX);
            let bytes = bytes
                .await
                .map_err(|error| BuildError::input(&label, error))?;
            let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
            json::document(text, piece.edition, &mut sink)?;
        }
        Span::RowGroup { index, first } => {
            parquet::read(&store, (&path, file.size), index, first, &mut sink).await?;
        }
        Span::Keys { start, end } => {
            let local = local_file(source, file)?;
            let database = sqlite::Database::open(&label, &local, source.tag_types)?;
            database.read(start, end, &mut sink)?;
        }
    }
    unchanged(&*store, &path, file).await?;
    Ok((sink.table, sink.report))
}

/// Refuses a file that was changed since its settings were made.
pub(crate) async fn unchanged(
    store: &dyn ObjectStore,
    path: &Path,
    file: &SourceFile,
) -> Result<()> {
    use object_store::ObjectStoreExt;
    let meta = store.head(path).await.map_err(|source| BuildError::Read {
        path: path.to_string(),
        source,
    })?;
    if meta.size != file.size || meta.e_tag.as_deref().unwrap_or_default() != file.tag {
        let reason = "it was changed since the pipeline was planned: run `coordinator dataset \
                      build` again";
        return Err(BuildError::input(path.as_ref(), reason));
    }
    Ok(())
}

async fn read_lines(
    store: &dyn ObjectStore,
    path: &Path,
    mut lines: Lines,
    (start, size): (u64, u64),
    sink: &mut RowSink<'_>,
) -> Result<()> {
    let read = |source| BuildError::Read {
        path: path.to_string(),
        source,
    };
    // With the byte before the piece: if it ends a line, the piece begins with one.
    let from = start.saturating_sub(1);
    let options = GetOptions {
        range: Some(GetRange::Bounded(from..size)),
        ..GetOptions::default()
    };
    let found = store.get_opts(path, options).await.map_err(read)?;
    let mut chunks = found.into_stream();
    let mut skipping = 0 < start;
    let mut position = from;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(read)?;
        position += chunk.len() as u64;
        let mut bytes: &[u8] = &chunk;
        if skipping {
            match bytes.iter().position(|it| *it == b'\n') {
                Some(end) => {
                    bytes = &bytes[end + 1..];
                    skipping = false;
                    lines.begin_at(position - bytes.len() as u64);
                }
                None => continue,
            }
        }
        lines.add(bytes, position == size, sink)?;
        if lines.done {
            break;
        }
    }
    sink.report.count(LINES, lines.rows());
    Ok(())
}
