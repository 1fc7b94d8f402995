//! The face of the worker daemon's machine: what it is told and what it wants done. Plain values,
//! no I/O.

use proto::id::{Generation, JobId, Rank, WorkerId};
use proto::message::{Assignment, DesiredState, Peer, RankReport, WorkerReport};

/// Milliseconds of the shell's monotonic clock. The machine never reads a clock.
pub type Millis = u64;

/// A rank of one generation. A process is named for ever by the rank that it was started as,
/// whatever ranks of later generations it becomes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RankKey {
    pub job: JobId,
    pub generation: Generation,
    pub rank: Rank,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The stream to the coordinator is open.
    Connected,
    /// It broke; ranks go on.
    Disconnected,
    /// What should be, from the coordinator.
    Desired(DesiredState),
    /// A line from a rank process; also its sign of life. It speaks of the generation that it has
    /// taken up.
    RankSaid {
        process: RankKey,
        report: RankReport,
    },
    /// This process is gone; comes after everything that it said. `outcome` says how: "exit status
    /// 0", "killed by signal 9", and the last line it wrote.
    RankExited {
        key: RankKey,
        success: bool,
        outcome: String,
    },
    /// This peer answered.
    PeerAnswered {
        peer: WorkerId,
    },
    /// It was asked and did not answer, or somebody else did.
    PeerFailed {
        peer: WorkerId,
        error: String,
    },
    /// Leave in order (SIGTERM): tell the coordinator, let ranks go on until their jobs have handed
    /// over or the grace is over, then [`Effect::Exit`]. A second time: stop ranks now.
    Shutdown,
    Deadline,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Start a process for this rank on this device and hand it the assignment as its first line.
    Spawn {
        key: RankKey,
        device: u32,
        assignment: Box<Assignment>,
    },
    /// Hand a running process its assignment again, because something in it changed, or that of a
    /// newer generation, in which it is `rank`.
    Update {
        key: RankKey,
        rank: Rank,
        device: u32,
        assignment: Box<Assignment>,
    },
    /// Ask the process to leave.
    Stop {
        key: RankKey,
    },
    /// Kill it now. Its exit is reported by `RankExited` like any other.
    Kill {
        key: RankKey,
    },
    /// Ask these peers, and no others, again and again whether they are there: some times in each
    /// `detect_within`, with one `detect_within` for an answer. Each outcome is an event.
    Ask {
        peers: Vec<Peer>,
        detect_within_ms: u64,
    },
    /// Send to the coordinator; drop it when there is no stream.
    Report(WorkerReport),
    Emit(Event),
    /// All ranks are gone after `Shutdown`.
    Exit,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    RankStarted {
        key: RankKey,
    },
    /// A running process became a rank of a newer generation.
    RankMoved {
        from: RankKey,
        to: RankKey,
    },
    /// The rank was silent for longer than its deadline and is killed.
    RankSilent {
        key: RankKey,
        silent_ms: u64,
    },
    RankGone {
        key: RankKey,
        success: bool,
        outcome: String,
    },
    /// Orders for somebody else, or older than what is known; ignored.
    Ignored {
        worker: WorkerId,
        what: String,
    },
}
