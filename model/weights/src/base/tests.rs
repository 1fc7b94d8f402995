#![allow(clippy::unwrap_used)]
use super::*;
use crate::header::tests::{safetensors_file, safetensors_with};
use proto::public::scheduler::{self, SCHEDULER_FILE};

fn model() -> Model {
    let text = "name = \"x\"\n[data]\ndataset = \"file:///d\"\nresolution = 32\n\
                [model]\narchitecture = \"retrinet\"\nsize = \"tiny\"\ninit = \"file:///b\"\n\
                [train]\nsteps = 1\nglobal_batch = 1\nmicro_batch = 1\n";
    proto::job::parse_training("job.toml", text).unwrap().model
}

fn put(folder: &std::path::Path, name: &str, bytes: &[u8]) {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn a_diffusers_folder_is_understood_with_index_and_half_precision() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    for name in [
        "vae/config.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.safetensors",
    ] {
        put(folder.path(), name, b"{}");
    }
    let index = br#"{"weight_map": {"a": "2.safetensors", "b": "1.safetensors",
                   "c": "2.safetensors"}}"#;
    put(
        folder.path(),
        "unet/diffusion_pytorch_model.safetensors.index.json",
        index,
    );
    put(folder.path(), "unet/retrinet.safetensors", b"");
    // Whether its files are there is a question of `suits`, which names all that are missing.
    let base = Base::find(&url).await.unwrap();
    assert_eq!(base.parts()["autoencoder"].at, "vae");
    assert_eq!(base.parts()["text_encoder"].beside, Vec::<String>::new());
    let unet = &base.parts()["unet"];
    assert_eq!(unet.weights, ["unet/1.safetensors", "unet/2.safetensors"]);
    assert_eq!(base.parts()[RETRINET].at, "unet/retrinet.safetensors");
}

#[tokio::test]
async fn an_index_opens_nothing_outside_of_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}/base", folder.path().display());
    put(folder.path(), "private.safetensors", b"");
    put(folder.path(), "base/unet/a.safetensors", b"");
    let unet = folder.path().join("base/unet");
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, unet.join(name)).unwrap();
    link("a.safetensors", "same.safetensors");
    link("../../private.safetensors", "link.safetensors");
    link("/dev/zero", "zero.safetensors");
    let find = async |name: &str| {
        let index = format!(r#"{{"weight_map": {{"x": {name:?}}}}}"#);
        let path = "base/unet/model.safetensors.index.json";
        put(folder.path(), path, index.as_bytes());
        Base::find(&url)
            .await
            .map(|_| ())
            .map_err(|error| error.to_string())
    };
    find("a.safetensors").await.unwrap();
    find("same.safetensors").await.unwrap();
    let absolute = folder
        .path()
        .join("private.safetensors")
        .display()
        .to_string();
    for (name, reason) in [
        ("../../private.safetensors", "is not in the same folder"),
        (absolute.as_str(), "is not in the same folder"),
        ("..", "is not in the same folder"),
        ("", "is not in the same folder"),
        ("link.safetensors", "through a symbolic link"),
        ("zero.safetensors", "through a symbolic link"),
    ] {
        let error = find(name).await.unwrap_err();
        let start = format!("unet/model.safetensors.index.json of {url} cannot be used: ");
        assert!(error.starts_with(&start), "{error}");
        assert!(
            error.contains(&format!("{name:?}")) && error.contains(reason),
            "{error}"
        );
    }
}

#[tokio::test]
async fn headers_and_texts_have_a_limit() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let length = (crate::header::HEADER_BYTES_MAX + 1).to_le_bytes();
    let start = [&length[..], b"{"].concat();
    put(folder.path(), "long.safetensors", &start);
    let found = Base::find(&format!("{url}/long.safetensors")).await;
    let error = found.unwrap_err().to_string();
    assert!(
        error.contains("would be 8388609 bytes long; at most 8388608 are read"),
        "{error}"
    );
    let index = "unet/model.safetensors.index.json";
    put(folder.path(), index, b"");
    let file = std::fs::File::options()
        .write(true)
        .open(folder.path().join(index))
        .unwrap();
    file.set_len(3 << 30).unwrap();
    let error = Base::find(&url).await.unwrap_err().to_string();
    assert!(
        error.contains("index.json") && error.contains("at most 8388608 are read"),
        "{error}"
    );
}

#[tokio::test]
async fn a_base_that_does_not_suit_is_refused_with_its_file_and_field() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let refusal = async || {
        let base = Base::find(&url).await.unwrap();
        base.suits(&model()).await.unwrap_err().to_string()
    };
    let base = Base::find(&url).await.unwrap();
    let autoencoder = Model {
        architecture: proto::spec::ArchitectureSpec::Autoencoder(
            proto::architecture::Autoencoder {
                autoencoder: model().architecture.autoencoder().unwrap().clone(),
                reconstruction: proto::architecture::Reconstruction::default(),
            },
        ),
        ..model()
    };
    let error = base.suits(&autoencoder).await.unwrap_err().to_string();
    assert!(error.contains("holds no autoencoder"), "{error}");
    put(folder.path(), "autoencoder.safetensors", b"");
    put(folder.path(), "text_encoder.safetensors", b"");
    let error = refusal().await;
    assert!(
        error.contains("holds no unet; looked for unet.safetensors and unet/{config.json, "),
        "{error}"
    );
    let config = br#"{"cross_attention_dim": 768}"#;
    put(folder.path(), "unet/config.json", config);
    let error = Base::find(&url).await.unwrap_err().to_string();
    assert!(
        error.starts_with("unet/config.json of file://")
            && error.contains(
                "there are no weights next to it; \
                 looked for diffusion_pytorch_model.safetensors or"
            ),
        "{error}"
    );
    put(folder.path(), "unet/model.safetensors", b"");
    let error = refusal().await;
    assert!(
        error.contains("unet/config.json of file://")
            && error.contains("block_out_channels is [320"),
        "{error}"
    );
    let error = Base::find(&format!("{url}/none"))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("there is no folder") && error.contains("/none"),
        "{error}"
    );
    assert!(!folder.path().join("none").exists());
}

#[tokio::test]
async fn a_single_file_says_what_it_holds_or_whose_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let url = |name: &str| format!("file://{}/{name}.safetensors", folder.path().display());
    let text = "cond_stage_model.transformer.text_model.final_layer_norm.bias";
    let all = [
        "betas",
        "model.diffusion_model.out.2.bias",
        "first_stage_model.quant_conv.bias",
        text,
    ];
    put(folder.path(), "v1 5.safetensors", &safetensors_file(&all));
    let base = Base::find(&url("v1%205")).await.unwrap();
    assert_eq!(base.parts().len(), 3);
    assert_eq!(base.parts()["unet"].weights, ["v1 5.safetensors"]);
    base.suits(&model()).await.unwrap();
    let xl = [
        "model.diffusion_model.out.2.bias",
        "conditioner.embedders.0.x",
        "first_stage_model.x",
    ];
    put(folder.path(), "xl.safetensors", &safetensors_file(&xl));
    let base = Base::find(&url("xl")).await.unwrap();
    let error = base.suits(&model()).await.unwrap_err().to_string();
    assert!(
        error.contains(
            "holds no text_encoder: its tensors are named like those of Stable Diffusion XL"
        ),
        "{error}"
    );
    put(
        folder.path(),
        "other.safetensors",
        &safetensors_file(&["lora.a"]),
    );
    let base = Base::find(&url("other")).await.unwrap();
    let error = base.suits(&model()).await.unwrap_err().to_string();
    assert!(error.contains("its first tensor is \"lora.a\""), "{error}");
    put(folder.path(), "short.safetensors", b"PK");
    assert!(Base::find(&url("short")).await.is_err());
    let error = Base::find(&url("gone")).await.unwrap_err().to_string();
    assert!(error.contains("cannot read gone.safetensors"), "{error}");
}

/// A folder of our own layout that suits [`model`].
fn own_layout() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    for name in ["autoencoder", "text_encoder", "unet"] {
        let file = safetensors_file(&["a", "b"]);
        put(folder.path(), &format!("{name}.safetensors"), &file);
    }
    let url = format!("file://{}", folder.path().display());
    (folder, url)
}

async fn suits(url: &str, model: &Model) -> Result<(), String> {
    let base = Base::find(url).await.map_err(|error| error.to_string())?;
    base.suits(model).await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_file_that_is_something_else_or_not_whole_is_refused_before_it_is_loaded() {
    let (folder, url) = own_layout();
    suits(&url, &model()).await.unwrap();
    let whole = safetensors_file(&["a", "b"]);
    let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n";
    for (bytes, expected) in [
        (&lfs[..], "it is a Git LFS pointer"),
        (&whole[..whole.len() - 3], "it was cut off"),
        (b"", "it is empty"),
    ] {
        put(folder.path(), "unet.safetensors", bytes);
        let error = suits(&url, &model()).await.unwrap_err();
        assert!(
            error.starts_with("unet.safetensors of file://") && error.contains(expected),
            "{error}"
        );
    }
}

#[tokio::test]
async fn every_file_of_an_index_must_be_there_and_hold_its_tensors() {
    let (folder, url) = own_layout();
    std::fs::remove_file(folder.path().join("unet.safetensors")).unwrap();
    let index = br#"{"weight_map": {"a": "m-00001-of-00002.safetensors",
        "b": "m-00002-of-00002.safetensors"}}"#;
    put(folder.path(), "unet/model.safetensors.index.json", index);
    let one = |name: &str| safetensors_file(&[name]);
    put(
        folder.path(),
        "unet/m-00001-of-00002.safetensors",
        &one("a"),
    );
    let error = suits(&url, &model()).await.unwrap_err();
    assert!(
        error.starts_with("unet/model.safetensors.index.json of file://")
            && error.contains("1 of its 2 files are missing: m-00002-of-00002.safetensors;"),
        "{error}"
    );
    put(
        folder.path(),
        "unet/m-00002-of-00002.safetensors",
        &one("c"),
    );
    let error = suits(&url, &model()).await.unwrap_err();
    assert!(
        error.contains("it says that b is in m-00002-of-00002.safetensors, which has no such"),
        "{error}"
    );
    put(
        folder.path(),
        "unet/m-00002-of-00002.safetensors",
        &one("b"),
    );
    suits(&url, &model()).await.unwrap();
}

#[tokio::test]
async fn the_scheduler_of_a_folder_must_agree_with_the_job() {
    let (folder, url) = own_layout();
    let noise = model().architecture.diffusion().unwrap().noise;
    put(
        folder.path(),
        SCHEDULER_FILE,
        scheduler::write(&noise).as_bytes(),
    );
    suits(&url, &model()).await.unwrap();
    let base = Base::find(&url).await.unwrap();
    assert_eq!(base.notes(&model()), Vec::<String>::new());
    let v = scheduler::write(&noise).replace("\"epsilon\"", "\"v_prediction\"");
    put(folder.path(), SCHEDULER_FILE, v.as_bytes());
    let error = suits(&url, &model()).await.unwrap_err();
    assert!(
        error.starts_with("scheduler/scheduler_config.json of file://")
            && error.contains("prediction_type is \"v_prediction\", but the job has"),
        "{error}"
    );
    // An autoencoder has no noise.
    let autoencoder = Model {
        architecture: proto::spec::ArchitectureSpec::Autoencoder(
            proto::architecture::Autoencoder {
                autoencoder: model().architecture.autoencoder().unwrap().clone(),
                reconstruction: proto::architecture::Reconstruction::default(),
            },
        ),
        ..model()
    };
    suits(&url, &autoencoder).await.unwrap();
}

#[tokio::test]
async fn a_single_file_says_which_weights_are_read_and_what_they_predict() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}/sd.safetensors", folder.path().display());
    let names = [
        "cond_stage_model.transformer.text_model.x",
        "first_stage_model.x",
        "model.diffusion_model.x",
    ];
    let notes = async |names: &[&str]| {
        put(folder.path(), "sd.safetensors", &safetensors_file(names));
        let base = Base::find(&url).await.unwrap();
        base.notes(&model()).join("\n")
    };
    let text = notes(&names).await;
    assert!(text.contains("has one set of U-Net weights"), "{text}");
    let guess = "does not say what its U-Net predicts; it is taken for model.noise.prediction \
                 = \"epsilon\"";
    assert!(text.contains(guess), "{text}");
    let with_average = [&names[..], &["model_ema.diffusion_modelx"]].concat();
    let text = notes(&with_average).await;
    assert!(
        text.contains("(model.diffusion_model.*) are read, the moving average (model_ema.*)"),
        "{text}"
    );
    suits(&url, &model()).await.unwrap();
    let described = r#""__metadata__":{"modelspec.prediction_type":"v"},"#;
    let file = safetensors_with(&names, described);
    put(folder.path(), "sd.safetensors", &file);
    let base = Base::find(&url).await.unwrap();
    assert_eq!(base.notes(&model()).len(), 1);
    let error = suits(&url, &model()).await.unwrap_err();
    assert!(
        error.contains("modelspec.prediction_type is v, but the job has model.noise.prediction"),
        "{error}"
    );
}

/// A file as `torch.save` writes it, of tensors of one float each.
fn pickled(folder: &std::path::Path, name: &str, tensors: &[&str]) {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = crate::torch_file::TorchFile::create(&path).unwrap();
    for (n, tensor) in tensors.iter().enumerate() {
        let value = (n as f32).to_le_bytes();
        file.put(tensor, "F32", &[1], &value).unwrap();
    }
    file.finish().unwrap();
}

fn peer(architecture: &str) -> Model {
    let text = format!(
        "name = \"x\"\n[data]\ndataset = \"file:///d\"\nresolution = 32\n\
         [model]\narchitecture = \"{architecture}\"\nsize = \"tiny\"\ninit = \"file:///b\"\n\
         [train]\nsteps = 1\nglobal_batch = 1\nmicro_batch = 1\n"
    );
    proto::job::parse_training("job.toml", &text).unwrap().model
}

#[tokio::test]
async fn the_pickles_that_authors_published_are_read_and_converted_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let cache = tempfile::tempdir().unwrap();
    let all = [
        "control_model.zero_convs.0.0.bias",
        "model.diffusion_model.out.2.bias",
        "first_stage_model.quant_conv.bias",
        "cond_stage_model.transformer.text_model.final_layer_norm.bias",
    ];
    pickled(folder.path(), "control sd15.pth", &all);
    let url = format!("file://{}/control%20sd15.pth", folder.path().display());
    let (model, kind) = (peer("controlnet"), Architecture::ControlNet);
    let base = Base::find(&url).await.unwrap();
    base.suits(&model).await.unwrap();
    assert_eq!(base.parts().len(), 4);
    let notes = base.notes(&model).join("\n");
    assert!(
        notes.contains("control sd15.pth is converted to safetensors once"),
        "{notes}"
    );
    let done = base.convert(kind, cache.path()).await.unwrap();
    assert_eq!((done.len(), done[0].tensors), (1, 4), "one file, once");
    let record = cache.path().join("control sd15.safetensors.json");
    assert!(
        std::fs::read_to_string(record)
            .unwrap()
            .contains(&done[0].source_sha256)
    );
    let base = base.with_converted(kind, cache.path().to_owned()).unwrap();
    assert!(base.pickled_files(kind).is_empty());
    assert_eq!(base.parts()["unet"].at, "control sd15.safetensors");
    assert_eq!(base.converted_folder("unet"), Some(cache.path()));
    let digest = crate::init_digest::init_digest(&base, kind).await.unwrap();
    // The digest is that of the converted file, which ranks map.
    let same = format!(
        "file://{}/control%20sd15.safetensors",
        cache.path().display()
    );
    let same = Base::find(&same).await.unwrap();
    assert_eq!(
        crate::init_digest::init_digest(&same, kind).await.unwrap(),
        digest
    );
}

#[tokio::test]
async fn what_a_peer_adds_is_completed_from_its_folder_and_pickles_in_folders_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let file = format!("{url}/ip-adapter_sd15.bin");
    let adapter = ["image_proj.norm.bias", "ip_adapter.1.to_k_ip.weight"];
    pickled(folder.path(), "ip-adapter_sd15.bin", &adapter);
    let model = peer("ip-adapter");
    let base = Base::find(&file).await.unwrap();
    let error = base.suits(&model).await.unwrap_err().to_string();
    assert!(
        error.contains("holds no autoencoder; looked for tensors under first_stage_model. in it, ")
            && error.contains("and for autoencoder.safetensors"),
        "{error}"
    );
    pickled(folder.path(), "vae/diffusion_pytorch_model.bin", &["a"]);
    pickled(folder.path(), "text_encoder/pytorch_model.bin", &["a"]);
    put(folder.path(), "unet.safetensors", &safetensors_file(&["a"]));
    put(
        folder.path(),
        "image_encoder/model.safetensors",
        &safetensors_file(&["a"]),
    );
    for url in [&file, &url] {
        let base = Base::find(url).await.unwrap();
        base.suits(&model).await.unwrap();
        assert_eq!(
            base.parts()["ip_adapter"].at,
            "ip-adapter_sd15.bin",
            "{url}"
        );
        let kind = Architecture::IpAdapter;
        let files = base.pickled_files(kind);
        assert!(
            files.iter().eq([
                "ip-adapter_sd15.bin",
                "text_encoder/pytorch_model.bin",
                "vae/diffusion_pytorch_model.bin"
            ]),
            "{files:?}"
        );
        let cache = tempfile::tempdir().unwrap();
        assert_eq!(base.convert(kind, cache.path()).await.unwrap().len(), 3);
        let base = base.with_converted(kind, cache.path().to_owned()).unwrap();
        assert_eq!(
            base.parts()["text_encoder"].weights,
            ["text_encoder/model.safetensors"]
        );
        assert!(
            cache
                .path()
                .join("text_encoder/model.safetensors")
                .is_file()
        );
        assert_eq!(base.converted_folder("unet"), None);
    }
    let base = Base::find(&file).await.unwrap();
    let notes = base.notes(&model).join("\n");
    assert!(
        notes.contains("ip-adapter_sd15.bin holds ip_adapter alone; autoencoder, image_encoder, "),
        "{notes}"
    );
    put(
        folder.path(),
        "vae/diffusion_pytorch_model.bin",
        b"\x80\x02}.",
    );
    let base = Base::find(&url).await.unwrap();
    let error = base.suits(&model).await.unwrap_err().to_string();
    assert!(
        error.starts_with("vae/diffusion_pytorch_model.bin of file://")
            && error.contains("it is a pickle of a torch before 1.6"),
        "{error}"
    );
    std::fs::remove_file(folder.path().join("vae/diffusion_pytorch_model.bin")).unwrap();
    put(folder.path(), "vae/pytorch_model.bin.index.json", b"{}");
    let error = Base::find(&url).await.unwrap_err().to_string();
    assert!(error.contains("several files of torch.save"), "{error}");
}

#[tokio::test]
async fn an_image_tower_of_another_width_is_refused_by_its_header() {
    let (folder, url) = own_layout();
    let entry =
        r#"{"visual_projection.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}"#;
    let file = [
        &(entry.len() as u64).to_le_bytes()[..],
        entry.as_bytes(),
        &[0; 4],
    ]
    .concat();
    put(folder.path(), "image_encoder.safetensors", &file);
    let error = suits(&url, &peer("ip-adapter")).await.unwrap_err();
    assert!(
        error.starts_with("image_encoder.safetensors of file://")
            && error.ends_with("is 1, but the job has model.image_encoder.projection = 24"),
        "{error}"
    );
}

#[tokio::test]
async fn peers_of_size_small_take_the_image_tower_of_the_shipped_clip() {
    let text = include_str!("../../../../deploy/jobs/clip.toml");
    let text = text.replace("../../.demo", "file:///demo");
    let clip = proto::job::parse_training("clip.toml", &text)
        .unwrap()
        .model;
    let (folder, url) = own_layout();
    // As `checkpoint export` writes it.
    let config = proto::public::write::config("clip", &clip, 64).unwrap();
    put(folder.path(), "clip/config.json", config.as_bytes());
    put(
        folder.path(),
        "clip/model.safetensors",
        &safetensors_file(&["a"]),
    );
    for architecture in [
        "ip-adapter",
        "fastcomposer",
        "kandinsky-prior",
        "kandinsky-decoder",
    ] {
        let text = format!(
            "name = \"x\"\n[data]\ndataset = \"file:///d\"\nresolution = 64\n\
             [model]\narchitecture = \"{architecture}\"\nsize = \"small\"\n\
             init = \"file:///b\"\n[train]\nsteps = 1\nglobal_batch = 1\nmicro_batch = 1\n"
        );
        let model = proto::job::parse_training("job.toml", &text).unwrap().model;
        suits(&url, &model).await.unwrap();
        let base = Base::find(&url).await.unwrap();
        assert_eq!(base.parts()["image_encoder"].at, "clip", "{architecture}");
    }
    let error = suits(&url, &peer("ip-adapter")).await.unwrap_err();
    assert!(
        error.starts_with("clip/config.json of file://")
            && error.contains("but the job has model.image_encoder.width = 16"),
        "{error}"
    );
    // Its text tower is the base's text encoder where there is no other, as in Stable Diffusion.
    let of = |base: Base| base.parts()["text_encoder"].at.clone();
    assert_ne!(of(Base::find(&url).await.unwrap()), "clip");
    std::fs::remove_file(folder.path().join("text_encoder.safetensors")).unwrap();
    assert_eq!(of(Base::find(&url).await.unwrap()), "clip");
    let job = include_str!("../../../../deploy/jobs/base.toml");
    let job = job.replace("../../.demo", "file:///demo");
    let base = |job: &str| proto::job::parse_training("base.toml", job).unwrap().model;
    suits(&url, &base(&job)).await.unwrap();
    let shorter = job.replace("tokens = 128", "tokens = 77");
    let error = suits(&url, &base(&shorter)).await.unwrap_err();
    assert!(
        error.starts_with("clip/config.json of file://")
            && error.contains("but the job has model.text_encoder.tokens = 77"),
        "{error}"
    );
}
