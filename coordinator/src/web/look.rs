//! Looks at the state at a bounded rate, however many pages are open: all of them share one look,
//! which is repeated only when something has changed and some time has passed. So pages cost the
//! daemon's loop the same whether one person looks or two hundred do.

use super::board::Board;
use super::history::History;
use crate::daemon::{Handle, Stopping};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// Between two looks, however much changes.
const AT_LEAST: Duration = Duration::from_millis(250);
/// Between two looks, even if nothing changes: what waits has then waited for longer.
const AT_MOST: Duration = Duration::from_secs(1);

/// Between two looks while nobody looks.
const UNSEEN: Duration = Duration::from_secs(20);

/// Cheap to clone; all clones share the looks.
#[derive(Debug, Clone)]
pub(crate) struct Look(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    handle: Handle,
    last: Mutex<Option<Last>>,
    history: History,
}

#[derive(Debug)]
struct Last {
    /// Of [`Handle::changes`], from before the look.
    change: u64,
    at: Instant,
    board: Arc<Board>,
}

impl Look {
    pub(crate) fn new(handle: Handle) -> Self {
        Self(Arc::new(Inner {
            handle,
            last: Mutex::new(None),
            history: History::default(),
        }))
    }

    /// What was seen in earlier looks.
    pub(super) fn history(&self) -> &History {
        &self.0.history
    }

    /// Looks now and then, so that the history has no holes while nobody looks. Ends with the
    /// daemon's loop.
    pub(crate) async fn remember(&self) {
        while self.board().await.is_ok() {
            tokio::time::sleep(UNSEEN).await;
        }
    }

    /// The state, at most [`AT_LEAST`] old if it has changed since.
    pub(crate) async fn board(&self) -> Result<Arc<Board>, Stopping> {
        let mut last = self.0.last.lock().await;
        let change = *self.0.handle.changes().borrow();
        let is_fresh = |it: &Last| {
            let limit = if it.change == change {
                AT_MOST
            } else {
                AT_LEAST
            };
            it.at.elapsed() < limit
        };
        if let Some(it) = last.as_ref().filter(|it| is_fresh(it)) {
            return Ok(Arc::clone(&it.board));
        }
        let board = Arc::new(self.0.handle.board().await?);
        self.0.history.add(&board);
        *last = Some(Last {
            change,
            at: Instant::now(),
            board: Arc::clone(&board),
        });
        Ok(board)
    }
}
