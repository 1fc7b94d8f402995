//! Compiles train.proto with a protobuf compiler written in Rust (protox), so that no protoc has to
//! be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=train.proto");
    let descriptors = protox::compile(["train.proto"], ["."])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
