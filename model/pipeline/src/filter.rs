//! The stage `filter`: of posts with the same id the last source's counts; kept are those of one
//! character, one artist and at least one cloth tag (paper, appendix A.1).

use crate::cloths::ClothTags;
use crate::engine::Engine;
use crate::error::{BuildError, Result};
use crate::figure::{FIGURES, PART_ROWS};
use crate::output::{Outputs, StageFolder};
use crate::post;
use crate::sources::{join, unchanged};
use crate::table::{Table, Value};
use proto::build::report::{Part, Report, UnitOutput};
use proto::build::settings::{Figures, FilterSettings};
use proto::build::{Stage, StagePlan};
use proto::rating::Rating;
use rusqlite::Row;
use std::collections::BTreeMap;
use std::path::Path;

/// Reasons for which posts are left out, in the order in which they are looked for.
pub const REASONS: [&str; 10] = [
    "another source has the same post",
    "no picture of a figure",
    "deleted or banned",
    "a rating that is not wanted",
    "no character",
    "several characters",
    "no artist",
    "several artists",
    "no cloth tag",
    "",
];

const TABLES: &str = "
    CREATE TABLE posts(id INTEGER PRIMARY KEY, source, rating, md5, ext, width, height, parent,
        has_children, deleted, banned, characters, artists, general);
    CREATE TABLE listed(id INTEGER PRIMARY KEY);
    CREATE TABLE allowed(source, rating, word);";

/// Posts come in the order of their sources.
const INSERT: &str = "INSERT INTO posts VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, \
    ?13, ?14) ON CONFLICT (id) DO UPDATE SET source = excluded.source, rating = excluded.rating, \
    md5 = excluded.md5, ext = excluded.ext, width = excluded.width, height = excluded.height, \
    parent = excluded.parent, has_children = excluded.has_children, deleted = excluded.deleted, \
    banned = excluded.banned, characters = excluded.characters, artists = excluded.artists, \
    general = excluded.general WHERE posts.source <= excluded.source";

/// The first reason to leave a post out, as an index of [`REASONS`], and its cloth tags. `CASE`
/// looks at the cheap columns first.
fn verdicts(settings: &FilterSettings) -> String {
    let listed = match settings.figures {
        Some(_) => "WHEN id NOT IN (SELECT id FROM listed) THEN 1",
        None => "",
    };
    let deleted = match settings.deleted {
        true => "",
        false => "WHEN deleted + banned > 0 THEN 2",
    };
    format!(
        "CREATE TABLE verdicts AS
        SELECT id, reason, CASE reason WHEN 9 THEN cloths(general) END AS cloths FROM (
            SELECT id, general, CASE {listed} {deleted}
                WHEN (source, rating) NOT IN (SELECT source, rating FROM allowed) THEN 3
                WHEN characters = '' THEN 4
                WHEN instr(characters, ' ') THEN 5
                WHEN artists = '' THEN 6
                WHEN instr(artists, ' ') THEN 7
                ELSE 9 END AS reason
            FROM posts);
        UPDATE verdicts SET reason = 8 WHERE reason = 9 AND cloths IS NULL;
        CREATE UNIQUE INDEX verdict ON verdicts(id);"
    )
}

/// Reads the table of posts, and writes that of figures.
///
/// # Errors
/// Input is missing or damaged, or there is no room.
pub async fn run(
    plan: &StagePlan,
    settings: &FilterSettings,
    outputs: &Outputs,
    scratch: &Path,
) -> Result<UnitOutput> {
    let list = ClothTags::parse(&settings.cloth_tags)
        .map_err(|reason| BuildError::Input(format!("filter.cloth_tags: {reason}")))?;
    let (folder, manifest) = outputs.input(plan, Stage::Posts).await?;
    let engine = Engine::open(scratch)?;
    engine.add_cloths(list)?;
    engine.run("cannot make its tables", TABLES)?;
    let mut report = Report::default();
    // By name: pieces are numbered in the order of their sources.
    for part in &manifest.parts {
        let bytes = folder.part(part).await?;
        report.rows_in += engine.load(&part.path, bytes, &post::COLUMNS, INSERT)?;
    }
    if let Some(figures) = &settings.figures {
        load_figures(&engine, figures, &mut report).await?;
    }
    allow(&engine, settings, &manifest.report.counts, &mut report)?;
    engine.run("cannot filter", &verdicts(settings))?;
    count(&engine, &mut report)?;
    let parts = write(&engine, &outputs.stage(&plan.key()), &mut report).await?;
    Ok(UnitOutput { parts, report })
}

/// Which ratings of which source are used. The letter s means "safe" in editions before 2022, and
/// "sensitive" in those that have the letter g, too.
fn allow(
    engine: &Engine,
    settings: &FilterSettings,
    counts: &BTreeMap<String, u64>,
    report: &mut Report,
) -> Result<()> {
    let mut ratings = Vec::new();
    engine.query(
        "cannot list ratings",
        "SELECT source, rating, count(*) FROM posts GROUP BY source, rating ORDER BY 1, 2",
        |row| {
            ratings.push((
                row.get::<_, i64>(0)?,
                row.get::<_, String>(1)?,
                row.get::<_, i64>(2)?,
            ));
            Ok(())
        },
    )?;
    // Of all posts that were read, also of those that another source has, too.
    let has_general = |source: i64| counts.contains_key(&rating_count(source, "g"));
    let rated = ratings.iter().any(|(_, letter, _)| !letter.is_empty());
    let wanted = settings.ratings.in_dataset(rated);
    let insert = "INSERT INTO allowed VALUES (?1, ?2, ?3)";
    let mut insert = engine.prepare("cannot note ratings", insert)?;
    for (source, letter, rows) in &ratings {
        let rating = match letter.as_str() {
            "g" => Rating::General,
            "s" => Rating::Sensitive,
            "q" => Rating::Questionable,
            "e" => Rating::Explicit,
            _ => Rating::Unrated,
        };
        if letter == "s" && !has_general(*source) {
            let rows = u64::try_from(*rows).unwrap_or(0);
            report.count("rated safe by an edition that has no general", rows);
            report.found.push(format!(
                "source {}: rating s means safe (it has no g), and is written as sensitive",
                source + 1
            ));
        }
        let word = match rating {
            Rating::Unrated => "",
            rated => rated.word(),
        };
        if wanted.allow(word) {
            insert.run((source, letter, word))?;
        }
    }
    Ok(())
}

/// The count of the posts of a source with this letter, in the report of the stage `posts`.
pub(crate) fn rating_count(source: i64, letter: &str) -> String {
    format!("source {} rating {letter}", source + 1)
}

async fn load_figures(engine: &Engine, figures: &Figures, report: &mut Report) -> Result<()> {
    let (store, prefix) = storage::open(&figures.folder)?;
    let path = join(&prefix, &figures.file.path);
    unchanged(&*store, &path, &figures.file).await?;
    let text = storage::read::read_bounded(&*store, &path, 1 << 30).await;
    let text = text.map_err(|error| BuildError::input(path.as_ref(), error))?;
    let text = std::str::from_utf8(&text);
    let text = text.map_err(|error| BuildError::input(path.as_ref(), error))?;
    let context = "cannot load figures";
    engine.run(context, "BEGIN")?;
    let insert = "INSERT INTO listed VALUES (?1) ON CONFLICT DO NOTHING";
    let mut insert = engine.prepare(context, insert)?;
    for (number, line) in (1..).zip(text.lines()) {
        let name = line.trim().rsplit('/').next().unwrap_or_default();
        let end = name
            .find(|it: char| !it.is_ascii_digit())
            .unwrap_or(name.len());
        match name[..end].parse::<i64>() {
            Ok(id) => {
                let new = insert.run([id])?;
                report.count("figures listed", 1);
                report.count("figures listed twice", u64::from(new == 0));
            }
            Err(_) if name.is_empty() => {}
            Err(_) => {
                let name: String = name.chars().take(80).collect();
                let reason = format!(
                    "row {number}: {name:?} does not begin with the number of a post: a line is a \
                     number, or the path of a file whose name begins with it"
                );
                return Err(BuildError::input(path.as_ref(), reason));
            }
        }
    }
    engine.run(context, "COMMIT")?;
    let without = engine.number(
        "cannot count figures",
        "SELECT count(*) FROM listed WHERE id NOT IN (SELECT id FROM posts)",
    )?;
    report.count("figures listed without metadata", without);
    Ok(())
}

fn count(engine: &Engine, report: &mut Report) -> Result<()> {
    let posts = engine.number("cannot count posts", "SELECT count(*) FROM posts")?;
    report.lose(REASONS[0], report.rows_in - posts);
    let query = "SELECT reason, count(*) FROM verdicts GROUP BY reason ORDER BY reason";
    let found: BTreeMap<String, u64> = engine
        .table("cannot count losses", query)?
        .into_iter()
        .collect();
    for (index, reason) in REASONS.iter().enumerate().skip(1) {
        let rows = found.get(&index.to_string()).copied().unwrap_or(0);
        if reason.is_empty() {
            report.rows_out = rows;
        } else if 0 < rows {
            report.lose(reason, rows);
        }
    }
    Ok(())
}

async fn write(engine: &Engine, folder: &StageFolder, report: &mut Report) -> Result<Vec<Part>> {
    let query = |after: i64| {
        format!(
            "SELECT p.id, a.word, md5, ext, width, height, parent, characters, artists, general, \
             cloths FROM posts p JOIN verdicts v ON v.id = p.id JOIN allowed a ON a.source = \
             p.source AND a.rating = p.rating WHERE reason = 9 AND p.id > {after} ORDER BY p.id \
             LIMIT {PART_ROWS}"
        )
    };
    let (mut after, mut parts) = (0, Vec::new());
    loop {
        let mut table = Table::new(&FIGURES);
        engine.query("cannot read figures", &query(after), |row| {
            after = row.get(0)?;
            push(&mut table, row)
        })?;
        if table.rows() == 0 {
            break;
        }
        let stem = format!("part-{:05}", parts.len());
        parts.push(folder.put_part(&stem, table.rows(), table.finish()).await?);
    }
    let kept = parts.iter().map(|part: &Part| part.rows).sum::<u64>();
    debug_assert_eq!(kept, report.rows_out);
    report.rows_out = kept;
    Ok(parts)
}

/// Adds a row whose columns have the types of the table's.
pub(crate) fn push(table: &mut Table, row: &Row<'_>) -> rusqlite::Result<()> {
    use rusqlite::types::ValueRef;
    let count = row.as_ref().column_count();
    let mut values = Vec::with_capacity(count);
    for index in 0..count {
        values.push(match row.get_ref(index)? {
            ValueRef::Integer(number) => Value::Number(number),
            other => Value::Text(other.as_str()?),
        });
    }
    table.push(values);
    Ok(())
}
