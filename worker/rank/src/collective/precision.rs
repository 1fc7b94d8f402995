//! Settings of libtorch's arithmetic that `tch` does not expose. Called before a process computes.

use super::ffi;

/// Disables TF32, so that fp32 results of a GPU can be compared with a CPU.
pub(crate) fn full_fp32() {
    // SAFETY: sets two flags of libtorch's global context.
    unsafe { ffi::retri_full_fp32() }
}
