//! Loads the tables of earlier stages.

use crate::batches::is_table;
use crate::engine::Engine;
use crate::error::Result;
use crate::figure::{self, CLUSTERED, FACES, FOLDED, MASKED};
use crate::output::Outputs;
use crate::table::Column;
use crate::truth::read_boxes;
use proto::build::settings::{DatasetSettings, NamedFile};
use proto::build::{Stage, StagePlan};

const TABLES: &str = "
    CREATE TABLE clustered(id INTEGER PRIMARY KEY, cluster, size, character, artist, outfit);
    CREATE TABLE folded(id INTEGER PRIMARY KEY, name, mask, box);
    CREATE TABLE masked(id INTEGER PRIMARY KEY);
    CREATE TABLE boxes(id INTEGER PRIMARY KEY, box);
    CREATE TABLE usable(id INTEGER PRIMARY KEY, cluster);";

const INSERT_CLUSTERED: &str = "INSERT INTO clustered VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
/// Some columns are not stored, and all must be bound.
const INSERT_MASKED: &str = "INSERT INTO masked SELECT ?1 WHERE ?2 IS ?2";
const INSERT_FACE: &str = "INSERT INTO boxes SELECT ?1, json_array(?2, ?3, ?4, ?5)
    WHERE ?6 IS ?6 AND ?7 IS ?7";
const INSERT_FOLDED: &str = "INSERT INTO folded SELECT ?1, ?2, ?8, ?9
    WHERE ?3 IS ?3 AND ?4 IS ?4 AND ?5 IS ?5 AND ?6 IS ?6 AND ?7 IS ?7";

/// A table of a stage.
struct Table {
    stage: Stage,
    /// Of the names of its parts.
    stem: &'static str,
    columns: &'static [(&'static str, Column)],
    insert: &'static str,
    /// Figures that are not in it are dropped.
    required: Option<&'static str>,
}

const OF_STAGES: [Table; 4] = [
    Table {
        stage: Stage::Clusters,
        stem: "",
        columns: &CLUSTERED,
        insert: INSERT_CLUSTERED,
        required: None,
    },
    Table {
        stage: Stage::Folders,
        stem: figure::FOLDED_PART,
        columns: &FOLDED,
        insert: INSERT_FOLDED,
        required: None,
    },
    Table {
        stage: Stage::Masks,
        stem: "",
        columns: &MASKED,
        insert: INSERT_MASKED,
        required: Some("masked"),
    },
    Table {
        stage: Stage::Faces,
        stem: "",
        columns: &FACES,
        insert: INSERT_FACE,
        required: Some("boxes"),
    },
];

/// Loads the tables. Figures that an earlier stage has dropped are not in `clustered`.
pub(super) async fn load(engine: &Engine, plan: &StagePlan, outputs: &Outputs) -> Result<()> {
    engine.run("cannot make its tables", figure::FIGURES_TABLE)?;
    engine.run("cannot make its tables", TABLES)?;
    figure::load(engine, plan, outputs).await?;
    for table in OF_STAGES {
        let is_optional = table.stage != Stage::Clusters;
        if is_optional && plan.input(table.stage).is_none() {
            continue;
        }
        let (folder, manifest) = outputs.input(plan, table.stage).await?;
        let parts = manifest.parts.iter();
        for part in parts.filter(|it| is_table(&it.path) && it.path.starts_with(table.stem)) {
            let bytes = folder.part(part).await?;
            let _ = engine.load(&part.path, bytes, table.columns, table.insert)?;
        }
        if let Some(name) = table.required {
            let drop = format!("DELETE FROM clustered WHERE id NOT IN (SELECT id FROM {name})");
            engine.run("cannot drop figures", &drop)?;
        }
    }
    Ok(())
}

/// Loads the face boxes of a file, or those of folders. True: figures without one are dropped.
pub(super) async fn boxes(
    engine: &Engine,
    plan: &StagePlan,
    settings: &DatasetSettings,
) -> Result<bool> {
    if let Some(boxes) = &settings.boxes {
        load_boxes(engine, boxes).await?;
        return Ok(true);
    }
    if plan.input(Stage::Faces).is_some() {
        return Ok(true);
    }
    let known = "INSERT INTO boxes SELECT id, box FROM folded WHERE box <> ''";
    engine.run("cannot load face boxes", known)?;
    Ok(false)
}

async fn load_boxes(engine: &Engine, boxes: &NamedFile) -> Result<()> {
    let context = "cannot load face boxes";
    engine.run(context, "BEGIN")?;
    let insert = "INSERT INTO boxes VALUES (?1, ?2) ON CONFLICT DO NOTHING";
    let mut insert = engine.prepare(context, insert)?;
    read_boxes(boxes, |row| {
        let list = serde_json::to_string(&row.bbox).expect("numbers are JSON");
        match insert.run((row.id, list)) {
            Ok(0) => Err(format!("post {} has a box already", row.id)),
            Ok(_) => Ok(()),
            Err(error) => Err(proto::text::chain(&error)),
        }
    })
    .await?;
    engine.run(context, "COMMIT")
}
