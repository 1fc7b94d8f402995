//! Several ranks train to the same weights and losses as one, and again after resuming from a
//! checkpoint.

use crate::world::{World, resumed_from, world_of};
use proto::id::{Generation, Step};
use proto::message::{Assignment, RankPhase, RankReport};
use std::collections::BTreeMap;

fn assert_close(a: &BTreeMap<String, Vec<f32>>, b: &BTreeMap<String, Vec<f32>>) {
    assert!(!a.is_empty());
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, values) in a {
        for (x, y) in values.iter().zip(&b[name]) {
            // Adam divides by the root of small second moments, which amplifies the rounding of
            // float sums.
            assert!(
                (x - y).abs() <= 2e-4 * (1.0 + x.abs()),
                "{name}: {x} and {y}"
            );
        }
    }
}

#[test]
fn two_ranks_train_to_the_weights_of_one_and_report_every_step() {
    let world = World::new();
    let one = world.run(&world.assignment);
    assert_eq!(one[0].phase, RankPhase::Finished);
    let pair = Assignment {
        generation: Generation(2),
        run: world_of(2),
        ..world.assignment.clone()
    };
    let two = world.run(&pair);
    assert!(
        two.iter().all(|report| report.phase == RankPhase::Finished),
        "{two:?}"
    );
    // Uneven: three micro-batches over two ranks. Rank 1's shard has rank 1's weights.
    assert_close(&world.state(&world.assignment, 4), &world.state(&pair, 4));
    assert_eq!(two[1].steps, vec![], "rank 0 alone reports steps");
    let steps: Vec<u64> = two[0].steps.iter().map(|step| step.step.0).collect();
    assert_eq!(steps, [1, 2, 3, 4]);
    for (a, b) in one[0].steps.iter().zip(&two[0].steps) {
        assert!((a.loss - b.loss).abs() < 1e-3 * a.loss, "{a:?} {b:?}");
        assert!(
            b.seconds.communication > 0.0 && b.seconds.backward > 0.0,
            "{b:?}"
        );
        assert_eq!(a.samples, 6);
        assert!(a.peak_memory_bytes > 50 << 20);
    }
    assert!(two[0].shards.iter().map(|shard| shard.step.0).eq([2, 4]));
    assert_eq!(two[0].digests.len(), 2);
    assert_eq!(
        two[0].digests, two[1].digests,
        "all ranks have the same weights"
    );
}

#[test]
fn a_resumed_rank_ends_with_the_bits_of_one_that_never_stopped() {
    let world = World::new();
    let whole = world.run(&world.assignment);
    let resume = world.commit(&world.assignment, &whole, Step(2));
    let second = Assignment {
        generation: Generation(2),
        run: resumed_from(&world.assignment, Some(resume)),
        ..world.assignment.clone()
    };
    let resumed = world.run(&second);
    let steps: Vec<u64> = resumed[0].steps.iter().map(|step| step.step.0).collect();
    assert_eq!(steps, [3, 4]);
    assert_eq!(world.state(&world.assignment, 4), world.state(&second, 4));
}

/// Runs two ranks with lines added to the job's [model] and [train] tables.
fn pair_with(
    world: &World,
    generation: u64,
    model: &str,
    train: &str,
) -> (Assignment, Vec<RankReport>) {
    let toml = &world.assignment.job_toml;
    let toml = toml.replace("size = \"tiny\"", &format!("size = \"tiny\"\n{model}"));
    let pair = Assignment {
        generation: Generation(generation),
        run: world_of(2),
        job_toml: toml.replace("threads = 1", &format!("threads = 1\n{train}")),
        ..world.assignment.clone()
    };
    let reports = world.run(&pair);
    assert!(
        reports
            .iter()
            .all(|report| report.phase == RankPhase::Finished),
        "{reports:?}"
    );
    (pair, reports)
}

#[test]
fn activation_checkpointing_does_not_change_the_reduced_bits() {
    let world = World::new();
    let (plain, _) = pair_with(&world, 1, "", "");
    let lines =
        "activation_checkpointing = [\"decoder\", \"retrieval-encoder\", \"cross-attention\"]";
    let (checkpointed, _) = pair_with(&world, 2, lines, "");
    assert_eq!(world.state(&plain, 4), world.state(&checkpointed, 4));
}

#[test]
fn ranks_in_fp16_agree_on_the_loss_scale_and_resume_with_it() {
    let world = World::new();
    let (pair, reports) = pair_with(&world, 1, "", "precision = \"fp16\"");
    let last = reports[0].steps.last().unwrap();
    let saved = world.state(&pair, 4);
    assert_eq!(f64::from(saved["guard/loss_scale"][0]), last.loss_scale);
    // Resuming from the checkpoint in the middle ends with the same state.
    let resumed = Assignment {
        generation: Generation(2),
        run: resumed_from(&pair, Some(world.commit(&pair, &reports, Step(2)))),
        ..pair
    };
    world.run(&resumed);
    assert_eq!(world.state(&resumed, 4), saved);
}
