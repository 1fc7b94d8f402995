//! The key-value store for the rendezvous of one generation, served by rank 0. A store is never
//! reused by another generation: a stale address in it would make a restart hang.

use super::{CollectiveError, ffi};
use std::ffi::{CString, c_char, c_int, c_void};
use std::ptr::NonNull;
use std::time::Duration;

/// Longest value of a key.
const VALUE_BYTES_MAX: usize = 1 << 16;

/// A connection to the store; on rank 0 also its server.
#[derive(Debug)]
pub(crate) struct Store {
    raw: NonNull<c_void>,
}

// SAFETY: c10d's stores may be used from any thread, one at a time.
unsafe impl Send for Store {}

impl Store {
    /// Serves a store on a free port of `host` and connects to it. Does not wait for other ranks.
    pub(crate) fn serve(host: &str, timeout: Duration) -> Result<Self, CollectiveError> {
        Self::open(host, 0, true, timeout)
    }

    /// Connects to `address` (`host:port`), retrying until `timeout`.
    pub(crate) fn connect(address: &str, timeout: Duration) -> Result<Self, CollectiveError> {
        let invalid = || CollectiveError {
            action: format!("cannot reach the store at {address:?}"),
            reason: "it should be host:port".into(),
        };
        let (host, port) = address.rsplit_once(':').ok_or_else(invalid)?;
        let port: u16 = port.parse().map_err(|_| invalid())?;
        Self::open(host, port, false, timeout)
    }

    fn open(
        host: &str,
        port: u16,
        server: bool,
        timeout: Duration,
    ) -> Result<Self, CollectiveError> {
        let host_c = c_text("host", host)?;
        // SAFETY: the string is alive during the call; the shim copies it.
        let raw = unsafe {
            ffi::retri_store(host_c.as_ptr(), port.into(), server.into(), millis(timeout))
        };
        let action = if server {
            "cannot serve a store on"
        } else {
            "cannot reach the store at"
        };
        let raw = NonNull::new(raw)
            .ok_or_else(|| CollectiveError::last(format!("{action} {host}:{port}")))?;
        Ok(Self { raw })
    }

    pub(crate) fn port(&self) -> i32 {
        // SAFETY: `raw` is a live store.
        unsafe { ffi::retri_store_port(self.raw.as_ptr()) }
    }

    pub(crate) fn set(&self, key: &str, value: &str) -> Result<(), CollectiveError> {
        let (key_c, value_c) = (c_text("key", key)?, c_text("value", value)?);
        // SAFETY: `raw` is a live store; both strings are alive during the call and copied.
        let code =
            unsafe { ffi::retri_store_set(self.raw.as_ptr(), key_c.as_ptr(), value_c.as_ptr()) };
        if code == 0 {
            Ok(())
        } else {
            Err(CollectiveError::last(format!(
                "cannot write {key} to the store"
            )))
        }
    }

    /// The value of a key that is set, at most [`VALUE_BYTES_MAX`] bytes.
    pub(crate) fn get(&self, key: &str) -> Result<String, CollectiveError> {
        let key_c = c_text("key", key)?;
        let mut value = vec![0u8; VALUE_BYTES_MAX];
        let bytes = c_int::try_from(value.len()).expect("64 KiB fit");
        // SAFETY: `raw` is a live store, the string is alive during the call, and the buffer has
        // the given length.
        let length = unsafe {
            let value = value.as_mut_ptr().cast::<c_char>();
            ffi::retri_store_get(self.raw.as_ptr(), key_c.as_ptr(), value, bytes)
        };
        let action = || format!("cannot read {key} from the store");
        let length = usize::try_from(length).map_err(|_| CollectiveError::last(action()))?;
        value.truncate(length);
        String::from_utf8(value).map_err(|error| CollectiveError {
            action: action(),
            reason: error.to_string(),
        })
    }

    /// Blocks until `key` is set.
    pub(crate) fn wait(&self, key: &str, timeout: Duration) -> Result<(), CollectiveError> {
        let key_c = c_text("key", key)?;
        // SAFETY: `raw` is a live store; the string is alive during the call.
        let code =
            unsafe { ffi::retri_store_wait(self.raw.as_ptr(), key_c.as_ptr(), millis(timeout)) };
        if code == 0 {
            Ok(())
        } else {
            Err(CollectiveError::last(format!(
                "waited for {key} in the store"
            )))
        }
    }

    pub(super) fn raw(&self) -> *mut c_void {
        self.raw.as_ptr()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: `raw` came from `retri_store` and is freed once. Groups hold their own reference
        // to the C++ store.
        unsafe { ffi::retri_store_free(self.raw.as_ptr()) }
    }
}

pub(super) fn c_text(what: &str, text: &str) -> Result<CString, CollectiveError> {
    CString::new(text).map_err(|_| CollectiveError {
        action: format!("{what} {text:?} cannot be used"),
        reason: "it holds a zero byte".into(),
    })
}

pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
