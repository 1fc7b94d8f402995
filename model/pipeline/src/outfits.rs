//! The stage `outfits`: asks a model questions about the clothes of figures (paper section 3). Only
//! figures are asked about whose character and artist have others; answers are cached by their
//! content, so that a repetition pays nothing twice.

use crate::batches::{NO_IMAGE, NOT_READ, refuse};
use crate::error::{BuildError, Result};
use crate::figure::{self, ANSWERS};
use crate::images::Images;
use crate::output::Outputs;
use crate::table::{Table, Value};
use proto::build::StagePlan;
use proto::build::report::{BadRow, Report, UnitOutput};
use proto::build::settings::OutfitsSettings;
use std::path::Path;
use vqa::{Cache, Client, Image, Options, Question, Questions, Reply};

/// Images in memory.
const BATCH: usize = 16;

/// Asks about the figures of a unit.
///
/// # Errors
/// Input is missing or damaged, or the server does not answer: what it has answered is cached.
pub async fn run(
    plan: &StagePlan,
    settings: &OutfitsSettings,
    (outputs, out): (&Outputs, &str),
    (unit, units): (u32, u32),
    scratch: &Path,
) -> Result<UnitOutput> {
    let mut figures = figure::with_others(plan, outputs, scratch).await?;
    figures.retain(|id| id.rem_euclid(i64::from(units)) == i64::from(unit));
    let images = Images::of_stage(plan, outputs, settings.images.as_ref(), scratch).await?;
    images.check(settings.on_bad_row)?;
    let (client, questions) = client(settings, out)?;
    let mut asker = Asker {
        settings,
        client,
        questions,
        table: Table::new(&ANSWERS),
        report: Report {
            rows_in: figures.len() as u64,
            ..Report::default()
        },
    };
    for batch in figures.chunks(BATCH) {
        asker.ask(&images, batch).await?;
    }
    let Asker {
        table, mut report, ..
    } = asker;
    images.describe(unit, &mut report);
    let mut parts = Vec::new();
    if 0 < table.rows() {
        let stem = format!("answers-{unit:05}-of-{units:05}");
        let output = outputs.stage(&plan.key());
        parts.push(output.put_part(&stem, table.rows(), table.finish()).await?);
    }
    Ok(UnitOutput { parts, report })
}

fn client(settings: &OutfitsSettings, out: &str) -> Result<(Client, Questions)> {
    let input = |error: &dyn std::error::Error| BuildError::Input(proto::text::chain(error));
    let asked = settings.questions.iter().map(|question| Question {
        name: question.name.clone(),
        text: question.text.clone(),
    });
    let questions = Questions::new("outfits.questions", asked.collect());
    let questions = questions.map_err(|error| input(&error))?;
    let cache = Cache::open(&format!("{}/answers", out.trim_end_matches('/')))?;
    let options = Options {
        concurrency: settings.concurrency as usize,
        // A list of clothes is longer than a colour.
        max_tokens: 32,
        ..Options::new(&settings.endpoint, &settings.model)
    };
    let client = Client::new(options, Some(cache)).map_err(|error| input(&error))?;
    Ok((client, questions))
}

struct Asker<'a> {
    settings: &'a OutfitsSettings,
    client: Client,
    questions: Questions,
    table: Table,
    report: Report,
}

impl Asker<'_> {
    async fn ask(&mut self, images: &Images, figures: &[i64]) -> Result<()> {
        let (mut ids, mut read) = (Vec::new(), Vec::new());
        for id in figures {
            let Some(name) = images.path(*id) else {
                self.report.lose(NO_IMAGE, 1);
                continue;
            };
            match images.read(*id).await {
                Ok(bytes) => {
                    ids.push(*id);
                    read.push(Image { name, bytes });
                }
                Err(reason) => {
                    let row = BadRow {
                        file: name,
                        row: u64::try_from(*id).unwrap_or(0),
                        offset: None,
                        reason: format!("post {id}: it {reason}"),
                    };
                    let on_bad_row = self.settings.on_bad_row;
                    refuse(row, NOT_READ, on_bad_row, &mut self.report)?;
                }
            }
        }
        let rows = self.client.ask_all(&self.questions, &read).await;
        for (id, answers) in ids.into_iter().zip(rows) {
            self.report.rows_out += 1;
            for (question, answer) in self.settings.questions.iter().zip(answers) {
                // Without it the figure would be dropped for what a later attempt may change.
                let answer =
                    answer.map_err(|error| BuildError::Input(proto::text::chain(&error)))?;
                let count = |report: &mut Report, what: &str, more| {
                    report.count(&format!("{} {what}", question.name), more);
                };
                let report = &mut self.report;
                // Of answers from the cache, too: the counts are those of all attempts.
                count(report, "tokens", answer.usage.prompt_tokens);
                count(report, "tokens", answer.usage.completion_tokens);
                match &answer.reply {
                    Reply::Text(text) => {
                        count(report, "answers", 1);
                        count(report, "answers cut off", u64::from(answer.truncated));
                        let name = Value::Text(&question.name);
                        self.table
                            .push([Value::Number(id), name, Value::Text(text)]);
                    }
                    Reply::Refusal(_) => count(report, "refusals", 1),
                    Reply::Empty => count(report, "empty answers", 1),
                }
            }
        }
        Ok(())
    }
}
