//! Stable hashes of a daemon's inputs and effects.

use super::{StableHash, StableHasher};
use worker_core::event as worker;

impl StableHash for worker::Input {
    fn stable_hash(&self, hasher: &mut StableHasher) {
        match self {
            Self::Connected => hasher.put(40_u8),
            Self::Disconnected => hasher.put(41_u8),
            Self::Desired(state) => {
                hasher.put(42_u8);
                state.stable_hash(hasher);
            }
            Self::RankReported { process, report } => {
                hasher.put(43_u8);
                hasher.key(process);
                report.stable_hash(hasher);
            }
            Self::RankExited { key, success, .. } => {
                hasher.put(44_u8);
                hasher.key(key);
                hasher.put(*success);
            }
            Self::PeerAnswered { peer } => {
                hasher.put(45_u8);
                hasher.worker(peer);
            }
            Self::PeerFailed { peer, .. } => {
                hasher.put(46_u8);
                hasher.worker(peer);
            }
            Self::Shutdown => hasher.put(47_u8),
            Self::Deadline => hasher.put(48_u8),
        }
    }
}

impl StableHash for worker::Effect {
    fn stable_hash(&self, hasher: &mut StableHasher) {
        match self {
            Self::Spawn {
                key,
                device,
                assignment,
            } => {
                hasher.put(60_u8);
                hasher.key(key);
                hasher.put(*device);
                assignment.stable_hash(hasher);
            }
            Self::Update {
                key,
                rank,
                device,
                assignment,
            } => {
                hasher.put(61_u8);
                hasher.key(key);
                hasher.put(rank.0);
                hasher.put(*device);
                assignment.stable_hash(hasher);
            }
            Self::Stop { key } => {
                hasher.put(62_u8);
                hasher.key(key);
            }
            Self::Kill { key } => {
                hasher.put(63_u8);
                hasher.key(key);
            }
            Self::Ask { peers, .. } => {
                hasher.put(64_u8);
                hasher.all(peers, |hasher, peer| hasher.worker(&peer.worker));
            }
            Self::Report(report) => {
                hasher.put(65_u8);
                report.stable_hash(hasher);
            }
            Self::Emit(event) => {
                hasher.put(66_u8);
                event.stable_hash(hasher);
            }
            Self::Exit => hasher.put(67_u8),
        }
    }
}

impl StableHash for worker::Event {
    fn stable_hash(&self, hasher: &mut StableHasher) {
        match self {
            Self::RankStarted { key } => {
                hasher.put(1_u8);
                hasher.key(key);
            }
            Self::RankMoved { from, to } => {
                hasher.put(2_u8);
                hasher.key(from);
                hasher.key(to);
            }
            Self::RankSilent { key, silent_ms } => {
                hasher.put(3_u8);
                hasher.key(key);
                hasher.put(*silent_ms);
            }
            Self::RankGone { key, success, .. } => {
                hasher.put(4_u8);
                hasher.key(key);
                hasher.put(*success);
            }
            Self::Displaced { worker, by } => {
                hasher.put(6_u8);
                hasher.worker(worker);
                hasher.worker(&by.worker);
            }
            Self::Ignored { worker, .. } => {
                hasher.put(5_u8);
                hasher.worker(worker);
            }
        }
    }
}
