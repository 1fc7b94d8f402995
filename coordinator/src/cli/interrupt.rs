//! Ctrl-C while a command waits for something that goes on without it: the command says so, and how
//! to undo it, before it ends.

use anyhow::{Context, Result};
use shell::signals::StopSignals;
use std::sync::{Arc, Mutex, PoisonError};

type LastWords = Box<dyn FnOnce() + Send>;

/// Catches SIGINT, SIGTERM and SIGHUP from now on until the process ends.
pub(crate) struct Interrupt {
    last_words: Arc<Mutex<Option<LastWords>>>,
}

impl Interrupt {
    /// At a signal `last_words` prints, and the process ends with the code of the signal.
    ///
    /// # Errors
    /// The signals cannot be caught.
    pub(crate) fn catch(last_words: impl FnOnce() + Send + 'static) -> Result<Self> {
        let mut signals = StopSignals::catch().context("cannot catch signals")?;
        let last_words: Arc<Mutex<Option<LastWords>>> =
            Arc::new(Mutex::new(Some(Box::new(last_words))));
        let words = Arc::clone(&last_words);
        tokio::spawn(async move {
            let request = signals.next().await;
            let words = words.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(print) = words {
                print();
            }
            std::process::exit(request.signal.exit_code().into());
        });
        Ok(Self { last_words })
    }

    /// The wait is over: from now on a signal ends the process without words.
    pub(crate) fn release(self) {
        drop(
            self.last_words
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
    }
}
