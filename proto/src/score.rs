//! An expression of the scores of an image, such as `clip_i * clip_t`. Its value for a model is the
//! mean over the images of the values of each, so that a product of two scores is the paper's SWD
//! (equation 1) and not the product of their means. Pure.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// The setting of `[evaluate]` without which a score is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Clip,
    Lpips,
    Faces,
    Vqa,
}

impl Source {
    /// The field of job.toml.
    #[must_use]
    pub fn field(self) -> &'static str {
        match self {
            Self::Clip => "evaluate.clip",
            Self::Lpips => "evaluate.lpips",
            Self::Faces => "evaluate.faces",
            Self::Vqa => "evaluate.vqa",
        }
    }
}

/// The scores that an evaluation computes, by the names of its columns.
pub const SCORES: [(&str, Source); 12] = [
    ("clip_i", Source::Clip),
    ("clip_i_max", Source::Clip),
    ("clip_i_whole", Source::Clip),
    ("clip_i_whole_max", Source::Clip),
    ("clip_t", Source::Clip),
    ("lpips", Source::Lpips),
    ("face", Source::Faces),
    ("face_distance", Source::Faces),
    ("vqa", Source::Vqa),
    ("vqa_generated", Source::Vqa),
    ("vqa_distance", Source::Vqa),
    ("vqa_generated_distance", Source::Vqa),
];

/// Longest text of an expression.
const BYTES_MAX: usize = 256;
/// Deepest nesting of parentheses and signs.
const DEPTH_MAX: u32 = 32;

/// Names of [`SCORES`], numbers, `+ - * /` and parentheses. A larger value is better.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Expression {
    text: String,
    /// In postfix order.
    items: Vec<Item>,
}

#[derive(Debug, Clone, PartialEq)]
enum Item {
    /// Of [`SCORES`].
    Score(usize),
    Number(f64),
    Negate,
    Operator(char),
}

impl Expression {
    /// # Errors
    /// Says what is wrong, and what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        if BYTES_MAX < text.len() {
            return Err(format!(
                "has {} bytes; at most {BYTES_MAX} are allowed",
                text.len()
            ));
        }
        let mut parser = Parser {
            rest: text,
            items: Vec::new(),
            depth: 0,
        };
        let parsed = parser.sum().and_then(|()| match parser.peek() {
            None => Ok(()),
            Some(other) => Err(format!("has {other:?} after a complete expression")),
        });
        let items = parser.items;
        parsed.map_err(|why| {
            format!("is {text:?}, which {why}; write scores, such as \"clip_i * clip_t\"")
        })?;
        if !items.iter().any(|item| matches!(item, Item::Score(_))) {
            return Err(format!(
                "is {text:?}, which has no score: the same for every checkpoint"
            ));
        }
        Ok(Self {
            text: text.to_owned(),
            items,
        })
    }

    /// Where its scores come from, each with its name.
    pub fn scores(&self) -> impl Iterator<Item = (&'static str, Source)> {
        self.items.iter().filter_map(|item| match item {
            Item::Score(index) => Some(SCORES[*index]),
            Item::Number(_) | Item::Negate | Item::Operator(_) => None,
        })
    }

    /// Its value for an image with these scores; None if one of its scores is absent or the value
    /// is not finite.
    #[must_use]
    pub fn of(&self, score: impl Fn(&str) -> Option<f64>) -> Option<f64> {
        let mut stack: Vec<f64> = Vec::new();
        for item in &self.items {
            let value = match item {
                Item::Score(index) => score(SCORES[*index].0)?,
                Item::Number(number) => *number,
                Item::Negate => -stack.pop()?,
                Item::Operator(operator) => {
                    let (right, left) = (stack.pop()?, stack.pop()?);
                    match operator {
                        '+' => left + right,
                        '-' => left - right,
                        '*' => left * right,
                        _ => left / right,
                    }
                }
            };
            stack.push(value);
        }
        stack.pop().filter(|value| value.is_finite())
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TryFrom<String> for Expression {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<Expression> for String {
    fn from(expression: Expression) -> Self {
        expression.text
    }
}

struct Parser<'a> {
    rest: &'a str,
    items: Vec<Item>,
    depth: u32,
}

impl Parser<'_> {
    fn peek(&mut self) -> Option<char> {
        self.rest = self.rest.trim_start();
        self.rest.chars().next()
    }

    /// Takes one of these characters, if it comes next.
    fn take(&mut self, any: &[char]) -> Option<char> {
        let next = self.peek().filter(|next| any.contains(next))?;
        self.rest = &self.rest[next.len_utf8()..];
        Some(next)
    }

    fn word(&mut self, belongs: impl Fn(char) -> bool) -> &str {
        let end = self.rest.find(|c| !belongs(c));
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        word
    }

    fn sum(&mut self) -> Result<(), String> {
        self.product()?;
        while let Some(operator) = self.take(&['+', '-']) {
            self.product()?;
            self.items.push(Item::Operator(operator));
        }
        Ok(())
    }

    fn product(&mut self) -> Result<(), String> {
        self.value()?;
        while let Some(operator) = self.take(&['*', '/']) {
            self.value()?;
            self.items.push(Item::Operator(operator));
        }
        Ok(())
    }

    fn value(&mut self) -> Result<(), String> {
        self.depth += 1;
        if DEPTH_MAX < self.depth {
            return Err(format!("nests deeper than {DEPTH_MAX}"));
        }
        let Some(next) = self.peek() else {
            return Err("ends where a score or a number should be".to_owned());
        };
        match next {
            '(' => {
                self.take(&['(']);
                self.sum()?;
                if self.take(&[')']).is_none() {
                    return Err("lacks a closing parenthesis".to_owned());
                }
            }
            '-' => {
                self.take(&['-']);
                self.value()?;
                self.items.push(Item::Negate);
            }
            'a'..='z' | 'A'..='Z' | '_' => self.score()?,
            '0'..='9' | '.' => self.number()?,
            other => {
                return Err(format!("has {other:?} where a score or a number should be"));
            }
        }
        self.depth -= 1;
        Ok(())
    }

    fn score(&mut self) -> Result<(), String> {
        let name = self.word(|c| c.is_ascii_alphanumeric() || c == '_');
        let Some(index) = SCORES.iter().position(|(known, _)| *known == name) else {
            let known: Vec<&str> = SCORES.iter().map(|(name, _)| *name).collect();
            return Err(format!(
                "names {name:?}; an evaluation computes {}",
                known.join(", ")
            ));
        };
        self.items.push(Item::Score(index));
        Ok(())
    }

    fn number(&mut self) -> Result<(), String> {
        let text = self.word(|c| c.is_ascii_digit() || c == '.');
        let number: f64 = text
            .parse()
            .map_err(|_| format!("has {text:?}, which is no number"))?;
        self.items.push(Item::Number(number));
        Ok(())
    }
}

/// The means of the scores over the images of a model, by name.
pub type Means = BTreeMap<String, f64>;

/// The value that is the mean of others; None of none.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mean {
    sum: f64,
    count: u64,
}

impl Mean {
    pub fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    #[must_use]
    #[allow(clippy::cast_precision_loss)] // Images are far fewer than 2^53.
    pub fn value(self) -> Option<f64> {
        (0 < self.count).then(|| self.sum / self.count as f64)
    }

    #[must_use]
    pub fn count(self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn value(text: &str) -> Option<f64> {
        let scores = [("clip_i", 0.5), ("clip_t", 0.25), ("vqa", 0.0)];
        let of = |name: &str| scores.iter().find(|it| it.0 == name).map(|it| it.1);
        Expression::parse(text).unwrap().of(of)
    }

    #[test]
    fn an_expression_is_computed_as_it_is_written() {
        for (text, expected) in [
            ("clip_i", 0.5),
            ("clip_i * clip_t", 0.125),
            ("clip_i+clip_t*2", 1.0),
            ("(clip_i + clip_t) * 2", 1.5),
            ("1 - clip_i - clip_t", 0.25),
            ("clip_i / 2 / 2", 0.125),
            ("-clip_i * -2", 1.0),
            ("clip_i - -.5", 1.0),
        ] {
            assert_eq!(value(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn an_image_without_one_of_the_scores_or_with_an_infinite_value_has_none() {
        assert_eq!(value("clip_i * vqa_generated"), None);
        assert_eq!(value("clip_i / vqa"), None);
        assert_eq!(value("vqa / vqa"), None);
    }

    #[test]
    fn what_is_no_expression_of_scores_is_refused_by_what_is_wrong() {
        for (text, expected) in [
            ("", "ends where a score"),
            ("clip_i *", "ends where a score"),
            ("clip_i clip_t", "has 'c' after a complete expression"),
            ("clip_i * (clip_t", "lacks a closing parenthesis"),
            ("clip_i)", "has ')' after"),
            ("clipi", "names \"clipi\"; an evaluation computes clip_i, "),
            ("1 + 1", "has no score"),
            ("clip_i * 1.2.3", "\"1.2.3\", which is no number"),
            ("clip_i ^ 2", "has '^' after"),
            ("clip_i * é", "has 'é' where"),
        ] {
            let error = Expression::parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let deep = format!("{}clip_i", "(".repeat(40));
        assert!(Expression::parse(&deep).unwrap_err().contains("deeper"));
        let long = format!("clip_i{}", " + clip_i".repeat(40));
        assert!(Expression::parse(&long).unwrap_err().contains("bytes"));
    }

    #[test]
    fn it_is_stored_as_its_text() {
        let expression = Expression::parse("clip_i * clip_t").unwrap();
        let json = serde_json::to_string(&expression).unwrap();
        assert_eq!(json, "\"clip_i * clip_t\"");
        let again: Expression = serde_json::from_str(&json).unwrap();
        assert_eq!(again, expression);
        assert!(serde_json::from_str::<Expression>("\"clip\"").is_err());
        let sources: Vec<Source> = expression.scores().map(|(_, source)| source).collect();
        assert_eq!(sources, [Source::Clip, Source::Clip]);
    }
}
