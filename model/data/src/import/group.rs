//! Groups the rows of an import into identities. No images.

use std::collections::BTreeMap;

use super::ImportReport;
use super::rows::Row;

/// Groups rows by outfit or by `similar`, in the order of their first lines. Links to missing rows
/// are dropped here.
pub(super) fn group_rows(mut rows: Vec<Row>, report: &mut ImportReport) -> Vec<Vec<Row>> {
    let index: BTreeMap<String, usize> = rows
        .iter()
        .enumerate()
        .map(|(i, r)| (r.id.clone(), i))
        .collect();
    let owner = |row: &Row| (row.character.clone(), row.artists.clone());
    let owners: Vec<(String, String)> = rows.iter().map(owner).collect();
    let mut links = Links::new(rows.len());
    let mut outfits: BTreeMap<(String, String, String), usize> = BTreeMap::new();
    for (i, row) in rows.iter_mut().enumerate() {
        if !row.outfit.is_empty() {
            let key = (
                row.character.clone(),
                row.artists.clone(),
                row.outfit.clone(),
            );
            links.join(i, *outfits.entry(key).or_insert(i));
        }
        let (line, own_id) = (row.line, row.id.clone());
        let mut link = |id: &String| {
            let reason = match index.get(id) {
                None => format!("similar names {id:?}, which does not exist"),
                Some(_) if *id == own_id => "similar names the row itself".to_owned(),
                Some(j) if owners[*j] != owners[i] => {
                    format!("similar names {id:?}, which is of another character or artist")
                }
                Some(j) => {
                    links.join(i, *j);
                    return true;
                }
            };
            report.dropped.push((line, reason));
            false
        };
        if let Some(similar) = &mut row.similar {
            similar.retain(&mut link);
        }
    }
    let mut groups: BTreeMap<usize, Vec<Row>> = BTreeMap::new();
    for (i, row) in rows.into_iter().enumerate() {
        groups.entry(links.root(i)).or_default().push(row);
    }
    groups.into_values().collect()
}

/// Union-find over rows that are linked directly or transitively. The smallest index of a group is
/// its root.
struct Links {
    parent: Vec<usize>,
}

impl Links {
    fn new(count: usize) -> Self {
        Self {
            parent: (0..count).collect(),
        }
    }

    fn root(&mut self, mut node: usize) -> usize {
        while self.parent[node] != node {
            self.parent[node] = self.parent[self.parent[node]];
            node = self.parent[node];
        }
        node
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.parent[a.max(b)] = a.min(b);
    }
}
