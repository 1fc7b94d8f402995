//! The values of the paper's tables 2 and 3, and what tells a run of ours from theirs.

use metric::{Measure, Pair};
use model_data::evaluation::Row;
use std::collections::BTreeSet;

/// A column of a table: a measure, or the SWD of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Column {
    Of(Measure),
    Swd(Pair),
}

impl Column {
    pub(crate) fn title(self) -> String {
        match self {
            Self::Of(measure) => measure.title().to_owned(),
            Self::Swd(pair) => pair.title(),
        }
    }

    pub(crate) fn name(self) -> String {
        match self {
            Self::Of(measure) => measure.name().to_owned(),
            Self::Swd(pair) => pair.name(),
        }
    }

    pub(crate) fn of(self, row: &Row) -> Option<f64> {
        match self {
            Self::Of(measure) => row.scores.get(&measure).copied(),
            Self::Swd(pair) => pair.of(&row.scores),
        }
    }

    /// False for distances of which a smaller one is better.
    pub(crate) fn higher_is_better(self) -> bool {
        match self {
            Self::Of(measure) => measure.higher_is_better(),
            Self::Swd(_) => true,
        }
    }

    /// What every report has, where it was computed.
    pub(crate) fn all() -> Vec<Self> {
        let measures = Measure::ALL.into_iter().map(Self::Of);
        measures.chain(Pair::ALL.map(Self::Swd)).collect()
    }
}

const VQA_I: Column = Column::Swd(Pair::PAPER[0]);
const VQA_T: Column = Column::Swd(Pair::PAPER[1]);
const T_I: Column = Column::Swd(Pair::PAPER[2]);
const VQA: Column = Column::Of(Measure::Vqa);
const CLIP_I: Column = Column::Of(Measure::ClipI);
const CLIP_T: Column = Column::Of(Measure::ClipT);

/// A table of the paper.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) title: &'static str,
    pub(crate) columns: &'static [Column],
    /// The columns of its scatter plots: x and y.
    pub(crate) plots: &'static [(Column, Column)],
    rows: &'static [(&'static str, &'static [f64])],
}

pub(crate) const TABLES: [Table; 2] = [
    Table {
        title: "Table 2",
        columns: &[CLIP_I, CLIP_T, T_I],
        plots: &[(CLIP_I, CLIP_T)],
        rows: &[
            ("FastComposer-0.5-a", &[0.6406, 0.2616, 0.1677]),
            ("FastComposer-0.5-b", &[0.6416, 0.2637, 0.1693]),
            ("ControlNet-a", &[0.7476, 0.1787, 0.1339]),
            ("ControlNet-b", &[0.6384, 0.2594, 0.1658]),
            ("Kandinsky-0.2-a", &[0.6652, 0.2259, 0.1503]),
            ("Kandinsky-0.2-b", &[0.7272, 0.2093, 0.1523]),
            ("Kandinsky-0.1-a", &[0.7400, 0.2028, 0.1502]),
            ("Kandinsky-0.1-b", &[0.8019, 0.1941, 0.1557]),
            ("IP-Adapter-0.5-a", &[0.7692, 0.2064, 0.1586]),
            ("IP-Adapter-0.5-b", &[0.7283, 0.2382, 0.1731]),
        ],
    },
    Table {
        title: "Table 3",
        columns: &[VQA, CLIP_I, CLIP_T, VQA_I, VQA_T, T_I],
        plots: &[(CLIP_I, CLIP_T), (CLIP_I, VQA)],
        rows: &[
            (
                "R9k-LockD",
                &[0.4276, 0.7022, 0.2120, 0.2985, 0.0909, 0.1487],
            ),
            (
                "R9k-LockB",
                &[0.4383, 0.6856, 0.2077, 0.2992, 0.0912, 0.1422],
            ),
            (
                "R9k-P025",
                &[0.4234, 0.7139, 0.2306, 0.2998, 0.0988, 0.1636],
            ),
            (
                "R9k-P075",
                &[0.4012, 0.7384, 0.2037, 0.2943, 0.0823, 0.1500],
            ),
            ("R9k", &[0.4372, 0.7008, 0.2331, 0.3044, 0.1027, 0.1628]),
            ("R45k", &[0.4161, 0.7328, 0.2311, 0.3029, 0.0970, 0.1687]),
            (
                "C9k-LockD",
                &[0.4276, 0.7002, 0.2138, 0.2979, 0.0917, 0.1495],
            ),
            (
                "C9k-LockB",
                &[0.4297, 0.6979, 0.2113, 0.2984, 0.0910, 0.1473],
            ),
            (
                "C9k-P025",
                &[0.4390, 0.6941, 0.2377, 0.3031, 0.1050, 0.1645],
            ),
            (
                "C9k-P075",
                &[0.4280, 0.7007, 0.2230, 0.2980, 0.0963, 0.1557],
            ),
            ("C9k", &[0.4348, 0.6976, 0.2318, 0.3016, 0.1017, 0.1612]),
            ("C45k", &[0.4251, 0.7111, 0.2315, 0.3004, 0.0994, 0.1640]),
            ("M9k", &[0.4377, 0.6963, 0.2334, 0.3031, 0.1029, 0.1621]),
            ("M45k", &[0.4142, 0.7221, 0.2259, 0.2973, 0.0945, 0.1625]),
        ],
    },
];

impl Table {
    /// The paper's value of a model in a column. Capitals and dashes of the name do not matter.
    pub(crate) fn value(&self, model: &str, column: Column) -> Option<f64> {
        let at = self.columns.iter().position(|it| *it == column)?;
        let found = self
            .rows
            .iter()
            .find(|(name, _)| plain(name) == plain(model));
        found.and_then(|(_, values)| values.get(at).copied())
    }

    pub(crate) fn has(&self, model: &str) -> bool {
        self.rows
            .iter()
            .any(|(name, _)| plain(name) == plain(model))
    }
}

fn plain(name: &str) -> String {
    let letters = name.chars().filter(|it| it.is_alphanumeric() || *it == '.');
    letters.flat_map(char::to_lowercase).collect()
}

/// The paper's protocol (section 5.2).
const IMAGES: usize = 5_000;
const CHARACTERS: usize = 50;
const RESOLUTION: u32 = 384;
const VQA_MODEL: &str = "instructblip-vicuna-7b";

/// Why values of these rows are not comparable with the paper's, a reason each. What rows cannot
/// tell is always one of them: the paper publishes neither its data set nor its characters.
pub(crate) fn differences(rows: &[&Row]) -> Vec<String> {
    let mut reasons = Vec::new();
    let distinct = |of: fn(&Row) -> &str| -> usize {
        let all: BTreeSet<&str> = rows.iter().map(|row| of(row)).collect();
        all.len()
    };
    let models = distinct(|row| &row.model).max(1);
    let images = rows.len() / models;
    if images != IMAGES {
        reasons.push(format!("{images} images per model, the paper has {IMAGES}"));
    }
    let characters = distinct(|row| &row.character);
    if characters != CHARACTERS {
        reasons.push(format!(
            "{characters} characters, the paper has {CHARACTERS}"
        ));
    }
    let sides: BTreeSet<u32> = rows.iter().map(|row| row.resolution).collect();
    if sides.iter().any(|side| *side != RESOLUTION) {
        let sides: Vec<String> = sides.iter().map(u32::to_string).collect();
        reasons.push(format!(
            "images of {} pixels, the paper has {RESOLUTION}",
            sides.join(" and ")
        ));
    }
    let vqa: BTreeSet<&str> = rows
        .iter()
        .filter_map(|row| Some(row.vqa.as_ref()?.model.as_str()))
        .collect();
    for model in vqa {
        if !model.to_lowercase().contains(VQA_MODEL) {
            reasons.push(format!("answers of {model}, the paper has {VQA_MODEL}"));
        }
    }
    if rows.iter().any(|row| row.clip.is_some()) {
        reasons.push("the paper does not say which CLIP it used".to_owned());
    }
    reasons.push(
        "the paper's data set, weights, characters and prompts are not published, so these are \
         others unless whoever ran this knows better"
            .to_owned(),
    );
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_under_the_names_of_jobs_too() {
        let [two, three] = &TABLES;
        assert_eq!(two.value("ip-adapter-0.5-b", CLIP_I), Some(0.7283));
        assert_eq!(two.value("IP-Adapter-0.5-b", VQA), None);
        assert_eq!(three.value("r9k-lockd", T_I), Some(0.1487));
        assert_eq!(three.value("r9k", VQA), Some(0.4372));
        assert!(!three.has("r9k-p05") && !two.has("r9k") && three.has("M45k"));
        for table in &TABLES {
            for (name, values) in table.rows {
                assert_eq!(values.len(), table.columns.len(), "{name}");
            }
        }
        assert_eq!((two.rows.len(), three.rows.len()), (10, 14));
    }

    /// SWD differs from the product of the means by the covariance, which is small in every row
    /// (notes on table 3): a slip in a digit would show.
    #[test]
    fn the_paper_s_swd_is_near_the_product_of_its_means() {
        for table in &TABLES {
            for (name, _) in table.rows {
                let value = |column| table.value(name, column);
                for column in table.columns {
                    let Column::Swd(pair) = column else { continue };
                    let product = value(Column::Of(pair.div)).zip(value(Column::Of(pair.sim)));
                    let (div, sim) = product.expect("its measures are columns");
                    let swd = value(*column).expect("it is a column");
                    assert!((swd - div * sim).abs() < 0.003, "{name}: {swd} {div} {sim}");
                }
            }
        }
    }
}
