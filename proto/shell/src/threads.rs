//! The threads of a process as the kernel sees them.

use proto::probe::Thread;
use std::path::Path;

/// Threads that are listed; a rank has some dozens.
const THREADS_MAX: usize = 1024;

/// The threads of this process, in the order of their numbers.
///
/// # Errors
/// There is no such process, or it belongs to somebody else.
pub fn of_process(process: u32) -> std::io::Result<Vec<Thread>> {
    let folder = Path::new("/proc").join(process.to_string()).join("task");
    let mut ids: Vec<i32> = std::fs::read_dir(folder.clone())?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    ids.sort_unstable();
    ids.truncate(THREADS_MAX);
    // A thread that ends meanwhile has empty fields.
    Ok(ids
        .into_iter()
        .map(|id| thread(&folder.join(id.to_string()), id))
        .collect())
}

fn thread(folder: &Path, id: i32) -> Thread {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
    let status = read("status");
    let state = status.lines().find_map(|line| line.strip_prefix("State:"));
    // "0" while it runs, and where the kernel does not say.
    let waits_in = read("wchan");
    Thread {
        id,
        name: read("comm").trim_end().to_owned(),
        state: state.unwrap_or_default().trim().to_owned(),
        waits_in: waits_in.trim_matches(['0', '\n']).to_owned(),
        ..Thread::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_a_main_thread_and_the_one_of_the_test() {
        let threads = of_process(std::process::id()).expect("/proc is there");
        let main = i32::try_from(std::process::id()).expect("ids are below 4194304");
        assert!(
            threads.iter().any(|thread| thread.id == main),
            "{threads:?}"
        );
        assert!(threads.iter().all(|thread| !thread.state.is_empty()));
        assert!(2 <= threads.len(), "{threads:?}");
        assert!(of_process(u32::MAX).is_err());
    }
}
