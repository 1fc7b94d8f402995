//! The stage `clusters`: figures of one character and artist in one outfit are similar (paper
//! section 3). Outfits are equal if their signatures are: the answers to all questions, or, without
//! a model, the set of cloth tags: the post's, or those that a tagger finds. Figures that are alone
//! are dropped.

use crate::engine::Engine;
use crate::error::{BuildError, Result};
use crate::figure::{self, ANSWERS, CLUSTERED, FOLDED, PART_ROWS, TAGGED};
use crate::filter::push;
use crate::output::{Outputs, StageFolder};
use crate::sources::{join, unchanged};
use crate::table::Table;
use proto::build::report::{Part, Report, UnitOutput};
use proto::build::settings::{Answers, ClustersSettings, NamedFile, Signature};
use proto::build::{Stage, StagePlan, truth};
use serde::Deserialize;
use std::path::Path;

pub const ALONE: &str = "no other figure in the same outfit";
pub const UNANSWERED: &str = "a question without an answer";
/// The outfit of figures that are grouped by identity alone.
pub const ANY: &str = "any";
pub const UNTAGGED: &str = "no image, or no cloth tag that the tagger finds";

/// Titles of the tables in the report.
pub const SIMILAR: &str = "similar figures of a figure";
pub const CHARACTERS: &str = "characters";
pub const CLOTHS: &str = "cloth tags";
pub const SPLITS: &str = "pairs that one question alone splits";

const TABLES: &str = "
    CREATE TABLE answers(id, question, answer, PRIMARY KEY (id, question)) WITHOUT ROWID;
    CREATE TABLE questions(number INTEGER PRIMARY KEY, name UNIQUE);";

/// The last answer counts: a question that was asked again was asked for a reason.
const INSERT_ANSWER: &str = "INSERT INTO answers SELECT ?1, number, normalised(?3) FROM questions \
    WHERE name = ?2 AND normalised(?3) <> '' ON CONFLICT DO UPDATE SET answer = excluded.answer";

/// A line of the file of answers.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AnswerRow {
    id: i64,
    question: String,
    answer: Option<String>,
}

/// Reads the table of figures, and writes those that are in clusters.
///
/// # Errors
/// Input is missing or damaged, or there is no room.
pub async fn run(
    plan: &StagePlan,
    settings: &ClustersSettings,
    outputs: &Outputs,
    scratch: &Path,
) -> Result<UnitOutput> {
    let engine = Engine::open(scratch)?;
    engine.run("cannot make its tables", TABLES)?;
    engine.run("cannot make its tables", figure::FIGURES_TABLE)?;
    let mut report = Report {
        rows_in: figure::load(&engine, plan, outputs).await?,
        ..Report::default()
    };
    match &settings.signature {
        Signature::Tags => {
            let sign = "CREATE TABLE signed AS SELECT id, cloths AS outfit FROM figures";
            engine.run("cannot sign", sign)?;
        }
        Signature::Model { questions } => {
            name_questions(&engine, questions)?;
            let (folder, manifest) = outputs.input(plan, Stage::Outfits).await?;
            for part in &manifest.parts {
                let bytes = folder.part(part).await?;
                let rows = engine.load(&part.path, bytes, &ANSWERS, INSERT_ANSWER)?;
                report.count("answers read", rows);
            }
            sign_by_answers(&engine, &mut report)?;
        }
        Signature::Answers(answers) => {
            name_questions(&engine, &answers.questions)?;
            load_answers(&engine, answers, &mut report).await?;
            sign_by_answers(&engine, &mut report)?;
        }
        Signature::Tagger => sign_by_tags(plan, outputs, &engine, &mut report).await?,
        Signature::Given => sign_as_given(plan, outputs, &engine).await?,
    }
    group(&engine, settings, &mut report)?;
    let is_asked = matches!(
        settings.signature,
        Signature::Model { .. } | Signature::Answers(_)
    );
    if is_asked {
        count_splits(&engine, &mut report)?;
    }
    if let Some(truth) = &settings.truth {
        compare(&engine, truth, &mut report).await?;
    }
    count(&engine, &mut report)?;
    let parts = write(&engine, &outputs.stage(&plan.key())).await?;
    report.rows_out = parts.iter().map(|part| part.rows).sum();
    Ok(UnitOutput { parts, report })
}

async fn load_answers(engine: &Engine, answers: &Answers, report: &mut Report) -> Result<()> {
    let (store, prefix) = storage::open(&answers.folder)?;
    let path = join(&prefix, &answers.file.path);
    unchanged(&*store, &path, &answers.file).await?;
    let text = storage::read::read_bounded(&*store, &path, 4 << 30).await;
    let text = text.map_err(|error| BuildError::input(path.as_ref(), error))?;
    let context = "cannot load answers";
    engine.run(context, "BEGIN")?;
    let mut insert = engine.prepare(context, INSERT_ANSWER)?;
    for (number, line) in (1..).zip(text.split(|it| *it == b'\n')) {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let row: AnswerRow = serde_json::from_slice(line).map_err(|error| {
            BuildError::input(path.as_ref(), format!("row {number}: no answer: {error}"))
        })?;
        report.count("answers read", 1);
        let Some(answer) = row.answer else {
            report.count("answers that are refusals", 1);
            continue;
        };
        let added = insert.run((row.id, row.question, answer))?;
        report.count(
            "answers that are empty or to other questions",
            u64::from(added == 0),
        );
    }
    engine.run(context, "COMMIT")
}

fn name_questions(engine: &Engine, questions: &[String]) -> Result<()> {
    let insert = "INSERT INTO questions VALUES (?1, ?2)";
    let mut insert = engine.prepare("cannot load questions", insert)?;
    for (number, name) in (0_i64..).zip(questions) {
        insert.run((number, name))?;
    }
    Ok(())
}

fn sign_by_answers(engine: &Engine, report: &mut Report) -> Result<()> {
    let sign = "CREATE TABLE signed AS
        SELECT f.id, group_concat(q.name || ': ' || a.answer, '; ' ORDER BY q.number) AS outfit
        FROM figures f JOIN answers a ON a.id = f.id JOIN questions q ON q.number = a.question
        GROUP BY f.id HAVING count(*) = (SELECT count(*) FROM questions)";
    engine.run("cannot sign", sign)?;
    let signed = engine.number("cannot count", "SELECT count(*) FROM signed")?;
    report.lose(UNANSWERED, report.rows_in - signed);
    Ok(())
}

/// Those whose character and artist have no others were not tagged.
async fn sign_by_tags(
    plan: &StagePlan,
    outputs: &Outputs,
    engine: &Engine,
    report: &mut Report,
) -> Result<()> {
    let (folder, manifest) = outputs.input(plan, Stage::Tagger).await?;
    engine.run(
        "cannot sign",
        "CREATE TABLE signed(id INTEGER PRIMARY KEY, outfit)",
    )?;
    for part in &manifest.parts {
        let bytes = folder.part(part).await?;
        let insert = "INSERT INTO signed VALUES (?1, ?2)";
        let rows = engine.load(&part.path, bytes, &TAGGED, insert)?;
        report.count("figures tagged", rows);
    }
    let context = "cannot count";
    let signed = engine.number(context, "SELECT count(*) FROM signed")?;
    let alone = engine.number(
        context,
        "SELECT count(*) FROM (SELECT 1 FROM figures GROUP BY character, artist
            HAVING count(*) = 1)",
    )?;
    report.lose(ALONE, alone);
    report.lose(UNTAGGED, report.rows_in - alone - signed);
    Ok(())
}

/// Outfits as the rows of folders have them; without one, the identity alone is the cluster.
async fn sign_as_given(plan: &StagePlan, outputs: &Outputs, engine: &Engine) -> Result<()> {
    let (folder, manifest) = outputs.input(plan, Stage::Folders).await?;
    let table = "CREATE TABLE signed(id INTEGER PRIMARY KEY, outfit)";
    engine.run("cannot sign", table)?;
    // Statements bind all columns of a part.
    let insert = format!(
        "INSERT INTO signed SELECT ?1, iif(?3 = '', '{ANY}', ?3) WHERE coalesce(?2, ?4, ?5, ?6, \
         ?7, ?8, ?9) IS NOT NULL"
    );
    for part in figure::parts(&manifest, figure::FOLDED_PART) {
        let bytes = folder.part(part).await?;
        let _ = engine.load(&part.path, bytes, &FOLDED, &insert)?;
    }
    Ok(())
}

/// A line of the file of true clusters.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TrueCluster {
    id: i64,
    cluster: String,
}

/// Counts the pairs that are together here, in truth, and in both, among the figures that this
/// stage was given and whose true cluster is known.
async fn compare(engine: &Engine, truth: &NamedFile, report: &mut Report) -> Result<()> {
    let context = "cannot compare clusters";
    let path = format!("{}/{}", truth.folder, truth.file.path);
    let text = crate::onnx::read_file(truth, 4 << 30).await?;
    engine.run(
        context,
        "CREATE TABLE truth(id INTEGER PRIMARY KEY, name); BEGIN",
    )?;
    {
        let insert = "INSERT INTO truth VALUES (?1, ?2) ON CONFLICT DO NOTHING";
        let mut insert = engine.prepare(context, insert)?;
        for (number, line) in (1..).zip(text.split(|it| *it == b'\n')) {
            if line.trim_ascii().is_empty() {
                continue;
            }
            let fault = |why: String| BuildError::input(&path, format!("row {number}: {why}"));
            let row: TrueCluster = serde_json::from_slice(line)
                .map_err(|error| fault(format!("no true cluster: {error}")))?;
            if insert.run((row.id, row.cluster))? == 0 {
                return Err(fault(format!("post {} has a true cluster already", row.id)));
            }
        }
    }
    engine.run(context, "COMMIT")?;
    let pairs = |groups: &str| {
        let groups = format!("SELECT count(*) AS n FROM {groups}");
        let query = format!("SELECT coalesce(sum(n * (n - 1) / 2), 0) FROM ({groups})");
        engine.number(context, &query)
    };
    for (name, groups) in [
        (
            truth::PAIRS_FOUND,
            "truth JOIN members USING (id) GROUP BY cluster",
        ),
        (
            truth::PAIRS_TRUE,
            "truth JOIN figures USING (id) GROUP BY name",
        ),
        (
            truth::PAIRS_BOTH,
            "truth JOIN members USING (id) GROUP BY cluster, name",
        ),
    ] {
        report.count(name, pairs(groups)?);
    }
    Ok(())
}

fn group(engine: &Engine, settings: &ClustersSettings, report: &mut Report) -> Result<()> {
    let groups = format!(
        "CREATE TABLE clusters AS
            SELECT row_number() OVER (ORDER BY character, artist, outfit) - 1 AS cluster, *
            FROM (SELECT character, artist, outfit, count(*) AS size
                FROM signed JOIN figures USING (id)
                GROUP BY character, artist, outfit HAVING count(*) >= {0});
        CREATE UNIQUE INDEX of_outfit ON clusters(character, artist, outfit);
        CREATE TABLE members AS
            SELECT cluster, id FROM signed JOIN figures USING (id)
                JOIN clusters USING (character, artist, outfit);
        CREATE UNIQUE INDEX in_order ON members(cluster, id);",
        settings.size_min.max(2)
    );
    engine.run("cannot group", &groups)?;
    let signed = engine.number("cannot count", "SELECT count(*) FROM signed")?;
    let kept = engine.number("cannot count", "SELECT count(*) FROM members")?;
    report.lose(ALONE, signed - kept);
    let clusters = engine.number("cannot count", "SELECT count(*) FROM clusters")?;
    report.count("clusters", clusters);
    Ok(())
}

/// For each question the pairs that agree in all others and not in it.
fn count_splits(engine: &Engine, report: &mut Report) -> Result<()> {
    let context = "cannot compare questions";
    let pairs = |key: &str| {
        format!(
            "(SELECT coalesce(sum(n * (n - 1) / 2), 0) FROM (SELECT count(*) AS n FROM signed \
             JOIN figures USING (id) JOIN {key} USING (id) GROUP BY character, artist, key))"
        )
    };
    let mut splits = Vec::new();
    for (number, name) in questions(engine)? {
        engine.run(
            context,
            &format!(
                "CREATE TEMP TABLE others AS SELECT s.id, coalesce(group_concat(a.question || ':' \
                 || a.answer, ';' ORDER BY a.question) FILTER (WHERE a.question <> {number}), '') \
                 AS key FROM signed s JOIN answers a ON a.id = s.id GROUP BY s.id;
                CREATE TEMP TABLE alike AS SELECT id, outfit AS key FROM signed;"
            ),
        )?;
        let query = format!("SELECT {} - {}", pairs("others"), pairs("alike"));
        splits.push((name, engine.number(context, &query)?));
        engine.run(context, "DROP TABLE others; DROP TABLE alike")?;
    }
    report.tables.insert(SPLITS.to_owned(), splits);
    Ok(())
}

fn questions(engine: &Engine) -> Result<Vec<(i64, String)>> {
    let mut found = Vec::new();
    let query = "SELECT number, name FROM questions ORDER BY number";
    engine.query("cannot list questions", query, |row| {
        found.push((row.get(0)?, row.get(1)?));
        Ok(())
    })?;
    Ok(found)
}

fn count(engine: &Engine, report: &mut Report) -> Result<()> {
    let context = "cannot count clusters";
    for (title, query) in [
        (
            SIMILAR,
            "SELECT size - 1, sum(size) FROM clusters GROUP BY size ORDER BY size",
        ),
        (
            CHARACTERS,
            "SELECT character, sum(size) FROM clusters GROUP BY character ORDER BY 2 DESC, 1 \
             LIMIT 15",
        ),
        (
            CLOTHS,
            // The list's names need no escapes in JSON.
            "SELECT value, count(*) FROM members JOIN figures USING (id), json_each('[\"' || \
             replace(cloths, ' ', '\",\"') || '\"]') GROUP BY value ORDER BY 2 DESC, 1 LIMIT 30",
        ),
    ] {
        report
            .tables
            .insert(title.to_owned(), engine.table(context, query)?);
    }
    // A variant of a picture is usually its child, and has its composition.
    let related = engine.number(
        context,
        "SELECT count(*) FROM members m JOIN figures f USING (id) WHERE parent <> 0 AND EXISTS (
            SELECT 1 FROM members o JOIN figures g USING (id) WHERE o.cluster = m.cluster
            AND o.id <> m.id AND (o.id = f.parent OR g.parent = f.parent))",
    )?;
    report.count(
        "figures whose parent or sibling is in their cluster",
        related,
    );
    Ok(())
}

async fn write(engine: &Engine, folder: &StageFolder) -> Result<Vec<Part>> {
    let query = |cluster: i64, id: i64| {
        format!(
            "SELECT id, cluster, size, character, artist, outfit FROM members JOIN clusters USING \
             (cluster) WHERE (cluster, id) > ({cluster}, {id}) ORDER BY cluster, id LIMIT \
             {PART_ROWS}"
        )
    };
    let (mut cluster, mut id, mut parts) = (-1, 0, Vec::new());
    loop {
        let mut table = Table::new(&CLUSTERED);
        engine.query("cannot read clusters", &query(cluster, id), |row| {
            (id, cluster) = (row.get(0)?, row.get(1)?);
            push(&mut table, row)
        })?;
        if table.rows() == 0 {
            return Ok(parts);
        }
        let stem = format!("part-{:05}", parts.len());
        parts.push(folder.put_part(&stem, table.rows(), table.finish()).await?);
    }
}
