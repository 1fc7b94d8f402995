//! Conversion of peers and of peers that do not answer.

use super::{WireError, error_text, present, text, wrong};
use crate::limits::ADDRESS_BYTES;
use crate::message::{Peer, Successor, Unreached};
use crate::pb;

/// Validates the address at which a worker answers pings.
pub(super) fn address(value: String) -> Result<String, WireError> {
    let value = text("peer_address", value, ADDRESS_BYTES)?;
    let port = value.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    if port.is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
        return wrong("peer_address", format!("{value:?}"), "it must be host:port");
    }
    Ok(value)
}

impl From<&Unreached> for pb::Unreached {
    fn from(unreached: &Unreached) -> Self {
        Self {
            peer: Some((&unreached.peer).into()),
            error: unreached.error.clone(),
        }
    }
}

impl TryFrom<pb::Unreached> for Unreached {
    type Error = WireError;

    fn try_from(unreached: pb::Unreached) -> Result<Self, WireError> {
        Ok(Self {
            peer: present("unreached.peer", unreached.peer)?.try_into()?,
            error: error_text("unreached.error", unreached.error)?,
        })
    }
}

impl From<&Peer> for pb::Peer {
    fn from(peer: &Peer) -> Self {
        Self {
            worker: Some((&peer.worker).into()),
            address: peer.address.clone(),
        }
    }
}

impl TryFrom<pb::Peer> for Peer {
    type Error = WireError;

    fn try_from(peer: pb::Peer) -> Result<Self, WireError> {
        Ok(Self {
            worker: present("peers.worker", peer.worker)?.try_into()?,
            address: address(peer.address)?,
        })
    }
}

impl From<&Successor> for pb::Successor {
    fn from(successor: &Successor) -> Self {
        Self {
            worker: Some((&successor.worker).into()),
            address: successor.address.clone(),
        }
    }
}

impl TryFrom<pb::Successor> for Successor {
    type Error = WireError;

    fn try_from(successor: pb::Successor) -> Result<Self, WireError> {
        Ok(Self {
            worker: present("successor.worker", successor.worker)?.try_into()?,
            address: successor.address.map(address).transpose()?,
        })
    }
}
