//! Failures that end a rank or a job, and their error messages.

use crate::world::{
    TestRank, World, copy_renamed, failure, last_digest, resumed_from, with_store_address, world_of,
};
use proto::checkpoint::CheckpointRef;
use proto::id::{Generation, JobId, Step};
use proto::message::{Activity, Assignment, RankPhase, RankReport, Stage};
use proto::reason::RankFailure;
use proto::sample::SampleWork;

#[test]
fn a_failure_is_reported_in_one_line_with_rank_context_and_reason() {
    let world = World::new();
    let check = |change: fn(&mut Assignment), parts: &[&str]| {
        let mut assignment = world.assignment.clone();
        change(&mut assignment);
        assignment.generation = Generation(10 + parts[0].len() as u64);
        let last = world.run(&assignment).remove(0);
        let error = failure(&last);
        assert!(error.starts_with("rank 0 of generation "), "{error}");
        for part in parts {
            assert!(error.contains(part), "{error:?} lacks {part:?}");
        }
    };
    check(
        |a| a.dataset_version = "0".into(),
        &["the job was submitted with 0"],
    );
    check(
        |a| a.job_toml = "name = 1".into(),
        &["job.toml of tiny-1:1"],
    );
    let missing = |a: &mut Assignment| {
        let lost = CheckpointRef {
            step: Step(2),
            generation: Generation(7),
        };
        a.run = resumed_from(a, Some(lost));
    };
    check(missing, &["cannot resume", "0000000002-g7/manifest.json"]);
}

#[test]
fn a_rank_keeps_its_state_while_the_store_rejects_checkpoints_and_writes_it_afterwards() {
    let world = World::new();
    let whole = last_digest(&world.run(&world.assignment)[0]);
    let second = Assignment {
        job: JobId("tiny-2".into()),
        detect_within_ms: 300,
        ..world.assignment.clone()
    };
    // A file in the place of the folder: every write fails, as on a full disk.
    let folder = world.folder.path().join("store/jobs/tiny-2");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("checkpoints"), "").unwrap();
    let mut rank = TestRank::start(world.folder.path(), &second, 0);
    // Two retry intervals.
    let waits = |activity: Activity| activity.stage == Stage::Checkpoint && 600 < activity.for_ms;
    let report = rank.until(|report| report.activity.is_some_and(waits));
    assert_eq!(
        (&report.phase, report.shards.len()),
        (&RankPhase::Training, 0)
    );
    std::fs::remove_file(folder.join("checkpoints")).unwrap();
    let report = rank.finish();
    assert!(
        report.shards.iter().map(|shard| shard.step.0).eq([2, 4]),
        "{report:?}"
    );
    assert_eq!(last_digest(&report), whole);
}

#[test]
fn a_rank_whose_process_rounds_differently_is_refused_by_name() {
    let world = World::new();
    let pair = Assignment {
        run: world_of(2),
        ..world.assignment.clone()
    };
    // A variable that MKL reads: the same sums have other bits.
    let variables = [("MKL_CBWR", "COMPATIBLE")];
    let folder = world.folder.path();
    let mut first = TestRank::start(folder, &pair, 0);
    let mut other = TestRank::start_with(folder, &pair, 1, &variables);
    let opened = first.until(|report| report.store_address.is_some());
    let addressed = Assignment {
        run: with_store_address(&pair, opened.store_address),
        ..pair
    };
    first.order(&addressed);
    other.order(&addressed);
    let last = other.finish();
    let error = failure(&last);
    assert!(
        error.contains("rank 1 on ")
            && error.contains(" (127.0.0.1) has numerics \"")
            && error.contains(", MKL_CBWR=COMPATIBLE\" instead of \"")
            && error.contains(", as on rank 0 ("),
        "{error}"
    );
    // Rank 0 keeps its state and waits for a generation with other ranks.
    let report = first.until(|report| matches!(report.phase, RankPhase::Broken { .. }));
    let RankPhase::Broken { error } = report.phase else {
        unreachable!()
    };
    assert!(error.contains("MKL_CBWR=COMPATIBLE"), "{error}");
}

/// Writes base weights with only an autoencoder, from a job's checkpoint after `step`. Returns the
/// `init` line for job.toml.
fn base_of(world: &World, autoencoder: &Assignment, (name, step): (&str, u64)) -> String {
    let shard = world.checkpoint(autoencoder, Step(step));
    let folder = world.folder.path().join(name);
    let file = folder.join("autoencoder.safetensors");
    copy_renamed(&shard.join("rank-0-of-1.safetensors"), &file, |name| {
        name.strip_prefix("weights/autoencoder.").map(str::to_owned)
    });
    format!("\ninit = \"file://{}\"", folder.display())
}

#[test]
fn base_weights_that_changed_since_the_checkpoint_are_refused_with_both_digests() {
    let world = World::new();
    let job = |generation, architecture: &str, init: &str| {
        let toml = &world.assignment.job_toml;
        let toml = toml.replace("\"retrinet\"", &format!("\"{architecture}\"{init}"));
        Assignment {
            generation: Generation(generation),
            job_toml: toml.replace("references = 2\n", ""),
            ..world.assignment.clone()
        }
    };
    let autoencoder = job(1, "autoencoder", "");
    assert_eq!(world.run(&autoencoder)[0].phase, RankPhase::Finished);
    let init = base_of(&world, &autoencoder, ("base", 2));
    let first = job(2, "text-to-image", &init);
    let reports = world.run(&first);
    let made_with = reports[0].shards[0].init_digest.clone().unwrap();
    let resume = Some(world.commit(&first, &reports, Step(2)));
    let resumed = |generation| Assignment {
        run: resumed_from(&first, resume),
        ..job(generation, "text-to-image", &init)
    };
    assert_eq!(world.run(&resumed(3))[0].phase, RankPhase::Finished);
    // The same URL, other weights.
    base_of(&world, &autoencoder, ("base", 4));
    let work = SampleWork::of(first.job.clone());
    let sampling = world.sampling(&first, "tiny-1-sample-5", &work, resume);
    for assignment in [resumed(4), sampling] {
        let reports = world.run(&assignment);
        let error = failure(&reports[0]);
        assert!(
            error.contains("the base weights have the SHA-256 ")
                && error.contains(&format!(
                    "0000000002-g2/manifest.json was made with {made_with}: "
                )),
            "{error}"
        );
    }
    // Two ranks that start from different base weights.
    let pair = |init: &str| Assignment {
        run: world_of(2),
        ..job(6, "text-to-image", init)
    };
    let other = base_of(&world, &autoencoder, ("other", 2));
    let mut opener = TestRank::start(world.folder.path(), &pair(&init), 0);
    let opened = opener.until(|report| report.store_address.is_some());
    let addressed = |init: &str| Assignment {
        run: with_store_address(&pair(init), opened.store_address.clone()),
        ..pair(init)
    };
    opener.order(&addressed(&init));
    let second = addressed(&other);
    let mut second = TestRank::start(world.folder.path(), &second, 1);
    for report in [opener.finish(), second.finish()] {
        let error = failure(&report);
        assert!(
            error.contains("the ranks differ in the base weights"),
            "{error}"
        );
    }
}

#[test]
fn base_weights_that_are_not_finite_end_the_job_with_url_file_and_tensor() {
    let world = World::new();
    let toml = world.assignment.job_toml.replace("references = 2\n", "");
    let job = |generation, model: &str| Assignment {
        generation: Generation(generation),
        job_toml: toml.replace("\"retrinet\"", model),
        ..world.assignment.clone()
    };
    let autoencoder = job(1, "\"autoencoder\"");
    assert_eq!(world.run(&autoencoder)[0].phase, RankPhase::Finished);
    let init = base_of(&world, &autoencoder, ("base", 2));
    let file = world.folder.path().join("base/autoencoder.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    let report = world
        .run(&job(2, &format!("\"text-to-image\"{init}")))
        .remove(0);
    let error = failure(&report);
    assert!(
        error.contains("model.init file://")
            && error.contains("base/autoencoder.safetensors: tensor \"")
            && error.contains("holds a value that is not finite"),
        "{error}"
    );
    // The failure is permanent: every later generation would fail alike.
    assert!(matches!(
        report.phase,
        RankPhase::Failed { failure } if failure.is_permanent()
    ));
}

/// Runs two ranks of a job whose first update makes the weights diverge.
fn diverging(world: &World, on_nonfinite: &str) -> (Assignment, Vec<RankReport>) {
    let rate = format!("learning_rate = 1e30\non_nonfinite = \"{on_nonfinite}\"");
    let pair = Assignment {
        run: world_of(2),
        job_toml: world
            .assignment
            .job_toml
            .replace("learning_rate = 0.001", &rate),
        ..world.assignment.clone()
    };
    let reports = world.run(&pair);
    (pair, reports)
}

#[test]
fn a_loss_that_is_no_number_ends_the_job_on_all_ranks_with_step_and_samples() {
    let (_, reports) = diverging(&World::new(), "stop");
    let error = |report: &RankReport| match &report.phase {
        RankPhase::Failed {
            failure:
                RankFailure::Error {
                    text,
                    permanent: true,
                    ..
                },
        } => text.split_once(": ").unwrap().1.to_owned(),
        phase => panic!("{phase:?}"),
    };
    let (first, second) = (error(&reports[0]), error(&reports[1]));
    assert_eq!(first, second, "all ranks report the same error");
    assert!(
        first.starts_with(
            "step 2: the loss is not finite; nothing was changed; the samples at positions "
        ) && first.contains("(id "),
        "{first}"
    );
    assert_eq!(reports[0].steps.len(), 1);
}

#[test]
fn steps_that_are_skipped_are_counted_and_leave_the_weights_alone() {
    let world = World::new();
    let (pair, reports) = diverging(&world, "skip");
    assert!(
        reports
            .iter()
            .all(|report| report.phase == RankPhase::Finished),
        "{reports:?}"
    );
    let skipped: Vec<u64> = reports[0]
        .steps
        .iter()
        .map(|step| step.skipped_steps)
        .collect();
    assert_eq!(skipped, [0, 1, 2, 3]);
    assert!(reports[0].steps.iter().all(|step| step.loss.is_finite()));
    let (second, last) = (world.state(&pair, 2), world.state(&pair, 4));
    for (name, values) in &last {
        assert!(
            values == &second[name] || name.starts_with("guard/"),
            "{name}"
        );
    }
    assert_eq!(last["guard/skipped"], [3.0]);
}

#[test]
fn a_loss_that_an_exact_sum_cannot_hold_ends_the_job_on_all_ranks_with_step_and_samples() {
    let world = World::new();
    let pair = Assignment {
        run: world_of(2),
        job_toml: world.assignment.job_toml.replace(
            "learning_rate = 0.001",
            "learning_rate = 100.0\nreduction = \"exact\"",
        ),
        ..world.assignment.clone()
    };
    for report in world.run(&pair) {
        let RankPhase::Failed {
            failure:
                RankFailure::Error {
                    text: error,
                    permanent: true,
                    ..
                },
        } = report.phase
        else {
            panic!("{report:?}")
        };
        for part in [
            ": step ",
            ": the gradient or loss of a micro-batch is larger than an exact sum holds (6.5536e4 \
            for an element of the gradient, 1.048576e6 for a loss)",
            "nothing was changed; if such values are expected, use train.reduction = \"fast\"",
            "; the samples at positions ",
        ] {
            assert!(error.contains(part), "{error:?} lacks {part:?}");
        }
    }
}
