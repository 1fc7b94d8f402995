//! The network interface that NCCL uses. Gloo is told the worker's `address`; NCCL knows interfaces
//! only, and would take the first that it finds. Resolves host names; makes no connection.

use super::{CollectiveError, ffi};
use std::ffi::{CStr, c_char, c_int};
use std::fmt;
use std::net::{IpAddr, ToSocketAddrs};

/// The environment variable that selects NCCL's interface.
pub(crate) const VARIABLE: &str = "NCCL_SOCKET_IFNAME";

/// The interface for NCCL's sockets, and how it was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Interface {
    /// The interface that has the worker's address.
    OfAddress { name: String, address: String },
    /// The user has set [`VARIABLE`] to this, which stays.
    SetByUser(String),
}

impl Interface {
    /// The value to set [`VARIABLE`] to; None if it stays.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    pub(crate) fn to_set(&self) -> Option<String> {
        match self {
            // Without the equals sign NCCL would take eth0 for the beginning of a name.
            Self::OfAddress { name, .. } => Some(format!("={name}")),
            Self::SetByUser(_) => None,
        }
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OfAddress { name, address } => {
                write!(f, "{name}, which has {address} (`address`)")
            }
            Self::SetByUser(value) => write!(
                f,
                "{value}: {VARIABLE} is set in the environment of the worker and stays; `address` \
                does not apply"
            ),
        }
    }
}

/// The interface for NCCL on a machine whose ranks have this address. `set_by_user`: the value of
/// [`VARIABLE`], if it is set and not empty.
///
/// # Errors
/// No interface that is up has the address.
pub(crate) fn choose(
    set_by_user: Option<String>,
    address: &str,
) -> Result<Interface, CollectiveError> {
    match set_by_user.filter(|value| !value.is_empty()) {
        Some(value) => Ok(Interface::SetByUser(value)),
        None => find(address, &interfaces()?),
    }
}

/// [`choose`] with the environment of this process.
pub(crate) fn of_this_process(address: &str) -> Result<Interface, CollectiveError> {
    let set = std::env::var_os(VARIABLE);
    choose(
        set.map(|value| value.to_string_lossy().into_owned()),
        address,
    )
}

fn find(address: &str, interfaces: &[(String, IpAddr)]) -> Result<Interface, CollectiveError> {
    let action = format!("cannot choose the network interface of `address`, which is {address}");
    let resolved = (address, 0).to_socket_addrs();
    let resolved = resolved.map_err(|error| CollectiveError {
        action: action.clone(),
        reason: error.to_string(),
    })?;
    let resolved: Vec<IpAddr> = resolved.map(|it| it.ip()).collect();
    let found = interfaces.iter().find(|(_, ip)| resolved.contains(ip));
    match found {
        Some((name, _)) => Ok(Interface::OfAddress {
            name: name.clone(),
            address: address.to_owned(),
        }),
        None => {
            let known: Vec<String> = interfaces
                .iter()
                .map(|(name, ip)| format!("{name} {ip}"))
                .collect();
            Err(CollectiveError {
                action,
                reason: format!(
                    "no interface of this machine has it; there are {}; correct `address` in the \
                    settings of this worker, or set {VARIABLE}",
                    known.join(", ")
                ),
            })
        }
    }
}

/// Name and address of all interfaces that are up.
fn interfaces() -> Result<Vec<(String, IpAddr)>, CollectiveError> {
    let mut list = vec![0u8; 1 << 16];
    let bytes = c_int::try_from(list.len()).expect("64 KiB fit");
    // SAFETY: the buffer has the given length, and the shim writes a NUL-terminated string.
    let code = unsafe { ffi::retri_interfaces(list.as_mut_ptr().cast::<c_char>(), bytes) };
    if code != 0 {
        return Err(CollectiveError::last(
            "cannot list the network interfaces of this machine",
        ));
    }
    let text = CStr::from_bytes_until_nul(&list).map(CStr::to_string_lossy);
    let text = text.unwrap_or_default();
    let interface = |line: &str| {
        let (name, ip) = line.split_once(' ')?;
        Some((name.to_owned(), ip.parse().ok()?))
    };
    Ok(text.lines().filter_map(interface).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_interface_is_the_one_that_has_the_address() {
        let lo = choose(None, "127.0.0.1").unwrap();
        let Interface::OfAddress { name, .. } = &lo else {
            panic!("{lo:?}")
        };
        assert_eq!(lo.to_set(), Some(format!("={name}")));
        assert_eq!(
            lo.to_string(),
            format!("{name}, which has 127.0.0.1 (`address`)")
        );
        let by_name = choose(Some(String::new()), "localhost").unwrap();
        assert_eq!(by_name.to_set(), lo.to_set());
        let many = [
            ("eth0".to_owned(), "10.0.0.1".parse().unwrap()),
            ("eth1".to_owned(), "10.0.0.2".parse().unwrap()),
        ];
        let second = find("10.0.0.2", &many).unwrap();
        assert_eq!(second.to_set().as_deref(), Some("=eth1"));
    }

    #[test]
    fn what_the_user_has_set_stays() {
        let set = choose(Some("ib0".into()), "203.0.113.1").unwrap();
        assert_eq!(set.to_set(), None);
        assert_eq!(
            set.to_string(),
            "ib0: NCCL_SOCKET_IFNAME is set in the environment of the worker and stays; `address` \
            does not apply"
        );
    }

    #[test]
    fn an_address_that_no_interface_has_is_named() {
        let eth0 = [("eth0".to_owned(), "10.0.0.1".parse().unwrap())];
        assert_eq!(
            find("203.0.113.1", &eth0).unwrap_err().to_string(),
            "cannot choose the network interface of `address`, which is 203.0.113.1: no interface \
            of this machine has it; there are eth0 10.0.0.1; correct `address` in the settings of \
            this worker, or set NCCL_SOCKET_IFNAME"
        );
        assert!(choose(None, "203.0.113.1").is_err());
        let error = find("no.such.host.invalid", &eth0).unwrap_err().to_string();
        assert!(error.contains("no.such.host.invalid: "), "{error}");
    }
}
