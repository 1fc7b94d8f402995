//! Files of the pages, compiled into the program: one style, our scripts, and uPlot 1.6.32 (MIT,
//! https://github.com/leeoniya/uPlot; its licence is beside it) for curves.

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use proto::text::hex_sha256;
use std::sync::LazyLock;

const STYLE: &str = include_str!("../../assets/style.css");
const SCRIPT: &str = include_str!("../../assets/page.js");
const CHARTS: &str = include_str!("../../assets/charts.js");
const SAMPLES: &str = include_str!("../../assets/samples.js");
const ICON: &str = include_str!("../../assets/icon.svg");
const UPLOT: &str = include_str!("../../assets/uplot.js");
const UPLOT_STYLE: &str = include_str!("../../assets/uplot.css");

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";

const FILES: [(&str, &str, &str); 7] = [
    ("style.css", CSS, STYLE),
    ("uplot.css", CSS, UPLOT_STYLE),
    ("page.js", JAVASCRIPT, SCRIPT),
    ("charts.js", JAVASCRIPT, CHARTS),
    ("samples.js", JAVASCRIPT, SAMPLES),
    ("uplot.js", JAVASCRIPT, UPLOT),
    ("icon.svg", "image/svg+xml", ICON),
];

static VERSION: LazyLock<String> = LazyLock::new(|| {
    let all: String = FILES.iter().map(|(_, _, text)| *text).collect();
    hex_sha256(all.as_bytes())[..12].to_owned()
});

/// Changes with every file.
pub(super) fn version() -> &'static str {
    &VERSION
}

pub(super) async fn file(Path(name): Path<String>) -> Response {
    let Some((_, kind, text)) = FILES.iter().find(|(known, ..)| *known == name) else {
        return (StatusCode::NOT_FOUND, "there is no such file\n").into_response();
    };
    let headers = [
        (header::CONTENT_TYPE, *kind),
        // Pages ask for them with their version.
        (header::CACHE_CONTROL, "max-age=31536000, immutable"),
    ];
    (headers, *text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// They must be there at once on a slow line.
    #[test]
    fn all_files_together_are_small() {
        let bytes: usize = FILES.iter().map(|(_, _, text)| text.len()).sum();
        assert!(bytes < 300_000, "{bytes} bytes");
        assert!(UPLOT.starts_with("/*! https://github.com/leeoniya/uPlot (v1.6.32) */"));
    }
}
