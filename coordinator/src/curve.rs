//! Curves of a job's steps, at most a given number of points each. What is read of the journal is
//! kept in cells of as many steps as needed for [`CELLS`] of them, with the least, the largest and
//! the mean of every value, so that a page of a million steps is drawn from a few thousand numbers
//! and a spike is never lost. The journal stores such a summary of each [`BLOCK`] of steps, so that
//! these need not be read. Pure; filled by [`crate::journal`] and [`crate::web`].

use proto::message::PhaseSeconds;
use proto::pb;
use proto::wire::loss_terms;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::ops::RangeInclusive;

/// Steps of a summary in the store: 1 to [`BLOCK`], and so on.
pub(crate) const BLOCK: u64 = 128;
/// Cells that are kept of a job. A power of two.
const CELLS: usize = 4096;
/// Steps over which a pace is measured, at least.
const PACE: u64 = 64;

/// Values of steps that follow each other.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Cell {
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// Seconds that its steps took.
    pub(crate) seconds: f64,
    /// In the order of [`Curve::names`]; those that came later are missing.
    pub(crate) spans: Vec<Span>,
}

/// The finite values of one kind in a cell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Span {
    pub(crate) min: f64,
    pub(crate) max: f64,
    sum: f64,
    count: u32,
}

impl Default for Span {
    fn default() -> Self {
        Self {
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            sum: 0.0,
            count: 0,
        }
    }
}

impl Span {
    fn add(&mut self, value: f64) {
        if value.is_finite() {
            self.merge(Self {
                min: value,
                max: value,
                sum: value,
                count: 1,
            });
        }
    }

    fn merge(&mut self, other: Self) {
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.sum += other.sum;
        self.count += other.count;
    }

    /// None: no step has a finite value.
    pub(crate) fn mean(&self) -> Option<f64> {
        (self.count != 0).then(|| self.sum / f64::from(self.count))
    }
}

impl Cell {
    fn merge(&mut self, other: &Self) {
        self.last = other.last;
        self.seconds += other.seconds;
        for (index, span) in other.spans.iter().enumerate() {
            self.span(index).merge(*span);
        }
    }

    fn span(&mut self, index: usize) -> &mut Span {
        if self.spans.len() <= index {
            self.spans.resize(index + 1, Span::default());
        }
        &mut self.spans[index]
    }
}

/// The summary of steps that follow each other, as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Block {
    pub(crate) first: u64,
    pub(crate) last: u64,
    seconds: f64,
    not_finite: u64,
    /// Name, least and largest value, sum and count of the finite values of each kind.
    spans: Vec<(String, f64, f64, f64, u32)>,
}

/// The block that a step is in, from 0.
pub(crate) fn block_of(step: u64) -> u64 {
    step.saturating_sub(1) / BLOCK
}

/// See the module.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Curve {
    /// Steps of a cell.
    stride: u64,
    most: usize,
    pub(crate) names: Vec<String>,
    pub(crate) cells: Vec<Cell>,
    /// Steps with a value that is not a number.
    pub(crate) not_finite: u64,
}

impl Curve {
    pub(crate) fn new() -> Self {
        Self::of_at_most(CELLS, 1)
    }

    /// With cells of `stride` steps from the beginning.
    pub(crate) fn of_at_most(cells: usize, stride: u64) -> Self {
        Self {
            stride: stride.max(1),
            most: cells.max(2),
            names: Vec::new(),
            cells: Vec::new(),
            not_finite: 0,
        }
    }

    /// The step after which there is more to read.
    pub(crate) fn last(&self) -> u64 {
        self.cells.last().map_or(0, |cell| cell.last)
    }

    pub(crate) fn stride(&self) -> u64 {
        self.stride
    }

    /// Seconds per step of the last steps. None: there are none.
    #[allow(clippy::cast_precision_loss)] // Steps.
    pub(crate) fn pace(&self) -> Option<f64> {
        let last = self.last();
        let recent = self.cells.iter().rev();
        let recent = recent.take_while(|cell| last < cell.last + PACE.max(2 * self.stride));
        let (mut steps, mut seconds) = (0, 0.0);
        for cell in recent {
            steps += cell.last + 1 - cell.first;
            seconds += cell.seconds;
        }
        (steps != 0 && 0.0 < seconds).then(|| seconds / steps as f64)
    }

    /// Steps come in order; one that is already there is ignored.
    pub(crate) fn add(&mut self, step: &pb::StepReport) {
        if step.step <= self.last() {
            return;
        }
        let number = |step: u64| step.saturating_sub(1) / self.stride;
        let begins = match self.cells.last() {
            Some(cell) => number(cell.first) != number(step.step),
            None => true,
        };
        if begins {
            self.cells.push(Cell {
                first: step.step,
                ..Cell::default()
            });
        }
        let cell = self
            .cells
            .last_mut()
            .expect("one was pushed if there was none");
        cell.last = step.step;
        cell.seconds += seconds(step).total();
        let (names, mut next) = (&mut self.names, 0);
        each_value(step, &mut |kind, name, value| {
            let is_it = |known: &String| known.strip_prefix(kind) == Some(name);
            // Steps have the same values in the same order, but for those of a validation.
            if !names.get(next).is_some_and(is_it) {
                next = names.iter().position(is_it).unwrap_or(names.len());
                if next == names.len() {
                    names.push(format!("{kind}{name}"));
                }
            }
            cell.span(next).add(value);
            next += 1;
        });
        self.not_finite += u64::from(!step.loss.is_finite());
        while self.most < self.cells.len() {
            self.halve();
        }
    }

    /// All steps in one block. None: there are none.
    pub(crate) fn block(&self) -> Option<Block> {
        let cells = merged(&self.cells, u64::MAX);
        let cell = cells.first()?;
        let spans = self.names.iter().zip(&cell.spans);
        let spans = spans.filter(|(_, span)| span.count != 0);
        Some(Block {
            first: cell.first,
            last: cell.last,
            seconds: cell.seconds,
            not_finite: self.not_finite,
            spans: spans
                .map(|(name, it)| (name.clone(), it.min, it.max, it.sum, it.count))
                .collect(),
        })
    }

    /// The same as adding its steps, but that cells become as wide as it is. Blocks come in order;
    /// one that is already there is ignored.
    pub(crate) fn add_block(&mut self, block: &Block) {
        if block.first <= self.last() {
            return;
        }
        if self.stride < BLOCK {
            self.stride = BLOCK;
            self.cells = merged(&self.cells, BLOCK);
        }
        let mut cell = Cell {
            first: block.first,
            last: block.last,
            seconds: block.seconds,
            spans: Vec::new(),
        };
        for (name, min, max, sum, count) in &block.spans {
            let known = self.names.iter().position(|it| it == name);
            let index = known.unwrap_or_else(|| {
                self.names.push(name.clone());
                self.names.len() - 1
            });
            *cell.span(index) = Span {
                min: *min,
                max: *max,
                sum: *sum,
                count: *count,
            };
        }
        let number = |cell: &Cell| cell.first.saturating_sub(1) / self.stride;
        match self.cells.last_mut() {
            Some(last) if number(last) == number(&cell) => last.merge(&cell),
            _ => self.cells.push(cell),
        }
        self.not_finite += block.not_finite;
        while self.most < self.cells.len() {
            self.halve();
        }
    }

    fn halve(&mut self) {
        self.stride *= 2;
        self.cells = merged(&self.cells, self.stride);
    }

    /// Forgets steps after `step`, and those that share a cell with one: another generation may do
    /// them again.
    pub(crate) fn truncate(&mut self, step: u64) {
        self.cells.retain(|cell| cell.last <= step);
    }

    /// The steps of a range as columns, at most `most` cells.
    pub(crate) fn json(&self, range: &RangeInclusive<u64>, most: usize) -> Map<String, Value> {
        let before = self
            .cells
            .iter()
            .take_while(|cell| cell.last < *range.start());
        let mut seconds: f64 = before.map(|cell| cell.seconds).sum();
        let within = self
            .cells
            .iter()
            .filter(|cell| *range.start() <= cell.last && cell.first <= *range.end());
        let mut cells: Vec<Cell> = within.cloned().collect();
        let mut stride = self.stride;
        while most.max(1) < cells.len() {
            stride *= 2;
            cells = merged(&cells, stride);
        }
        let mut times = Vec::new();
        for cell in &cells {
            seconds += cell.seconds;
            times.push(rounded(seconds));
        }
        let series = self.names.iter().enumerate().map(|(index, name)| {
            let span = |cell: &Cell| cell.spans.get(index).copied().unwrap_or_default();
            let column = |value: fn(&Span) -> Option<f64>| -> Value {
                let values = cells.iter().map(|cell| value(&span(cell)).map(rounded));
                values.collect::<Vec<_>>().into()
            };
            let mut columns = json!({ "mean": column(Span::mean) });
            if 1 < stride {
                columns["min"] = column(|it| (it.count != 0).then_some(it.min));
                columns["max"] = column(|it| (it.count != 0).then_some(it.max));
            }
            (name.clone(), columns)
        });
        let series: Map<String, Value> = series.collect();
        let steps: Vec<u64> = cells.iter().map(|cell| cell.last).collect();
        let mut object = Map::new();
        object.insert("stride".into(), stride.into());
        object.insert("steps".into(), steps.into());
        object.insert("seconds".into(), times.into());
        object.insert("not_finite".into(), self.not_finite.into());
        object.insert("series".into(), series.into());
        object
    }

    /// First and last step and mean of one value in cells of `stride` steps, a multiple of what
    /// they have. Cells without a finite value are left out.
    pub(crate) fn in_cells(&self, name: &str, stride: u64) -> Vec<(u64, u64, f64)> {
        let index = self.names.iter().position(|known| known == name);
        let cells = merged(&self.cells, stride.max(self.stride));
        let mean = |cell: &Cell| cell.spans.get(index?).and_then(Span::mean);
        let cells = cells.iter();
        let means = cells.filter_map(|cell| Some((cell.first, cell.last, mean(cell)?)));
        means.collect()
    }

    /// Means of one value by step, at most `most` of them.
    pub(crate) fn means(&self, name: &str, most: usize) -> Vec<(u64, Option<f64>)> {
        let Some(index) = self.names.iter().position(|known| known == name) else {
            return Vec::new();
        };
        let (mut cells, mut stride) = (self.cells.clone(), self.stride);
        while most.max(1) < cells.len() {
            stride *= 2;
            cells = merged(&cells, stride);
        }
        let mean = |cell: &Cell| cell.spans.get(index).and_then(Span::mean);
        cells.iter().map(|cell| (cell.last, mean(cell))).collect()
    }
}

fn merged(cells: &[Cell], stride: u64) -> Vec<Cell> {
    let mut wide: Vec<Cell> = Vec::with_capacity(cells.len() / 2 + 1);
    for cell in cells {
        let number = |cell: &Cell| cell.first.saturating_sub(1) / stride;
        match wide.last_mut() {
            Some(last) if number(last) == number(cell) => last.merge(cell),
            _ => wide.push(cell.clone()),
        }
    }
    wide
}

/// Six digits are more than a screen shows, and make a third of the bytes.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    format!("{value:.5e}").parse().unwrap_or(value)
}

fn seconds(step: &pb::StepReport) -> PhaseSeconds {
    step.seconds.map_or_else(PhaseSeconds::default, Into::into)
}

/// The values of a step with the two parts of their names.
#[allow(clippy::cast_precision_loss)] // Bytes of memory on a plot.
fn each_value(step: &pb::StepReport, to: &mut impl FnMut(&str, &str, f64)) {
    let seconds = seconds(step);
    to("", "loss", step.loss);
    to("", "gradient norm", step.gradient_norm);
    to("", "learning rate", step.learning_rate);
    if step.loss_scale != 0.0 {
        to("", "loss scale", step.loss_scale);
    }
    if 0.0 < seconds.total() {
        to("", "samples/s", f64::from(step.samples) / seconds.total());
    }
    if step.peak_device_memory_bytes != 0 {
        to("", "device memory", step.peak_device_memory_bytes as f64);
    }
    for (phase, value) in seconds.phases() {
        to("seconds ", phase, value);
    }
    for term in loss_terms(step) {
        let kind = if term.is_validation() { "" } else { "loss " };
        to(kind, &term.name, term.value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64, loss: f64) -> pb::StepReport {
        pb::StepReport {
            step,
            loss,
            samples: 4,
            seconds: Some(pb::PhaseSeconds {
                forward: 0.5,
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn a_spike_among_many_steps_is_not_lost() {
        let mut curve = Curve::new();
        for it in 1..=100_000 {
            curve.add(&step(it, if it == 65_432 { 99.0 } else { 1.0 }));
        }
        assert!(curve.cells.len() <= CELLS && curve.stride == 32);
        let object = curve.json(&(1..=u64::MAX), 1000);
        let steps = object["steps"].as_array().map_or(0, Vec::len);
        assert!((500..=1000).contains(&steps), "{steps}");
        let loss = &object["series"]["loss"];
        let max = loss["max"].as_array().into_iter().flatten();
        let max = max.filter_map(Value::as_f64).fold(0.0, f64::max);
        assert!((max - 99.0).abs() < 1e-9, "{max}");
        let seconds = object["seconds"]
            .as_array()
            .and_then(|it| it.last()?.as_f64());
        assert_eq!(seconds, Some(50_000.0));
        assert_eq!((curve.pace(), Curve::new().pace()), (Some(0.5), None));
    }

    #[test]
    fn what_is_missing_or_no_number_is_a_gap() {
        let mut curve = Curve::of_at_most(100, 1);
        for (number, loss) in [(1, 2.0), (2, f64::NAN), (5, 1.0)] {
            curve.add(&step(number, loss));
        }
        curve.add(&step(5, 7.0));
        let means = curve.means("loss", 100);
        assert_eq!(means, [(1, Some(2.0)), (2, None), (5, Some(1.0))]);
        assert_eq!(curve.not_finite, 1);
        let object = curve.json(&(2..=9), 100);
        assert_eq!(object["steps"], json!([2, 5]));
        assert_eq!(object["series"]["loss"]["mean"], json!([null, 1.0]));
        assert_eq!(
            object["series"]["loss"].get("min"),
            None,
            "each is one step"
        );
        assert_eq!(object["seconds"], json!([1.0, 1.5]));
        assert!(curve.means("levity", 9).is_empty());
    }

    #[test]
    fn steps_that_are_done_again_are_read_again() {
        let mut curve = Curve::of_at_most(2, 1);
        for number in 1..=4 {
            curve.add(&step(number, 1.0));
        }
        assert_eq!((curve.stride, curve.last()), (2, 4));
        curve.truncate(3);
        assert_eq!(curve.last(), 2);
        curve.add(&step(3, 5.0));
        assert_eq!(curve.means("loss", 9), [(2, Some(1.0)), (3, Some(5.0))]);
    }

    #[test]
    fn blocks_are_the_curve_of_their_steps() {
        let (mut of_steps, mut of_blocks) =
            (Curve::of_at_most(64, BLOCK), Curve::of_at_most(64, 1));
        for number in 0..20 {
            let mut block = Curve::of_at_most(2, BLOCK);
            for it in number * BLOCK + 1..=(number + 1) * BLOCK {
                let loss = if it == 777 {
                    f64::NAN
                } else {
                    (it % 100) as f64
                };
                of_steps.add(&step(it, loss));
                block.add(&step(it, loss));
            }
            let block = block.block().unwrap_or_else(|| panic!("it has steps"));
            assert_eq!(
                (block_of(block.first), block_of(block.last)),
                (number, number)
            );
            of_blocks.add_block(&block);
            of_blocks.add_block(&block);
        }
        assert_eq!(of_blocks, of_steps);
        of_blocks.add(&step(20 * BLOCK + 1, 5.0));
        assert_eq!(of_blocks.last(), 20 * BLOCK + 1);
        assert_eq!(Curve::new().block(), None);
    }
}
