//! NCCL's flight recorder: which collectives of this rank have begun and not ended. A GPU's kernel
//! waits where no stack of a thread shows it.

use super::{CollectiveError, ffi};
use proto::probe::Thread;
use serde::Deserialize;
use std::ffi::{CStr, c_char, c_int};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

/// Room for the recorder's text: 256 collectives.
const TEXT_BYTES: usize = 512 << 10;
/// It takes a lock of NCCL's, and whoever asks must have an answer.
const WITHIN: Duration = Duration::from_secs(2);

/// As libtorch 2.10 writes it. It has more, which nobody needs here.
#[derive(Debug, Deserialize)]
struct Dump {
    #[serde(default)]
    entries: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(default)]
    collective_seq_id: i64,
    #[serde(default)]
    profiling_name: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    input_sizes: Vec<Vec<i64>>,
    #[serde(default)]
    input_dtypes: Vec<String>,
    /// Nanoseconds since 1970.
    #[serde(default)]
    time_created_ns: i64,
}

/// What the recorder has, in the form of a thread's stack with the number 0: the oldest collective
/// first. None: this process uses no NCCL.
pub(crate) fn unfinished() -> Option<Thread> {
    let (sender, receiver) = mpsc::channel();
    // Fails if nobody waits any more.
    let ask = move || drop(sender.send(dump()));
    let asked = std::thread::Builder::new().name("recorder".to_owned());
    let (lines, note) = match asked.spawn(ask) {
        Err(error) => (Vec::new(), error.to_string()),
        Ok(_) => match receiver.recv_timeout(WITHIN) {
            Ok(Ok(text)) if text.is_empty() => return None,
            Ok(Ok(text)) => match lines(&text, now_ns()) {
                Ok(lines) => (lines, String::new()),
                Err(error) => (Vec::new(), format!("its text cannot be read: {error}")),
            },
            Ok(Err(error)) => (Vec::new(), error.to_string()),
            Err(_) => {
                let seconds = WITHIN.as_secs();
                (
                    Vec::new(),
                    format!("it did not answer within {seconds} s: NCCL holds its lock"),
                )
            }
        },
    };
    Some(Thread {
        name: "NCCL's flight recorder".to_owned(),
        state: format!("{} collectives have not ended", lines.len()),
        frames: lines,
        note,
        ..Thread::default()
    })
}

/// Its text; empty without NCCL.
fn dump() -> Result<String, CollectiveError> {
    let mut text: Vec<c_char> = vec![0; TEXT_BYTES];
    let bytes = c_int::try_from(TEXT_BYTES).unwrap_or(c_int::MAX);
    // SAFETY: the buffer has `bytes` bytes, and the shim ends what it writes with a zero.
    match unsafe { ffi::retri_flight_recorder(text.as_mut_ptr(), bytes) } {
        0 => {
            // SAFETY: as above; the buffer lives until the text is copied.
            let text = unsafe { CStr::from_ptr(text.as_ptr()) };
            Ok(text.to_string_lossy().into_owned())
        }
        _ => Err(CollectiveError::last("asking NCCL's flight recorder")),
    }
}

fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |it| i64::try_from(it.as_nanos()).unwrap_or(i64::MAX))
}

#[allow(clippy::cast_precision_loss)] // Shown with one decimal.
fn lines(text: &str, now_ns: i64) -> Result<Vec<String>, serde_json::Error> {
    let mut entries = serde_json::from_str::<Dump>(text)?.entries;
    entries.sort_by_key(|it| it.time_created_ns);
    let line = |it: &Entry| {
        let seconds = now_ns.saturating_sub(it.time_created_ns).max(0) as f64 / 1e9;
        let tensors = it.input_sizes.iter().zip(&it.input_dtypes);
        let tensors: Vec<String> = tensors
            .map(|(size, dtype)| format!("{dtype}{size:?}"))
            .collect();
        format!(
            "{} number {}: {}, for {seconds:.1} s, of {}",
            it.profiling_name,
            it.collective_seq_id,
            it.state,
            tensors.join(" ")
        )
    };
    Ok(entries.iter().map(line).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn collectives_are_lines_with_the_oldest_first() {
        let text = r#"{"version": "2.10", "pg_config": {}, "entries": [
            {"record_id": 8, "collective_seq_id": 12, "profiling_name": "nccl:all_reduce",
             "state": "scheduled", "input_sizes": [[3]], "input_dtypes": ["Float"],
             "time_created_ns": 5000000000, "timeout_ms": 600000},
            {"record_id": 7, "collective_seq_id": 11, "profiling_name": "nccl:all_reduce",
             "state": "started", "input_sizes": [[2, 4], [1]],
             "input_dtypes": ["Half", "Float"], "time_created_ns": 4000000000}]}"#;
        let expected = [
            "nccl:all_reduce number 11: started, for 2.5 s, of Half[2, 4] Float[1]",
            "nccl:all_reduce number 12: scheduled, for 1.5 s, of Float[3]",
        ];
        assert_eq!(lines(text, 6_500_000_000).unwrap(), expected);
        assert!(
            lines("{\"entries\": [{\"rec", 0).is_err(),
            "one that was cut"
        );
        assert!(lines("{\"version\": \"3\"}", 0).unwrap().is_empty());
    }

    #[test]
    fn a_process_without_nccl_has_no_recorder() {
        assert_eq!(dump().unwrap(), "");
        assert_eq!(unfinished(), None);
    }
}
