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

    /// Whether to give up after an attempt that began at `begun` and failed at `now`. `passes`: the
    /// cause may end by itself.
    pub(crate) fn is_over(&mut self, passes: bool, begun: Instant, now: Instant) -> bool {
        if passes || self.attached {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(begun);
        LASTING_MAX <= now.duration_since(since)
    }
}

/// Whether a connection that failed with this text may succeed later: not if the name of the host
/// does not resolve. ("Temporary failure" counts, too: it is what a wrong name gets where no name
/// server can be asked.) The library has no kind for it.
pub(crate) fn connection_passes(error: &str) -> bool {
    !error.contains("dns error") && !error.contains("failed to lookup address")
}

/// Whether the refusal of a stream may end by itself. What answers may be no coordinator, or one
/// that talks with other releases, or refuse this worker's name.
pub(crate) fn refusal_passes(status: &Status, text: &str) -> bool {
    let is_lasting = matches!(
        status.code(),
        Code::FailedPrecondition
            | Code::InvalidArgument
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
    );
    // What the HTTP/2 library makes of an answer that is none, such as one of HTTP/1.
    !is_lasting && !text.contains("frame with invalid size")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After how many seconds a daemon gives up that tries every second; `passes` of the attempt
    /// in each second.
    fn gives_up(patience: &mut Patience, passes: impl Fn(u64) -> bool) -> Option<u64> {
        let start = Instant::now();
        (0..600).find(|second| {
            let now = start + Duration::from_secs(*second);
            patience.is_over(passes(*second), now, now)
        })
    }

    #[test]
    fn what_stays_wrong_ends_the_wait_within_a_minute_and_nothing_else_does() {
        let mut fresh = Patience::default();
        assert_eq!(gives_up(&mut fresh, |_| false), Some(30));
        assert_eq!(gives_up(&mut Patience::default(), |_| true), None);
        // A name server that is just starting.
        let starting = |second| 29 <= second;
        assert_eq!(gives_up(&mut Patience::default(), starting), None);
        // What passes begins the wait again.
        let in_between = |second| second % 20 == 0;
        assert_eq!(gives_up(&mut Patience::default(), in_between), None);
        let mut attached = Patience::default();
        attached.attached();
        assert_eq!(gives_up(&mut attached, |_| false), None);
    }

    #[test]
    fn causes_are_told_apart() {
        for (error, passes) in [
            (
                "dns error: failed to lookup address information: Name or service not known",
                false,
            ),
            ("tcp connect error: Connection refused (os error 111)", true),
            ("no connection within 3 s", true),
        ] {
            assert_eq!(connection_passes(error), passes, "{error}");
        }
        for (code, passes) in [
            (Code::FailedPrecondition, false),
            (Code::Unimplemented, false),
            (Code::InvalidArgument, false),
            (Code::Unavailable, true),
            (Code::ResourceExhausted, true),
            (Code::Unknown, true),
        ] {
            let status = Status::new(code, "x");
            assert_eq!(refusal_passes(&status, "x"), passes, "{code:?}");
        }
        let text = "h2 protocol error: http2 error: connection error: frame with invalid size";
        assert!(!refusal_passes(&Status::unknown("x"), text));
    }
}
