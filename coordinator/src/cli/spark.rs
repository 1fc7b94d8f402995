//! A line of numbers as a line of blocks. Pure.

const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// One block for each value, the lowest for the least. Values that are not finite are `×`.
pub(crate) fn sparkline(values: impl IntoIterator<Item = f64>) -> String {
    let values: Vec<f64> = values.into_iter().collect();
    let finite = values.iter().copied().filter(|value| value.is_finite());
    let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    let block = |value: f64| {
        if !value.is_finite() {
            return '×';
        }
        let place = if low < high {
            (value - low) / (high - low)
        } else {
            0.0
        };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 0 to 7.
        let index = (place * (BLOCKS.len() - 1) as f64).round() as usize;
        BLOCKS[index.min(BLOCKS.len() - 1)]
    };
    values.into_iter().map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_is_low_and_the_greatest_is_high() {
        assert_eq!(sparkline([]), "");
        assert_eq!(sparkline([3.0]), "▁");
        assert_eq!(sparkline([2.0, 2.0]), "▁▁");
        assert_eq!(sparkline([8.0, 4.0, 1.0, 1.0]), "█▄▁▁");
        assert_eq!(sparkline([1.0, f64::NAN, 0.0, f64::INFINITY]), "█×▁×");
        assert_eq!(sparkline([f64::NAN]), "×");
    }
}
