//! Compiles the autograd function of activation checkpointing against the libtorch that `LIBTORCH`
//! names (set in one place, `.cargo/config.toml`), and puts the library's folder into the run path
//! of this crate's own tests and examples, so that they start without `LD_LIBRARY_PATH`. Binaries
//! of other crates do that for themselves.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/recompute/recompute.cpp");
    let libtorch = PathBuf::from(
        std::env::var_os("LIBTORCH").expect("LIBTORCH names libtorch's folder; run `make setup`"),
    );
    let libtorch = libtorch.canonicalize().unwrap_or_else(|error| {
        panic!(
            "LIBTORCH is {}: {error}; run `make setup`",
            libtorch.display()
        )
    });
    let include = libtorch.join("include");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .flag("-fvisibility=hidden")
        .warnings(false)
        .opt_level(1)
        .debug(false)
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .file("src/recompute/recompute.cpp")
        .compile("retri_recompute");
    let lib = libtorch.join("lib");
    let lib = lib.display();
    println!("cargo:rustc-link-search=native={lib}");
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
}
