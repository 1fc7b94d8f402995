//! The validation loss: the same bits at every world size, and without effect on the training.

use crate::world::{World, failure, last_digest, resumed_from, world_of};
use proto::id::{Generation, Step};
use proto::message::{Assignment, LossTerm, RankPhase, RankReport};

/// The job with `[data] holdout`, exact reduction and these lines in [train].
fn job(world: &World, (generation, ranks): (u64, u32), train: &str) -> Assignment {
    let toml = world
        .assignment
        .job_toml
        .replace("seed = 5", "seed = 5\nholdout = 0.5");
    Assignment {
        generation: Generation(generation),
        run: world_of(ranks),
        job_toml: toml.replace(
            "threads = 1",
            &format!("threads = 1\nreduction = \"exact\"\n{train}"),
        ),
        ..world.assignment.clone()
    }
}

/// Step, name and bits of every validation term.
fn validations(report: &RankReport) -> Vec<(u64, String, u64)> {
    let steps = report.steps.iter().flat_map(|step| {
        let terms = step.terms.iter().filter(|term| term.is_validation());
        terms.map(|LossTerm { name, value }| (step.step.0, name.clone(), value.to_bits()))
    });
    steps.collect()
}

#[test]
fn a_validation_has_the_same_bits_at_every_world_size_and_changes_no_training() {
    let world = World::new();
    let validate = "validate_every = 2\nvalidate_samples = 3";
    let plain = world.run(&job(&world, (1, 1), ""));
    assert_eq!(validations(&plain[0]), []);
    let one = job(&world, (2, 1), validate);
    let reports = world.run(&one);
    let alone = validations(&reports[0]);
    let names: Vec<(u64, &str)> = alone
        .iter()
        .map(|(step, name, _)| (*step, &**name))
        .collect();
    assert_eq!(
        names,
        [
            (2, "validation"),
            (2, "validation_target"),
            (2, "validation_face"),
            (4, "validation"),
            (4, "validation_target"),
            (4, "validation_face"),
        ]
    );
    assert_ne!(alone[0].2, alone[3].2, "the weights have changed");
    for (_, name, bits) in &alone {
        let value = f64::from_bits(*bits);
        assert!(value.is_finite() && 0.0 < value, "{name}: {value}");
    }
    assert_eq!(last_digest(&reports[0]), last_digest(&plain[0]));
    let losses = |reports: &[RankReport]| -> Vec<u64> {
        let steps = reports[0].steps.iter();
        steps.map(|step| step.loss.to_bits()).collect()
    };
    assert_eq!(losses(&reports), losses(&plain));
    assert!(0.0 < reports[0].steps[1].seconds.validation);

    let pair = world.run(&job(&world, (3, 2), validate));
    assert_eq!(validations(&pair[0]), alone);
    assert_eq!(last_digest(&pair[0]), last_digest(&plain[0]));

    let resumed = Assignment {
        run: resumed_from(&one, Some(world.commit(&one, &reports, Step(2)))),
        generation: Generation(4),
        ..one
    };
    assert_eq!(validations(&world.run(&resumed)[0]), alone[3..]);
}

#[test]
fn an_autoencoder_is_measured_by_its_reconstruction() {
    let world = World::new();
    let mut assignment = job(&world, (1, 1), "validate_every = 4");
    assignment.job_toml = assignment
        .job_toml
        .replace("\"retrinet\"", "\"autoencoder\"")
        .replace("references = 2\n", "");
    let found = validations(&world.run(&assignment)[0]);
    let names: Vec<(u64, &str)> = found
        .iter()
        .map(|(step, name, _)| (*step, &**name))
        .collect();
    assert_eq!(names, [(4, "validation")]);
}

#[test]
fn a_validation_without_held_out_samples_ends_the_job_with_the_reason() {
    let world = World::new();
    let mut assignment = job(&world, (1, 1), "validate_every = 2");
    assignment.job_toml = assignment
        .job_toml
        .replace("holdout = 0.5", "holdout = 1e-9");
    let last = world.run(&assignment).remove(0);
    let error = failure(&last);
    assert!(
        error.contains("train.validate_every is 2, but no sample of file://")
            && error.contains("data.holdout is 0.000000001; raise it"),
        "{error}"
    );
    assert_ne!(last.phase, RankPhase::Finished);
}
