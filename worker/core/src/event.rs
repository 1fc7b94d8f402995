//! Inputs, effects and events of the worker daemon's machine. Plain values, no I/O.

use proto::id::{Generation, JobId, Rank, WorkerId};
use proto::message::{Assignment, DesiredState, Peer, RankReport, Successor, WorkerReport};

/// Milliseconds of the shell's monotonic clock. The machine never reads a clock.
pub type Millis = u64;

/// A rank of one generation. A process is always identified by the rank it was started as, even
/// after it has become a rank of a later generation.
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
    /// The stream broke. Ranks continue.
    Disconnected,
    /// The desired state from the coordinator.
    Desired(DesiredState),
    /// A report of a rank process, which is also its heartbeat. `report` names the generation that
    /// the process has adopted.
    RankReported {
        process: RankKey,
        report: Box<RankReport>,
    },
    /// A process exited. Follows all of its reports. `outcome` is for instance "exit status 0" or
    /// "killed by signal 9", with the last line of its output.
    RankExited {
        key: RankKey,
        success: bool,
        outcome: String,
    },
    /// This peer answered.
    PeerAnswered {
        peer: WorkerId,
    },
    /// This peer did not answer a ping, or another worker answered at its address.
    PeerFailed {
        peer: WorkerId,
        error: String,
    },
    /// Shut down gracefully (SIGTERM): report it to the coordinator, let ranks continue until their
    /// jobs have handed over or the grace period ends, then [`Effect::Exit`]. A second shutdown
    /// stops all ranks immediately.
    Shutdown,
    Deadline,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Start a process for this rank on this device and send it the assignment as its first line.
    Spawn {
        key: RankKey,
        device: u32,
        assignment: Box<Assignment>,
    },
    /// Send a running process a changed assignment, or that of a newer generation, in which it is
    /// `rank`.
    Update {
        key: RankKey,
        rank: Rank,
        device: u32,
        assignment: Box<Assignment>,
    },
    /// Ask the process to exit.
    Stop {
        key: RankKey,
    },
    /// Kill the process. Its exit is reported by [`Input::RankExited`].
    Kill {
        key: RankKey,
    },
    /// Ping these peers, and no others, several times per `detect_within`, with `detect_within` as
    /// timeout. Each result is an input.
    Ask {
        peers: Vec<Peer>,
        detect_within_ms: u64,
    },
    /// Send a report to the coordinator; drop it if there is no stream.
    Report(WorkerReport),
    Emit(Event),
    /// Exit the daemon: all ranks have exited after [`Input::Shutdown`] or [`Event::Displaced`].
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
    /// The rank missed its heartbeat deadline, or did not leave an older generation in time. It is
    /// killed.
    RankSilent {
        key: RankKey,
        silent_ms: u64,
    },
    /// A rank's process exited.
    RankGone {
        key: RankKey,
        success: bool,
        outcome: String,
    },
    /// Another daemon of the name of `worker`, which is this one, took its place. All ranks are
    /// being stopped, and [`Effect::Exit`] follows.
    Displaced {
        worker: WorkerId,
        by: Successor,
    },
    /// A message was ignored: orders for another worker, outdated orders, or a report without a
    /// process.
    Ignored {
        worker: WorkerId,
        what: String,
    },
}
