//! The numbers of a report and of the page of an evaluation, computed from the rows alone: means
//! with intervals, differences of pairings, and the best and worst images. Pure.

use super::paper::Column;
use metric::{Bootstrap, Estimate, Measure, Pair, bootstrap, covariance, paired};
use model_data::evaluation::Row;
use proto::evaluate::Domain;
use std::collections::BTreeMap;

/// Which rows a table is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Part {
    All,
    Of(Domain),
}

impl Part {
    pub(crate) const EACH: [Self; 3] = [
        Self::All,
        Self::Of(Domain::InDomain),
        Self::Of(Domain::OutOfDomain),
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Of(domain) => domain.name(),
        }
    }

    pub(crate) fn has(self, row: &Row) -> bool {
        match self {
            Self::All => true,
            Self::Of(domain) => row.domain == domain,
        }
    }
}

/// The models in the order of the rows.
pub(crate) fn models(rows: &[Row]) -> Vec<&str> {
    let mut models: Vec<&str> = Vec::new();
    for row in rows {
        if !models.contains(&row.model.as_str()) {
            models.push(&row.model);
        }
    }
    models
}

/// The values of one model in a column, with their characters.
fn values<'a>(rows: &'a [Row], model: &str, part: Part, column: Column) -> Vec<(&'a str, f64)> {
    rows.iter()
        .filter(|row| row.model == model && part.has(row))
        .filter_map(|row| Some((row.character.as_str(), column.of(row)?)))
        .collect()
}

/// The mean of a model in a column; None if no image has a value.
pub(crate) fn estimate(rows: &[Row], model: &str, part: Part, column: Column) -> Option<Estimate> {
    let values = values(rows, model, part, column);
    bootstrap(values, Bootstrap::default()).ok()
}

/// How much an SWD exceeds the product of its two means: their covariance over the images.
pub(crate) fn excess(rows: &[Row], model: &str, part: Part, column: Column) -> Option<f64> {
    let Column::Swd(pair) = column else {
        return None;
    };
    let of = rows
        .iter()
        .filter(|row| row.model == model && part.has(row))
        .filter_map(|row| {
            let of = |measure| row.scores.get(&measure).copied();
            of(pair.div).zip(of(pair.sim))
        });
    let (div, sim): (Vec<f64>, Vec<f64>) = of.unzip();
    covariance(&div, &sim).ok()
}

/// The difference of two models on the images that both have.
#[derive(Debug)]
pub(crate) struct Difference {
    pub(crate) estimate: Estimate,
    /// Images that only one of them has.
    pub(crate) left_out: u64,
}

/// `second` minus `first`; None if they have no image in common.
pub(crate) fn difference(
    rows: &[Row],
    (first, second): (&str, &str),
    part: Part,
    column: Column,
) -> Option<Difference> {
    let of = |model: &str| -> BTreeMap<(&str, &str), f64> {
        rows.iter()
            .filter(|row| row.model == model && part.has(row))
            .filter_map(|row| {
                let key = (row.character.as_str(), row.pair.as_str());
                Some((key, column.of(row)?))
            })
            .collect()
    };
    let found = paired(&of(first), &of(second));
    let left_out = found.only_first + found.only_second;
    let values = found
        .differences
        .iter()
        .map(|((character, _), value)| (*character, *value));
    let estimate = bootstrap(values, Bootstrap::default()).ok()?;
    Some(Difference { estimate, left_out })
}

/// Models of both pairings: those whose names differ in their endings -a and -b alone.
pub(crate) fn pairings<'a>(models: &[&'a str]) -> Vec<(&'a str, &'a str)> {
    let partner = |model: &&'a str| {
        let stem = model.strip_suffix("-a")?;
        let other = models
            .iter()
            .find(|other| other.strip_suffix("-b") == Some(stem))?;
        Some((*model, *other))
    };
    models.iter().filter_map(partner).collect()
}

/// The measure by which images are called good: the SWD of table 2, or CLIP-I, or what there is.
pub(crate) fn headline(columns: &[Column]) -> Option<Column> {
    let wanted = [Column::Swd(Pair::PAPER[2]), Column::Of(Measure::ClipI)];
    let found = wanted.into_iter().find(|it| columns.contains(it));
    found.or_else(|| columns.first().copied())
}

/// The columns of which some row has a value, in the order of reports.
pub(crate) fn columns(rows: &[Row]) -> Vec<Column> {
    let has = |column: &Column| rows.iter().any(|row| column.of(row).is_some());
    Column::all().into_iter().filter(has).collect()
}

/// The images with the highest and with the lowest values, best first: at most `count` of each, and
/// of few images at most half.
pub(crate) fn extremes(rows: &[Row], column: Column, count: usize) -> (Vec<&Row>, Vec<&Row>) {
    let mut valued: Vec<(f64, &Row)> = rows
        .iter()
        .filter_map(|row| Some((column.of(row)?, row)))
        .collect();
    valued.sort_by(|(a, x), (b, y)| b.total_cmp(a).then(x.unit.cmp(&y.unit)));
    // Of few images, none is among the best and the worst.
    let count = count.min(valued.len().div_ceil(2));
    let best = valued.iter().take(count).map(|(_, row)| *row).collect();
    let worst = valued.iter().rev().take(count).map(|(_, row)| *row);
    (best, worst.collect())
}
