//! Says what a command waits for, if that takes long: a store that does not answer is retried in
//! silence for minutes, and a large data set takes long to read.

use crate::text::errln;
use std::future::Future;
use std::time::Duration;
use tokio::time::{Instant, sleep};

const FIRST_AFTER: Duration = Duration::from_secs(4);
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// Performs `work`, and says on stderr that it still waits for `what`, with the seconds so far.
pub(crate) async fn aloud<T>(what: &str, work: impl Future<Output = T>) -> T {
    say_while(work, |seconds| {
        errln!("still waiting for {what}, for {seconds} s now");
    })
    .await
}

async fn say_while<T>(work: impl Future<Output = T>, say: impl Fn(u64)) -> T {
    let mut work = std::pin::pin!(work);
    let begun = Instant::now();
    let mut pause = FIRST_AFTER;
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = sleep(pause) => say(begun.elapsed().as_secs()),
        }
        pause = AGAIN_AFTER;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[tokio::test(start_paused = true)]
    async fn what_takes_long_is_said_within_five_seconds_and_again() {
        let cases: [(u64, &[u64]); 3] = [(3, &[]), (10, &[4]), (70, &[4, 34, 64])];
        for (seconds, expected) in cases {
            let said = RefCell::new(Vec::new());
            let work = sleep(Duration::from_secs(seconds));
            say_while(work, |at| said.borrow_mut().push(at)).await;
            assert_eq!(*said.borrow(), expected);
        }
    }
}
