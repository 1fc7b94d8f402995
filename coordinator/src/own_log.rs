//! The coordinator's own newest log lines, for `coordinator logs --self`. They are in memory: a
//! restart begins anew, and what is older is where the log of the service goes.

use crate::streams::Reader;
use proto::pb;
use shell::recent;
use tokio::time::{Duration, sleep};
use tonic::Status;

/// Lines that are read at once.
const PAGE: usize = 512;
/// Between two looks for new lines.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// With `follow`, continues until the reader leaves.
pub(crate) async fn send(
    request: &pb::LogsRequest,
    to: &Reader<pb::LogLine>,
) -> Result<(), Status> {
    let mut changes = recent::changes();
    let since = request.since_ms.unwrap_or(0);
    let mut after = match request.tail {
        Some(lines) => recent::before_last(since, usize::try_from(lines).unwrap_or(usize::MAX)),
        None => 0,
    };
    let mut is_first = request.tail.is_none() && since == 0;
    loop {
        changes.mark_unchanged();
        loop {
            let lines = recent::after(after, PAGE);
            let Some(last) = lines.last() else { break };
            let newest = last.number;
            for line in lines {
                // At the beginning that is what is not kept any more; later the reader is too slow.
                let missing = line.number.saturating_sub(after + 1);
                let dropped = if is_first || after != 0 { missing } else { 0 };
                (after, is_first) = (line.number, false);
                if line.at_ms < since {
                    continue;
                }
                let line = pb::LogLine {
                    at_ms: line.at_ms,
                    text: line.text,
                    dropped,
                    ..Default::default()
                };
                if !to.send(line).await? {
                    return Ok(());
                }
            }
            after = newest;
        }
        if !request.follow {
            return Ok(());
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return Ok(()) },
            () = to.closed() => return Ok(()),
        }
        sleep(LOOK_EVERY).await;
    }
}
