//! Queries the GPUs of the machine and the architectures that libtorch has code for. Makes no
//! decisions.

use super::{CollectiveError, ffi};
use std::ffi::{CStr, c_char, c_int};
use tch::Device;

/// One GPU as the driver describes it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Gpu {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// For example `sm_70` for a V100.
    pub(crate) architecture: String,
}

/// For example `2.10.0`.
pub(crate) fn libtorch_version() -> String {
    // SAFETY: the shim returns a string literal.
    unsafe { CStr::from_ptr(ffi::retri_libtorch_version()) }
        .to_string_lossy()
        .into_owned()
}

/// For example `AVX2, TF32 off`.
pub(crate) fn numerics() -> String {
    // SAFETY: the shim returns a pointer to a string that lives until this thread's next call.
    unsafe { CStr::from_ptr(ffi::retri_numerics()) }
        .to_string_lossy()
        .into_owned()
}

/// All GPUs visible to this process; empty in a CPU build.
pub(crate) fn gpus() -> Result<Vec<Gpu>, CollectiveError> {
    // SAFETY: takes no arguments and catches every exception.
    let count = unsafe { ffi::retri_cuda_devices() };
    if count < 0 {
        return Err(CollectiveError::last("cannot count the GPUs"));
    }
    (0..count).map(gpu).collect()
}

fn gpu(index: c_int) -> Result<Gpu, CollectiveError> {
    let mut name = [0u8; 256];
    let bytes = c_int::try_from(name.len()).expect("256 fits");
    // SAFETY: the buffer has the given length, and the shim writes a NUL-terminated string.
    let capability =
        unsafe { ffi::retri_cuda_capability(index, name.as_mut_ptr().cast::<c_char>(), bytes) };
    if capability < 0 {
        return Err(CollectiveError::last(format!(
            "cannot read the properties of GPU {index}"
        )));
    }
    let name = CStr::from_bytes_until_nul(&name)
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let index = u32::try_from(index).expect("device numbers are not negative");
    Ok(Gpu {
        index,
        name,
        architecture: format!("sm_{capability}"),
    })
}

/// The largest memory that tensors of this process have occupied on a GPU so far, in bytes, as
/// c10's caching allocator counts it (`torch.cuda.max_memory_allocated`). Contexts, NCCL's buffers
/// and memory that the allocator holds in reserve are not included. 0 on a CPU, and if unknown.
pub(crate) fn peak_device_memory_bytes(device: Device) -> u64 {
    let Device::Cuda(index) = device else {
        return 0;
    };
    let index = c_int::try_from(index).expect("devices are far fewer than 2^31");
    // SAFETY: takes a number and catches every exception.
    u64::try_from(unsafe { ffi::retri_cuda_peak_bytes(index) }).unwrap_or(0)
}

/// The architectures that this libtorch was compiled for: from its build description, or, without a
/// driver, those of the published wheel. Empty in a CPU build.
pub(crate) fn library_architectures() -> Vec<String> {
    if !cfg!(feature = "cuda") {
        return Vec::new();
    }
    // SAFETY: the shim returns a pointer to a string that lives as long as the process.
    let text = unsafe { CStr::from_ptr(ffi::retri_cuda_build()) };
    let reported = architectures(&text.to_string_lossy());
    if reported.is_empty() {
        known_architectures(&libtorch_version())
    } else {
        reported
    }
}

/// Architectures of the published wheels. 2.10 is the newest with code for V100 (sm_70).
fn known_architectures(version: &str) -> Vec<String> {
    let list = match version {
        v if v.starts_with("2.10.") => "sm_70 sm_75 sm_80 sm_86 sm_90 sm_100 sm_120",
        v if v.starts_with("2.11.") => "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120",
        _ => "",
    };
    list.split_whitespace().map(str::to_owned).collect()
}

/// Parses `…;-gencode;arch=compute_70,code=sm_70;…` in libtorch's build description.
fn architectures(description: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for part in description.split("code=").skip(1) {
        let name: String = part
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
            .collect();
        if name.starts_with("sm_") && !found.contains(&name) {
            found.push(name);
        }
    }
    found
}

/// True if this libtorch can run on that GPU. Code for sm_XY runs on the same major version with an
/// equal or higher minor one.
pub(crate) fn supports(library: &[String], architecture: &str) -> bool {
    let version = |name: &str| {
        name.strip_prefix("sm_")?
            .trim_end_matches('a')
            .parse::<u32>()
            .ok()
    };
    let Some(device) = version(architecture) else {
        return false;
    };
    library
        .iter()
        .filter_map(|name| version(name))
        .any(|built| built / 10 == device / 10 && built <= device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_on_the_cpu_are_no_device_memory() {
        assert_eq!(peak_device_memory_bytes(Device::Cpu), 0);
        if !cfg!(feature = "cuda") {
            assert_eq!(peak_device_memory_bytes(Device::Cuda(0)), 0);
        }
    }

    #[test]
    fn the_librarys_list_is_read_and_compared_as_cuda_does() {
        let list = architectures(
            "  - NVCC architecture flags: -gencode;arch=compute_70,code=sm_70;\
             -gencode;arch=compute_80,code=sm_80;\
             -gencode;arch=compute_90,code=sm_90;-gencode;arch=compute_120,code=compute_120",
        );
        assert_eq!(list, ["sm_70", "sm_80", "sm_90"]);
        assert!(supports(&list, "sm_70"));
        assert!(supports(&list, "sm_75"), "minor versions upward");
        assert!(supports(&list, "sm_86"));
        assert!(!supports(&list, "sm_60"), "older");
        assert!(!supports(&list, "sm_100"), "another major version");
        assert!(!supports(&[], "sm_70"));
        assert!(supports(&known_architectures("2.10.0"), "sm_70"));
        assert!(!supports(&known_architectures("2.11.0"), "sm_70"));
    }
}
