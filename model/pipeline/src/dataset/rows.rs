//! The rows of a data set, cluster by cluster.

use super::Masks;
use crate::engine::Engine;
use crate::error::Result;
use crate::figure::WHOLE;
use serde_json::{Value, json};

/// A figure that has everything.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) id: i64,
    pub(super) cluster: i64,
    /// Figures of its cluster.
    pub(super) size: i64,
    /// In the data set.
    pub(super) name: String,
    rating: String,
    character: String,
    artist: String,
    outfit: String,
    prompts: String,
    cloths: Vec<String>,
    face: Option<[f64; 4]>,
    /// What a row of folders says of its mask. None: it is of a post.
    mask: Option<String>,
}

impl Row {
    /// Whether its image counts as a whole. `allowed`: images without a mask may. Rows of an import
    /// say it themselves.
    pub(super) fn is_whole(&self, allowed: bool, masks: &Masks) -> bool {
        match (masks, self.mask.as_deref()) {
            (Masks::Each(_), _) => false,
            (Masks::Rows(_), Some(mask)) => allowed && mask == WHOLE,
            (Masks::Rows(_), None) => allowed,
        }
    }

    /// Everything but image and mask, in the form of an import.
    pub(super) fn annotations(&self) -> Value {
        json!({
            "id": self.name,
            "rating": self.rating,
            "character": self.character,
            "artists": self.artist,
            "outfit": self.outfit,
            "prompts": self.prompts,
            "cloths": self.cloths,
            "bbox": self.face,
        })
    }
}

/// Calls `each` with the usable figures, in the order of their clusters.
pub(super) fn each(engine: &Engine, mut each: impl FnMut(Row)) -> Result<()> {
    let words = |text: String| -> Vec<String> {
        text.split(' ')
            .filter(|it| !it.is_empty())
            .map(str::to_owned)
            .collect()
    };
    engine.query(
        "cannot read clusters",
        "SELECT id, u.cluster, count(*) OVER (PARTITION BY u.cluster), coalesce(o.name, id),
            f.rating, f.character, f.artist, c.outfit, f.general, f.cloths, b.box, o.mask
         FROM usable u JOIN clustered c USING (id) JOIN figures f USING (id)
         LEFT JOIN boxes b USING (id) LEFT JOIN folded o USING (id) ORDER BY u.cluster, id",
        |row| {
            let face: Option<String> = row.get(10)?;
            let cloths = words(row.get(9)?);
            let name = match row.get_ref(3)? {
                rusqlite::types::ValueRef::Integer(number) => number.to_string(),
                other => other.as_str()?.to_owned(),
            };
            each(Row {
                id: row.get(0)?,
                cluster: row.get(1)?,
                size: row.get(2)?,
                name,
                rating: row.get(4)?,
                character: row.get(5)?,
                artist: row.get(6)?,
                outfit: row.get(7)?,
                prompts: words(row.get(8)?).join(", "),
                cloths: cloths.iter().map(|tag| tag.replace('_', " ")).collect(),
                face: face.and_then(|face| serde_json::from_str(&face).ok()),
                mask: row.get(11)?,
            });
            Ok(())
        },
    )
}
