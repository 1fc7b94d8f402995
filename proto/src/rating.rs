//! How suitable a sample is for a public, and which samples a job uses. The ratings are Danbooru's.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// The rating of a sample, as job.toml and data sets write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rating {
    General,
    Sensitive,
    Questionable,
    Explicit,
    /// The sample has no rating.
    Unrated,
}

impl Rating {
    pub const ALL: [Self; 5] = [
        Self::General,
        Self::Sensitive,
        Self::Questionable,
        Self::Explicit,
        Self::Unrated,
    ];

    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::General => "general",
            Self::Sensitive => "sensitive",
            Self::Questionable => "questionable",
            Self::Explicit => "explicit",
            Self::Unrated => "unrated",
        }
    }

    /// The rating that a data set's column holds; "" is none. None: a word of a later release.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        if word.is_empty() {
            return Some(Self::Unrated);
        }
        let rated = Self::ALL.into_iter().filter(|it| *it != Self::Unrated);
        rated.into_iter().find(|it| it.word() == word)
    }

    /// The rating that a person means: also in capitals, with spaces around it, by its first
    /// letter, or "safe", which Danbooru wrote before it had "sensitive" (both are safe here).
    #[must_use]
    pub fn meant(text: &str) -> Option<Self> {
        match text.trim().to_lowercase().as_str() {
            "g" => Some(Self::General),
            "s" | "safe" => Some(Self::Sensitive),
            "q" => Some(Self::Questionable),
            "e" => Some(Self::Explicit),
            "" => None,
            word => Self::parse(word),
        }
    }
}

impl fmt::Display for Rating {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The ratings of the samples that a job uses, ascending and without duplicates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ratings(Vec<Rating>);

impl Default for Ratings {
    /// The safe ones.
    fn default() -> Self {
        Self(vec![Rating::General, Rating::Sensitive])
    }
}

impl Ratings {
    #[must_use]
    pub fn new(ratings: impl IntoIterator<Item = Rating>) -> Self {
        let mut list: Vec<Rating> = ratings.into_iter().collect();
        list.sort_unstable();
        list.dedup();
        Self(list)
    }

    #[must_use]
    pub fn list(&self) -> &[Rating] {
        &self.0
    }

    /// The ratings to use in a data set with these ratings: `rated` is true if any sample has one.
    /// A data set without any is used whole by default, as it was before there were ratings. In a
    /// data set with ratings a sample without one is not known to be safe, so it is left out unless
    /// the job names `unrated`.
    #[must_use]
    pub fn in_dataset(&self, rated: bool) -> Self {
        if !rated && *self == Self::default() {
            return Self::new(self.0.iter().copied().chain([Rating::Unrated]));
        }
        self.clone()
    }

    /// Whether a sample is used. `word` is its column in the data set.
    #[must_use]
    pub fn allow(&self, word: &str) -> bool {
        Rating::parse(word).is_some_and(|rating| self.0.contains(&rating))
    }
}

impl fmt::Display for Ratings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<&str> = self.0.iter().map(|it| it.word()).collect();
        f.write_str(&words.join(", "))
    }
}

/// The number of samples that a job leaves out, by the word of their rating.
#[must_use]
pub fn left_out_line(left_out: &BTreeMap<String, u64>, ratings: &Ratings) -> Option<String> {
    let total: u64 = left_out.values().sum();
    if total == 0 {
        return None;
    }
    let parts: Vec<String> = left_out
        .iter()
        .map(|(word, count)| format!("{count} {word}"))
        .collect();
    Some(format!(
        "{total} samples are left out by their rating ({}): data.ratings is {ratings}",
        parts.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_again_and_people_may_abbreviate() {
        for rating in Rating::ALL {
            assert_eq!(
                Rating::meant(&format!(" {} ", rating.word().to_uppercase())).is_some(),
                rating != Rating::Unrated
            );
        }
        assert_eq!(Rating::parse(""), Some(Rating::Unrated));
        assert_eq!(Rating::parse("unrated"), None);
        assert_eq!(Rating::parse("General"), None);
        assert_eq!(Rating::meant("S"), Some(Rating::Sensitive));
        assert_eq!(Rating::meant("safe"), Some(Rating::Sensitive));
        assert_eq!(Rating::meant("nsfw"), None);
        assert_eq!(Rating::meant(" "), None);
    }

    #[test]
    fn unrated_samples_are_used_by_default_only_where_nothing_is_rated() {
        let default = Ratings::default();
        assert!(default.in_dataset(false).allow(""));
        assert!(!default.in_dataset(true).allow(""));
        assert!(default.in_dataset(true).allow("sensitive"));
        assert!(!default.in_dataset(true).allow("explicit"));
        // A word of a later release is not known to be safe.
        assert!(!Ratings::new(Rating::ALL).allow("extreme"));
        let named = Ratings::new([Rating::General]);
        assert!(!named.in_dataset(false).allow(""));
        assert!(Ratings::new([Rating::Unrated]).in_dataset(true).allow(""));
    }
}
