//! The one table of limits on what a sender may send, so that no sender can stop the others. Both
//! ends apply it: whoever admits a user's text, and whoever decodes a message. What is admitted
//! therefore always fits into the messages that carry it, which `proto/tests/limits.rs` checks.
//!
//! | what | limit | beyond it |
//! |---|---|---|
//! | a request of a command | [`REQUEST_BYTES`] | refused |
//! | a job.toml, as written and in its canonical form | [`JOB_TOML_BYTES`] | refused |
//! | keys, tables and values of a job.toml | [`TOML_ITEMS`] | refused |
//! | a URL | [`URL_BYTES`] | refused |
//! | one prompt; all prompts of a job | [`PROMPT_BYTES`], [`PROMPTS_BYTES`] | refused |
//! | errors of one job.toml | [`JOB_ERRORS`] | the rest is counted |
//! | the text of an error | [`ERROR_BYTES`] | cut, and says so: [`cut`] |
//! | the name of a worker | [`WORKER_NAME_BYTES`] | refused |
//! | an address, `host:port` | [`ADDRESS_BYTES`] | refused |
//! | any other name, path or version | [`TEXT_BYTES`] | refused |
//! | devices of a worker, ranks of an assignment | [`DEVICES`] | refused |
//! | entries of any list | [`LIST`] | refused |
//! | overrides of a job by `coordinator retry --set` | [`OVERRIDES`] | refused |
//! | labels of a job; the owner, the key or value of a label; its note | [`LABELS`], [`LABEL_BYTES`], [`TEXT_BYTES`] | refused |
//! | texts of archived jobs that a job names | [`NAMED_BYTES`] | refused |
//! | a report of a worker | [`REPORT_BYTES`] | log lines, then the newest steps wait for the next |
//! | one assignment; a worker's desired state | [`ASSIGNMENT_BYTES`], [`STATE_BYTES`] | never: the sum of the above |
//! | a reply | [`REPLY_BYTES`] | refused by the command that asked |

/// A request of a command, as one message.
pub const REQUEST_BYTES: usize = 1 << 20;
/// A job.toml. Shorter than a request by what surrounds it there.
pub const JOB_TOML_BYTES: usize = 1 << 20;
/// Parts of keys, tables and values of a job.toml. The parser takes up to 2 kB for each of them,
/// although each may be one character of the text.
pub const TOML_ITEMS: usize = 8 * LIST;
/// URLs of data sets, base weights and object stores.
pub const URL_BYTES: usize = 2 << 10;
pub const PROMPT_BYTES: usize = 16 << 10;
/// All prompts of a job together, with the negative one.
pub const PROMPTS_BYTES: usize = 1 << 20;
/// Errors that are listed for one job.toml.
pub const JOB_ERRORS: usize = 32;
pub const ERROR_BYTES: usize = 8 << 10;
pub const WORKER_NAME_BYTES: usize = 64;
/// The longest host name of the DNS, a colon and a port.
pub const ADDRESS_BYTES: usize = 253 + 6;
pub const TEXT_BYTES: usize = 1 << 10;
pub const DEVICES: u32 = 64;
pub const LIST: usize = 4096;
pub const OVERRIDES: usize = 256;
pub const LABELS: usize = 16;
pub const LABEL_BYTES: usize = 63;
/// The archived jobs that a job waits for or reads are parsed when it is submitted.
pub const NAMED_BYTES: usize = 4 << 20;
/// gRPC's usual limit.
pub const REPORT_BYTES: usize = 4 << 20;
/// A job's text, the text of the job whose weights it reads (of all of them together, if it is an
/// evaluation), and for each rank a lease of up to
/// [`LEASE_RANGES`] ranges, which take at most 22 bytes each.
pub const ASSIGNMENT_BYTES: usize =
    2 * JOB_TOML_BYTES + DEVICES as usize * (LEASE_RANGES * 22 + 16) + (16 << 10);
/// Ranges of units in one rank's lease.
pub const LEASE_RANGES: usize = 256;
/// Assignments of one worker: each takes a device, and a worker that changes jobs may have a
/// standby of another job on every device.
pub const ASSIGNMENTS: usize = 2 * DEVICES as usize;
/// A worker's full desired state: all its assignments, and its peers.
pub const STATE_BYTES: usize =
    ASSIGNMENTS * (ASSIGNMENT_BYTES + 8) + LIST * (WORKER_NAME_BYTES + ADDRESS_BYTES + 32) + 1024;
/// A reply to a command: a list of jobs, or the view of one.
pub const REPLY_BYTES: usize = 64 << 20;

/// Workers that may be attached at a time: the default and the maximum of the setting
/// `max_workers`.
pub const WORKERS: u32 = 1024;
pub const WORKERS_MAX: u32 = 16_384;

/// Whether the text can be a worker's name: it is a file name, a label and a word in a log.
#[must_use]
pub fn is_worker_name(name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=WORKER_NAME_BYTES).contains(&name.len()) && name.chars().all(is_allowed)
}

/// The text, or as much of it as fits into `bytes` with the note that it was cut and how long it
/// was.
#[must_use]
pub fn cut(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    let note = format!(" … (cut: it has {} bytes)", text.len());
    let mut end = bytes.saturating_sub(note.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{note}", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_text_says_so_and_fits() {
        assert_eq!(cut("short", 5), "short");
        let long = "ü".repeat(100);
        let short = cut(&long, 60);
        assert!(short.len() <= 60, "{short}");
        assert!(short.ends_with(" … (cut: it has 200 bytes)"), "{short}");
        assert_eq!(cut(&short, 60), short, "it is not cut again");
    }

    #[test]
    fn names_of_workers_are_plain_words() {
        for good in ["w1", "node-7.example_x", &"n".repeat(64)] {
            assert!(is_worker_name(good), "{good}");
        }
        for bad in ["", "a b", "a\nb", "\u{1b}[2J", "a/b", "ü", &"n".repeat(65)] {
            assert!(!is_worker_name(bad), "{bad:?}");
        }
    }
}
