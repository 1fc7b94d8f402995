//! Retries during an outage of the object store. The newest state may exist only in the ranks'
//! memory: a rank that exited would lose it, so it retries until the daemon orders something else.

use crate::deadline::Deadlines;
use anyhow::Chain;
use std::error::Error;
use std::time::Instant;

/// Retries until the outcome is not an outage, or until [`Deadlines::outage`] has passed. `what`
/// names the attempt in the log.
pub(crate) async fn retry_through_outage<
    T,
    E: Error + 'static,
    F: Future<Output = Result<T, E>>,
>(
    deadlines: Deadlines,
    what: &str,
    mut attempt: impl FnMut() -> F,
) -> Result<T, E> {
    let started = Instant::now();
    loop {
        let error = match attempt().await {
            Err(error)
                if is_outage(Chain::new(&error)) && started.elapsed() < deadlines.outage() =>
            {
                error
            }
            outcome => return outcome,
        };
        let pause = deadlines.outage_retry_interval();
        let error = Chain::new(&error)
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(": ");
        tracing::warn!(
            what,
            error,
            retry_in_s = pause.as_secs_f64(),
            "the object store is not available; retrying with the state kept in memory"
        );
        tokio::time::sleep(pause).await;
    }
}

/// True for errors that may be transient: no answer, a full disk, an error of the server. False for
/// errors about the object or our access to it.
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

    /// A caller's error, whose source is the store's error.
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
    async fn an_outage_is_retried_and_a_refusal_is_returned_at_once() {
        let deadlines = Deadlines::new(3);
        let mut tries = 0;
        let outcome = retry_through_outage(deadlines, "writing", || {
            tries += 1;
            std::future::ready(if tries < 5 {
                Err(no_answer())
            } else {
                Ok(tries)
            })
        });
        assert_eq!(outcome.await.unwrap(), 5);
        let mut tries = 0;
        let outcome = retry_through_outage(deadlines, "writing", || {
            tries += 1;
            std::future::ready(Err::<(), _>(missing()))
        });
        let error = outcome.await.unwrap_err();
        assert_eq!((tries, error.to_string()), (1, "cannot write a".to_owned()));
    }
}
