//! Divides a pipeline into stages. Pure.

use super::StagePlan;
use super::pipeline::{CLOTH_TAGS, Inputs, Pipeline, PipelineSignature, Planned, one};
use super::settings::{
    Answers, ClustersSettings, DatasetSettings, Figures, FilterSettings, NamedFile,
    OutfitsSettings, PostsSettings, Settings, Signature, Source, SourcesSettings,
};

impl Pipeline {
    /// The stages in order. Each reads only those before it.
    #[must_use]
    pub fn stages(&self, inputs: &Inputs) -> Vec<Planned> {
        let units = |plan: &StagePlan, units| Planned {
            plan: plan.clone(),
            units,
        };
        let sources = self.sources(inputs);
        let posts = StagePlan {
            settings: Settings::Posts(PostsSettings {
                on_bad_row: self.on_bad_row,
            }),
            inputs: vec![sources.key()],
        };
        let filter = self.filter(inputs, &posts);
        let outfits = self.ask(inputs, &filter);
        let tagger = self.tag(inputs, &filter, self.cloth_tags(inputs));
        let signed = outfits.as_ref().or(tagger.as_ref());
        let clusters = self.clusters(inputs, &filter, signed);
        let masks = self.segment(inputs, &clusters);
        let faces = self.detect(inputs, masks.as_ref().unwrap_or(&clusters));
        let images = [masks.as_ref(), faces.as_ref()];
        let dataset = self.write(inputs, &[&filter, &clusters], images);
        let mut stages = vec![
            units(&sources, 1),
            units(&posts, self.posts_units),
            units(&filter, 1),
        ];
        stages.extend(outfits.map(|outfits| units(&outfits, self.outfits_units)));
        stages.extend(tagger.map(|tagger| units(&tagger, self.tagger_units)));
        stages.push(units(&clusters, 1));
        stages.extend(masks.map(|masks| units(&masks, self.masks_units)));
        stages.extend(faces.map(|faces| units(&faces, self.faces_units)));
        stages.extend(dataset.map(|dataset| units(&dataset, 1)));
        stages
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

    fn ask(&self, inputs: &Inputs, filter: &StagePlan) -> Option<StagePlan> {
        let (outfits, images) = self.outfits.as_ref().zip(inputs.asked.clone())?;
        Some(StagePlan {
            settings: Settings::Outfits(Box::new(OutfitsSettings {
                images,
                endpoint: outfits.endpoint.clone(),
                model: outfits.model.clone(),
                questions: outfits.questions.clone(),
                concurrency: outfits.concurrency,
                on_bad_row: self.on_bad_row,
            })),
            inputs: vec![filter.key()],
        })
    }

    fn clusters(
        &self,
        inputs: &Inputs,
        filter: &StagePlan,
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
            (PipelineSignature::Answers { .. } | PipelineSignature::Tags, _) => Signature::Tags,
        };
        let answers = signed.map(StagePlan::key);
        StagePlan {
            settings: Settings::Clusters(ClustersSettings {
                signature,
                size_min: self.size_min,
            }),
            inputs: std::iter::once(filter.key()).chain(answers).collect(),
        }
    }

    /// `tables` are the plans of its tables, and `images` those of masks and faces.
    fn write(
        &self,
        inputs: &Inputs,
        tables: &[&StagePlan],
        images: [Option<&StagePlan>; 2],
    ) -> Option<StagePlan> {
        let dataset = self.dataset.as_ref()?;
        let tables = tables.iter().copied();
        Some(StagePlan {
            settings: Settings::Dataset(DatasetSettings {
                images: inputs.images.clone()?,
                masks: inputs.masks.clone(),
                boxes: one(inputs.boxes.as_ref()),
                near_duplicates: dataset.near_duplicates,
                near_bits: dataset.near_bits,
                on_bad_row: self.on_bad_row,
            }),
            inputs: tables
                .chain(images.into_iter().flatten())
                .map(StagePlan::key)
                .collect(),
        })
    }
}
