//! The VQA score of an image: a server answers the plan's questions about the image and about its
//! references, and the embedded answers are compared.

use crate::folder;
use crate::process::{Permanent, Rank};
use ::vqa::{Cache, Client, Image, Options, Question, Questions};
use anyhow::Context;
use bytes::Bytes;
use image::{ImageFormat, RgbImage};
use metric::{AnswerTable, Measure, Reading, Scores};
use model::metric::SentenceEncoder;
use model_data::evaluation::{Answers, Row};
use proto::evaluate::{MetricSettings, VqaSettings};
use proto::spec::Precision;
use std::collections::BTreeMap;
use std::io::Cursor;

/// A server that answers, and the encoder of its answers.
pub(super) struct Asker {
    client: Client,
    questions: Questions,
    texts: Vec<String>,
    encoder: SentenceEncoder,
    /// Embeddings of answers, which are few and short.
    embedded: BTreeMap<String, Vec<f32>>,
}

impl Asker {
    /// None: the plan asks nothing.
    pub(super) fn open(rank: &Rank<'_>, settings: &MetricSettings) -> anyhow::Result<Option<Self>> {
        let Some(settings) = &settings.vqa else {
            return Ok(None);
        };
        let assignment = &rank.task.assignment;
        let permanent = |field: &str, error: &dyn std::error::Error| {
            Permanent(format!(
                "evaluate.vqa.{field}: {}",
                proto::text::chain(error)
            ))
        };
        // Answers are kept with the job: a question about an image is asked once, by any rank.
        let store = assignment.store_url.trim_end_matches('/');
        let cache = Cache::open(&format!("{store}/jobs/{}/answers", assignment.job))?;
        let client = Client::new(options(settings), Some(cache))
            .map_err(|error| permanent("endpoint", &error))?;
        let named = settings
            .questions
            .iter()
            .enumerate()
            .map(|(number, text)| Question {
                name: format!("q{number}"),
                text: text.clone(),
            });
        let questions = Questions::new("evaluate.vqa.questions", named.collect())
            .map_err(|error| permanent("questions", &error))?;
        let url = &settings.embedder;
        let fetched = folder::fetch(url, &rank.settings.cache_dir);
        let folder = rank.runtime.block_on(fetched);
        let folder = folder.with_context(|| format!("evaluate.vqa.embedder {url}"))?;
        let kind = rank.job.resources.device;
        let device = crate::device::choose(kind, rank.task.device, Precision::Fp32)?;
        let encoder = SentenceEncoder::open(&folder, device)
            .map_err(|error| permanent(&format!("embedder {url}"), &error))?;
        Ok(Some(Self {
            client,
            questions,
            texts: settings.questions.clone(),
            encoder,
            embedded: BTreeMap::new(),
        }))
    }

    /// The answers about images, in order; None where the model refused or said nothing.
    pub(super) async fn ask(
        &self,
        images: &[(String, &RgbImage)],
    ) -> anyhow::Result<Vec<Vec<Option<String>>>> {
        let mut files = Vec::new();
        for (name, image) in images {
            let mut bytes = Cursor::new(Vec::new());
            image.write_to(&mut bytes, ImageFormat::Png)?;
            files.push(Image {
                name: name.clone(),
                bytes: Bytes::from(bytes.into_inner()),
            });
        }
        let mut all = Vec::new();
        for row in self.client.ask_all(&self.questions, &files).await {
            let mut answers = Vec::new();
            for answer in row {
                answers.push(answer?.text());
            }
            all.push(answers);
        }
        Ok(all)
    }

    /// What was asked and answered about an image and its references.
    pub(super) fn answers(
        &self,
        image: Vec<Option<String>>,
        references: Vec<Vec<Option<String>>>,
    ) -> Answers {
        Answers {
            model: self.client.options().model.clone(),
            questions: self.texts.clone(),
            image,
            references,
        }
    }

    /// Reading (a): the image against its references.
    pub(super) fn score(&mut self, answers: &Answers, scores: &mut Scores) -> anyhow::Result<()> {
        let mut table = AnswerTable::new(&answers.questions);
        table.insert("image", answers.image.clone())?;
        let names: Vec<String> = (0..answers.references.len())
            .map(|it| it.to_string())
            .collect();
        for (name, reference) in names.iter().zip(&answers.references) {
            table.insert(name, reference.clone())?;
        }
        self.embed(&mut table)?;
        let reading = table.to_references("image", names.iter().map(String::as_str))?;
        put(scores, Measure::Vqa, Measure::VqaDistance, &reading);
        Ok(())
    }

    /// Reading (b), for all rows: each image against the others of its model, character and prompt.
    pub(super) fn score_generated(&mut self, rows: &mut [Row]) -> anyhow::Result<()> {
        let mut groups: BTreeMap<(String, String, String), Vec<usize>> = BTreeMap::new();
        for (index, row) in rows.iter().enumerate().filter(|(_, row)| row.vqa.is_some()) {
            let group = (row.model.clone(), row.character.clone(), row.prompt.clone());
            groups.entry(group).or_default().push(index);
        }
        for members in groups.values() {
            let mut table = AnswerTable::new(&self.texts);
            let keys: Vec<String> = members.iter().map(|it| rows[*it].key.clone()).collect();
            for (key, member) in keys.iter().zip(members) {
                let answers = rows[*member].vqa.as_ref().map(|vqa| vqa.image.clone());
                table.insert(key, answers.unwrap_or_default())?;
            }
            self.embed(&mut table)?;
            for (key, member) in keys.iter().zip(members) {
                let reading = table.among_generated(key, keys.iter().map(String::as_str))?;
                let scores = &mut rows[*member].scores;
                let (cosine, distance) = (Measure::VqaGenerated, Measure::VqaGeneratedDistance);
                put(scores, cosine, distance, &reading);
            }
        }
        Ok(())
    }

    fn embed(&mut self, table: &mut AnswerTable) -> anyhow::Result<()> {
        for text in table.texts() {
            if !self.embedded.contains_key(&text) {
                let found = self.encoder.embed_text(&text)?;
                self.embedded.insert(text.clone(), found.embedding);
            }
            table.embed(text.clone(), self.embedded[&text].clone());
        }
        Ok(())
    }
}

fn options(settings: &VqaSettings) -> Options {
    // The client adds `/v1` itself.
    let endpoint = settings.endpoint.trim_end_matches('/');
    let endpoint = endpoint.strip_suffix("/v1").unwrap_or(endpoint);
    Options {
        concurrency: settings.concurrency as usize,
        ..Options::new(endpoint, &settings.model)
    }
}

fn put(scores: &mut Scores, cosine: Measure, distance: Measure, reading: &Reading) {
    scores.extend(reading.cosine.map(|value| (cosine, value)));
    scores.extend(reading.distance().map(|value| (distance, value)));
}
