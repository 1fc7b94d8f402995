//! Declarations of the C interface of `shim.cpp`. Called only from the modules of this folder.

use std::ffi::{c_char, c_int, c_void};

unsafe extern "C" {
    pub(super) fn retri_error() -> *const c_char;
    pub(super) fn retri_libtorch_version() -> *const c_char;
    pub(super) fn retri_numerics() -> *const c_char;
    pub(super) fn retri_exit(code: c_int) -> !;
    pub(super) fn retri_store(
        host: *const c_char,
        port: c_int,
        server: c_int,
        timeout_ms: i64,
    ) -> *mut c_void;
    pub(super) fn retri_store_port(store: *mut c_void) -> c_int;
    pub(super) fn retri_store_set(
        store: *mut c_void,
        key: *const c_char,
        value: *const c_char,
    ) -> c_int;
    pub(super) fn retri_store_get(
        store: *mut c_void,
        key: *const c_char,
        value: *mut c_char,
        value_bytes: c_int,
    ) -> c_int;
    pub(super) fn retri_store_wait(
        store: *mut c_void,
        key: *const c_char,
        timeout_ms: i64,
    ) -> c_int;
    pub(super) fn retri_store_free(store: *mut c_void);
    pub(super) fn retri_interfaces(list: *mut c_char, list_bytes: c_int) -> c_int;
    pub(super) fn retri_group_gloo(
        store: *mut c_void,
        prefix: *const c_char,
        host: *const c_char,
        rank: c_int,
        world: c_int,
        timeout_ms: i64,
    ) -> *mut c_void;
    #[cfg(feature = "cuda")]
    pub(super) fn retri_group_nccl(
        store: *mut c_void,
        prefix: *const c_char,
        sockets: *const c_char,
        device: c_int,
        rank: c_int,
        world: c_int,
        timeout_ms: i64,
    ) -> *mut c_void;
    pub(super) fn retri_flight_recorder(text: *mut c_char, text_bytes: c_int) -> c_int;
    pub(super) fn retri_all_reduce(group: *mut c_void, tensor: *mut c_void) -> *mut c_void;
    pub(super) fn retri_work_wait(work: *mut c_void) -> c_int;
    pub(super) fn retri_broadcast(group: *mut c_void, tensor: *mut c_void, root: c_int) -> c_int;
    pub(super) fn retri_group_backend(group: *mut c_void) -> *mut c_void;
    pub(super) fn retri_backend_abort(backend: *mut c_void);
    pub(super) fn retri_backend_free(backend: *mut c_void);
    pub(super) fn retri_reducer(
        group: *mut c_void,
        parameters: *const *mut c_void,
        count: c_int,
        user: *mut c_void,
        notify: unsafe extern "C" fn(*mut c_void),
        release: unsafe extern "C" fn(*mut c_void),
    ) -> c_int;
    pub(super) fn retri_reducer_forward(group: *mut c_void) -> c_int;
    pub(super) fn retri_reducer_backward(group: *mut c_void) -> c_int;
    pub(super) fn retri_reducer_ready_nanos(group: *mut c_void) -> i64;
    pub(super) fn retri_group_free(group: *mut c_void);
    pub(super) fn retri_cuda_devices() -> c_int;
    pub(super) fn retri_cuda_capability(
        device: c_int,
        name: *mut c_char,
        name_bytes: c_int,
    ) -> c_int;
    pub(super) fn retri_cuda_build() -> *const c_char;
    pub(super) fn retri_cuda_peak_bytes(device: c_int) -> i64;
    pub(super) fn retri_full_fp32();
}
