//! Lists what a `pipeline.toml` names ([`proto::build::pipeline`]), so that it can be divided into
//! stages. Called by `coordinator dataset build`.

use proto::build::image_stages::ImageInputs;
use proto::build::pipeline::{Inputs, Listing, Pipeline, PipelineSignature};
use proto::build::settings::{ListedFolder, SourceFile};
use proto::text::hex;
use sha2::{Digest, Sha256};
use storage::listing::{ListError, Listed, files};
use storage::read::{ReadError, read_bounded};

/// Largest list of cloth tags.
const CLOTH_TAGS_BYTES_MAX: u64 = 4 << 20;

#[derive(Debug, thiserror::Error)]
pub enum InputError {
    #[error("{field}")]
    List {
        field: &'static str,
        source: ListError,
    },
    #[error("filter.cloth_tags: {url}")]
    Read { url: String, source: ReadError },
    #[error("filter.cloth_tags: {url} is not one file of UTF-8 text")]
    Text { url: String },
    #[error("{0}")]
    Files(String),
}

/// # Errors
/// A file or folder is missing, or is not what its field needs.
pub async fn inputs(pipeline: &Pipeline) -> Result<Inputs, InputError> {
    let mut inputs = Inputs::default();
    for source in &pipeline.posts {
        inputs
            .posts
            .push(listing("posts.from", &source.from).await?);
    }
    if let Some(url) = &pipeline.figures {
        inputs.figures = Some(listing("filter.figures", url).await?);
    }
    if let PipelineSignature::Answers { file, .. } = &pipeline.signature {
        inputs.answers = Some(listing("clusters.answers", file).await?);
    }
    for source in &pipeline.folders {
        inputs
            .folders
            .push(folder("folders.from", &source.from).await?);
    }
    if let Some(url) = &pipeline.clusters_truth {
        inputs.clusters_truth = Some(listing("clusters.truth", url).await?);
    }
    if let Some(dataset) = &pipeline.dataset {
        if let Some(url) = &dataset.images {
            inputs.images = Some(folder("dataset.images", url).await?);
        }
        if let Some(url) = &dataset.masks {
            inputs.masks = Some(folder("dataset.masks", url).await?);
        }
        if let Some(url) = &dataset.boxes {
            inputs.boxes = Some(listing("dataset.boxes", url).await?);
        }
    }
    if let Some(outfits) = &pipeline.outfits {
        inputs.asked = match &outfits.images {
            Some(url) => Some(folder("outfits.images", url).await?),
            None => inputs.images.clone(),
        };
    }
    let images = inputs.images.clone();
    image_inputs(pipeline, images, &mut inputs.image).await?;
    if let Some(url) = &pipeline.cloth_tags {
        inputs.cloth_tags = Some(text("filter.cloth_tags", url).await?);
    }
    inputs.check(pipeline).map_err(InputError::Files)?;
    Ok(inputs)
}

/// Of the stages that run models.
async fn image_inputs(
    pipeline: &Pipeline,
    images: Option<ListedFolder>,
    inputs: &mut ImageInputs,
) -> Result<(), InputError> {
    if let Some(figures) = &pipeline.crops {
        inputs.figures_model = Some(listing("figures.model", &figures.model).await?);
    }
    if let Some(masks) = &pipeline.masks {
        if let Some(url) = &masks.model {
            inputs.masks_model = Some(listing("masks.model", url).await?);
        }
        if let Some(url) = &masks.truth {
            inputs.masks_truth = Some(folder("masks.truth", url).await?);
        }
    }
    if let Some(faces) = &pipeline.faces {
        if let Some(url) = &faces.model {
            inputs.faces_model = Some(listing("faces.model", url).await?);
        }
        if let Some(url) = &faces.truth {
            inputs.faces_truth = Some(listing("faces.truth", url).await?);
        }
    }
    if let Some(tagger) = &pipeline.tagger {
        inputs.tagged = match &tagger.images {
            Some(url) => Some(folder("tagger.images", url).await?),
            None => images,
        };
        inputs.tagger_model = Some(listing("tagger.model", &tagger.model).await?);
        inputs.tagger_labels = Some(listing("tagger.labels", &tagger.labels).await?);
    }
    Ok(())
}

async fn listing(field: &'static str, url: &str) -> Result<Listing, InputError> {
    let listed = files(url).await;
    let (folder, files) = listed.map_err(|source| InputError::List { field, source })?;
    let files = files.into_iter().map(|file| SourceFile {
        path: file.path,
        size: file.size,
        tag: file.tag,
    });
    Ok(Listing {
        folder,
        files: files.collect(),
    })
}

/// Lists a folder, and keeps a digest of the list.
async fn folder(field: &'static str, url: &str) -> Result<ListedFolder, InputError> {
    let listed = files(url).await;
    let (folder, files) = listed.map_err(|source| InputError::List { field, source })?;
    Ok(ListedFolder {
        folder,
        files: files.len() as u64,
        digest: digest(&files),
    })
}

/// The digest of a list of files. It changes when a file does.
#[must_use]
pub fn digest(files: &[Listed]) -> String {
    let mut hash = Sha256::new();
    for file in files {
        hash.update(format!("{}\n{}\n{}\n", file.path, file.size, file.tag));
    }
    hex(&hash.finalize())
}

async fn text(field: &'static str, url: &str) -> Result<String, InputError> {
    let no_text = || InputError::Text {
        url: url.to_owned(),
    };
    let listed = listing(field, url).await?;
    let [file] = listed.files.as_slice() else {
        return Err(no_text());
    };
    let (store, prefix) = storage::open(&listed.folder).map_err(|_| no_text())?;
    let path = prefix.join(file.path.as_str());
    let bytes = read_bounded(&*store, &path, CLOTH_TAGS_BYTES_MAX).await;
    let bytes = bytes.map_err(|source| InputError::Read {
        url: url.to_owned(),
        source,
    })?;
    String::from_utf8(bytes.into()).map_err(|_| no_text())
}
