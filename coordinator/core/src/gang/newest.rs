//! The progress of the newest generation, whether it still runs or not.

use proto::checkpoint::CheckpointRef;
use proto::id::Step;
use proto::message::StepReport;

/// The progress of the newest generation.
#[derive(Debug, Default)]
pub(crate) struct Newest {
    /// The checkpoint that it resumed from.
    pub(crate) resume: Option<CheckpointRef>,
    /// The newest step that rank 0 reported; before the first report, the step that it resumed
    /// from.
    pub(crate) acknowledged: Step,
    pub(crate) last_step: Option<StepReport>,
}

impl Newest {
    pub(crate) fn new(resume: Option<CheckpointRef>) -> Self {
        Self {
            resume,
            acknowledged: resume.map_or(Step(0), |resume| resume.step),
            last_step: None,
        }
    }
}
