//! Base models as `huggingface_hub` keeps them: every file of a snapshot is a link to a blob.
#![allow(clippy::unwrap_used)]

use base_weights::base::{Base, BaseError};
use proto::spec::Model;
use std::os::unix::fs::symlink;
use std::path::Path;

fn model() -> Model {
    let text = "name = \"x\"\n[data]\ndataset = \"file:///d\"\nresolution = 32\n\
                [model]\narchitecture = \"retrinet\"\nsize = \"tiny\"\ninit = \"file:///b\"\n\
                [train]\nsteps = 1\nglobal_batch = 1\nmicro_batch = 1\n";
    proto::job::parse_training("job.toml", text).unwrap().model
}

/// A safetensors file of one number for each tensor.
fn weights(tensors: &[&str]) -> Vec<u8> {
    let entries: Vec<String> = (0..)
        .zip(tensors)
        .map(|(n, name)| {
            let (from, to) = (n * 4, n * 4 + 4);
            format!(r#""{name}":{{"dtype":"F32","shape":[1],"data_offsets":[{from},{to}]}}"#)
        })
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + 4 * tensors.len(), 0);
    file
}

/// A file of the snapshot, as a link to a blob.
fn cached(model: &Path, name: &str, bytes: &[u8]) {
    let blobs = model.join("blobs");
    let path = model.join("snapshots/5678").join(name);
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let blob = name.replace('/', "-");
    std::fs::write(blobs.join(&blob), bytes).unwrap();
    let up = "../".repeat(2 + name.matches('/').count());
    symlink(format!("{up}blobs/{blob}"), path).unwrap();
}

async fn suits(url: &str) -> Result<Base, BaseError> {
    let base = Base::find(url).await?;
    base.suits(&model()).await?;
    Ok(base)
}

#[tokio::test]
async fn a_sharded_model_is_read_through_its_links_and_nothing_else_is() {
    let hub = tempfile::tempdir().unwrap();
    let model = hub.path().join("models--a--b");
    let index = br#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}"#;
    cached(&model, "unet/model.safetensors.index.json", index);
    cached(&model, "unet/m-1.safetensors", &weights(&["a"]));
    cached(&model, "unet/m-2.safetensors", &weights(&["b"]));
    for name in ["autoencoder.safetensors", "text_encoder.safetensors"] {
        cached(&model, name, &weights(&["a", "b"]));
    }
    let snapshot = model.join("snapshots/5678");
    let url = format!("file://{}", snapshot.display());
    let base = suits(&url).await.unwrap();
    assert_eq!(
        base.parts()["unet"].weights,
        ["unet/m-1.safetensors", "unet/m-2.safetensors"]
    );
    // A link that leaves the model's folder.
    let link = snapshot.join("unet/m-2.safetensors");
    std::fs::write(hub.path().join("token"), b"secret").unwrap();
    std::fs::remove_file(&link).unwrap();
    symlink("../../../../token", &link).unwrap();
    let error = suits(&url).await.unwrap_err().to_string();
    assert!(
        error.contains("\"m-2.safetensors\"") && error.contains("through a symbolic link"),
        "{error}"
    );
}
