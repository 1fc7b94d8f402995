//! What stages find, compared with what is true where a pipeline names a truth: the names of the
//! counts in reports, and the table of them. Pure.

use super::Stage;
use super::report::{Report, StageManifest};
use serde::Serialize;

pub const MASKS: &str = "masks compared with true ones";
pub const MASK_SUM: &str = "intersection over union with true masks, sum of thousandths";
pub const BOXES: &str = "face boxes compared with true ones";
pub const BOX_SUM: &str = "intersection over union with true boxes, sum of thousandths";
pub const CENTRE_SUM: &str =
    "distance from the centre of the true box, sum of thousandths of its longer side";
/// Pairs of figures, among those of a known true cluster.
pub const PAIRS_FOUND: &str = "pairs of figures in one cluster, where the truth is known";
pub const PAIRS_TRUE: &str = "pairs of figures that are of one cluster in truth";
pub const PAIRS_BOTH: &str = "pairs of figures in one cluster that are of one in truth";

/// One figure of merit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub stage: Stage,
    pub what: &'static str,
    /// How many are compared.
    pub compared: u64,
    pub value: f64,
}

/// The comparisons of the stages that are complete, in order.
#[must_use]
pub fn rows(manifests: &[StageManifest]) -> Vec<Row> {
    let of = |it: &StageManifest| of_report(it.key.stage, &it.report);
    manifests.iter().flat_map(of).collect()
}

#[allow(clippy::cast_precision_loss)] // Three decimals are shown.
fn of_report(stage: Stage, report: &Report) -> Vec<Row> {
    let counted = |name: &str| report.counts.get(name).copied().unwrap_or(0);
    let both = counted(PAIRS_BOTH) as f64;
    let kinds = [
        ("precision of pairs", PAIRS_FOUND, both),
        ("recall of pairs", PAIRS_TRUE, both),
        (
            "mean IoU of masks",
            MASKS,
            counted(MASK_SUM) as f64 / 1000.0,
        ),
        (
            "mean IoU of face boxes",
            BOXES,
            counted(BOX_SUM) as f64 / 1000.0,
        ),
        (
            "mean error of face centres, of the longer side",
            BOXES,
            counted(CENTRE_SUM) as f64 / 1000.0,
        ),
    ];
    let rows = kinds.into_iter().map(|(what, name, sum)| Row {
        stage,
        what,
        compared: counted(name),
        value: sum / counted(name).max(1) as f64,
    });
    rows.filter(|row| 0 < row.compared).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precision_and_recall_are_of_pairs() {
        let mut report = Report::default();
        for (name, count) in [(PAIRS_FOUND, 4), (PAIRS_TRUE, 6), (PAIRS_BOTH, 3)] {
            report.count(name, count);
        }
        let found = of_report(Stage::Clusters, &report);
        let found: Vec<(&str, u64, f64)> = found
            .iter()
            .map(|row| (row.what, row.compared, row.value))
            .collect();
        assert_eq!(
            found,
            [("precision of pairs", 4, 0.75), ("recall of pairs", 6, 0.5)]
        );
        assert!(of_report(Stage::Masks, &Report::default()).is_empty());
    }
}
