//! The list of cloth tags: which of a post's general tags name what a figure wears, and under which
//! name. The paper's list is unknown; `deploy/data/cloth_tags.txt` is ours.
//!
//! A line of the list is a tag (`school_uniform`), an ending of whole words (`*_skirt`: every tag
//! that ends in `_skirt`), a tag that is excluded although it has such an ending (`!no_hat`), or an
//! alias (`striped_clothes = striped`: another name of editions before or after a rename, which is
//! written as the name on the right). `#` begins a comment.

use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Largest list.
pub const LIST_BYTES_MAX: usize = 4 << 20;

/// A list that was read.
#[derive(Debug, Clone, Default)]
pub struct ClothTags {
    names: HashSet<String>,
    /// With the underscore: `_skirt`.
    endings: HashSet<String>,
    excluded: HashSet<String>,
    aliases: BTreeMap<String, String>,
}

impl ClothTags {
    /// # Errors
    /// A line is none of the four forms, or an alias leads nowhere; names the line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut list = Self::default();
        let mut targets = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default().trim();
            let fault = |what: &str| {
                format!(
                    "line {number}: {line:?} {what}; a line is a tag, *_ending, !excluded or \
                     alias = tag, in lower case with underscores"
                )
            };
            let is_tag = |tag: &str| {
                !tag.is_empty() && !tag.contains(char::is_whitespace) && tag == tag.to_lowercase()
            };
            if line.is_empty() {
                continue;
            }
            if let Some((alias, tag)) = line.split_once(" = ") {
                let (alias, tag) = (alias.trim(), tag.trim());
                if !is_tag(alias) || !is_tag(tag) || alias == tag {
                    return Err(fault("is no alias"));
                }
                let before = list.aliases.insert(alias.to_owned(), tag.to_owned());
                if before.is_some() {
                    return Err(fault("is the second alias of this name"));
                }
                targets.push((number, tag.to_owned()));
            } else if let Some(ending) = line.strip_prefix('*') {
                if !ending.starts_with('_') || !is_tag(ending) {
                    return Err(fault("is no ending of whole words"));
                }
                list.endings.insert(ending.to_owned());
            } else {
                let (set, tag) = match line.strip_prefix('!') {
                    Some(tag) => (&mut list.excluded, tag),
                    None => (&mut list.names, line),
                };
                if !is_tag(tag) {
                    return Err(fault("is no tag"));
                }
                set.insert(tag.to_owned());
            }
        }
        for (number, tag) in targets {
            if !list.is_listed(&tag) {
                return Err(format!(
                    "line {number}: the alias is written as {tag:?}, which is not in the list"
                ));
            }
        }
        if list.names.is_empty() && list.endings.is_empty() {
            return Err("the list has no tags".to_owned());
        }
        Ok(list)
    }

    fn is_listed(&self, tag: &str) -> bool {
        if self.excluded.contains(tag) {
            return false;
        }
        let ending = || {
            let mut starts = tag.match_indices('_').map(|(start, _)| start);
            starts.any(|start| 0 < start && self.endings.contains(&tag[start..]))
        };
        self.names.contains(tag) || ending()
    }

    /// The name under which a cloth tag is written; None for other tags.
    #[must_use]
    pub fn name<'a>(&'a self, tag: &'a str) -> Option<&'a str> {
        match self.aliases.get(tag) {
            Some(name) => Some(name),
            None => self.is_listed(tag).then_some(tag),
        }
    }

    /// The cloth tags among tags that are separated by spaces: sorted, each once, separated by
    /// spaces. None if there are none.
    #[must_use]
    pub fn of(&self, tags: &str) -> Option<String> {
        let names = tags.split(' ').filter_map(|tag| self.name(tag));
        let names: BTreeSet<&str> = names.collect();
        (!names.is_empty()).then(|| names.into_iter().collect::<Vec<_>>().join(" "))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LIST: &str = "# ours\nskirt\n*_skirt\n*_hat # head\n!no_hat\nstriped\n\
                        striped_clothes = striped\n";

    #[test]
    fn tags_endings_exclusions_and_aliases() {
        let list = ClothTags::parse(LIST).unwrap();
        let of = |tags: &str| list.of(tags);
        assert_eq!(of("1girl skirt smile").as_deref(), Some("skirt"));
        assert_eq!(
            of("pleated_skirt black_skirt").as_deref(),
            Some("black_skirt pleated_skirt")
        );
        assert_eq!(of("no_hat solo"), None);
        assert_eq!(of("striped_clothes striped").as_deref(), Some("striped"));
        // Whole words only, and not the bare ending.
        assert_eq!(of("miniskirt what _hat"), None);
        assert_eq!(of(""), None);
    }

    #[test]
    fn a_bad_line_is_named() {
        let fault = |text: &str| ClothTags::parse(text).unwrap_err();
        assert!(fault("skirt\nlong sleeves\n").starts_with("line 2: \"long sleeves\" is no tag"));
        assert!(fault("*hat").contains("no ending of whole words"));
        assert!(fault("Skirt").contains("lower case"));
        assert!(fault("hat\na = b").contains("written as \"b\", which is not in the list"));
        assert!(fault("hat\na = hat\na = hat").contains("second alias"));
        assert_eq!(fault("# nothing"), "the list has no tags");
    }

    /// Paper, figure 2: the 30 most frequent cloth tags, and those of the example.
    const FIGURE_2: [&str; 30] = [
        "skirt",
        "hat",
        "long_sleeves",
        "shirt",
        "dress",
        "hair_ornament",
        "thighhighs",
        "school_uniform",
        "hair_ribbon",
        "hair_bow",
        "detached_sleeves",
        "black_legwear",
        "short_sleeves",
        "white_shirt",
        "pleated_skirt",
        "frills",
        "wide_sleeves",
        "puffy_sleeves",
        "swimsuit",
        "serafuku",
        "hairband",
        "pantyhose",
        "jacket",
        "striped",
        "necktie",
        "hairclip",
        "sleeveless",
        "bikini",
        "white_legwear",
        "japanese_clothes",
    ];

    #[test]
    fn the_shipped_list_has_every_tag_of_the_paper_s_figure() {
        let text = include_str!("../../../deploy/data/cloth_tags.txt");
        let list = ClothTags::parse(text).unwrap();
        for tag in FIGURE_2.into_iter().chain(["black_skirt"]) {
            assert_eq!(list.name(tag), Some(tag));
        }
        for tag in [
            "1girl",
            "solo",
            "smile",
            "blue_eyes",
            "long_hair",
            "no_shoes",
            "shirt_lift",
        ] {
            assert_eq!(list.name(tag), None, "{tag}");
        }
    }
}
