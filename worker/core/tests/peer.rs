//! Which workers the daemon reports as unreachable, and when.
#![allow(clippy::unwrap_used, reason = "a test panics to fail")]

mod desk;

use desk::{DETECT_WITHIN_MS, Desk, assignment, reports};
use proto::id::WorkerId;
use proto::message::Peer;
use worker_core::event::{Effect, Input};

fn worker(name: &str) -> WorkerId {
    WorkerId {
        name: name.to_owned(),
        boot: 1,
    }
}

fn peers(names: &[&str]) -> Vec<Peer> {
    let peer = |name: &&str| Peer {
        worker: worker(name),
        address: format!("{name}:7073"),
    };
    names.iter().map(peer).collect()
}

/// The peers that the last report lists as unreachable, with the errors.
fn unreached(effects: &[Effect]) -> Vec<String> {
    let last = reports(effects).pop().expect("a report");
    let unreached = last.unreached.iter();
    unreached
        .map(|it| format!("{}: {}", it.peer.name, it.error))
        .collect()
}

fn answers(desk: &mut Desk, name: &str) -> Vec<Effect> {
    desk.handle(Input::PeerAnswered { peer: worker(name) })
}

#[test]
fn a_peer_that_does_not_answer_is_reported_once_it_is_overdue_and_no_more_when_it_does() {
    let mut desk = Desk::new();
    let effects = desk.desire_among(vec![assignment(1, 0, 1)], peers(&["w2", "w3"]));
    let ask = Effect::Ask {
        peers: peers(&["w2", "w3"]),
        detect_within_ms: DETECT_WITHIN_MS,
    };
    assert!(effects.contains(&ask), "{effects:?}");
    desk.wait(DETECT_WITHIN_MS);
    answers(&mut desk, "w2");
    desk.handle(Input::PeerFailed {
        peer: worker("w3"),
        error: "connection refused".to_owned(),
    });
    assert_eq!(unreached(&desk.wait(DETECT_WITHIN_MS - 1)), [] as [&str; 0]);
    assert_eq!(
        unreached(&desk.wait(1)),
        ["w3: w3:7073: connection refused"]
    );
    // It is reported repeatedly; its next answer is reported at once.
    answers(&mut desk, "w2");
    assert_eq!(unreached(&desk.wait(DETECT_WITHIN_MS / 3)).len(), 1);
    assert_eq!(unreached(&answers(&mut desk, "w3")), [] as [&str; 0]);
    let quiet = answers(&mut desk, "w3");
    assert_eq!(reports(&quiet), [], "nothing has changed");
}

#[test]
fn time_during_which_the_daemon_itself_was_suspended_does_not_count_against_peers() {
    let mut desk = Desk::new();
    desk.desire_among(vec![assignment(1, 0, 1)], peers(&["w2"]));
    desk.now += 50 * DETECT_WITHIN_MS;
    let effects = [
        desk.handle(Input::Deadline),
        desk.wait(DETECT_WITHIN_MS / 3),
    ]
    .concat();
    assert_eq!(unreached(&effects), [] as [&str; 0]);
}

#[test]
fn peers_that_are_no_longer_assigned_are_not_pinged_and_forgotten() {
    let mut desk = Desk::new();
    desk.desire_among(vec![assignment(1, 0, 1)], peers(&["w2"]));
    assert_eq!(unreached(&desk.wait(2 * DETECT_WITHIN_MS)).len(), 1);
    let again = desk.desire_among(vec![assignment(1, 0, 1)], peers(&["w2"]));
    assert!(
        !again
            .iter()
            .any(|effect| matches!(effect, Effect::Ask { .. })),
        "the same peers: {again:?}"
    );
    let effects = desk.desire_among(vec![assignment(1, 0, 1)], vec![]);
    assert!(effects.contains(&Effect::Ask {
        peers: vec![],
        detect_within_ms: DETECT_WITHIN_MS
    }));
    assert_eq!(unreached(&desk.wait(DETECT_WITHIN_MS)), [] as [&str; 0]);
    // Its late answer is ignored.
    assert_eq!(answers(&mut desk, "w2"), []);
}
