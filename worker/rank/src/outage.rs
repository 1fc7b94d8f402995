//! An object store that does not answer for a while. The newest state is in the ranks' memory
//! alone: one that gave up would lose it, and so it tries again, for as long as nobody orders
//! something else.

use crate::deadline::Deadlines;
use anyhow::Chain;
use std::error::Error;
use std::time::Instant;

/// Asks until there is an answer that is not of an outage, or the outage has lasted too long.
/// `what`: what is tried, for the log.
pub(crate) async fn outlast<T, E: Error + 'static, F: Future<Output = Result<T, E>>>(
    deadlines: Deadlines,
    what: &str,
    mut attempt: impl FnMut() -> F,
) -> Result<T, E> {
    let begun = Instant::now();
    loop {
        let error = match attempt().await {
            Err(error) if is_outage(Chain::new(&error)) && begun.elapsed() < deadlines.outage() => {
                error
            }
            outcome => return outcome,
        };
        let pause = deadlines.outage_pause();
        let error = Chain::new(&error)
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(": ");
        tracing::warn!(
            what,
            error,
            again_in_s = pause.as_secs_f64(),
            "the object store does not do it; what is in memory is kept and it is tried again"
        );
        tokio::time::sleep(pause).await;
    }
}

/// Whether this may pass: no answer, a full disk, an error of the server; not what it says of the
/// object or of us.
pub(crate) fn is_outage(mut chain: Chain<'_>) -> bool {
    chain.any(|cause| {
        matches!(
            cause.downcast_ref::<object_store::Error>(),
            Some(object_store::Error::Generic { .. })
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::Error as StoreError;

    /// As whoever uses a store says it: the store's own error is the cause.
    #[derive(Debug, thiserror::Error)]
    #[error("cannot write a")]
    struct Failed(#[source] StoreError);

    fn failed(source: StoreError) -> Failed {
        Failed(source)
    }

    fn no_answer() -> Failed {
        failed(StoreError::Generic {
            store: "S3",
            source: "connection refused".into(),
        })
    }

    fn missing() -> Failed {
        failed(StoreError::NotFound {
            path: "a".into(),
            source: "404".into(),
        })
    }

    #[tokio::test]
    async fn an_outage_is_outlasted_and_a_refusal_is_told_at_once() {
        let deadlines = Deadlines::new(3);
        let mut tries = 0;
        let outcome = outlast(deadlines, "writing", || {
            tries += 1;
            std::future::ready(if tries < 5 {
                Err(no_answer())
            } else {
                Ok(tries)
            })
        });
        assert_eq!(outcome.await.unwrap(), 5);
        let mut tries = 0;
        let outcome = outlast(deadlines, "writing", || {
            tries += 1;
            std::future::ready(Err::<(), _>(missing()))
        });
        let error = outcome.await.unwrap_err();
        assert_eq!((tries, error.to_string()), (1, "cannot write a".to_owned()));
    }
}
