//! How many files this process may open, connections included.

/// More are never needed: `max_workers` has a maximum.
const FILES_MAX: u64 = 65_536;

/// Raises the limit of open files as far as this process may, and returns it.
pub(crate) fn raise_file_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(FILES_MAX).min(FILES_MAX);
    if limit.current.is_none_or(|current| wanted <= current) {
        return limit.current.unwrap_or(FILES_MAX);
    }
    let raised = Rlimit {
        current: Some(wanted),
        maximum: limit.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => wanted,
        Err(_) => limit.current.unwrap_or(wanted),
    }
}
