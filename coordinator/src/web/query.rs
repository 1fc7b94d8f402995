//! The query of a URL: all state of a page is in it. Pure.

use std::borrow::Cow;

/// Names and values, the first of each counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query(Vec<(String, String)>);

/// A value that a page cannot use: what it is, and what may be there.
#[derive(Debug, thiserror::Error)]
#[error("`{name}` is {value:?}; it must be {expected}")]
pub(crate) struct WrongValue {
    name: &'static str,
    value: String,
    expected: &'static str,
}

impl Query {
    pub(crate) fn parse(text: Option<&str>) -> Self {
        let pairs = url::form_urlencoded::parse(text.unwrap_or("").as_bytes());
        let owned = |it: Cow<'_, str>| it.into_owned();
        Self(
            pairs
                .map(|(name, value)| (owned(name), owned(value)))
                .collect(),
        )
    }

    /// Empty if it is not there.
    pub(crate) fn text(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value)
    }

    /// None if it is not there, or empty.
    pub(crate) fn number(&self, name: &'static str) -> Result<Option<u64>, WrongValue> {
        let text = self.text(name);
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_| WrongValue {
            name,
            value: text.to_owned(),
            expected: "a whole number, 0 or more",
        })
    }

    /// One of these words; the first if it is not there.
    pub(crate) fn word(
        &self,
        name: &'static str,
        words: &[&'static str],
        expected: &'static str,
    ) -> Result<&'static str, WrongValue> {
        let text = self.text(name);
        if text.is_empty() {
            return Ok(words.first().copied().unwrap_or(""));
        }
        let found = words.iter().copied().find(|word| *word == text);
        found.ok_or_else(|| WrongValue {
            name,
            value: text.to_owned(),
            expected,
        })
    }

    /// The same query with other values of these names; an empty value removes the name. Begins
    /// with `?`, or is empty.
    pub(crate) fn with(&self, changes: &[(&str, &str)]) -> String {
        let mut to = url::form_urlencoded::Serializer::new(String::new());
        for (name, value) in &self.0 {
            if changes.iter().all(|(changed, _)| changed != name) {
                to.append_pair(name, value);
            }
        }
        for (name, value) in changes.iter().filter(|(_, value)| !value.is_empty()) {
            to.append_pair(name, value);
        }
        let text = to.finish();
        if text.is_empty() {
            text
        } else {
            format!("?{text}")
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn values_are_read_and_replaced_and_wrong_ones_named() {
        let query = Query::parse(Some("tab=logs&q=a%22+b&rank=x&rank=3"));
        assert_eq!(query.text("q"), "a\" b");
        assert_eq!(
            query.with(&[("rank", ""), ("tab", "toml")]),
            "?q=a%22+b&tab=toml"
        );
        let error = query.number("rank").unwrap_err().to_string();
        assert_eq!(
            error,
            "`rank` is \"x\"; it must be a whole number, 0 or more"
        );
        assert_eq!(query.number("page").unwrap(), None);
        let tab = query.word("tab", &["toml", "ledger"], "toml or ledger");
        assert_eq!(
            tab.unwrap_err().to_string(),
            "`tab` is \"logs\"; it must be toml or ledger"
        );
        assert_eq!(Query::parse(None).with(&[]), "");
        assert_eq!(Query::parse(None).word("x", &["a", "b"], "").unwrap(), "a");
    }
}
