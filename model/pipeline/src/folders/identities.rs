//! A folder for each identity, as LFW, VGGFace2 and most exports of sets of faces are: the folder
//! that an image is in names the person.

use super::{Entry, NO_IDENTITY, Source, stem};
use crate::error::Result;
use crate::figure::WHOLE;
use proto::build::report::Report;

pub(super) fn read(source: &Source<'_>, report: &mut Report) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for file in source.images() {
        let Some((identity, _)) = file.path.rsplit_once('/') else {
            report.lose(NO_IDENTITY, 1);
            continue;
        };
        entries.push(Entry {
            name: stem(&file.path).to_owned(),
            identity: identity.to_owned(),
            image: file.path.clone(),
            mask: WHOLE.to_owned(),
            ..Entry::default()
        });
    }
    Ok(entries)
}
