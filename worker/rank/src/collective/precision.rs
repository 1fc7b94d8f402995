//! Switches of libtorch's arithmetic that `tch` does not reach. Called where a process begins to
//! compute.

use super::ffi;

/// Makes a GPU compute fp32 as fp32, so that it can be compared with a CPU.
pub(crate) fn full_fp32() {
    // SAFETY: sets two flags of libtorch's global context.
    unsafe { ffi::retri_full_fp32() }
}
