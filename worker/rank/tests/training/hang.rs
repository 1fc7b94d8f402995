//! A live process whose model thread hangs.

use crate::world::{TestRank, World, last_digest, start_gang, world_of};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use proto::id::Generation;
use proto::message::{Activity, Assignment, RankPhase, RankReport};
use proto::reason::RankFailure;
use std::io::{BufRead, ErrorKind};
use std::time::Duration;

/// Far longer than any stage of a step in this test.
const STALLED_MS: u64 = 1000;
/// Ten times the deadline of a stage in this test.
const UNDETECTED_MS: u64 = 60_000;
/// Far longer than the heartbeat interval.
const SILENCE: Duration = Duration::from_secs(5);

/// Stops the model thread, which is the main thread, in a local stage of a step. The other threads
/// keep running.
fn freeze(rank: &mut TestRank) -> Activity {
    let thread = Pid::from_raw(i32::try_from(rank.child.id()).unwrap());
    ptrace::seize(thread, ptrace::Options::empty()).unwrap();
    loop {
        ptrace::interrupt(thread).unwrap();
        waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
        let stalled = stalled_activity(rank);
        if let Some(activity) = stalled
            && activity.stage.is_own()
        {
            return activity;
        }
        ptrace::cont(thread, None).unwrap();
        let stage =
            |activity: Option<Activity>| activity.map(|activity| (activity.step, activity.stage));
        rank.until(|report| stage(report.activity) != stage(stalled));
    }
}

/// The activity of the stopped thread. Reports from before the stop are skipped: their activity is
/// shorter.
fn stalled_activity(rank: &mut TestRank) -> Option<Activity> {
    let mut before = None;
    loop {
        let report = next_unless_silent(rank)?;
        match report.activity {
            Some(activity) if STALLED_MS <= activity.for_ms => return Some(activity),
            // Between two steps: two identical reports.
            None if before.as_ref() == Some(&report) => return None,
            Some(_) | None => before = Some(report),
        }
    }
}

/// The next report. None if the thread was stopped while it held a lock that the process needs for
/// reporting, such as the allocator's. A daemon kills such a silent process; this test covers the
/// others.
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
fn a_rank_whose_thread_hangs_reports_it_and_exits_and_the_other_continues_to_the_same_bits() {
    let (undisturbed, disturbed) = hang("exact");
    assert_eq!(disturbed, undisturbed);
}

/// Each rank has one or two micro-batches per step. The last backward reduces: it is a local stage
/// until the local gradients are ready.
#[test]
fn a_rank_whose_thread_hangs_beside_the_reducer_reports_it_and_exits_and_the_other_continues() {
    // The world sizes differ, and so do the last bits.
    let _ = hang("fast");
}

/// The last digests of an undisturbed single rank, and of a rank that lost its peer.
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
        // The deadline of the first digest is long.
        .replace("digest_every = 2", "digest_every = 60");
    let job = |generation, ranks| Assignment {
        job_toml: toml.clone(),
        generation: Generation(generation),
        run: world_of(ranks),
        detect_within_ms: 500,
        ..world.assignment.clone()
    };
    let undisturbed = last_digest(&world.run(&job(1, 1))[0]);
    let mut ranks = start_gang(&world, &mut [], &job(2, 2));
    let [first, second] = &mut ranks[..] else {
        panic!("two")
    };
    first.until(|report| report.steps.len() > 1);
    let activity = freeze(second);
    let last = second.until(|report| {
        let undetected = report
            .activity
            .is_some_and(|activity| UNDETECTED_MS < activity.for_ms);
        assert!(!undetected, "the hang is not detected: {report:?}");
        report.phase != RankPhase::Training
    });
    let RankPhase::Failed {
        failure: RankFailure::Hangs { activity: at, .. },
    } = last.phase
    else {
        panic!("{last:?}")
    };
    assert_eq!((at.step, at.stage), (activity.step, activity.stage));
    assert_eq!(second.child.wait().unwrap().code(), Some(4));
    first.until(|report| matches!(report.phase, RankPhase::Broken { .. }));
    first.order_as(0, &job(3, 1));
    let report = first.finish();
    assert_eq!(report.phase, RankPhase::Finished, "{report:?}");
    (undisturbed, last_digest(&report))
}
