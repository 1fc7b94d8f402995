//! When a daemon that has never attached gives up: where waiting cannot help. Once it has attached,
//! it waits for ever, because its ranks go on meanwhile. Used by [`crate::link`].

use std::time::{Duration, Instant};
use tonic::{Code, Status};

/// What is wrong for this long stays wrong: long enough for a network that comes up beside this
/// process, and well within a minute.
const LASTING_MAX: Duration = Duration::from_secs(30);

/// How long nothing but what stays wrong has been wrong.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    since: Option<Instant>,
    attached: bool,
}

impl Patience {
    /// The coordinator can be used, so whatever happens from now on may pass.
    pub(crate) fn attached(&mut self) {
        self.attached = true;
    }

    /// Whether to give up after an attempt that began at `begun` and failed at `now`.
    pub(crate) fn is_over(&mut self, failure: Failure, begun: Instant, now: Instant) -> bool {
        match failure {
            _ if self.attached => false,
            Failure::Unclear => false,
            Failure::Passing => {
                self.since = None;
                false
            }
            Failure::Lasting => {
                let since = *self.since.get_or_insert(begun);
                LASTING_MAX <= now.duration_since(since)
            }
        }
    }
}

/// Whether waiting can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    Passing,
    Lasting,
    /// The connection broke, which says nothing about who is at its other end.
    Unclear,
}

/// Of a connection that could not be made: the name of the host may not resolve. ("Temporary
/// failure" counts, too: it is what a wrong name gets where no name server can be asked.) The
/// library has no kind for it.
pub(crate) fn of_connection(error: &str) -> Failure {
    if error.contains("dns error") || error.contains("failed to lookup address") {
        Failure::Lasting
    } else {
        Failure::Passing
    }
}

/// Of a stream that ended with this status, whose causes are `text`. What answers may be no
/// coordinator, or one that talks with other releases, or it refuses this worker's name.
pub(crate) fn of_stream(status: &Status, text: &str) -> Failure {
    match status.code() {
        Code::FailedPrecondition
        | Code::InvalidArgument
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented => Failure::Lasting,
        // What the HTTP/2 library makes of an answer of HTTP/1.
        _ if text.contains("frame with invalid size") => Failure::Lasting,
        _ if text.contains("transport error") => Failure::Unclear,
        _ => Failure::Passing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use Failure::{Lasting, Passing, Unclear};

    /// After how many seconds a daemon gives up that tries every second; the failure of the attempt
    /// in each second.
    fn gives_up(patience: &mut Patience, failure: impl Fn(u64) -> Failure) -> Option<u64> {
        let start = Instant::now();
        (0..600).find(|second| {
            let now = start + Duration::from_secs(*second);
            patience.is_over(failure(*second), now, now)
        })
    }

    #[test]
    fn what_stays_wrong_ends_the_wait_within_a_minute_and_nothing_else_does() {
        let fresh = Patience::default;
        assert_eq!(gives_up(&mut fresh(), |_| Lasting), Some(30));
        assert_eq!(gives_up(&mut fresh(), |_| Passing), None);
        assert_eq!(gives_up(&mut fresh(), |_| Unclear), None);
        let when = |is_lasting, other| if is_lasting { Lasting } else { other };
        // A name server that is just starting.
        let starting = |second| when(second < 29, Passing);
        assert_eq!(gives_up(&mut fresh(), starting), None);
        // What passes begins the wait again, and a broken connection does not.
        let by_turns = |second| when(second % 20 != 0, Passing);
        assert_eq!(gives_up(&mut fresh(), by_turns), None);
        let by_turns = |second| when(second % 2 == 1, Unclear);
        assert_eq!(gives_up(&mut fresh(), by_turns), Some(31));
        let mut attached = fresh();
        attached.attached();
        assert_eq!(gives_up(&mut attached, |_| Lasting), None);
    }

    #[test]
    fn causes_are_told_apart() {
        for (error, expected) in [
            (
                "dns error: failed to lookup address information: Name or service not known",
                Lasting,
            ),
            (
                "tcp connect error: Connection refused (os error 111)",
                Passing,
            ),
            ("no connection within 3 s", Passing),
        ] {
            assert_eq!(of_connection(error), expected, "{error}");
        }
        for (code, expected) in [
            (Code::FailedPrecondition, Lasting),
            (Code::Unimplemented, Lasting),
            (Code::InvalidArgument, Lasting),
            (Code::Unavailable, Passing),
            (Code::ResourceExhausted, Passing),
            (Code::Unknown, Passing),
        ] {
            assert_eq!(
                of_stream(&Status::new(code, "x"), "x"),
                expected,
                "{code:?}"
            );
        }
        for (text, expected) in [
            (
                "h2 protocol error: http2 error: frame with invalid size",
                Lasting,
            ),
            ("transport error: connection reset", Unclear),
        ] {
            assert_eq!(of_stream(&Status::unknown("x"), text), expected, "{text}");
        }
    }
}
