#![allow(clippy::unwrap_used)]
use super::*;
use crate::checkpoint::commit::CheckpointStore;
use crate::fixture::{TestCheckpoint, test_checkpoint};
use safetensors::SafeTensors;

const FILE: &str = "unet/diffusion_pytorch_model.safetensors";

#[tokio::test]
async fn an_export_has_every_weight_under_the_name_that_diffusers_knows() {
    let TestCheckpoint {
        dir,
        url,
        manifest,
        reference,
    } = test_checkpoint(2, true).await;
    let checkpoint = Checkpoint::at(&url, &manifest.job, reference).unwrap();
    let (whole, half) = (dir.path().join("whole"), dir.path().join("half"));
    let options = |half| ExportOptions {
        half,
        average: true,
    };
    let origin = checkpoint.export(&whole, options(false)).await.unwrap();
    assert_eq!(origin.digest, checkpoint.digest().await.unwrap());
    assert_eq!(
        origin.files.keys().collect::<Vec<_>>(),
        [SCHEDULER_FILE, "unet/config.json", FILE]
    );
    assert_eq!(origin.weights, "as trained");
    let bytes = std::fs::read(whole.join(FILE)).unwrap();
    assert_eq!(origin.files[FILE], hex_sha256(&bytes));
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.len(), 7);
    let name = "up_blocks.0.resnets.0.norm1.weight";
    assert_eq!(tensors.tensor(name).unwrap().shape(), [2, 4]);

    let text = std::fs::read_to_string(whole.join(SCHEDULER_FILE)).unwrap();
    assert!(text.contains("\"prediction_type\": \"epsilon\""), "{text}");
    // Files of two exports would mix.
    let error = checkpoint.export(&whole, options(true)).await.unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("is not empty") && error.contains("choose another"),
        "{error}"
    );
    assert_eq!(std::fs::read(whole.join(FILE)).unwrap(), bytes);

    checkpoint.export(&half, options(true)).await.unwrap();
    let bytes = std::fs::read(half.join(FILE)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.tensor(name).unwrap().dtype(), Dtype::F16);
}

/// Writes a base that consists of one tensor of an autoencoder.
fn put_base(folder: &Path, value: f32) {
    let bytes = value.to_le_bytes();
    let view = TensorView::new(Dtype::F32, vec![1], &bytes).unwrap();
    let file = safetensors::serialize([("decoder.conv_in.bias", view)], None).unwrap();
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("autoencoder.safetensors"), file).unwrap();
}

#[tokio::test]
async fn a_base_that_has_changed_since_is_refused_with_both_digests_and_nothing_is_written() {
    let TestCheckpoint {
        dir,
        url,
        mut manifest,
        reference,
    } = test_checkpoint(2, false).await;
    let at = |name: &str| dir.path().join(name);
    let base_url = format!("file://{}", at("base").display());
    put_base(&at("base"), 1.5);
    let base = Base::find(&base_url).await.unwrap();
    let then = init_digest(&base, Architecture::TextToImage).await.unwrap();
    manifest.init_digest = Some(then.clone());
    let model = format!("[model]\ninit = \"{base_url}\"");
    manifest.job_toml = manifest.job_toml.replace("[model]", &model);
    let archive = CheckpointStore::open(&url).unwrap();
    archive.write_manifest(&manifest).await.unwrap();
    let checkpoint = Checkpoint::at(&url, &manifest.job, reference).unwrap();
    let options = ExportOptions {
        half: false,
        average: true,
    };
    let origin = checkpoint.export(&at("first"), options).await.unwrap();
    let vae = "vae/diffusion_pytorch_model.safetensors";
    assert!(origin.files.contains_key(vae) && origin.files.contains_key(FILE));
    let bytes = std::fs::read(at("first").join(vae)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(
        tensors.tensor("decoder.conv_in.bias").unwrap().data(),
        1.5f32.to_le_bytes()
    );
    let error = checkpoint.export(&at("base"), options).await.unwrap_err();
    assert!(
        error.to_string().contains("is the base folder of the job"),
        "{error}"
    );

    // One bit of one byte.
    put_base(&at("base"), -1.5);
    let now = init_digest(&base, Architecture::TextToImage).await.unwrap();
    let error = checkpoint.export(&at("second"), options).await.unwrap_err();
    let error = error.to_string();
    for part in [&base_url, &then, &now, "manifest.json"] {
        assert!(error.contains(part), "{part} is not in {error}");
    }
    assert!(then != now && !at("second").exists());
}
