//! Loads the next step's micro-batches while the current step computes. Never touches a tensor.
//! Called by [`crate::train`].

use crate::deadline::Deadlines;
use crate::outage::outlast;
use crate::position::Position;
use model_data::example::Example;
use model_data::loader::{LoadError, Loader};
use proto::sharding;
use proto::spec::TrainWork;
use std::ops::RangeInclusive;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// Steps that lie ready beside the one that is computed.
const STEPS_AHEAD: usize = 1;

/// This rank's part of one step.
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

impl Prefetch {
    pub(crate) fn start(
        runtime: &Handle,
        deadlines: Deadlines,
        loader: Loader,
        spec: &TrainWork,
        Position { rank, world }: Position,
        steps: RangeInclusive<u64>,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(STEPS_AHEAD);
        let micro_batch = spec.train.micro_batch;
        let global_batch = spec.train.global_batch;
        let own = sharding::micro_batches(spec.micro_batches(), rank, world);
        runtime.spawn(async move {
            for step in steps {
                let range = own.start * micro_batch..own.end * micro_batch;
                let read = outlast(deadlines, "reading samples", || {
                    loader.examples(step, global_batch, range.clone())
                });
                let examples = tokio::select! {
                    examples = read => examples,
                    () = sender.closed() => return,
                };
                let result = examples.map(|examples| StepExamples {
                    step,
                    micro_batches: cut(examples, micro_batch),
                });
                let failed = result.is_err();
                // A receiver that is gone wants no more.
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

fn cut(examples: Vec<Example>, micro_batch: u32) -> Vec<Vec<Example>> {
    let mut parts = Vec::new();
    let mut rest = examples.into_iter();
    loop {
        let part: Vec<Example> = rest.by_ref().take(micro_batch as usize).collect();
        if part.is_empty() {
            return parts;
        }
        parts.push(part);
    }
}
