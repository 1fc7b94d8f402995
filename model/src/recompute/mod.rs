//! Activation checkpointing: a block saves its inputs instead of its inner activations and is
//! recomputed for the backward pass. Gradients are bit-identical, because the same kernels run on
//! the same values. The autograd function is in `recompute.cpp`; only this module calls it and
//! contains the unsafe code of the networks.
#![allow(unsafe_code)]

use crate::parameter::Scope;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tch::Tensor;

/// A block of a network that may be recomputed in the backward pass.
#[derive(Debug)]
pub(crate) struct ActivationCheckpoint<T> {
    inner: Arc<T>,
    /// The block's parameters, trained or not.
    parameters: Vec<Tensor>,
    enabled: bool,
}

impl<T: 'static> ActivationCheckpoint<T> {
    /// `scopes` are all scopes of `inner`'s weights. The component of the first scope decides
    /// whether checkpointing is enabled.
    pub(crate) fn new(scopes: &[&Scope<'_>], inner: T) -> Self {
        Self {
            inner: Arc::new(inner),
            parameters: scopes.iter().flat_map(|scope| scope.parameters()).collect(),
            enabled: scopes.first().is_some_and(|scope| scope.checkpointed()),
        }
    }

    /// Runs `forward` on the inputs. Drops inner activations if checkpointing is enabled and a
    /// gradient is required. `forward` must be deterministic and use only tensors from its
    /// arguments.
    pub(crate) fn run<const N: usize>(
        &self,
        inputs: [&Tensor; N],
        forward: impl Fn(&T, &[Tensor; N]) -> Tensor + 'static,
    ) -> Tensor {
        let inputs = inputs.map(Tensor::shallow_clone);
        let trained = self
            .parameters
            .iter()
            .filter(|parameter| self.enabled && parameter.requires_grad());
        let trained: Vec<Tensor> = trained.map(Tensor::shallow_clone).collect();
        let requires_grad = !trained.is_empty() || inputs.iter().any(Tensor::requires_grad);
        if !self.enabled || !requires_grad {
            return forward(&self.inner, &inputs);
        }
        let inner = Arc::clone(&self.inner);
        let block: Block = Box::new(move |inputs| {
            let inputs = inputs.try_into().expect("the inputs keep their number");
            forward(&inner, inputs)
        });
        recompute(block, &inputs, &trained)
    }
}

/// The closure that the autograd graph holds.
type Block = Box<dyn Fn(&[Tensor]) -> Tensor>;

impl<T> Deref for ActivationCheckpoint<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

unsafe extern "C" {
    fn retri_recompute(
        block: *mut c_void,
        run: unsafe extern "C" fn(*mut c_void, *mut *mut c_void, c_int) -> *mut c_void,
        free: unsafe extern "C" fn(*mut c_void),
        inputs: *const *mut c_void,
        input_count: c_int,
        parameters: *const *mut c_void,
        parameter_count: c_int,
    ) -> *mut c_void;
    fn retri_recompute_error() -> *const c_char;
}

/// # Panics
/// If libtorch fails, as tch's infallible calls do; the trainer converts the panic to an error.
fn recompute(block: Block, inputs: &[Tensor], parameters: &[Tensor]) -> Tensor {
    // A box in a box: a thin pointer has no room for a trait object's vtable.
    let block = Box::new(block);
    let (inputs, parameters) = (pointers(inputs), pointers(parameters));
    let count =
        |list: &[*mut c_void]| c_int::try_from(list.len()).expect("a block has few tensors");
    // SAFETY: C++ takes ownership of the box and passes it to `free` exactly once. All tensors live
    // during the call; C++ holds its own references. On a GPU libtorch calls `run` from its device
    // thread while the caller waits in `backward`, so the block is never used concurrently.
    let out = unsafe {
        retri_recompute(
            Box::into_raw(block).cast(),
            run,
            free,
            inputs.as_ptr(),
            count(&inputs),
            parameters.as_ptr(),
            count(&parameters),
        )
    };
    if out.is_null() {
        // SAFETY: the string lives until this thread's next call.
        let message = unsafe { CStr::from_ptr(retri_recompute_error()) };
        panic!("{}", message.to_string_lossy());
    }
    // SAFETY: the call returns a new tensor that we own.
    unsafe { Tensor::from_ptr(out.cast()) }
}

fn pointers(tensors: &[Tensor]) -> Vec<*mut c_void> {
    tensors
        .iter()
        .map(|tensor| tensor.as_ptr().cast_mut().cast())
        .collect()
}

/// Called by C++: returns the block's output on these inputs, or null if it panicked (the panic's
/// message is on stderr).
unsafe extern "C" fn run(
    block: *mut c_void,
    inputs: *mut *mut c_void,
    count: c_int,
) -> *mut c_void {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: `block` is the box of `recompute`, which lives until `free`.
        let block = unsafe { &*block.cast::<Block>() };
        let count = usize::try_from(count).unwrap_or(0);
        // SAFETY: C++ passes `count` tensors, which live during the call; each clone is a new
        // reference.
        let inputs: Vec<Tensor> = (0..count)
            .map(|i| unsafe { Tensor::clone_from_ptr((*inputs.add(i)).cast()) })
            .collect();
        let mut out = block(&inputs);
        let pointer: *mut c_void = out.as_mut_ptr().cast();
        // C++ frees it.
        std::mem::forget(out);
        pointer
    }));
    outcome.unwrap_or(std::ptr::null_mut())
}

/// Called by C++ when the graph is freed.
unsafe extern "C" fn free(block: *mut c_void) {
    // SAFETY: `block` is the box of `recompute`; C++ calls `free` exactly once.
    drop(unsafe { Box::from_raw(block.cast::<Block>()) });
}
