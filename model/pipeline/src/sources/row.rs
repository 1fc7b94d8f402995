//! Where rows of all editions go: posts into a table, faults into a report.

use super::{Piece, Span};
use crate::error::{BuildError, Result};
use crate::post::{self, Post};
use crate::table::Table;
use proto::build::report::{BadRow, EXAMPLES_MAX, Report};
use proto::build::settings::OnBadRow;

/// Where a row is in its piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// From 1.
    row: u64,
    offset: Option<u64>,
}

impl Place {
    pub(super) fn at(row: u64, offset: Option<u64>) -> Self {
        Self { row, offset }
    }
}

/// Collects the rows of one piece.
#[derive(Debug)]
pub(super) struct RowSink<'a> {
    /// For messages.
    file: &'a str,
    /// Index of the source in the pipeline.
    source: i64,
    /// Rows are numbered from the first line after this byte.
    after: Option<u64>,
    on_bad_row: OnBadRow,
    pub(super) table: Table,
    pub(super) report: Report,
}

impl<'a> RowSink<'a> {
    pub(super) fn new(file: &'a str, piece: &Piece, on_bad_row: OnBadRow) -> Self {
        Self {
            file,
            source: piece.source.into(),
            after: match piece.span {
                Span::Lines { start, .. } if 0 < start => Some(start),
                _ => None,
            },
            on_bad_row,
            table: post::table(),
            report: Report::default(),
        }
    }

    /// Takes a row, or what is wrong with it.
    pub(super) fn take(
        &mut self,
        row: std::result::Result<Post, String>,
        place: Place,
    ) -> Result<()> {
        self.report.rows_in += 1;
        match row {
            Ok(post) => {
                let source = self.source;
                let rating = crate::filter::rating_count(source, &post.rating);
                self.report.count(&rating, 1);
                post::push(&mut self.table, &Post { source, ..post });
                self.report.rows_out += 1;
                Ok(())
            }
            Err(reason) => {
                let row = self.bad_row(place, &reason);
                if self.on_bad_row == OnBadRow::Stop {
                    return Err(BuildError::BadRow {
                        row: Box::new(row),
                        after: self.after,
                    });
                }
                self.report.lose(&reason, 1);
                if self.report.bad_rows.len() < EXAMPLES_MAX {
                    self.report.bad_rows.push(row);
                }
                Ok(())
            }
        }
    }

    /// The error of a place after which nothing can be read.
    pub(super) fn unreadable(&self, place: Place, reason: &str) -> BuildError {
        let row = self.bad_row(place, reason);
        BuildError::Input(crate::error::describe(&row, self.after))
    }

    fn bad_row(&self, place: Place, reason: &str) -> BadRow {
        BadRow {
            file: self.file.to_owned(),
            row: place.row,
            offset: place.offset,
            reason: reason.to_owned(),
        }
    }
}
