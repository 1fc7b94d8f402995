//! What `worker doctor` found on a node, as it leaves it in the store for the pages. Plain values.

use serde::{Deserialize, Serialize};

/// The object with a worker's last findings is `workers/NAME/doctor.json`.
#[must_use]
pub fn findings_path(worker: &str) -> [&str; 3] {
    ["workers", worker, "doctor.json"]
}

/// The results of all checks; also what `worker doctor --output json` prints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// Every check passed.
    pub ok: bool,
    /// Milliseconds since 1970.
    #[serde(default)]
    pub at_ms: u64,
    pub checks: Vec<Check>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    pub ok: bool,
    /// What was found; if it is wrong, with what would be right.
    pub found: String,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn findings_of_other_releases_are_read() {
        let text = r#"{"ok":false,"later":1,"checks":[{"name":"store","ok":false,"found":"x"}]}"#;
        let found: Findings = serde_json::from_str(text).unwrap();
        assert_eq!((found.ok, found.at_ms, found.checks.len()), (false, 0, 1));
        assert_eq!(findings_path("w1").join("/"), "workers/w1/doctor.json");
    }
}
