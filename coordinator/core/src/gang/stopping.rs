//! A requested graceful stop of a generation.

use crate::record::Millis;
use proto::message::GracefulStop;
use proto::reason::StopCause;

#[derive(Debug)]
pub(crate) struct Stopping {
    pub(crate) why: StopCause,
    pub(crate) how: GracefulStop,
    pub(crate) asked: Millis,
    /// When it ends, whatever its ranks have done.
    pub(crate) until: Millis,
}
