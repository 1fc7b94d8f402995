//! Answers the daemon's questions about this process, on a thread of its own and a socket of its
//! own: it must answer while the model thread hangs. One question in a line, one answer, and the
//! connection ends.

use crate::collective::recorder;
use crate::stacks::Walker;
use crate::watchdog::Progress;
use proto::probe::{ANSWER_BYTES, Question};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// Bytes of a question.
const QUESTION_BYTES: u64 = 1024;
/// How long the asker may take to send and to read.
const WITHIN: Duration = Duration::from_secs(10);

/// Listens at `socket`, in the folder that only this user may enter. Without it nobody can ask, and
/// the rank works all the same: an error is only logged.
pub(crate) fn start(socket: &Path, progress: Progress) {
    let begin = || {
        let walker = Walker::new()?;
        // It may exist from a process with the same id before the last reboot.
        std::fs::remove_file(socket).ok();
        let listener = UnixListener::bind(socket)?;
        std::thread::Builder::new()
            .name("probe".to_owned())
            .spawn(move || serve(&listener, &walker, &progress))
    };
    if let Err(error) = begin() {
        let socket = socket.display();
        tracing::warn!(%error, %socket, "this rank cannot be asked for stacks and traces");
    }
}

fn serve(listener: &UnixListener, walker: &Walker, progress: &Progress) {
    for stream in listener.incoming().flatten() {
        // The asker is told by the end of the connection.
        answer(stream, walker, progress).ok();
    }
}

fn answer(mut stream: UnixStream, walker: &Walker, progress: &Progress) -> std::io::Result<()> {
    stream.set_read_timeout(Some(WITHIN))?;
    stream.set_write_timeout(Some(WITHIN))?;
    let mut line = String::new();
    BufReader::new((&stream).take(QUESTION_BYTES)).read_line(&mut line)?;
    let json = match serde_json::from_str(&line)? {
        Question::Stacks => {
            let mut stacks = walker.all();
            stacks.threads.extend(recorder::unfinished());
            let activity = progress.activity(Instant::now());
            stacks.activity = activity.map_or_else(String::new, |activity| {
                let seconds = Duration::from_millis(activity.for_ms).as_secs_f64();
                format!("{activity}, for {seconds:.1} s")
            });
            serde_json::to_vec(&stacks)?
        }
        Question::Trace { first, last } => {
            serde_json::to_vec(&progress.spans().of(&(first..=last)))?
        }
    };
    // The longest answer is that of a process with a thousand threads.
    stream.write_all(&json[..json.len().min(ANSWER_BYTES)])
}
