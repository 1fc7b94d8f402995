//! Puts the folder of libtorch into the run path of this crate's own tests and examples, so that they start
//! without `LD_LIBRARY_PATH`. Binaries of other crates do the same for themselves.

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-changed=build.rs");
    if let Ok(libtorch) = std::env::var("LIBTORCH") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{libtorch}/lib");
    }
}
