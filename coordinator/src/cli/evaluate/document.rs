//! A report as blocks, written as Markdown and as HTML. Texts are escaped in both.

use proto::printable::printable;

pub(super) enum Block {
    /// 1 to 3.
    Heading(u8, String),
    Text(String),
    List(Vec<String>),
    Table {
        header: Vec<String>,
        rows: Vec<Vec<String>>,
    },
    Image {
        file: String,
        caption: String,
    },
}

pub(super) fn markdown(blocks: &[Block]) -> String {
    let mut text = String::new();
    for block in blocks {
        match block {
            Block::Heading(level, heading) => {
                let marks = "#".repeat(usize::from(*level));
                text.push_str(&format!("{marks} {}\n\n", plain(heading)));
            }
            Block::Text(paragraph) => text.push_str(&format!("{}\n\n", plain(paragraph))),
            Block::List(items) => {
                for item in items {
                    text.push_str(&format!("- {}\n", plain(item)));
                }
                text.push('\n');
            }
            Block::Table { header, rows } => {
                let line = |cells: &[String]| {
                    let cells: Vec<String> = cells.iter().map(|cell| plain(cell)).collect();
                    format!("| {} |\n", cells.join(" | "))
                };
                text.push_str(&line(header));
                text.push_str(&format!("|{}\n", " --- |".repeat(header.len())));
                rows.iter().for_each(|row| text.push_str(&line(row)));
                text.push('\n');
            }
            Block::Image { file, caption } => {
                text.push_str(&format!("![{}]({file})\n\n", plain(caption)));
            }
        }
    }
    text
}

/// One line without characters that Markdown gives a meaning.
fn plain(text: &str) -> String {
    let mut escaped = String::new();
    for character in printable(text).chars() {
        if matches!(
            character,
            '|' | '<' | '>' | '*' | '_' | '`' | '[' | ']' | '\\'
        ) {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

const STYLE: &str = "body{font-family:sans-serif;max-width:75em;margin:2em auto;padding:0 1em;\
    color:#222}table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .7em;\
    border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child{text-align:left}\
    img{max-width:100%;border:1px solid #ddd}";

pub(super) fn html(title: &str, blocks: &[Block]) -> String {
    let mut text = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{}</title>\
         <style>{STYLE}</style></head><body>\n",
        escaped(title)
    );
    for block in blocks {
        match block {
            Block::Heading(level, heading) => {
                text.push_str(&format!("<h{level}>{}</h{level}>\n", escaped(heading)));
            }
            Block::Text(paragraph) => text.push_str(&format!("<p>{}</p>\n", escaped(paragraph))),
            Block::List(items) => {
                text.push_str("<ul>");
                for item in items {
                    text.push_str(&format!("<li>{}</li>", escaped(item)));
                }
                text.push_str("</ul>\n");
            }
            Block::Table { header, rows } => {
                let line = |cells: &[String], tag: &str| {
                    let cells: String = cells
                        .iter()
                        .map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell)))
                        .collect();
                    format!("<tr>{cells}</tr>\n")
                };
                text.push_str("<table>\n");
                text.push_str(&line(header, "th"));
                rows.iter().for_each(|row| text.push_str(&line(row, "td")));
                text.push_str("</table>\n");
            }
            Block::Image { file, caption } => {
                let (file, caption) = (escaped(file), escaped(caption));
                text.push_str(&format!(
                    "<figure><img src=\"{file}\" alt=\"{caption}\"><figcaption>{caption}\
                     </figcaption></figure>\n"
                ));
            }
        }
    }
    text.push_str("</body></html>\n");
    text
}

fn escaped(text: &str) -> String {
    printable(text)
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// A cell of a CSV file.
pub(super) fn csv_cell(text: &str) -> String {
    if text.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_keep_their_meaning_in_both_forms() {
        let blocks = [
            Block::Heading(2, "a_b".into()),
            Block::Table {
                header: vec!["<x>".into()],
                rows: vec![vec!["1|2\n3".into()]],
            },
        ];
        let text = markdown(&blocks);
        assert!(
            text.starts_with("## a\\_b\n\n| \\<x\\> |\n| --- |\n"),
            "{text}"
        );
        assert!(text.contains("1\\|2"), "{text}");
        assert_eq!(text.lines().count(), 6, "a cell is one line: {text}");
        let page = html("t", &blocks);
        assert!(page.contains("<th>&lt;x&gt;</th>"), "{page}");
        assert_eq!(csv_cell("a,\"b\""), "\"a,\"\"b\"\"\"");
        assert_eq!(csv_cell("ab"), "ab");
    }
}
