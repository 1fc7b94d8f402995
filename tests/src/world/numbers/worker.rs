//! Numbers of what a daemon's machine is told and wants.

use super::{Numbered, Numbers};
use worker_core::event as worker;

impl Numbered for worker::Input {
    fn number(&self, numbers: &mut Numbers) {
        match self {
            Self::Connected => numbers.put(40_u8),
            Self::Disconnected => numbers.put(41_u8),
            Self::Desired(state) => {
                numbers.put(42_u8);
                state.number(numbers);
            }
            Self::RankSaid { process, report } => {
                numbers.put(43_u8);
                numbers.key(process);
                report.number(numbers);
            }
            Self::RankExited { key, success, .. } => {
                numbers.put(44_u8);
                numbers.key(key);
                numbers.put(*success);
            }
            Self::PeerAnswered { peer } => {
                numbers.put(45_u8);
                numbers.worker(peer);
            }
            Self::PeerFailed { peer, .. } => {
                numbers.put(46_u8);
                numbers.worker(peer);
            }
            Self::Shutdown => numbers.put(47_u8),
            Self::Deadline => numbers.put(48_u8),
        }
    }
}

impl Numbered for worker::Effect {
    fn number(&self, numbers: &mut Numbers) {
        match self {
            Self::Spawn {
                key,
                device,
                assignment,
            } => {
                numbers.put(60_u8);
                numbers.key(key);
                numbers.put(*device);
                assignment.number(numbers);
            }
            Self::Update {
                key,
                rank,
                device,
                assignment,
            } => {
                numbers.put(61_u8);
                numbers.key(key);
                numbers.put(rank.0);
                numbers.put(*device);
                assignment.number(numbers);
            }
            Self::Stop { key } => {
                numbers.put(62_u8);
                numbers.key(key);
            }
            Self::Kill { key } => {
                numbers.put(63_u8);
                numbers.key(key);
            }
            Self::Ask { peers, .. } => {
                numbers.put(64_u8);
                numbers.all(peers, |numbers, peer| numbers.worker(&peer.worker));
            }
            Self::Report(report) => {
                numbers.put(65_u8);
                report.number(numbers);
            }
            Self::Emit(event) => {
                numbers.put(66_u8);
                event.number(numbers);
            }
            Self::Exit => numbers.put(67_u8),
        }
    }
}

impl Numbered for worker::Event {
    fn number(&self, numbers: &mut Numbers) {
        match self {
            Self::RankStarted { key } => {
                numbers.put(1_u8);
                numbers.key(key);
            }
            Self::RankMoved { from, to } => {
                numbers.put(2_u8);
                numbers.key(from);
                numbers.key(to);
            }
            Self::RankSilent { key, silent_ms } => {
                numbers.put(3_u8);
                numbers.key(key);
                numbers.put(*silent_ms);
            }
            Self::RankGone { key, success, .. } => {
                numbers.put(4_u8);
                numbers.key(key);
                numbers.put(*success);
            }
            Self::Ignored { worker, .. } => {
                numbers.put(5_u8);
                numbers.worker(worker);
            }
        }
    }
}
