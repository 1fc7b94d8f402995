//! `reduction = "exact"`: sums a step's gradients so that the result does not depend on which rank
//! computed which micro-batch, on the order, or on how the all-reduce adds. Each micro-batch's
//! gradient is rounded to a multiple of 2^-44 and added into 64-bit integers. The integers are
//! summed over the ranks and converted back once. Integer addition is associative, floating-point
//! addition is not. Losses are summed the same way. Called by [`crate::train`]. The code does not
//! use the step, the rank or the world size, so none of them can change a bit.
//!
//! Resolution: 2^-44 = 5.7e-14 of the gradient of the mean loss, whatever its size. AdamW divides
//! by `sqrt(v) + epsilon`, so with the default epsilon of 1e-8 rounding one micro-batch can move an
//! update by at most 3 millionths of the learning rate.
//!
//! Overflow: with M micro-batches, rounded up to a power of two, an element of one micro-batch's
//! gradient may be up to 2^18 / M, so that the sum of M of them stays within 2^62. Every element is
//! compared before it is added. Larger elements are counted; the count is summed with the rest, and
//! all ranks reject the step alike, which ends the job ([`TooLarge`]). Non-finite elements are
//! counted separately and turn the whole gradient into NaN, as a float sum would.
//!
//! Memory: 8 bytes per trained value in addition to the gradients' 4, and a few megabytes of
//! temporaries. Gradients of neighbouring parameters are contiguous, so that they are rounded and
//! added in chunks rather than one parameter at a time.

use crate::collective::Group;
use anyhow::bail;
use tch::{Device, Kind, Tensor};

/// Fraction bits of the fixed-point gradients.
const GRADIENT_FRACTION_BITS: i32 = 44;
/// Fraction bits of the fixed-point losses.
const LOSS_FRACTION_BITS: i32 = 40;
/// The magnitude of a sum stays within two to this power.
const SUM_BITS: i32 = 62;

/// Minimum number of values of one all-reduce (the last one may be smaller): 8 MiB, so that one
/// bucket is converted back while the next one is in transit.
const BUCKET_VALUES: usize = 1 << 20;
/// The same on a GPU: 32 MiB.
const BUCKET_VALUES_OF_GPU: usize = 1 << 22;
/// Number of values that are rounded together; they fit into a core's cache.
const CHUNK_VALUES: usize = 1 << 16;

/// The sums of one step so far; reset by [`Self::reduce`].
#[derive(Debug)]
pub(crate) struct ExactSum {
    buckets: Vec<Bucket>,
    /// Nothing was added yet: the buckets hold stale values of an earlier step.
    is_empty: bool,
    /// The largest magnitude, in fixed-point units, that one micro-batch may add to one sum.
    limit: f64,
    /// The total loss, then its terms.
    losses: Vec<i64>,
    too_large: i64,
    not_finite: i64,
}

/// The sums of a step, apart from its gradients.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sums {
    /// In the order in which they were added.
    pub(crate) losses: Vec<f64>,
    /// Number of ranks that set the flag.
    pub(crate) flagged: i64,
}

/// The gradient or loss of a micro-batch does not fit, on some rank. All ranks return it for the
/// same step. Repeating the step would fail again.
#[derive(Debug, thiserror::Error)]
#[error(
    "the gradient or loss of a micro-batch is larger than an exact sum holds ({element:e} for an \
    element of the gradient, {loss:e} for a loss); nothing was changed; if such values are \
    expected, use train.reduction = \"fast\", otherwise a smaller train.learning_rate or a longer \
    train.warmup (train.clip is applied only to the sum)"
)]
pub(crate) struct TooLarge {
    element: f64,
    loss: f64,
}

/// Neighbouring parameters. Both tensors are flat and have the same length.
#[derive(Debug)]
struct Bucket {
    /// The parameters' gradients are views into it.
    gradients: Tensor,
    sums: Tensor,
}

/// Converts to fixed point. None if the value is too large or NaN.
fn to_fixed_point(value: f64, fraction_bits: i32, limit: f64) -> Option<i64> {
    let units = (value * 2f64.powi(fraction_bits)).round_ties_even();
    // Within the limit, which is below 2^63, the cast is exact.
    (units.abs() <= limit).then_some(units as i64)
}

impl ExactSum {
    /// `parameters` must have gradients. `micro_batches`: per step, over all ranks. `losses`:
    /// number of loss values. Moves the gradients into buckets: from now on they must be zeroed in
    /// place.
    pub(crate) fn new(parameters: &[(String, Tensor)], micro_batches: u32, losses: usize) -> Self {
        let device = parameters.first().map(|(_, first)| first.device());
        let values = match device {
            None | Some(Device::Cpu) => BUCKET_VALUES,
            Some(_) => BUCKET_VALUES_OF_GPU,
        };
        let carry = micro_batches
            .max(1)
            .next_power_of_two()
            .ilog2()
            .cast_signed();
        Self {
            buckets: split_into_runs(parameters, values, |(_, parameter)| parameter.numel())
                .into_iter()
                .map(Bucket::new)
                .collect(),
            is_empty: true,
            limit: 2f64.powi(SUM_BITS - carry),
            losses: vec![0; losses],
            too_large: 0,
            not_finite: 0,
        }
    }

    /// Discards the sums of a step that was interrupted.
    pub(crate) fn clear(&mut self) {
        self.is_empty = true;
        self.losses.fill(0);
        (self.too_large, self.not_finite) = (0, 0);
    }

    /// Adds the losses and gradients of one micro-batch, and zeroes the gradients. `loss_scale`:
    /// the power of two by which the loss was multiplied before its backward.
    pub(crate) fn add(&mut self, losses: &[f64], loss_scale: f64) {
        for (sum, loss) in self.losses.iter_mut().zip(losses) {
            match to_fixed_point(*loss, LOSS_FRACTION_BITS, self.limit) {
                Some(units) => *sum += units,
                None if loss.is_finite() => self.too_large += 1,
                None => self.not_finite += 1,
            }
        }
        let factor = 2f64.powi(GRADIENT_FRACTION_BITS) / loss_scale;
        let is_first = std::mem::take(&mut self.is_empty);
        tch::no_grad(|| {
            for (mut gradients, mut sums) in self.buckets.iter().flat_map(Bucket::chunks) {
                // Multiplying by a power of two is exact.
                let mut units = gradients.g_mul_scalar(factor);
                let _ = gradients.zero_();
                let rejected = match max_abs(&units) {
                    fits if fits <= self.limit => None,
                    large if large.is_finite() => Some(&mut self.too_large),
                    _ => Some(&mut self.not_finite),
                };
                if let Some(count) = rejected {
                    *count += 1;
                    // No integer can hold the value, and this sum will not be used.
                    let _ = units.zero_();
                }
                // Rounds halves to even.
                let units = units.round_();
                if is_first {
                    sums.copy_(&units);
                } else {
                    let _ = sums.g_add_(&units.to_kind(Kind::Int64));
                }
            }
        });
    }

    /// Ends the step. Sets the parameters' gradients to the sums over all micro-batches of all
    /// ranks (multiplied by `loss_scale` again) and returns the summed losses, bit-identical on
    /// every rank. `flag` is counted over the ranks.
    pub(crate) fn reduce(
        &mut self,
        group: &Group,
        (loss_scale, flag): (f64, bool),
        step: u64,
    ) -> anyhow::Result<Sums> {
        let counts = [self.too_large, self.not_finite, i64::from(flag)];
        let values = [self.losses.as_slice(), &counts].concat();
        let values = Tensor::from_slice(&values).to_device(group.membership().device);
        group.all_reduce(&values, &format!("all-reduce of the losses of step {step}"))?;
        let values = Vec::<i64>::try_from(&values.to_device(Device::Cpu))?;
        let Some((losses, &[too_large, not_finite, flagged])) = values.split_last_chunk() else {
            bail!("the all-reduce of a step returned {} values", values.len())
        };
        if too_large != 0 {
            return Err(TooLarge {
                element: self.limit / 2f64.powi(GRADIENT_FRACTION_BITS),
                loss: self.limit / 2f64.powi(LOSS_FRACTION_BITS),
            }
            .into());
        }
        let factor = if not_finite == 0 {
            loss_scale
        } else {
            f64::NAN
        };
        let unit = factor / 2f64.powi(GRADIENT_FRACTION_BITS);
        let sums: Vec<Tensor> = self
            .buckets
            .iter()
            .map(|it| it.sums.shallow_clone())
            .collect();
        let what = format!("all-reduce of the gradients of step {step}");
        group.all_reduce_each(&sums, &what, |bucket| {
            self.buckets[bucket].write_gradients(unit);
        })?;
        self.clear();
        let loss = |units: i64| units as f64 / 2f64.powi(LOSS_FRACTION_BITS);
        Ok(Sums {
            losses: losses.iter().map(|units| loss(*units)).collect(),
            flagged,
        })
    }
}

/// The largest magnitude; NaN if any element is NaN.
fn max_abs(units: &Tensor) -> f64 {
    let (low, high) = units.aminmax(None, false);
    let (low, high) = (-low.double_value(&[]), high.double_value(&[]));
    if low.is_nan() { low } else { low.max(high) }
}

impl Bucket {
    /// Makes the parameters' gradients views into the bucket, and keeps their values.
    fn new(parameters: &[(String, Tensor)]) -> Self {
        let gradients: Vec<Tensor> = parameters
            .iter()
            .map(|(_, parameter)| parameter.grad())
            .collect();
        let flat: Vec<Tensor> = gradients
            .iter()
            .map(|gradient| gradient.flatten(0, -1))
            .collect();
        let flat = Tensor::cat(&flat, 0);
        let mut start = 0;
        for mut gradient in gradients {
            let length = gradient.numel() as i64;
            let view = flat
                .narrow(0, start, length)
                .view(gradient.size().as_slice());
            gradient.set_data(&view);
            start += length;
        }
        Self {
            sums: Tensor::zeros([start], (Kind::Int64, flat.device())),
            gradients: flat,
        }
    }

    /// Converts the sums back into gradients. `unit`: the value of one fixed-point unit.
    fn write_gradients(&self, unit: f64) {
        tch::no_grad(|| {
            for (mut gradients, sums) in self.chunks() {
                gradients.copy_(&sums.to_kind(Kind::Double).g_mul_scalar_(unit));
            }
        });
    }

    /// Gradients and sums in matching chunks.
    fn chunks(&self) -> impl Iterator<Item = (Tensor, Tensor)> {
        // On a GPU there is no cache to fit into, and each maximum costs a synchronization.
        let size = match self.gradients.device() {
            Device::Cpu => CHUNK_VALUES as i64,
            _ => self.gradients.size()[0],
        };
        let gradients = self.gradients.split(size, 0);
        gradients.into_iter().zip(self.sums.split(size, 0))
    }
}

/// Splits a list into nonempty runs. A run ends as soon as the sum of its sizes reaches `target`.
pub(crate) fn split_into_runs<T>(
    list: &[T],
    target: usize,
    size: impl Fn(&T) -> usize,
) -> Vec<&[T]> {
    let (mut runs, mut start, mut sum) = (Vec::new(), 0, 0);
    for (index, item) in list.iter().enumerate() {
        sum += size(item);
        if target <= sum || index + 1 == list.len() {
            runs.push(&list[start..=index]);
            (start, sum) = (index + 1, 0);
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::collective::Membership;
    use std::time::Duration;

    fn alone() -> Group {
        Group::alone(Membership {
            job: "test-1".into(),
            generation: proto::id::Generation(1),
            rank: 0,
            world: 1,
            host: "127.0.0.1".into(),
            interface: None,
            device: Device::Cpu,
            timeout: Duration::from_secs(1),
        })
    }

    /// Three parameters, of which the middle one fills more than a chunk.
    fn parameters() -> Vec<(String, Tensor)> {
        let parameter = |name: &str, shape: &[i64]| {
            let tensor = Tensor::zeros(shape, (Kind::Float, Device::Cpu)).set_requires_grad(true);
            (name.to_owned(), tensor)
        };
        let all = vec![
            parameter("a", &[3]),
            parameter("b", &[2, CHUNK_VALUES as i64]),
            parameter("c", &[2]),
        ];
        for (_, tensor) in &all {
            tensor.sum(Kind::Float).backward();
        }
        all
    }

    /// Sets deterministic gradients derived from `seed`; magnitudes from 1e-9 to 10.
    fn set_gradients(parameters: &[(String, Tensor)], seed: u32) {
        for (index, (_, tensor)) in parameters.iter().enumerate() {
            let count = tensor.numel() as i64;
            let positions = Tensor::arange(count, (Kind::Double, Device::Cpu))
                + f64::from(seed * 977)
                + index as f64;
            let values =
                (&positions * 1.7).sin() * (&positions * 0.3).sin().exp2().pow_tensor_scalar(9);
            let values = values * 1e-3 * (positions * 0.11).cos();
            tensor.grad().copy_(&values.view(tensor.size().as_slice()));
        }
    }

    fn bits(parameters: &[(String, Tensor)]) -> Vec<u32> {
        let values = |(_, tensor): &(String, Tensor)| {
            Vec::<f32>::try_from(tensor.grad().flatten(0, -1)).unwrap()
        };
        parameters
            .iter()
            .flat_map(values)
            .map(f32::to_bits)
            .collect()
    }

    /// The reduced gradient of the first element, given its gradient in each micro-batch.
    fn sum(first_elements: &[f32]) -> anyhow::Result<f64> {
        let parameters = parameters();
        let count = u32::try_from(first_elements.len()).unwrap();
        let mut exact = ExactSum::new(&parameters, count, 3);
        for value in first_elements {
            let _ = parameters[0].1.grad().zero_();
            let _ = parameters[0].1.grad().get(0).fill_(f64::from(*value));
            exact.add(&[0.0; 3], 1.0);
        }
        exact.reduce(&alone(), (1.0, false), 7)?;
        Ok(parameters[0].1.grad().double_value(&[0]))
    }

    #[test]
    fn any_order_gives_the_same_bits_where_floats_do_not() {
        let order = |order: &[u32]| {
            let parameters = parameters();
            let mut exact = ExactSum::new(&parameters, 5, 3);
            let mut floats: Vec<Tensor> = parameters.iter().map(|(_, p)| p.zeros_like()).collect();
            for seed in order {
                set_gradients(&parameters, *seed);
                for (sum, (_, parameter)) in floats.iter_mut().zip(&parameters) {
                    *sum = &*sum + parameter.grad();
                }
                exact.add(&[f64::from(*seed) / 3.0, 0.1, 0.2], 1.0);
            }
            let losses = exact.reduce(&alone(), (1.0, false), 1).unwrap().losses;
            let exact = bits(&parameters);
            for (sum, (_, parameter)) in floats.iter().zip(&parameters) {
                let difference = (sum - parameter.grad()).abs().max().double_value(&[]);
                assert!(
                    difference < 1e-6,
                    "the exact sum is close to the float sum: {difference}"
                );
                parameter.grad().copy_(&sum.detach());
            }
            (
                exact,
                losses.into_iter().map(f64::to_bits).collect::<Vec<_>>(),
                bits(&parameters),
            )
        };
        let (first, second) = (order(&[1, 2, 3, 4, 5]), order(&[4, 1, 5, 3, 2]));
        assert!(first.0 == second.0 && first.1 == second.1);
        assert!(
            first.2 != second.2,
            "float sums must depend on the order for this test to be meaningful"
        );
    }

    #[test]
    fn gradients_of_a_backward_are_taken_whole_and_once() {
        let parameters = parameters();
        let mut exact = ExactSum::new(&parameters, 2, 3);
        for _ in 0..2 {
            for (_, tensor) in &parameters {
                (tensor * 3.0).sum(Kind::Float).backward();
            }
            exact.add(&[0.0; 3], 1.0);
        }
        exact.reduce(&alone(), (1.0, false), 1).unwrap();
        for (name, tensor) in &parameters {
            // 1 of the 7 is the gradient from before the first micro-batch.
            let low_and_high = tensor.grad().aminmax(None, false);
            assert_eq!(low_and_high.0.double_value(&[]), 7.0, "{name}");
            assert_eq!(low_and_high.1.double_value(&[]), 7.0, "{name}");
        }
    }

    #[test]
    fn units_are_two_to_the_minus_44_and_halves_go_to_the_even_neighbour() {
        let unit = 2f32.powi(-44);
        for (value, units) in [
            (0.0, 0.0),
            (-0.0, 0.0),
            (1.0, 1.0),
            (0.5, 0.0),
            (1.5, 2.0),
            (-2.5, -2.0),
            (0.51, 1.0),
        ] {
            assert_eq!(
                sum(&[value * unit]).unwrap() / f64::from(unit),
                units,
                "{value}"
            );
        }
        // Each micro-batch is rounded by itself.
        assert_eq!(
            sum(&[0.6 * unit, 0.6 * unit]).unwrap() / f64::from(unit),
            2.0
        );
        assert_eq!(sum(&[0.25, -0.25]).unwrap(), 0.0);
    }

    #[test]
    fn the_bound_itself_fits_whatever_the_others_are_and_what_is_larger_is_refused_by_all() {
        for count in [1usize, 3, 4] {
            let bound = 2f32.powi(18) / count.next_power_of_two() as f32;
            assert_eq!(
                sum(&vec![bound; count]).unwrap(),
                f64::from(bound) * count as f64
            );
            assert_eq!(
                sum(&vec![-bound; count]).unwrap(),
                -f64::from(bound) * count as f64
            );
            let mut values = vec![0.0; count];
            values[0] = f32::from_bits(bound.to_bits() + 1);
            let error = sum(&values).unwrap_err();
            assert!(error.is::<TooLarge>(), "{error}");
            assert!(
                error.to_string().contains(&format!("({bound:e} ")),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_not_finite_makes_the_whole_gradient_not_a_number_and_is_forgotten_by_the_next_step()
    {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(sum(&[0.5, value]).unwrap().is_nan(), "{value}");
        }
        let parameters = parameters();
        let mut exact = ExactSum::new(&parameters, 1, 3);
        exact.add(&[f64::NAN, 0.0, 0.0], 1.0);
        exact.reduce(&alone(), (1.0, false), 1).unwrap();
        assert!(parameters[2].1.grad().double_value(&[1]).is_nan());
        set_gradients(&parameters, 3);
        let before = bits(&parameters);
        exact.add(&[0.5, 0.25, 0.0], 1.0);
        let sums = exact.reduce(&alone(), (1.0, true), 2).unwrap();
        assert_eq!((sums.losses, sums.flagged), (vec![0.5, 0.25, 0.0], 1));
        let after = bits(&parameters);
        let far =
            |(a, b): (&u32, &u32)| (f32::from_bits(*a) - f32::from_bits(*b)).abs() > 2f32.powi(-44);
        assert!(!before.iter().zip(&after).any(far));
    }

    #[test]
    fn a_loss_scale_changes_nothing_but_the_scale() {
        let scaled = |scale: f64| {
            let parameters = parameters();
            let mut exact = ExactSum::new(&parameters, 1, 3);
            set_gradients(&parameters, 9);
            parameters
                .iter()
                .for_each(|(_, p)| p.grad().copy_(&(p.grad() * scale)));
            exact.add(&[0.0; 3], scale);
            exact.reduce(&alone(), (scale, false), 1).unwrap();
            parameters
                .iter()
                .for_each(|(_, p)| p.grad().copy_(&(p.grad() / scale)));
            bits(&parameters)
        };
        assert!(scaled(1.0) == scaled(65536.0));
    }
}
