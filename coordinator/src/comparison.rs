//! Two jobs beside each other, for the command line and the page: what was set differently, and
//! their mean losses over the same steps. Plain arithmetic.

use std::collections::{BTreeMap, BTreeSet};

/// Windows of steps whose mean losses are compared.
const WINDOWS: u64 = 10;

/// First and last step, and mean loss, in the order of the steps.
pub(crate) type Means = Vec<(u64, u64, f64)>;

/// Mean losses of both over the same steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Window {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) a: f64,
    pub(crate) b: f64,
}

/// Even windows over the steps that both have.
#[allow(clippy::cast_precision_loss)] // Steps of a window.
pub(crate) fn windows(a: &Means, b: &Means) -> Vec<Window> {
    let last = |cells: &Means| cells.last().map_or(0, |it| it.1);
    let common = last(a).min(last(b));
    let size = common.div_ceil(WINDOWS).max(1);
    let mean = |cells: &Means, from: u64, to: u64| {
        let within = cells.iter().filter(|it| from <= it.0 && it.1 <= to);
        let (mut sum, mut steps) = (0.0, 0.0);
        for (first, last, mean) in within {
            let count = (last + 1 - first) as f64;
            sum += mean * count;
            steps += count;
        }
        (0.0 < steps).then(|| sum / steps)
    };
    (0..WINDOWS)
        .map(|index| (index * size + 1, ((index + 1) * size).min(common)))
        .filter(|(from, to)| from <= to)
        .filter_map(|(from, to)| {
            Some(Window {
                from,
                to,
                a: mean(a, from, to)?,
                b: mean(b, from, to)?,
            })
        })
        .collect()
}

/// Dotted keys that only one of them sets, or that they set differently, with both values.
pub(crate) fn differences(
    a: &BTreeMap<String, String>,
    b: &BTreeMap<String, String>,
) -> Vec<(String, [Option<String>; 2])> {
    let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    keys.into_iter()
        .filter(|key| a.get(*key) != b.get(*key))
        .map(|key| (key.clone(), [a.get(key).cloned(), b.get(key).cloned()]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_means_over_the_steps_that_both_have() {
        let a: Means = (1..=20).map(|it| (it, it, it as f64)).collect();
        let b: Means = (1..=20).map(|it| (2 * it - 1, 2 * it, 1.0)).collect();
        let found = windows(&a, &b);
        assert_eq!(found.len(), 10);
        let first = Window {
            from: 1,
            to: 2,
            a: 1.5,
            b: 1.0,
        };
        assert_eq!(found[0], first);
        assert_eq!((found[9].from, found[9].to, found[9].a), (19, 20, 19.5));
        assert_eq!(windows(&Means::new(), &a), []);
        let few: Means = (1..=3).map(|it| (it, it, 1.0)).collect();
        assert_eq!(windows(&few, &a).len(), 3);
    }

    #[test]
    fn only_what_differs_is_shown() {
        let of = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs
                .iter()
                .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
                .collect()
        };
        let a = of(&[("train.steps", "4"), ("data.seed", "1")]);
        let b = of(&[
            ("train.steps", "4"),
            ("data.seed", "2"),
            ("train.clip", "1.0"),
        ]);
        let found = differences(&a, &b);
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            found,
            [
                ("data.seed".to_owned(), [some("1"), some("2")]),
                ("train.clip".to_owned(), [None, some("1.0")]),
            ]
        );
    }
}
