//! Processes that live on through several generations.

use crate::world::{TestRank, World, last_digest, resumed_from, start_gang, world_of};
use proto::id::{Generation, Step};
use proto::message::{Assignment, GracefulStop, RankOrder, RankPhase};
use std::io::Write;
use std::net::TcpListener;
use std::process::Command;

#[test]
fn ranks_stop_gracefully_together_with_a_checkpoint_and_a_resumed_run_ends_the_same() {
    let world = World::new();
    let whole = world.run(&world.assignment);
    let stopped = Assignment {
        generation: Generation(2),
        run: world_of(2),
        graceful_stop: Some(GracefulStop::WithCheckpoint),
        ..world.assignment.clone()
    };
    let reports = world.run(&stopped);
    for report in &reports {
        assert_eq!(report.phase, RankPhase::Finished, "{report:?}");
        assert!(report.shards.iter().map(|shard| shard.step.0).eq([1]));
    }
    let alone = Assignment {
        generation: Generation(3),
        graceful_stop: Some(GracefulStop::WithCheckpoint),
        ..world.assignment.clone()
    };
    let first = world.run(&alone);
    let resumed = Assignment {
        generation: Generation(4),
        run: resumed_from(&alone, Some(world.commit(&alone, &first, Step(1)))),
        ..world.assignment.clone()
    };
    let rest = world.run(&resumed);
    assert_eq!(
        rest[0].digests, whole[0].digests,
        "resuming after a graceful stop is bit-exact"
    );
}

#[test]
fn survivors_keep_their_state_and_give_it_to_a_new_process() {
    for reduction in ["fast", "exact"] {
        let world = World::new();
        let toml = world
            .assignment
            .job_toml
            .replace("steps = 4", "steps = 24")
            .replace(
                "threads = 1",
                &format!("threads = 1\nreduction = \"{reduction}\""),
            )
            .replace("\nevery = 2", "\nevery = 100");
        let job = |generation, ranks| Assignment {
            job_toml: toml.clone(),
            generation: Generation(generation),
            run: world_of(ranks),
            ..world.assignment.clone()
        };
        let undisturbed = last_digest(&world.run(&job(1, 3))[0]);

        let mut ranks = start_gang(&world, &mut [], &job(2, 3));
        let [first, second, third] = &mut ranks[..] else {
            panic!("three")
        };
        first.until(|report| report.steps.len() > 1);
        second.child.kill().unwrap();
        for survivor in [&mut *first, &mut *third] {
            let RankPhase::Broken { error } = survivor
                .until(|report| matches!(report.phase, RankPhase::Broken { .. }))
                .phase
            else {
                panic!("{reduction}: {:?}", survivor.last)
            };
            assert!(
                error.contains("step ") && error.contains("generation 2 closed its connection"),
                "{error}"
            );
        }
        let process = first.child.id();
        // The third process becomes rank 0; a rank with the newest state broadcasts it to the new
        // one.
        let mut new = start_gang(&world, &mut [third, first], &job(3, 3));
        let reports = [third.finish(), first.finish(), new[0].finish()];
        assert_eq!(first.child.id(), process);
        for report in &reports {
            assert_eq!(report.phase, RankPhase::Finished, "{reduction}: {report:?}");
            assert_eq!(last_digest(report), last_digest(&reports[0]), "{reduction}");
        }
        // The new rank 0 reports the earlier steps too.
        let steps: Vec<u64> = reports[0].steps.iter().map(|step| step.step.0).collect();
        assert_eq!(steps, (1..=24).collect::<Vec<_>>(), "{reduction}");
        // Float sums depend on how the buckets are split, integer sums do not.
        if reduction == "exact" {
            assert_eq!(last_digest(&reports[0]), undisturbed);
        }
    }
}

#[test]
fn a_new_generation_interrupts_ranks_at_work_and_may_shrink_and_grow() {
    let world = World::new();
    let toml = world
        .assignment
        .job_toml
        .replace("steps = 4", "steps = 30")
        .replace("threads = 1", "threads = 1\nreduction = \"exact\"")
        .replace("\nevery = 2", "\nevery = 100");
    let job = |generation, ranks| Assignment {
        job_toml: toml.clone(),
        generation: Generation(generation),
        run: world_of(ranks),
        ..world.assignment.clone()
    };
    let undisturbed = last_digest(&world.run(&job(1, 1))[0]);
    let mut ranks = start_gang(&world, &mut [], &job(2, 2));
    let [first, second] = &mut ranks[..] else {
        panic!("two")
    };
    first.until(|report| report.steps.len() > 1);
    // The second process is suspended; a new order releases the first from waiting for it.
    let stopped = second.child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-STOP", &stopped])
            .status()
            .unwrap()
            .success()
    );
    first.order_as(0, &job(3, 1));
    first.until(|report| report.generation == Generation(3) && report.phase == RankPhase::Training);
    // It resumes two generations later and receives the state.
    assert!(
        Command::new("kill")
            .args(["-CONT", &stopped])
            .status()
            .unwrap()
            .success()
    );
    start_gang(&world, &mut [first, second], &job(4, 2));
    for rank in &mut ranks {
        let report = rank.finish();
        assert_eq!(
            (&report.phase, report.generation.0),
            (&RankPhase::Finished, 4)
        );
        assert_eq!(last_digest(&report), undisturbed);
    }
}

#[test]
fn a_rank_stopped_without_checkpoint_saves_only_when_ordered_and_a_standby_keeps_its_state() {
    let world = World::new();
    let without_checkpoint = Assignment {
        graceful_stop: Some(GracefulStop::WithoutCheckpoint),
        ..world.assignment.clone()
    };
    let mut rank = TestRank::start(world.folder.path(), &without_checkpoint, 0);
    let held = rank.until(|report| report.phase == RankPhase::Finished);
    assert!(held.shards.is_empty() && held.steps.iter().map(|step| step.step.0).eq([1]));
    let with_checkpoint = Assignment {
        graceful_stop: Some(GracefulStop::WithCheckpoint),
        ..world.assignment.clone()
    };
    rank.order(&with_checkpoint);
    let saved = rank.until(|report| !report.shards.is_empty());
    assert!(saved.shards.iter().map(|shard| shard.step.0).eq([1]));
    // It becomes a standby and then a member again, and still holds its state.
    let standby = Assignment {
        generation: Generation(2),
        run: world_of(0),
        ..world.assignment.clone()
    };
    rank.order(&standby);
    rank.until(|report| report.generation == Generation(2) && report.phase == RankPhase::Ready);
    let last = Assignment {
        generation: Generation(3),
        ..world.assignment.clone()
    };
    rank.order(&last);
    let report = rank.finish();
    assert!(report.steps.iter().map(|step| step.step.0).eq(1..=4));
}

#[test]
fn a_rank_exits_when_ordered_to_and_when_its_daemon_disconnects() {
    let world = World::new();
    let endless = world
        .assignment
        .job_toml
        .replace("steps = 4", "steps = 100000");
    let assignment = Assignment {
        job_toml: endless,
        ..world.assignment.clone()
    };
    let mut stopped = TestRank::start(world.folder.path(), &assignment, 0);
    stopped.until(|report| report.phase == RankPhase::Training);
    writeln!(
        stopped.reader.get_mut(),
        "{}",
        serde_json::to_string(&RankOrder::Stop).unwrap()
    )
    .unwrap();
    assert!(stopped.child.wait().unwrap().success());
    let second = Assignment {
        generation: Generation(2),
        ..assignment
    };
    let mut orphaned = TestRank::start(world.folder.path(), &second, 0);
    orphaned.until(|report| report.phase == RankPhase::Training);
    orphaned
        .reader
        .get_ref()
        .shutdown(std::net::Shutdown::Both)
        .unwrap();
    assert_eq!(orphaned.child.wait().unwrap().code(), Some(3));
}

#[test]
fn a_rank_cancels_the_upload_of_a_superseded_generation_and_keeps_its_step() {
    let world = World::new();
    // A store that accepts connections and never responds.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let environment = [
        ("AWS_ENDPOINT", endpoint.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_REGION", "nowhere"),
        ("AWS_ACCESS_KEY_ID", "nobody"),
        ("AWS_SECRET_ACCESS_KEY", "nothing"),
    ];
    let job = |generation| Assignment {
        generation: Generation(generation),
        store_url: "s3://nobody/store".to_owned(),
        ..world.assignment.clone()
    };
    let mut rank = TestRank::start_with(world.folder.path(), &job(1), 0, &environment);
    let first = silent.accept().unwrap();
    rank.order(&job(2));
    let report = rank.until(|report| report.generation == Generation(2));
    let steps: Vec<u64> = report.steps.iter().map(|step| step.step.0).collect();
    assert_eq!(
        steps,
        [1, 2],
        "the step is reported although its shard was not written"
    );
    // The shard is still missing: the next generation writes it first.
    let second = silent.accept().unwrap();
    drop((first, second));
}
