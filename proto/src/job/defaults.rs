//! What a job's text would mean without some of it. Pure.

use super::overrides::flat;
use super::{parse, to_toml};
use std::collections::BTreeMap;
use toml::{Table, Value};

/// The default of each key of a canonical text that could be left out: the value that the job would
/// have without it, by dotted keys as [`flat`] has them. It parses the text once for every key.
#[must_use]
pub fn defaults(text: &str) -> BTreeMap<String, String> {
    let (Ok(keys), Ok(table)) = (flat(text), text.parse::<Table>()) else {
        return BTreeMap::new();
    };
    let mut defaults = BTreeMap::new();
    for key in keys.into_keys() {
        let mut without = table.clone();
        remove(&mut without, &key);
        let Ok(spec) = parse("job.toml", &without.to_string(), None) else {
            continue;
        };
        let value = flat(&to_toml(&spec))
            .ok()
            .and_then(|mut it| it.remove(&key));
        if let Some(value) = value {
            defaults.insert(key, value);
        }
    }
    defaults
}

fn remove(table: &mut Table, key: &str) {
    let Some((first, rest)) = key.split_once('.') else {
        table.remove(key);
        return;
    };
    if let Some(Value::Table(inner)) = table.get_mut(first) {
        remove(inner, rest);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_default_is_what_a_job_has_without_the_key() {
        let text = r#"
            name = "demo"
            [resources]
            workers = { min = 1, max = 2 }
            [data]
            dataset = "file:///data"
            resolution = 32
            [model]
            architecture = "autoencoder"
            size = "tiny"
            [train]
            steps = 4
            global_batch = 4
            micro_batch = 2
            clip = 0.25
        "#;
        let spec = parse("job.toml", text, None).unwrap();
        let found = defaults(&to_toml(&spec));
        assert_eq!(found.get("train.steps"), None, "it has no default");
        assert_eq!(found["resources.priority"], "0");
        assert_eq!(found["train.clip"], "0.0");
        assert_eq!(defaults("no = = toml"), BTreeMap::new());
    }
}
