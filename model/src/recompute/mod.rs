//! Activation checkpointing: a block that keeps its inputs and not its inner activations, and is
//! run again for the backward pass. Gradients are the same to the bit, because the same kernels see
//! the same numbers. The autograd function lies in `recompute.cpp`; this is the only place that
//! speaks to it, and with it the only unsafe code of the networks.
#![allow(unsafe_code)]

use crate::parameter::Scope;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tch::Tensor;

/// A part of a network that may be computed again.
#[derive(Debug)]
pub(crate) struct ActivationCheckpoint<T> {
    inner: Arc<T>,
    /// Its own, trained or not.
    parameters: Vec<Tensor>,
    again: bool,
}

impl<T: 'static> ActivationCheckpoint<T> {
    /// `scopes` are all places where `inner` took its weights. It is computed again if the first
    /// one's component is.
    pub(crate) fn new(scopes: &[&Scope<'_>], inner: T) -> Self {
        Self {
            inner: Arc::new(inner),
            parameters: scopes.iter().flat_map(|scope| scope.made()).collect(),
            again: scopes.first().is_some_and(|scope| scope.recomputes()),
        }
    }

    /// `forward` on the inputs, forgetting what lies between where that is wanted and a gradient
    /// can be asked for. `forward` must answer the same to the same, and know of tensors only
    /// through its arguments.
    pub(crate) fn run<const N: usize>(
        &self,
        inputs: [&Tensor; N],
        forward: impl Fn(&T, &[Tensor; N]) -> Tensor + 'static,
    ) -> Tensor {
        let inputs = inputs.map(Tensor::shallow_clone);
        let trained = self
            .parameters
            .iter()
            .filter(|parameter| self.again && parameter.requires_grad());
        let trained: Vec<Tensor> = trained.map(Tensor::shallow_clone).collect();
        let wanted = !trained.is_empty() || inputs.iter().any(Tensor::requires_grad);
        if !self.again || !wanted {
            return forward(&self.inner, &inputs);
        }
        let inner = Arc::clone(&self.inner);
        let block: Block = Box::new(move |inputs| {
            let inputs = inputs.try_into().expect("as many as were given");
            forward(&inner, inputs)
        });
        recompute(block, &inputs, &trained)
    }
}

/// What the graph keeps.
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
/// When libtorch fails, as all of tch's plain calls do; the trainer turns that into an error.
fn recompute(block: Block, inputs: &[Tensor], parameters: &[Tensor]) -> Tensor {
    // A box in a box: a plain pointer has no room for a trait object's table.
    let block = Box::new(block);
    let (inputs, parameters) = (pointers(inputs), pointers(parameters));
    let count =
        |list: &[*mut c_void]| c_int::try_from(list.len()).expect("a block has few tensors");
    // SAFETY: the box goes over to C++, which gives it back to `free` once. All tensors live during
    // the call; C++ keeps references of its own. On a GPU libtorch calls `run` from its device's
    // thread while the caller waits in `backward`, so no two threads use the block at one time.
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
        // SAFETY: the text lives until this thread's next call.
        let message = unsafe { CStr::from_ptr(retri_recompute_error()) };
        panic!("{}", message.to_string_lossy());
    }
    // SAFETY: the call made this tensor for us.
    unsafe { Tensor::from_ptr(out.cast()) }
}

fn pointers(tensors: &[Tensor]) -> Vec<*mut c_void> {
    tensors
        .iter()
        .map(|tensor| tensor.as_ptr().cast_mut().cast())
        .collect()
}

/// Called by C++: the block's output on these inputs, null when it panicked (the panic's message is
/// on stderr).
unsafe extern "C" fn run(
    block: *mut c_void,
    inputs: *mut *mut c_void,
    count: c_int,
) -> *mut c_void {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: `block` is the box of `recompute`, alive until `free`.
        let block = unsafe { &*block.cast::<Block>() };
        let count = usize::try_from(count).unwrap_or(0);
        // SAFETY: C++ passes that many tensors, which live during the call; each clone is a
        // reference of its own.
        let inputs: Vec<Tensor> = (0..count)
            .map(|at| unsafe { Tensor::clone_from_ptr((*inputs.add(at)).cast()) })
            .collect();
        let mut out = block(&inputs);
        let pointer: *mut c_void = out.as_mut_ptr().cast();
        // C++ frees it.
        std::mem::forget(out);
        pointer
    }));
    outcome.unwrap_or(std::ptr::null_mut())
}

/// Called by C++ when the graph lets go.
unsafe extern "C" fn free(block: *mut c_void) {
    // SAFETY: the box of `recompute`, given back once.
    drop(unsafe { Box::from_raw(block.cast::<Block>()) });
}
