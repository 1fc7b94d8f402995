//! What an evaluation's rows say: its numbers, and the paper's beside them. For the report of the
//! command line and for the page. Pure.

pub(crate) mod numbers;
pub(crate) mod paper;
