//! Escaping of everything that a page shows. Names, logs and prompts come from job files, data sets
//! and workers; one escaper, which askama applies to every value of every template
//! (`askama.toml`), makes them harmless as text and in attributes, and visible.

use askama::filters::{Escaper, Html};
use proto::printable::printable;
use std::fmt::{self, Write};

/// Escapes HTML, and control characters, ANSI sequences and marks of direction as everywhere else
/// ([`proto::printable`]).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Page;

impl Escaper for Page {
    fn write_escaped_str<W: Write>(&self, to: W, text: &str) -> fmt::Result {
        Html.write_escaped_str(to, &printable(text))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use askama::Template;
    use std::path::Path;

    #[derive(Template)]
    #[template(source = r#"<a title="{{ text }}">{{ text }}</a>"#, ext = "html")]
    struct Link<'a> {
        text: &'a str,
    }

    #[test]
    fn a_value_is_text_and_shows_what_is_in_it() {
        let text = "\"><script>alert('1')</script>\u{1b}[2J\u{202e}&\n";
        let page = Link { text }.render().unwrap();
        for part in ["<script", "\u{1b}", "\u{202e}", "\n", "'", "\"><s"] {
            assert!(!page.contains(part), "{part:?} in {page}");
        }
        assert!(page.contains(r"\u{1b}[2J\u{202e}"), "{page}");
        assert_eq!(page.matches('<').count(), 2);
    }

    /// Templates from which a value could come without being escaped.
    #[test]
    fn no_template_switches_the_escaping_off() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("templates");
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            for forbidden in [
                "|safe",
                "| safe",
                "|escape",
                "filter ",
                "javascript:",
                " style=",
                " on",
            ] {
                let found = text.lines().find(|line| {
                    line.contains(forbidden)
                        && (forbidden != " on" || line.contains("=\"") && has_handler(line))
                });
                assert_eq!(found, None, "{forbidden} in {}", path.display());
            }
            assert_eq!(path.extension().unwrap(), "html", "others are not escaped");
        }
    }

    /// Whether it has an attribute such as `onclick="…"`.
    fn has_handler(line: &str) -> bool {
        line.split(" on").skip(1).any(|rest| {
            let name: String = rest.chars().take_while(char::is_ascii_lowercase).collect();
            !name.is_empty() && rest[name.len()..].starts_with("=\"")
        })
    }
}
