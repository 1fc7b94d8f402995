//! A process that lives while its model's thread does not come on.

use crate::world::{TestRank, World, failure, last_digest, meet, world_of};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use proto::id::Generation;
use proto::message::{Activity, Assignment, HANGS, RankPhase, RankReport};
use std::io::{BufRead, ErrorKind};
use std::time::Duration;

/// Far longer than any piece of a step here takes.
const STANDS_STILL_MS: u64 = 1000;
/// Ten times what a piece here may take.
const GIVEN_UP_MS: u64 = 60_000;
/// Far longer than the time between two beats.
const SILENCE: Duration = Duration::from_secs(5);

/// Stops the model's thread, which is the process's first, in a piece of a step that is its own.
/// Every other thread runs.
fn freeze(rank: &mut TestRank) -> Activity {
    let thread = Pid::from_raw(i32::try_from(rank.child.id()).unwrap());
    ptrace::seize(thread, ptrace::Options::empty()).unwrap();
    loop {
        ptrace::interrupt(thread).unwrap();
        waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
        let still = standstill(rank);
        if let Some(activity) = still
            && activity.stage.is_own()
        {
            return activity;
        }
        ptrace::cont(thread, None).unwrap();
        let place =
            |activity: Option<Activity>| activity.map(|activity| (activity.step, activity.stage));
        rank.until(|report| place(report.activity) != place(still));
    }
}

/// Where the stopped thread is. What was said before it was stopped is read too, and is told by its
/// short time.
fn standstill(rank: &mut TestRank) -> Option<Activity> {
    let mut before = None;
    loop {
        let report = next_unless_silent(rank)?;
        match report.activity {
            Some(activity) if STANDS_STILL_MS <= activity.for_ms => return Some(activity),
            // Between two steps: two beats that say the same.
            None if before.as_ref() == Some(&report) => return None,
            Some(_) | None => before = Some(report),
        }
    }
}

/// Its next report; None where the thread was stopped with something in its hands that the process
/// needs to speak, such as a lock of the allocator. A daemon kills such a process for its silence;
/// this test is after the others.
fn next_unless_silent(rank: &mut TestRank) -> Option<RankReport> {
    rank.reader
        .get_ref()
        .set_read_timeout(Some(SILENCE))
        .unwrap();
    let mut line = String::new();
    let read = rank.reader.read_line(&mut line);
    rank.reader.get_ref().set_read_timeout(None).unwrap();
    match read {
        Ok(_) => Some(serde_json::from_str(&line).unwrap()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_rank_whose_thread_hangs_says_so_and_leaves_and_the_other_goes_on_to_the_same_bits() {
    let (undisturbed, disturbed) = hang("exact");
    assert_eq!(disturbed, undisturbed);
}

/// Each rank has one micro-batch of a step or two, and the last one's backward reduces: it is the
/// rank's own until its gradients are ready.
#[test]
fn a_rank_whose_thread_hangs_beside_the_reducer_says_so_and_leaves_and_the_other_goes_on() {
    // The worlds differ, and with them the last bits.
    let _ = hang("fast");
}

/// The digests of the last step, of a rank alone and of one that the other was lost to.
fn hang(reduction: &str) -> (String, String) {
    let world = World::new();
    let toml = world
        .assignment
        .job_toml
        .replace("steps = 4", "steps = 60")
        .replace(
            "threads = 1",
            &format!("threads = 1\nreduction = \"{reduction}\""),
        )
        .replace("\nevery = 2", "\nevery = 100")
        // The first digest may take long.
        .replace("digest_every = 2", "digest_every = 60");
    let job = |generation, ranks| Assignment {
        job_toml: toml.clone(),
        generation: Generation(generation),
        run: world_of(ranks),
        detect_within_ms: 500,
        ..world.assignment.clone()
    };
    let undisturbed = last_digest(&world.run(&job(1, 1))[0]);
    let mut ranks = meet(&world, &mut [], &job(2, 2));
    let [first, second] = &mut ranks[..] else {
        panic!("two")
    };
    first.until(|report| report.steps.len() > 1);
    let activity = freeze(second);
    let last = second.until(|report| {
        let stands = report
            .activity
            .is_some_and(|activity| GIVEN_UP_MS < activity.for_ms);
        assert!(!stands, "nobody noticed: {report:?}");
        report.phase != RankPhase::Training
    });
    let said = failure(&last);
    let place = format!("{HANGS} {} of step {}: for ", activity.stage, activity.step);
    assert!(
        said.starts_with(&place) && said.ends_with("; it ends itself"),
        "{said}"
    );
    assert_eq!(second.child.wait().unwrap().code(), Some(4));
    first.until(|report| matches!(report.phase, RankPhase::Broken { .. }));
    first.order_as(0, &job(3, 1));
    let report = first.finish();
    assert_eq!(report.phase, RankPhase::Finished, "{report:?}");
    (undisturbed, last_digest(&report))
}
