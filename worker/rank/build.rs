//! Compiles the c10d shim against the libtorch that `LIBTORCH` names (set in one place,
//! `.cargo/config.toml`) and puts the libraries' folder into the binaries' rpath, so that nothing
//! needs `LD_LIBRARY_PATH`. Names the commit in the program.

use std::path::{Path, PathBuf};

include!("../../deploy/setup/commit.rs");

fn main() {
    commit();
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-changed=src/collective");
    println!("cargo:rerun-if-changed=src/stacks/capture.cpp");
    let libtorch = PathBuf::from(
        std::env::var_os("LIBTORCH").expect("LIBTORCH names libtorch's folder; run `make setup`"),
    );
    let libtorch = libtorch.canonicalize().unwrap_or_else(|error| {
        panic!(
            "LIBTORCH is {}: {error}; run `make setup`",
            libtorch.display()
        )
    });
    let cuda = std::env::var_os("CARGO_FEATURE_CUDA").is_some();
    compile_shim(&libtorch, cuda);
    link(&libtorch.join("lib"), cuda);
}

fn compile_shim(libtorch: &Path, cuda: bool) {
    let include = libtorch.join("include");
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .flag("-fvisibility=hidden")
        .warnings(false)
        .opt_level(1)
        .debug(false)
        .define("USE_DISTRIBUTED", None)
        .define("USE_C10D_GLOO", None)
        // The declarations that stand in for gloo's headers.
        .include("src/collective")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .file("src/collective/shim.cpp");
    if cuda {
        build
            .define("RETRI_CUDA", None)
            .define("USE_C10D_NCCL", None)
            .define("USE_CUDA", None);
        for folder in cuda_includes(libtorch) {
            build.include(folder);
        }
    }
    build.compile("retri_c10d");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(1)
        .debug(false)
        .file("src/stacks/capture.cpp")
        .compile("retri_stacks");
}

/// `nvidia/*/include` beside the wheel's `torch` folder.
fn cuda_includes(libtorch: &Path) -> Vec<PathBuf> {
    let nvidia = libtorch.join("../nvidia");
    let entries = std::fs::read_dir(&nvidia).unwrap_or_else(|error| {
        panic!(
            "the CUDA headers should be in {}: {error}; run `deploy/setup/libtorch.py cuda`",
            nvidia.display()
        )
    });
    let mut folders: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path().join("include")))
        // CUDA 13 keeps CCCL in a folder of its own.
        .flat_map(|include| [include.join("cccl"), include])
        .filter(|folder| folder.is_dir())
        .collect();
    folders.sort();
    folders
}

fn link(lib: &Path, cuda: bool) {
    let lib = lib.display();
    println!("cargo:rustc-link-search=native={lib}");
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
    // Installed programs (deploy/systemd/install.sh) bring libtorch along; that one comes first.
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../torch/lib");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    if cuda {
        println!("cargo:rustc-link-lib=c10_cuda");
        // Nothing refers to libtorch_cuda by name: its kernels register themselves when it is
        // loaded, so the linker would drop it as unused.
        println!("cargo:rustc-link-arg=-Wl,--no-as-needed,-ltorch_cuda,--as-needed");
    }
}
