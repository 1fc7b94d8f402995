//! `[train]`: defaults and bounds. Called by [`super::check`].

use super::kebab;
use crate::architecture::Defaults;
use crate::duration;
use crate::job::NO_LIMIT;
use crate::job::faults::Faults;
use crate::job::raw::{OptimizerToml, TrainToml};
use crate::spec::{Decay, OnNonfinite, Optimizer, Precision, Reduction, Train};
use std::time::Duration;

const STEPS_MAX: u64 = 1_000_000_000_000;
const GLOBAL_BATCH_MAX: u32 = 1 << 20;
/// Default number of held-out samples of a validation.
const VALIDATE_SAMPLES: u32 = 64;
/// Its values of all batches fit in one all-reduce.
const VALIDATE_SAMPLES_MAX: u32 = 1 << 16;

/// `defaults` are those of the job's architecture.
pub(super) fn train(raw: &TrainToml, defaults: Defaults, faults: &mut Faults) -> Train {
    let train = Train {
        steps: raw.steps,
        global_batch: raw.global_batch,
        micro_batch: raw.micro_batch,
        optimizer: optimizer(&raw.optimizer, defaults, faults),
        learning_rate: raw.learning_rate.unwrap_or(defaults.learning_rate),
        learning_rates: raw.learning_rates.clone(),
        warmup: raw.warmup.unwrap_or(defaults.warmup),
        decay: raw.decay.unwrap_or(Decay::Constant),
        clip: Some(raw.clip.unwrap_or(defaults.clip)).filter(|clip| *clip != 0.0),
        ema: raw.ema.filter(|ema| *ema != 0.0),
        precision: raw.precision.unwrap_or(Precision::Fp32),
        on_nonfinite: raw.on_nonfinite.unwrap_or(OnNonfinite::Stop),
        latent_cache_mib: raw.latent_cache_mib.unwrap_or(0),
        reduction: raw.reduction.unwrap_or(Reduction::Fast),
        threads: raw.threads.unwrap_or(1),
        digest_every: raw.digest_every.unwrap_or(100),
        validate_every: raw.validate_every.unwrap_or(0),
        validate_samples: raw.validate_samples.unwrap_or(VALIDATE_SAMPLES),
        time_limit: time_limit(raw.time_limit.as_deref(), faults),
    };
    faults.positive("train.steps", train.steps);
    // Positions in the infinite sample order are 64-bit numbers.
    faults.need(train.steps <= STEPS_MAX, "train.steps", || {
        format!("is {}; it must be at most {STEPS_MAX}", train.steps)
    });
    faults.positive("train.micro_batch", train.micro_batch.into());
    faults.count("train.global_batch", train.global_batch, GLOBAL_BATCH_MAX);
    let divides = train.micro_batch == 0 || train.global_batch.is_multiple_of(train.micro_batch);
    faults.need(divides, "train.global_batch", || {
        format!(
            "is {}; it must be a multiple of train.micro_batch, which is {}",
            train.global_batch, train.micro_batch
        )
    });
    faults.non_negative("train.learning_rate", train.learning_rate);
    for (component, rate) in &train.learning_rates {
        faults.non_negative(&format!("train.learning_rates.{}", kebab(component)), *rate);
    }
    faults.non_negative("train.clip", train.clip.unwrap_or(0.0));
    let ema = train.ema.unwrap_or(0.0);
    faults.need((0.0..1.0).contains(&ema), "train.ema", || {
        format!("is {ema}; it must be at least 0 (no average) and below 1, such as 0.9999")
    });
    faults.count(
        "train.validate_samples",
        train.validate_samples,
        VALIDATE_SAMPLES_MAX,
    );
    faults.need((1..=256).contains(&train.threads), "train.threads", || {
        format!(
            "is {}; a rank computes with 1 to 256 threads",
            train.threads
        )
    });
    train
}

fn time_limit(raw: Option<&str>, faults: &mut Faults) -> Option<Duration> {
    let text = raw.filter(|text| *text != NO_LIMIT)?;
    let limit = duration::parse(text);
    faults.need(limit.is_some(), "train.time_limit", || {
        format!(
            "is {text:?}; it must be {}, or \"{NO_LIMIT}\"",
            duration::EXPECTED
        )
    });
    limit
}

fn optimizer(raw: &OptimizerToml, defaults: Defaults, faults: &mut Faults) -> Optimizer {
    let (beta1, beta2) = (raw.beta1.unwrap_or(0.9), raw.beta2.unwrap_or(0.999));
    for (field, beta) in [
        ("train.optimizer.beta1", beta1),
        ("train.optimizer.beta2", beta2),
    ] {
        faults.need((0.0..1.0).contains(&beta), field, || {
            format!("is {beta}; it must be at least 0 and below 1")
        });
    }
    let (epsilon, weight_decay) = (
        raw.epsilon.unwrap_or(1e-8),
        raw.weight_decay.unwrap_or(defaults.weight_decay),
    );
    faults.need(
        epsilon.is_finite() && epsilon > 0.0,
        "train.optimizer.epsilon",
        || format!("is {epsilon}; it must be a number above 0"),
    );
    faults.non_negative("train.optimizer.weight_decay", weight_decay);
    Optimizer::AdamW {
        beta1,
        beta2,
        epsilon,
        weight_decay,
    }
}
