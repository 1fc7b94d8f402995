//! Loads the next step's micro-batches while the current step computes. Uses no tensors.
//! Called by [`crate::train`].

use crate::deadline::Deadlines;
use crate::outage::retry_through_outage;
use crate::position::Position;
use crate::spans::Spans;
use model_data::example::Example;
use model_data::loader::{LoadError, Loader};
use proto::probe::Lane;
use proto::sharding;
use proto::spec::TrainWork;
use std::ops::RangeInclusive;
use std::time::Instant;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// Steps that are buffered ahead of the current one.
const STEPS_AHEAD: usize = 1;

/// This rank's micro-batches of one step.
#[derive(Debug)]
pub(crate) struct StepExamples {
    pub(crate) step: u64,
    pub(crate) micro_batches: Vec<Vec<Example>>,
}

/// Yields the steps in order; the first error is the last item.
#[derive(Debug)]
pub(crate) struct Prefetch {
    steps: mpsc::Receiver<Result<StepExamples, LoadError>>,
}

/// Which samples are read, and how.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) deadlines: Deadlines,
    pub(crate) loader: Loader,
    pub(crate) position: Position,
    pub(crate) steps: RangeInclusive<u64>,
    pub(crate) spans: Spans,
}

impl Prefetch {
    pub(crate) fn start(
        runtime: &Handle,
        spec: &TrainWork,
        Reading {
            deadlines,
            loader,
            position: Position { rank, world },
            steps,
            spans,
        }: Reading,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(STEPS_AHEAD);
        let micro_batch = spec.train.micro_batch;
        let global_batch = spec.train.global_batch;
        let own = sharding::micro_batches(spec.micro_batches(), rank, world);
        runtime.spawn(async move {
            for step in steps {
                let begun = Instant::now();
                let range = own.start * micro_batch..own.end * micro_batch;
                let read = retry_through_outage(deadlines, "reading samples", || {
                    loader.examples(step, global_batch, range.clone())
                });
                let examples = tokio::select! {
                    examples = read => examples,
                    () = sender.closed() => return,
                };
                spans.add(
                    Lane::Prefetch,
                    "read samples",
                    step,
                    (begun, Instant::now()),
                );
                let result = examples.map(|examples| StepExamples {
                    step,
                    micro_batches: split(examples, micro_batch),
                });
                let failed = result.is_err();
                // Stop after an error, or when the receiver is dropped.
                if sender.send(result).await.is_err() || failed {
                    return;
                }
            }
        });
        Self { steps: receiver }
    }

    /// The next step's examples; None after the last.
    pub(crate) async fn next(&mut self) -> Option<Result<StepExamples, LoadError>> {
        self.steps.recv().await
    }
}

fn split(examples: Vec<Example>, size: u32) -> Vec<Vec<Example>> {
    let mut micro_batches = Vec::new();
    let mut rest = examples.into_iter();
    loop {
        let micro_batch: Vec<Example> = rest.by_ref().take(size as usize).collect();
        if micro_batch.is_empty() {
            return micro_batches;
        }
        micro_batches.push(micro_batch);
    }
}
