//! `reduction = "exact"`: the gradient of a step as a sum that does not depend on who computed
//! which micro-batch, in what order, or how the ranks' sums were added up. Every micro-batch's
//! gradient is rounded to a multiple of 2^-44 and added into 64-bit integers; integers are summed
//! over ranks and turned back once. Whole numbers add up to the same bits in any order, floats do
//! not. Losses go the same way. Called by [`crate::train`]; it never looks at the step, the rank or
//! the world, so none of them can change a bit.
//!
//! Resolution: 2^-44 = 5.7e-14 of the gradient of the mean loss, whatever its size. AdamW divides
//! by `sqrt(v) + epsilon`, so with the default epsilon of 1e-8 rounding one micro-batch can move an
//! update by at most 3 millionths of the learning rate.
//!
//! Overflow: with M micro-batches, rounded up to a power of two, an element of one micro-batch's
//! share of the gradient may be up to 2^18 / M, so that M of them stay within 2^62. Every element
//! is compared before it is added; one that is larger is counted, the count is summed like
//! everything else, and all ranks refuse the step alike, which ends the job ([`TooLarge`]). What is
//! not finite is counted apart and makes the whole gradient not a number, as a float sum would.
//!
//! Memory: 8 bytes for each trained value beside the gradients' 4, and a few megabytes to work in.
//! Gradients of neighbouring parameters lie side by side, so that they are rounded and added by the
//! piece and not one by one.

use crate::collective::Group;
use anyhow::bail;
use tch::{Device, Kind, Tensor};

/// Binary places after the point of a gradient's elements, and of losses.
const GRADIENT_PLACES: i32 = 44;
const LOSS_PLACES: i32 = 40;
/// Sums stay within plus or minus two to this power.
const SUM_BITS: i32 = 62;

/// Values of one all-reduce, at least where there are so many: 8 MiB, so that one is turned back
/// while the next is on its way, and 32 MiB on a GPU.
const BUCKET_VALUES: usize = 1 << 20;
const BUCKET_VALUES_OF_GPU: usize = 1 << 22;
/// Values that are rounded together: they stay in a core's cache.
const CHUNK_VALUES: usize = 1 << 16;

/// The sums of one step so far; empty again after [`Self::reduce`].
#[derive(Debug)]
pub(crate) struct ExactSum {
    buckets: Vec<Bucket>,
    /// Nothing was added yet: what lies in the buckets is of a step before.
    is_empty: bool,
    /// The most units that one micro-batch may add to one sum.
    limit: f64,
    /// The whole loss, then its terms.
    losses: Vec<i64>,
    too_large: i64,
    not_finite: i64,
}

/// What a step came to, beside its gradients.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sums {
    /// In the order in which they were added.
    pub(crate) losses: Vec<f64>,
    pub(crate) progress: i64,
}

/// A micro-batch came to more than fits, on some rank. All ranks hear it of the same step, and
/// would again.
#[derive(Debug, thiserror::Error)]
#[error(
    "the gradient or loss of a micro-batch is larger than an exact sum holds ({element:e} for an \
    element of the gradient, \
     {loss:e} for a loss); nothing was changed; if such numbers are right, use train.reduction = \
    \"fast\", and if they are \
     not, a smaller train.learning_rate or a longer train.warmup (train.clip acts on the sum and \
    is too late)"
)]
pub(crate) struct TooLarge {
    element: f64,
    loss: f64,
}

/// Neighbouring parameters. Both tensors are flat and as long.
#[derive(Debug)]
struct Bucket {
    /// The parameters' gradients are views of it.
    gradients: Tensor,
    sums: Tensor,
}

/// None: too large or not a number.
fn whole(value: f64, places: i32, limit: f64) -> Option<i64> {
    let units = (value * 2f64.powi(places)).round_ties_even();
    // Within the limit, which is below 2^63, the cast is exact.
    (units.abs() <= limit).then_some(units as i64)
}

impl ExactSum {
    /// For `parameters`, whose gradients exist, steps of so many micro-batches over all ranks, and
    /// so many losses. The gradients are moved, once: from now on they must be zeroed in place.
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
            buckets: fill(parameters, values, |(_, parameter)| parameter.numel())
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

    /// Forgets what was added to a step that did not end.
    pub(crate) fn clear(&mut self) {
        self.is_empty = true;
        self.losses.fill(0);
        (self.too_large, self.not_finite) = (0, 0);
    }

    /// Adds one micro-batch: its losses, and the gradients that lie in the parameters, and leaves
    /// zeros there. `loss_scale`: the power of two by which the loss was multiplied before its
    /// backward.
    pub(crate) fn add(&mut self, losses: &[f64], loss_scale: f64) {
        for (sum, loss) in self.losses.iter_mut().zip(losses) {
            match whole(*loss, LOSS_PLACES, self.limit) {
                Some(units) => *sum += units,
                None if loss.is_finite() => self.too_large += 1,
                None => self.not_finite += 1,
            }
        }
        let factor = 2f64.powi(GRADIENT_PLACES) / loss_scale;
        let is_first = std::mem::take(&mut self.is_empty);
        tch::no_grad(|| {
            for (mut gradients, mut sums) in self.buckets.iter().flat_map(Bucket::pieces) {
                // Multiplying by a power of two is exact.
                let mut units = gradients.g_mul_scalar(factor);
                let _ = gradients.zero_();
                let worthless = match largest(&units) {
                    fits if fits <= self.limit => None,
                    large if large.is_finite() => Some(&mut self.too_large),
                    _ => Some(&mut self.not_finite),
                };
                if let Some(count) = worthless {
                    *count += 1;
                    // No integer holds it, and nobody will use this sum.
                    let _ = units.zero_();
                }
                // Halves go to the even neighbour.
                let units = units.round_();
                if is_first {
                    sums.copy_(&units);
                } else {
                    let _ = sums.g_add_(&units.to_kind(Kind::Int64));
                }
            }
        });
    }

    /// Ends the step: the parameters' gradients are the sums over all micro-batches of all ranks
    /// (times `loss_scale` again), and the losses are returned. The same bits on every rank.
    /// `mark`: counted over the ranks.
    pub(crate) fn reduce(
        &mut self,
        group: &Group,
        (loss_scale, mark): (f64, bool),
        step: u64,
    ) -> anyhow::Result<Sums> {
        let counts = [self.too_large, self.not_finite, i64::from(mark)];
        let figures = [self.losses.as_slice(), &counts].concat();
        let figures = Tensor::from_slice(&figures).to_device(group.membership().device);
        group.all_reduce(&figures, &format!("adding up the losses of step {step}"))?;
        let figures = Vec::<i64>::try_from(&figures.to_device(Device::Cpu))?;
        let Some((losses, &[too_large, not_finite, progress])) = figures.split_last_chunk() else {
            bail!("the sums of a step became {} numbers", figures.len())
        };
        if too_large != 0 {
            return Err(TooLarge {
                element: self.limit / 2f64.powi(GRADIENT_PLACES),
                loss: self.limit / 2f64.powi(LOSS_PLACES),
            }
            .into());
        }
        let factor = if not_finite == 0 {
            loss_scale
        } else {
            f64::NAN
        };
        let unit = factor / 2f64.powi(GRADIENT_PLACES);
        let sums: Vec<Tensor> = self
            .buckets
            .iter()
            .map(|it| it.sums.shallow_clone())
            .collect();
        let what = format!("adding up the gradients of step {step}");
        group.all_reduce_each(&sums, &what, |bucket| self.buckets[bucket].give_back(unit))?;
        self.clear();
        let loss = |units: i64| units as f64 / 2f64.powi(LOSS_PLACES);
        Ok(Sums {
            losses: losses.iter().map(|units| loss(*units)).collect(),
            progress,
        })
    }
}

/// The largest magnitude; not a number if one is none.
fn largest(units: &Tensor) -> f64 {
    let (low, high) = units.aminmax(None, false);
    let (low, high) = (-low.double_value(&[]), high.double_value(&[]));
    if low.is_nan() { low } else { low.max(high) }
}

impl Bucket {
    /// Takes over the parameters' gradients, and what is in them.
    fn new(parameters: &[(String, Tensor)]) -> Self {
        let gradients: Vec<Tensor> = parameters
            .iter()
            .map(|(_, parameter)| parameter.grad())
            .collect();
        let flat: Vec<Tensor> = gradients.iter().map(|own| own.flatten(0, -1)).collect();
        let flat = Tensor::cat(&flat, 0);
        let mut start = 0;
        for mut own in gradients {
            let length = own.numel() as i64;
            let view = flat.narrow(0, start, length).view(own.size().as_slice());
            own.set_data(&view);
            start += length;
        }
        Self {
            sums: Tensor::zeros([start], (Kind::Int64, flat.device())),
            gradients: flat,
        }
    }

    fn give_back(&self, unit: f64) {
        tch::no_grad(|| {
            for (mut gradients, sums) in self.pieces() {
                gradients.copy_(&sums.to_kind(Kind::Double).g_mul_scalar_(unit));
            }
        });
    }

    /// Gradients and sums, so many at a time.
    fn pieces(&self) -> impl Iterator<Item = (Tensor, Tensor)> {
        // A GPU has no cache to stay in, and answers slowly what the largest value is.
        let most = match self.gradients.device() {
            Device::Cpu => CHUNK_VALUES as i64,
            _ => self.gradients.size()[0],
        };
        let gradients = self.gradients.split(most, 0);
        gradients.into_iter().zip(self.sums.split(most, 0))
    }
}

/// Cuts a list into runs that are closed as soon as their sizes reach `full`; none is empty.
pub(crate) fn fill<T>(list: &[T], full: usize, size: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let (mut runs, mut start, mut sum) = (Vec::new(), 0, 0);
    for (index, item) in list.iter().enumerate() {
        sum += size(item);
        if full <= sum || index + 1 == list.len() {
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
            device: Device::Cpu,
            timeout: Duration::from_secs(1),
        })
    }

    /// Three parameters, of which the middle one fills a piece by itself.
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

    /// A gradient for every parameter, drawn from `seed`; magnitudes from 1e-9 to 10.
    fn set(parameters: &[(String, Tensor)], seed: u32) {
        for (index, (_, tensor)) in parameters.iter().enumerate() {
            let count = tensor.numel() as i64;
            let place = Tensor::arange(count, (Kind::Double, Device::Cpu))
                + f64::from(seed * 977)
                + index as f64;
            let values = (&place * 1.7).sin() * (&place * 0.3).sin().exp2().pow_tensor_scalar(9);
            let values = values * 1e-3 * (place * 0.11).cos();
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

    /// The first element's gradient after a step whose micro-batches have these.
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
                set(&parameters, *seed);
                for (sum, (_, parameter)) in floats.iter_mut().zip(&parameters) {
                    *sum = &*sum + parameter.grad();
                }
                exact.add(&[f64::from(*seed) / 3.0, 0.1, 0.2], 1.0);
            }
            let losses = exact.reduce(&alone(), (1.0, false), 1).unwrap().losses;
            let exact = bits(&parameters);
            for (sum, (_, parameter)) in floats.iter().zip(&parameters) {
                let difference = (sum - parameter.grad()).abs().max().double_value(&[]);
                assert!(difference < 1e-6, "the sum is a sum: {difference}");
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
            "float sums depend on the order, or this test shows nothing"
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
            // The one is what lay there before.
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
        set(&parameters, 3);
        let before = bits(&parameters);
        exact.add(&[0.5, 0.25, 0.0], 1.0);
        let sums = exact.reduce(&alone(), (1.0, true), 2).unwrap();
        assert_eq!((sums.losses, sums.progress), (vec![0.5, 0.25, 0.0], 1));
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
            set(&parameters, 9);
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
