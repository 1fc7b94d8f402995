//! `coordinator evaluate report`: tables, plots and grids of an evaluation, from its rows alone.
//! Written as Markdown, HTML and CSV, with the rows as Parquet beside them.

use super::document::{Block, csv_cell, html, markdown};
use super::stored::Stored;
use crate::cli::client::{self, connect};
use crate::cli::{Global, Outcome, Output, print_json};
use crate::evaluation::numbers::{
    Part, columns, difference, estimate, excess, extremes, headline, models, pairings,
};
use crate::evaluation::paper::{Column, TABLES, Table, differences};
use crate::text::outln;
use anyhow::{Context, Result, bail};
use clap::Args;
use figures::grid::{Cell, image_grid};
use figures::scatter::{Mark, Scatter, scatter_image, scatter_svg};
use image::RgbImage;
use metric::Estimate;
use model_data::evaluation::Row;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Images that are shown as best and as worst.
const EXTREMES: usize = 8;
/// Side of an image in a grid, in pixels.
const SIDE: u32 = 128;
const PLOT: (u32, u32) = (720, 540);
const MISSING: image::Rgb<u8> = image::Rgb([128, 128, 128]);

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// The evaluation. While it runs, the report is of the images that it has so far
    job: String,
    /// Output folder; created if it is missing
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// No grids of images, for which all images are downloaded
    #[arg(long)]
    no_grids: bool,
}

/// A report in the making.
struct Report<'a> {
    rows: &'a [Row],
    models: Vec<&'a str>,
    columns: Vec<Column>,
    out: &'a Path,
    blocks: Vec<Block>,
    csv: String,
}

pub(crate) async fn report(global: &Global, args: &ReportArgs) -> Result<Outcome> {
    let mut client = connect(global).await?;
    let view = client::describe(global, &mut client, &args.job).await?;
    let file = format!("job.toml of {}", view.job);
    let spec = proto::job::parse(&file, &view.job_toml, None)?;
    let Some(work) = spec.work.evaluation() else {
        bail!(
            "{} has [{}]; a report is of a job with [evaluate]",
            view.job,
            spec.work.table()
        );
    };
    let stored = Stored::open(&view)?;
    let (rows, table) = stored.rows(work.images()).await?;
    if rows.is_empty() {
        bail!("{} has no image yet; it is {}", view.job, view.phase);
    }
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot create the folder {}", args.out.display()))?;
    let mut report = Report::new(&rows, &args.out);
    report.begin(&view.job, work.images());
    report.paper_tables()?;
    report.every_measure();
    report.pairings();
    if !args.no_grids {
        report.extremes(&stored).await?;
        report.grids(&stored).await?;
    }
    report.write("rows.parquet", &table)?;
    report.finish(&view.job)?;
    match global.output {
        Output::Json => print_json(&serde_json::json!({
            "job": view.job,
            "out": args.out,
            "images": rows.len(),
            "expected": work.images(),
        })),
        Output::Table => outln!(
            "{}: report of {} of {} images in {}",
            view.job,
            rows.len(),
            work.images(),
            args.out.join("report.html").display()
        ),
    }
    Ok(Outcome::True)
}

impl<'a> Report<'a> {
    fn new(rows: &'a [Row], out: &'a Path) -> Self {
        Self {
            rows,
            models: models(rows),
            columns: columns(rows),
            out,
            blocks: Vec::new(),
            csv: "part,model,measure,mean,low,high,images,characters,paper,difference\n".to_owned(),
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let file = self.out.join(name);
        std::fs::write(&file, bytes).with_context(|| format!("cannot write {}", file.display()))
    }

    fn text(&mut self, text: impl Into<String>) {
        self.blocks.push(Block::Text(text.into()));
    }

    fn heading(&mut self, level: u8, text: impl Into<String>) {
        self.blocks.push(Block::Heading(level, text.into()));
    }

    fn begin(&mut self, job: &str, expected: u64) {
        self.heading(1, format!("Evaluation {job}"));
        let rows = self.rows;
        let distinct = |of: fn(&Row) -> &str| -> Vec<&str> {
            let all: BTreeSet<&str> = rows.iter().map(of).collect();
            all.into_iter().collect()
        };
        let cut = rows.iter().filter(|row| row.prompt_cut).count();
        self.text(format!(
            "{} of {expected} images: {} models, {} characters, {} prompts. Plan {}, data set \
             version {}. {cut} images are of prompts that their model does not read whole.",
            rows.len(),
            self.models.len(),
            distinct(|row| &row.character).len(),
            distinct(|row| &row.prompt).len(),
            distinct(|row| &row.plan).join(", "),
            distinct(|row| &row.dataset_version).join(", "),
        ));
        self.text(
            "Intervals are of 95 %, by bootstrap over characters (2,000 resamples): images of one \
             character resemble each other. SWD is the mean over images of the product of two \
             measures, before any averaging.",
        );
        if self.columns.is_empty() {
            self.text(
                "No image is scored: the plan names no CLIP folder and no server that answers \
                 questions.",
            );
        }
    }

    fn paper_tables(&mut self) -> Result<()> {
        for table in &TABLES {
            let named = |model: &&&str| table.has(model);
            let found: Vec<&str> = self.models.iter().filter(named).copied().collect();
            if !found.is_empty() {
                self.paper_table(table, &found)?;
            }
        }
        Ok(())
    }

    fn paper_table(&mut self, table: &Table, models: &[&str]) -> Result<()> {
        self.heading(2, format!("{} of the paper", table.title));
        let of_table = |row: &&Row| models.contains(&row.model.as_str());
        let rows: Vec<&Row> = self.rows.iter().filter(of_table).collect();
        self.text("Not comparable with the paper's values, because:");
        self.blocks.push(Block::List(differences(&rows)));
        for part in Part::EACH {
            if self.is_empty(part) {
                continue;
            }
            self.heading(3, format!("{}, {} characters", table.title, part.name()));
            // The paper has values of both domains together alone.
            let beside = part == Part::All;
            let mut header = vec!["model".to_owned()];
            for column in table.columns {
                header.push(column.title());
                if beside {
                    header.extend(["paper".to_owned(), "difference".to_owned()]);
                }
            }
            let mut lines = Vec::new();
            for model in models {
                let mut line = vec![(*model).to_owned()];
                for column in table.columns {
                    let ours = estimate(self.rows, model, part, *column);
                    let paper = table.value(model, *column);
                    line.push(ours.map_or_else(absent, |it| with_interval(&it)));
                    if !beside {
                        continue;
                    }
                    line.push(paper.map_or_else(absent, |it| format!("{it:.4}")));
                    let difference = ours.zip(paper).map(|(ours, paper)| ours.mean - paper);
                    line.push(difference.map_or_else(absent, |it| format!("{it:+.4}")));
                }
                lines.push(line);
            }
            self.blocks.push(Block::Table {
                header,
                rows: lines,
            });
        }
        for (x, y) in table.plots {
            self.plot(table, models, *x, *y)?;
        }
        Ok(())
    }

    fn is_empty(&self, part: Part) -> bool {
        !self.rows.iter().any(|row| match part {
            Part::All => true,
            Part::Of(domain) => row.domain == domain,
        })
    }

    /// The scatter plot of the paper's table, its values beside ours.
    fn plot(&mut self, table: &Table, models: &[&str], x: Column, y: Column) -> Result<()> {
        let interval = |it: &Estimate| it.low.zip(it.high);
        let mut marks = Vec::new();
        for model in models {
            let ours = |column| estimate(self.rows, model, Part::All, column);
            if let (Some(x), Some(y)) = (ours(x), ours(y)) {
                marks.push(Mark {
                    label: (*model).to_owned(),
                    x: x.mean,
                    y: y.mean,
                    x_interval: interval(&x),
                    y_interval: interval(&y),
                    is_paper: false,
                });
            }
            if let (Some(x), Some(y)) = (table.value(model, x), table.value(model, y)) {
                marks.push(Mark {
                    label: format!("{model} (paper)"),
                    x,
                    y,
                    x_interval: None,
                    y_interval: None,
                    is_paper: true,
                });
            }
        }
        if !marks.iter().any(|mark| !mark.is_paper) {
            return Ok(());
        }
        let name = format!(
            "{}-{}-{}",
            table.title.to_lowercase().replace(' ', ""),
            x.name(),
            y.name()
        );
        let (x, y) = (x.title(), y.title());
        let scatter = Scatter {
            title: &format!("{}: ours filled, paper hollow", table.title),
            x: &x,
            y: &y,
            marks: &marks,
        };
        let svg = scatter_svg(scatter, PLOT.0, PLOT.1)?;
        self.write(&format!("{name}.svg"), svg.as_bytes())?;
        let image = scatter_image(scatter, PLOT.0, PLOT.1)?;
        self.image(&format!("{name}.png"), &image, format!("{y} against {x}"))
    }

    fn image(&mut self, file: &str, image: &RgbImage, caption: String) -> Result<()> {
        let path = self.out.join(file);
        image
            .save(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        self.blocks.push(Block::Image {
            file: file.to_owned(),
            caption,
        });
        Ok(())
    }

    /// All models by everything that was computed. Also the lines of the CSV file.
    fn every_measure(&mut self) {
        if self.columns.is_empty() {
            return;
        }
        self.heading(2, "All measures");
        for part in Part::EACH {
            if self.is_empty(part) {
                continue;
            }
            self.heading(3, format!("{} characters", part.name()));
            let titles = self.columns.iter().map(|column| column.title());
            let header = std::iter::once("model".to_owned()).chain(titles).collect();
            let mut lines = Vec::new();
            for model in self.models.clone() {
                let mut line = vec![model.to_owned()];
                for column in self.columns.clone() {
                    let found = estimate(self.rows, model, part, column);
                    line.push(found.map_or_else(absent, |it| with_interval(&it)));
                    if let Some(found) = found {
                        self.csv_line(part, model, column, &found);
                    }
                }
                lines.push(line);
            }
            self.blocks.push(Block::Table {
                header,
                rows: lines,
            });
        }
        self.covariances();
    }

    fn csv_line(&mut self, part: Part, model: &str, column: Column, found: &Estimate) {
        let number = |it: Option<f64>| it.map_or_else(String::new, |it| it.to_string());
        let paper = TABLES.iter().find_map(|table| table.value(model, column));
        let paper = paper.filter(|_| part == Part::All);
        let cells = [
            part.name().to_owned(),
            csv_cell(model),
            column.name(),
            found.mean.to_string(),
            number(found.low),
            number(found.high),
            found.images.to_string(),
            found.characters.to_string(),
            number(paper),
            number(paper.map(|paper| found.mean - paper)),
        ];
        self.csv.push_str(&cells.join(","));
        self.csv.push('\n');
    }

    /// What SWD adds to the product of two means.
    fn covariances(&mut self) {
        let pairs = self.columns.iter().copied();
        let pairs: Vec<Column> = pairs.filter(|it| matches!(it, Column::Swd(_))).collect();
        if pairs.is_empty() {
            return;
        }
        self.heading(3, "SWD minus the product of its two means");
        self.text(
            "This is the population covariance of the two measures over the images: what SWD says \
             that their means do not.",
        );
        let titles = pairs.iter().map(|column| column.title());
        let header = std::iter::once("model".to_owned()).chain(titles).collect();
        let line = |model: &&str| {
            let values = pairs.iter().map(|column| {
                let found = excess(self.rows, model, Part::All, *column);
                found.map_or_else(absent, |it| format!("{it:+.5}"))
            });
            std::iter::once((*model).to_owned()).chain(values).collect()
        };
        let rows = self.models.iter().map(line).collect();
        self.blocks.push(Block::Table { header, rows });
    }

    fn pairings(&mut self) {
        let pairs = pairings(&self.models);
        if pairs.is_empty() || self.columns.is_empty() {
            return;
        }
        self.heading(2, "Pairing b minus pairing a");
        self.text(
            "Differences of images with the same character, prompt, seed, sample and noise. An \
             interval without 0 is a difference that characters do not explain.",
        );
        for part in Part::EACH {
            if self.is_empty(part) {
                continue;
            }
            self.heading(3, format!("b minus a, {} characters", part.name()));
            let titles = self.columns.iter().map(|column| column.title());
            let header = std::iter::once("models".to_owned())
                .chain(titles)
                .chain(["left out".to_owned()])
                .collect();
            let mut lines = Vec::new();
            for (a, b) in &pairs {
                let mut line = vec![format!("{b} - {a}")];
                let mut left_out = 0;
                for column in &self.columns {
                    let found = difference(self.rows, (a, b), part, *column);
                    left_out = left_out.max(found.as_ref().map_or(0, |it| it.left_out));
                    line.push(found.map_or_else(absent, |it| signed(&it.estimate)));
                }
                line.push(left_out.to_string());
                lines.push(line);
            }
            self.blocks.push(Block::Table {
                header,
                rows: lines,
            });
        }
    }

    async fn extremes(&mut self, stored: &Stored) -> Result<()> {
        let Some(column) = headline(&self.columns) else {
            return Ok(());
        };
        let (best, worst) = extremes(self.rows, column, EXTREMES);
        self.heading(2, format!("Best and worst images by {}", column.title()));
        for (name, rows) in [("best", best), ("worst", worst)] {
            let mut cells = Vec::new();
            for row in &rows {
                let value = column.of(row).unwrap_or_default();
                cells.push(Cell::new(format!("{value:.3}"), cell(stored, row).await?));
            }
            let grid = image_grid(&[cells], SIDE, 1);
            self.image(
                &format!("{name}.png"),
                &grid,
                format!("{name}, left to right"),
            )?;
            let line = |row: &&Row| {
                format!(
                    "{} of {}, prompt {:?}, seed {}, sample {} ({})",
                    row.model, row.character, row.prompt, row.seed, row.sample, row.image
                )
            };
            self.blocks
                .push(Block::List(rows.iter().map(line).collect()));
        }
        Ok(())
    }

    /// One grid for each character: a row of each model, with the first image of each prompt.
    async fn grids(&mut self, stored: &Stored) -> Result<()> {
        self.heading(2, "Characters");
        let mut characters: Vec<(&str, &str)> = Vec::new();
        for row in self.rows {
            let of = (row.character.as_str(), row.domain.name());
            if !characters.contains(&of) {
                characters.push(of);
            }
        }
        for (number, (character, domain)) in characters.into_iter().enumerate() {
            let mut grid = Vec::new();
            for model in &self.models {
                let mut cells = Vec::new();
                let mut seen = BTreeSet::new();
                let of = |row: &&Row| row.model == *model && row.character == character;
                for row in self.rows.iter().filter(of) {
                    if seen.insert(&row.prompt) {
                        let label = if cells.is_empty() { *model } else { "" };
                        cells.push(Cell::new(label, cell(stored, row).await?));
                    }
                }
                grid.push(cells);
            }
            let grid = image_grid(&grid, SIDE, 1);
            let caption =
                format!("{character} ({domain}): a row for each model, a column for each prompt");
            self.image(&format!("character-{number:03}.png"), &grid, caption)?;
        }
        Ok(())
    }

    fn finish(&self, job: &str) -> Result<()> {
        let title = format!("Evaluation {job}");
        self.write("report.md", markdown(&self.blocks).as_bytes())?;
        self.write("report.html", html(&title, &self.blocks).as_bytes())?;
        self.write("scores.csv", self.csv.as_bytes())
    }
}

/// The stored image of a row, or grey if it was deleted.
async fn cell(stored: &Stored, row: &Row) -> Result<RgbImage> {
    let found = stored.image(&row.image).await?;
    Ok(found.unwrap_or_else(|| RgbImage::from_pixel(SIDE, SIDE, MISSING)))
}

fn absent() -> String {
    "–".to_owned()
}

fn with_interval(it: &Estimate) -> String {
    match it.low.zip(it.high) {
        Some((low, high)) => format!("{:.4} ({low:.4} to {high:.4})", it.mean),
        None => format!("{:.4}", it.mean),
    }
}

fn signed(it: &Estimate) -> String {
    match it.low.zip(it.high) {
        Some((low, high)) => format!("{:+.4} ({low:+.4} to {high:+.4})", it.mean),
        None => format!("{:+.4}", it.mean),
    }
}
