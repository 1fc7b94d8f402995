//! `coordinator dataset build`: divides a pipeline into stages, and submits a job for each one
//! whose output is not in the store. Also shows a stage, for `coordinator dataset preview`.

use super::client::connect;
use super::patience::aloud;
use super::submit::{About, Submission, send};
use super::{Global, Outcome, Output, print_json, table, watch};
use crate::text::{errln, outln};
use anyhow::{Context, Result, anyhow, bail};
use model_data::pipeline_inputs::inputs;
use object_store::path::Path as ObjectPath;
use object_store::{Error as ObjectError, ObjectStore, PutMode, PutPayload};
use proto::build::pipeline::{Inputs, Pipeline, Planned};
use proto::build::report::StageManifest;
use proto::build::settings::OnBadRow;
use proto::build::{Stage, StageKey, funnel, truth};
use proto::phase::Phase;
use serde_json::json;
use std::collections::HashMap;
use std::io::Write;
use std::path::{Path as FilePath, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use storage::read::read_bounded;

const MANIFEST_BYTES_MAX: u64 = 256 << 20;
/// Bad rows that are shown; the manifest has more.
const BAD_ROWS_SHOWN: usize = 10;

#[derive(Debug, clap::Args)]
pub(crate) struct BuildArgs {
    /// The pipeline; deploy/pipelines/danbooru.toml documents every field
    #[arg(value_name = "pipeline.toml")]
    file: PathBuf,
    /// Say which stages are complete and which would be built, and submit nothing
    #[arg(long)]
    dry_run: bool,
    /// Fail on the first row that cannot be used, as on_bad_row = "stop" does
    #[arg(long)]
    strict: bool,
    /// Follow the jobs until the last one ends, then print the funnel
    #[arg(long, conflicts_with = "dry_run")]
    watch: bool,
}

/// The outputs of a pipeline.
struct Store {
    objects: Arc<dyn ObjectStore>,
    prefix: ObjectPath,
}

impl Store {
    fn path(&self, key: &StageKey, name: &str) -> ObjectPath {
        let folder = key.folder();
        let folder = folder
            .split('/')
            .fold(self.prefix.clone(), ObjectPath::join);
        folder.join(name)
    }

    /// None: the stage is not complete.
    async fn manifest(&self, key: &StageKey) -> Result<Option<StageManifest>> {
        let path = self.path(key, "manifest.json");
        match read_bounded(&*self.objects, &path, MANIFEST_BYTES_MAX).await {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .with_context(|| format!("{path} is damaged")),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {path}")),
        }
    }

    async fn put_plan(&self, planned: &Planned) -> Result<()> {
        let path = self.path(&planned.plan.key(), "plan.json");
        let text = serde_json::to_vec_pretty(&planned.plan)?;
        let payload = PutPayload::from(text);
        match self
            .objects
            .put_opts(&path, payload, PutMode::Create.into())
            .await
        {
            Ok(_) | Err(ObjectError::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot write {path}")),
        }
    }
}

/// A pipeline, what its fields name, and the store of its outputs.
async fn read(file: &FilePath, strict: bool) -> Result<(Pipeline, Inputs, Store)> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
    let absolute = std::path::absolute(file)?;
    let folder = absolute.parent().unwrap_or(&absolute);
    let mut pipeline = Pipeline::parse(&name, &text, folder)?;
    if strict {
        pipeline.on_bad_row = OnBadRow::Stop;
    }
    let found = aloud("the list of files", inputs(&pipeline)).await;
    let found = found.with_context(|| name.clone())?;
    let (objects, prefix) = storage::open(&pipeline.out)?;
    Ok((pipeline, found, Store { objects, prefix }))
}

pub(crate) async fn build(global: &Global, args: &BuildArgs) -> Result<Outcome> {
    let (pipeline, found, store) = read(&args.file, args.strict).await?;
    let (mut complete, mut missing) = (Vec::new(), Vec::new());
    for planned in pipeline.stages(&found) {
        match store.manifest(&planned.plan.key()).await? {
            // What follows a missing stage cannot be used, even if it is there.
            Some(manifest) if missing.is_empty() => complete.push(manifest),
            Some(_) | None => missing.push(planned),
        }
    }
    if missing.is_empty() {
        print(global, &pipeline, &complete, &[]);
        return Ok(Outcome::True);
    }
    if args.dry_run {
        let names: Vec<String> = missing
            .iter()
            .map(|it| it.plan.stage().to_string())
            .collect();
        errln!("would build: {}", names.join(", "));
        print(global, &pipeline, &complete, &[]);
        return Ok(Outcome::True);
    }
    let jobs = submit(global, &pipeline, &store, &missing).await?;
    let Some((_, last)) = jobs.last().filter(|_| args.watch) else {
        print(global, &pipeline, &complete, &jobs);
        return Ok(Outcome::True);
    };
    for (stage, job) in &jobs {
        errln!("{stage}: {job}");
    }
    let mut outcome = Outcome::True;
    for (_, job) in &jobs {
        let view = watch::follow(global, job).await?;
        if view.phase != Phase::Done {
            errln!(
                "{job} is {}: `coordinator why {job}` says why; {last} waits for it",
                view.phase
            );
            outcome = Outcome::False;
            break;
        }
    }
    for planned in missing {
        complete.extend(store.manifest(&planned.plan.key()).await?);
    }
    print(global, &pipeline, &complete, &jobs);
    Ok(outcome)
}

/// Submits a job for each stage, each after the one before it.
async fn submit(
    global: &Global,
    pipeline: &Pipeline,
    store: &Store,
    missing: &[Planned],
) -> Result<Vec<(Stage, String)>> {
    let mut client = connect(global).await?;
    let mut jobs: Vec<(Stage, String)> = Vec::new();
    for planned in missing {
        store.put_plan(planned).await?;
        let key = planned.plan.key();
        let stage = key.stage;
        let after = jobs.last().map(|(_, job)| format!("after = [{job:?}]\n"));
        let out = toml_text(&pipeline.out)?;
        let text = format!(
            "name = \"{}-{stage}\"\n{}[build]\nstage = \"{stage}\"\nkey = \"{}\"\nout = {out}\n\
             units = {}\n",
            pipeline.name,
            after.unwrap_or_default(),
            key.key,
            planned.units
        );
        let job = Submission {
            file_name: format!("the job of the stage {stage}"),
            text,
            directory: PathBuf::from("/"),
            files: HashMap::new(),
            about: About::of_user(),
        };
        let reply = send(global, &mut client, job, false).await?;
        jobs.push((stage, reply.job));
    }
    Ok(jobs)
}

/// A text as TOML writes it. URLs have no control characters, which JSON would write differently.
fn toml_text(text: &str) -> Result<String> {
    if text.chars().any(char::is_control) {
        return Err(anyhow!("out: {text:?} has control characters"));
    }
    Ok(serde_json::to_string(text)?)
}

fn print(
    global: &Global,
    pipeline: &Pipeline,
    complete: &[StageManifest],
    jobs: &[(Stage, String)],
) {
    let steps = funnel::steps(complete);
    if global.output == Output::Json {
        let stages = complete.iter().map(|manifest| {
            json!({
                "stage": manifest.key.stage,
                "folder": manifest.key.folder(),
                "report": manifest.report,
            })
        });
        let submitted = jobs
            .iter()
            .map(|(stage, job)| json!({"stage": stage, "job": job}));
        print_json(&json!({
            "out": pipeline.out,
            "jobs": submitted.collect::<Vec<_>>(),
            "stages": stages.collect::<Vec<_>>(),
            "funnel": steps,
            "truth": truth::rows(complete),
        }));
        return;
    }
    for (_, job) in jobs {
        outln!("{job}");
    }
    for manifest in complete {
        for sentence in &manifest.report.found {
            outln!("{}: {sentence}", manifest.key.stage);
        }
        let bad = &manifest.report.bad_rows;
        for row in bad.iter().take(BAD_ROWS_SHOWN) {
            let offset = row
                .offset
                .map_or(String::new(), |it| format!(", byte {it}"));
            errln!("{}: row {}{offset}: {}", row.file, row.row, row.reason);
        }
        if BAD_ROWS_SHOWN < bad.len() {
            errln!(
                "further bad rows are in {}/manifest.json",
                manifest.key.folder()
            );
        }
    }
    if !steps.is_empty() {
        print_funnel(&steps);
    }
    print_truth(&truth::rows(complete));
    for manifest in complete.iter().filter(|it| it.key.stage == Stage::Clusters) {
        print_clusters(manifest);
    }
}

fn print_funnel(steps: &[funnel::Step]) {
    let mut shown = table(&["STAGE", "ROWS", "LOST", "PAPER", ""]);
    let number = |it: Option<u64>| it.map_or(String::new(), |it| it.to_string());
    for step in steps {
        shown.add_row([
            step.stage.to_string(),
            number(step.rows),
            number(step.lost),
            number(step.paper),
            step.what.clone(),
        ]);
    }
    shown.print_below();
}

fn print_truth(rows: &[truth::Row]) {
    if rows.is_empty() {
        return;
    }
    let mut shown = table(&["STAGE", "COMPARED", "VALUE", ""]);
    for row in rows {
        shown.add_row([
            row.stage.to_string(),
            row.compared.to_string(),
            format!("{:.3}", row.value),
            format!("{}, against the truth", row.what),
        ]);
    }
    shown.print_below();
}

/// Writes a contact sheet of a stage, which `worker-build` makes: the engine and the readers of
/// images are linked by it alone.
pub(crate) async fn preview(
    global: &Global,
    file: &FilePath,
    stage: Stage,
    out: &FilePath,
) -> Result<Outcome> {
    // What --strict has built has other keys.
    for strict in [false, true] {
        let (pipeline, found, store) = read(file, strict).await?;
        let stages = pipeline.stages(&found);
        let planned = stages.iter().find(|it| it.plan.stage() == stage);
        let Some(planned) = planned else {
            let names = stages.iter().map(|it| it.plan.stage().name());
            let names = names.collect::<Vec<_>>().join(", ");
            bail!(
                "{} has no stage {stage}; its stages are {names}",
                file.display()
            );
        };
        let key = planned.plan.key();
        if store.manifest(&key).await?.is_none() {
            continue;
        }
        let images = found.images.or(found.asked).or(found.image.tagged);
        let order = json!({"out": pipeline.out, "key": key, "images": images});
        run_worker_build(&order.to_string(), out)?;
        match global.output {
            Output::Json => print_json(&json!({"out": out, "stage": stage})),
            Output::Table => outln!("{}: the first figures of {stage}", out.display()),
        }
        return Ok(Outcome::True);
    }
    bail!(
        "the stage {stage} is not complete: `coordinator dataset build {}` builds it",
        file.display()
    )
}

fn run_worker_build(order: &str, out: &FilePath) -> Result<()> {
    let named = std::env::var_os("RETRI_WORKER_BUILD").map(PathBuf::from);
    let program = match named {
        Some(named) => named,
        None => std::env::current_exe()?.with_file_name("worker-build"),
    };
    let mut child = Command::new(&program);
    child
        .arg("sheet")
        .arg("--out")
        .arg(out)
        .stdin(Stdio::piped());
    let mut child = child.spawn().with_context(|| {
        format!(
            "cannot start {}, which makes contact sheets; install it beside this program, or name \
             it in RETRI_WORKER_BUILD",
            program.display()
        )
    })?;
    if let Some(mut input) = child.stdin.take() {
        // A program that ends before it reads says why.
        input.write_all(order.as_bytes()).ok();
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{} ended with {status}", program.display());
    }
    Ok(())
}

fn print_clusters(manifest: &StageManifest) {
    let tables = &manifest.report.tables;
    if let Some(similar) = tables.get("similar figures of a figure") {
        let mut shown = table(&["SIMILAR", "FIGURES", "SHARE", "PAPER"]);
        for (words, rows, share, paper) in funnel::similar(similar) {
            shown.add_row([
                words.to_owned(),
                rows.to_string(),
                format!("{share:.1} %"),
                format!("{paper:.1} %"),
            ]);
        }
        shown.print_below();
    }
    for (title, column) in [
        ("characters", "CHARACTER"),
        ("cloth tags", "CLOTHES"),
        ("pairs that one question alone splits", "QUESTION"),
    ] {
        let Some(rows) = tables.get(title).filter(|rows| !rows.is_empty()) else {
            continue;
        };
        let mut shown = table(&[
            column,
            if column == "QUESTION" {
                "PAIRS"
            } else {
                "FIGURES"
            },
        ]);
        for (word, count) in rows {
            shown.add_row([word.clone(), count.to_string()]);
        }
        shown.print_below();
    }
}
