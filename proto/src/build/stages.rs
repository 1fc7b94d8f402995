//! Divides a pipeline into stages. Pure.

use super::pipeline::{CLOTH_TAGS, Inputs, Pipeline, PipelineSignature, Planned, one};
use super::settings::{
    Answers, ClustersSettings, DatasetSettings, Figures, FilterSettings, FoldersSettings,
    ImageFolder, NamedFile, OutfitsSettings, PostsSettings, Settings, Signature, Source,
    SourcesSettings,
};
use super::{StageKey, StagePlan};

impl Pipeline {
    /// The stages in order. Each reads only those before it.
    #[must_use]
    pub fn stages(&self, inputs: &Inputs) -> Vec<Planned> {
        let units = |plan: &StagePlan, units| Planned {
            plan: plan.clone(),
            units,
        };
        let mut stages = Vec::new();
        // The stage whose figures are grouped.
        let found = if self.folders.is_empty() {
            let sources = self.sources(inputs);
            let posts = StagePlan {
                settings: Settings::Posts(PostsSettings {
                    on_bad_row: self.on_bad_row,
                }),
                inputs: vec![sources.key()],
            };
            let filter = self.filter(inputs, &posts);
            stages.extend([units(&sources, 1), units(&posts, self.posts_units)]);
            filter
        } else {
            self.folders(inputs)
        };
        stages.push(units(&found, 1));
        let crops = self.crop(inputs, &found);
        let mut signing = vec![found.key()];
        signing.extend(crops.iter().map(StagePlan::key));
        let outfits = self.ask(inputs, &signing);
        let tagger = self.tag(inputs, &signing, self.cloth_tags(inputs));
        let signed = outfits.as_ref().or(tagger.as_ref());
        let clusters = self.clusters(inputs, &found, signed);
        // Stages that have images of their own.
        let mut images: Vec<StageKey> = Vec::new();
        images.extend((!self.folders.is_empty()).then(|| found.key()));
        images.extend(crops.iter().map(StagePlan::key));
        let masks = self.segment(inputs, &clusters, &images);
        let faces = self.detect(inputs, masks.as_ref().unwrap_or(&clusters), &images);
        let mut read = vec![found.key(), clusters.key()];
        let made = [crops.as_ref(), masks.as_ref(), faces.as_ref()];
        read.extend(made.into_iter().flatten().map(StagePlan::key));
        let dataset = self.write(inputs, read);
        stages.extend(crops.map(|crops| units(&crops, self.figures_units)));
        stages.extend(outfits.map(|outfits| units(&outfits, self.outfits_units)));
        stages.extend(tagger.map(|tagger| units(&tagger, self.tagger_units)));
        stages.push(units(&clusters, 1));
        stages.extend(masks.map(|masks| units(&masks, self.masks_units)));
        stages.extend(faces.map(|faces| units(&faces, self.faces_units)));
        stages.extend(dataset.map(|dataset| units(&dataset, 1)));
        stages
    }

    fn folders(&self, inputs: &Inputs) -> StagePlan {
        let listed = self.folders.iter().zip(&inputs.folders);
        let folders = listed.map(|(source, listed)| ImageFolder {
            listed: listed.clone(),
            kind: source.kind,
            artist: source.artist.clone(),
            rating: source.rating.clone(),
        });
        StagePlan {
            settings: Settings::Folders(Box::new(FoldersSettings {
                folders: folders.collect(),
                cloth_tags: self.cloth_tags(inputs).to_owned(),
                joined: inputs.images.is_some(),
                on_bad_row: self.on_bad_row,
            })),
            inputs: Vec::new(),
        }
    }

    fn sources(&self, inputs: &Inputs) -> StagePlan {
        let listings = self.posts.iter().zip(&inputs.posts);
        let sources = listings.map(|(source, listing)| Source {
            folder: listing.folder.clone(),
            files: listing.files.clone(),
            tag_types: source.tag_types,
        });
        StagePlan {
            settings: Settings::Sources(SourcesSettings {
                sources: sources.collect(),
                piece_bytes: self.piece_bytes,
                piece_rows: self.piece_rows,
            }),
            inputs: Vec::new(),
        }
    }

    fn cloth_tags<'a>(&self, inputs: &'a Inputs) -> &'a str {
        inputs.cloth_tags.as_deref().unwrap_or(CLOTH_TAGS)
    }

    fn filter(&self, inputs: &Inputs, posts: &StagePlan) -> StagePlan {
        let figures = one(inputs.figures.as_ref());
        StagePlan {
            settings: Settings::Filter(Box::new(FilterSettings {
                cloth_tags: self.cloth_tags(inputs).to_owned(),
                ratings: self.ratings.clone(),
                deleted: self.deleted,
                figures: figures.map(|NamedFile { folder, file }| Figures { folder, file }),
            })),
            inputs: vec![posts.key()],
        }
    }

    fn ask(&self, inputs: &Inputs, found: &[StageKey]) -> Option<StagePlan> {
        let outfits = self.outfits.as_ref()?;
        Some(StagePlan {
            settings: Settings::Outfits(Box::new(OutfitsSettings {
                images: inputs.asked.clone(),
                endpoint: outfits.endpoint.clone(),
                model: outfits.model.clone(),
                questions: outfits.questions.clone(),
                concurrency: outfits.concurrency,
                on_bad_row: self.on_bad_row,
            })),
            inputs: found.to_vec(),
        })
    }

    fn clusters(
        &self,
        inputs: &Inputs,
        found: &StagePlan,
        signed: Option<&StagePlan>,
    ) -> StagePlan {
        let asked = || {
            let questions = self.outfits.iter().flat_map(|outfits| &outfits.questions);
            questions.map(|it| it.name.clone()).collect()
        };
        let signature = match (&self.signature, one(inputs.answers.as_ref())) {
            (PipelineSignature::Model, _) => Signature::Model { questions: asked() },
            (PipelineSignature::Answers { questions, .. }, Some(NamedFile { folder, file })) => {
                Signature::Answers(Answers {
                    folder,
                    file,
                    questions: questions.clone(),
                })
            }
            (PipelineSignature::Tagger, _) => Signature::Tagger,
            (PipelineSignature::Given, _) => Signature::Given,
            (PipelineSignature::Answers { .. } | PipelineSignature::Tags, _) => Signature::Tags,
        };
        let answers = signed.map(StagePlan::key);
        StagePlan {
            settings: Settings::Clusters(ClustersSettings {
                signature,
                size_min: self.size_min,
                truth: one(inputs.clusters_truth.as_ref()),
            }),
            inputs: std::iter::once(found.key()).chain(answers).collect(),
        }
    }

    /// `read` are the stages whose outputs it reads.
    fn write(&self, inputs: &Inputs, read: Vec<StageKey>) -> Option<StagePlan> {
        let dataset = self.dataset.as_ref()?;
        Some(StagePlan {
            settings: Settings::Dataset(DatasetSettings {
                images: inputs.images.clone(),
                masks: inputs.masks.clone(),
                boxes: one(inputs.boxes.as_ref()),
                near_duplicates: dataset.near_duplicates,
                near_bits: dataset.near_bits,
                on_bad_row: self.on_bad_row,
                publish: dataset.publish,
                whole: dataset.whole,
            }),
            inputs: read,
        })
    }
}
