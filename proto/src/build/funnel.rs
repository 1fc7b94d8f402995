//! The funnel of a pipeline: how many rows each step leaves and why others are lost, beside the
//! paper's (section 3, appendix A.1, figure 2). Pure.

use super::Stage;
use super::report::StageManifest;
use serde::Serialize;

/// A step of the funnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    pub stage: Stage,
    /// What remains, or why rows are lost.
    pub what: String,
    /// Rows that remain. None: this is a loss.
    pub rows: Option<u64>,
    pub lost: Option<u64>,
    /// The paper's number of rows that remain.
    pub paper: Option<u64>,
}

/// Danbooru2019 Figures; with one character, one artist and cloth tags; with a similar figure.
pub const PAPER: [u64; 3] = [855_880, 599_192, 116_729];

/// The paper's share of figures with so many similar ones, in percent (figure 2).
pub const PAPER_SIMILAR: [(&str, f64); 7] = [
    ("1", 56.2),
    ("2", 16.8),
    ("3", 7.8),
    ("4", 4.5),
    ("5", 2.9),
    ("6 to 14", 8.1),
    ("15 or more", 3.6),
];

/// The steps of the stages that are complete, in order.
#[must_use]
pub fn steps(manifests: &[StageManifest]) -> Vec<Step> {
    let mut steps = Vec::new();
    for manifest in manifests {
        let (stage, report) = (manifest.key.stage, &manifest.report);
        let remain = |what: &str, rows, paper| Step {
            stage,
            what: what.to_owned(),
            rows: Some(rows),
            lost: None,
            paper,
        };
        let (first, last) = match stage {
            // They lose no figures: who is not answered is dropped with the clusters.
            Stage::Sources | Stage::Outfits | Stage::Tagger => continue,
            Stage::Posts => (
                remain("rows of metadata", report.rows_in, None),
                remain("posts", report.rows_out, None),
            ),
            Stage::Filter => (
                remain("posts", report.rows_in, None),
                remain(
                    "figures of one character, by one artist, in clothes",
                    report.rows_out,
                    Some(PAPER[1]),
                ),
            ),
            Stage::Folders => (
                remain("images", report.rows_in, None),
                remain("images of a character or person", report.rows_out, None),
            ),
            Stage::Figures => (
                remain("images", report.rows_in, None),
                remain("images with a figure", report.rows_out, None),
            ),
            Stage::Clusters => (
                remain("figures", report.rows_in, None),
                remain(
                    "figures with a similar one",
                    report.rows_out,
                    Some(PAPER[2]),
                ),
            ),
            Stage::Masks => (
                remain("figures", report.rows_in, None),
                remain("figures with a mask", report.rows_out, None),
            ),
            Stage::Faces => (
                remain("figures", report.rows_in, None),
                remain("figures with a face", report.rows_out, None),
            ),
            Stage::Dataset => (
                remain("figures", report.rows_in, None),
                remain("samples of the data set", report.rows_out, None),
            ),
        };
        if matches!(stage, Stage::Posts | Stage::Folders) {
            steps.push(first);
        }
        let mut rest = report.rows_in;
        for loss in report.losses.iter().filter(|loss| 0 < loss.rows) {
            rest = rest.saturating_sub(loss.rows);
            steps.push(Step {
                stage,
                what: loss.reason.clone(),
                rows: None,
                lost: Some(loss.rows),
                paper: None,
            });
            if loss.reason == "no picture of a figure" {
                steps.push(remain("figures", rest, Some(PAPER[0])));
            }
        }
        steps.push(last);
    }
    steps
}

/// The share of figures with so many similar ones: the words of [`PAPER_SIMILAR`], their figures,
/// the percentage, and the paper's.
#[must_use]
#[allow(clippy::cast_precision_loss)] // One decimal is shown.
pub fn similar(table: &[(String, u64)]) -> Vec<(&'static str, u64, f64, f64)> {
    let total: u64 = table.iter().map(|(_, rows)| rows).sum();
    let class = |count: u64| match count {
        0..=5 => usize::try_from(count.saturating_sub(1)).unwrap_or(0),
        6..=14 => 5,
        15.. => 6,
    };
    let mut rows = [0_u64; 7];
    for (count, figures) in table {
        rows[class(count.parse().unwrap_or(0))] += figures;
    }
    let shares = PAPER_SIMILAR.into_iter().zip(rows);
    let share = |rows: u64| 100.0 * rows as f64 / total.max(1) as f64;
    shares
        .map(|((words, paper), rows)| (words, rows, share(rows), paper))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::StagePlan;
    use super::super::report::{Loss, Report};
    use super::super::settings::{ClustersSettings, PostsSettings, Settings, Signature};
    use super::*;
    use crate::build::settings::OnBadRow;

    fn manifest(settings: Settings, report: Report) -> StageManifest {
        let plan = StagePlan {
            settings,
            inputs: Vec::new(),
        };
        StageManifest {
            key: plan.key(),
            plan,
            parts: Vec::new(),
            report,
        }
    }

    #[test]
    fn what_remains_and_what_is_lost_add_up() {
        let loss = |reason: &str, rows| Loss {
            reason: reason.to_owned(),
            rows,
        };
        let posts = Settings::Posts(PostsSettings {
            on_bad_row: OnBadRow::Skip,
        });
        let clusters = Settings::Clusters(ClustersSettings {
            signature: Signature::Tags,
            size_min: 2,
            truth: None,
        });
        let found = steps(&[
            manifest(
                posts,
                Report {
                    rows_in: 10,
                    rows_out: 9,
                    losses: vec![loss("it has no id", 1), loss("nothing", 0)],
                    ..Report::default()
                },
            ),
            manifest(
                clusters,
                Report {
                    rows_in: 9,
                    rows_out: 4,
                    losses: vec![loss("alone", 5)],
                    ..Report::default()
                },
            ),
        ]);
        let shown: Vec<(&str, Option<u64>, Option<u64>)> = found
            .iter()
            .map(|step| (step.what.as_str(), step.rows, step.lost))
            .collect();
        assert_eq!(
            shown,
            [
                ("rows of metadata", Some(10), None),
                ("it has no id", None, Some(1)),
                ("posts", Some(9), None),
                ("alone", None, Some(5)),
                ("figures with a similar one", Some(4), None),
            ]
        );
        assert_eq!(found[4].paper, Some(116_729));
    }

    #[test]
    fn the_histogram_has_the_paper_s_classes() {
        let table = [
            ("1", 50),
            ("2", 25),
            ("7", 10),
            ("14", 5),
            ("15", 4),
            ("400", 6),
        ];
        let table: Vec<(String, u64)> = table
            .iter()
            .map(|(count, rows)| ((*count).to_owned(), *rows))
            .collect();
        let found: Vec<(u64, f64)> = similar(&table)
            .into_iter()
            .map(|(_, rows, share, _)| (rows, share))
            .collect();
        let rows: Vec<u64> = found.iter().map(|(rows, _)| *rows).collect();
        assert_eq!(rows, [50, 25, 0, 0, 0, 15, 10]);
        assert!((found[0].1 - 50.0).abs() < 1e-9);
        let paper: f64 = PAPER_SIMILAR.iter().map(|(_, share)| share).sum();
        assert!((paper - 100.0).abs() < 0.2, "{paper}");
    }
}
