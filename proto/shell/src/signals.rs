//! The signals that ask a daemon to stop.

use std::fmt;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// A signal that follows one of its own kind sooner than this is a copy of it: a wrapper such as
/// `timeout` passes on a Ctrl-C that the terminal has sent to the daemon already.
const COPY_WITHIN: Duration = Duration::from_millis(300);

/// SIGTERM, SIGINT and SIGHUP. A closed terminal sends SIGHUP; a process that was started with
/// SIGHUP ignored (`nohup`) keeps ignoring it.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Option<Signal>,
    received: Received,
}

/// A request to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopRequest {
    pub signal: StopSignal,
    /// Whether it repeats an earlier request: the process should not wait for anything any more.
    pub again: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopSignal {
    Terminate,
    Interrupt,
    Hangup,
}

impl StopSignal {
    /// The exit code of a program that the signal kills, as shells report it.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Hangup => 129,
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

impl fmt::Display for StopSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
            Self::Hangup => "SIGHUP",
        })
    }
}

impl StopSignals {
    /// Catches the signals from now on. Call it first: until then they kill the process, which is
    /// right only while it has begun nothing.
    ///
    /// # Errors
    /// The operating system refuses.
    ///
    /// # Panics
    /// If it is not called in a tokio runtime.
    pub fn catch() -> std::io::Result<Self> {
        let hangup = (!is_hangup_ignored()).then(|| signal(SignalKind::hangup()));
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: hangup.transpose()?,
            received: Received::default(),
        })
    }

    /// Waits for the next request. Cancel-safe.
    pub async fn next(&mut self) -> StopRequest {
        loop {
            let signal = tokio::select! {
                _ = self.terminate.recv() => StopSignal::Terminate,
                _ = self.interrupt.recv() => StopSignal::Interrupt,
                () = received(&mut self.hangup) => StopSignal::Hangup,
            };
            if let Some(request) = self.received.on(signal, Instant::now()) {
                return request;
            }
        }
    }
}

async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Which signals are requests, and which of them repeat one.
#[derive(Debug, Default)]
struct Received {
    stopping: bool,
    /// SIGTERM or SIGINT was received, then.
    last: Option<(StopSignal, Instant)>,
}

impl Received {
    fn on(&mut self, signal: StopSignal, now: Instant) -> Option<StopRequest> {
        let first = !std::mem::replace(&mut self.stopping, true);
        if signal == StopSignal::Hangup {
            // A closed terminal sends it several times (kernel and shell); none of them is a demand
            // to hurry, nor is the SIGTERM that a session manager sends beside it.
            return first.then_some(StopRequest {
                signal,
                again: false,
            });
        }
        let before = self.last.replace((signal, now));
        match before {
            Some((kind, at)) if kind == signal && now.duration_since(at) < COPY_WITHIN => None,
            Some(_) => Some(StopRequest {
                signal,
                again: true,
            }),
            None => first.then_some(StopRequest {
                signal,
                again: false,
            }),
        }
    }
}

/// Whether this process was started with SIGHUP ignored. From /proc, because asking the kernel
/// needs unsafe code. Call it before any signal is caught.
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignores_hangup(&status)
}

/// SIGHUP is signal 1, the lowest bit.
fn ignores_hangup(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use StopSignal::{Hangup, Interrupt, Terminate};

    #[test]
    fn the_first_signal_stops_and_only_a_deliberate_second_one_hurries() {
        // Signals with the milliseconds at which they arrive, and what each becomes.
        type Case = (&'static [(StopSignal, u64)], &'static [Option<bool>]);
        let cases: [Case; 6] = [
            (
                &[(Terminate, 0), (Terminate, 900)],
                &[Some(false), Some(true)],
            ),
            (&[(Interrupt, 0), (Interrupt, 5)], &[Some(false), None]),
            (
                &[(Interrupt, 0), (Terminate, 5)],
                &[Some(false), Some(true)],
            ),
            (
                &[(Hangup, 0), (Hangup, 5), (Hangup, 5000)],
                &[Some(false), None, None],
            ),
            (
                &[(Hangup, 0), (Terminate, 5), (Terminate, 900)],
                &[Some(false), None, Some(true)],
            ),
            (&[(Terminate, 0), (Hangup, 900)], &[Some(false), None]),
        ];
        let start = Instant::now();
        for (signals, expected) in cases {
            let mut received = Received::default();
            let found: Vec<Option<bool>> = signals
                .iter()
                .map(|(signal, ms)| received.on(*signal, start + Duration::from_millis(*ms)))
                .map(|request| request.map(|it| it.again))
                .collect();
            assert_eq!(found, expected, "{signals:?}");
        }
    }

    #[test]
    fn an_inherited_ignored_hangup_is_seen() {
        let status = |mask| format!("Name:\tx\nSigBlk:\t0000000000000001\nSigIgn:\t{mask}\n");
        assert!(ignores_hangup(&status("0000000000001001")));
        assert!(!ignores_hangup(&status("0000000000001000")));
        assert!(!ignores_hangup(""));
    }
}
