//! `data.ratings`.

use super::{GOOD, check_canonical, job, read};
use crate::job::to_toml;
use crate::rating::{Rating, Ratings};

fn with(line: &str) -> String {
    GOOD.replacen("[data]", &format!("[data]\n{line}"), 1)
}

#[test]
fn ratings_are_the_safe_ones_by_default_and_then_not_written() {
    let safe = Ratings::new([Rating::Sensitive, Rating::General]);
    assert_eq!(read(GOOD).unwrap().data.ratings, safe);
    for text in [
        GOOD.to_owned(),
        with("ratings = [\"sensitive\", \"general\", \"general\"]"),
    ] {
        assert_eq!(read(&text).unwrap().data.ratings, safe);
        // Older releases do not know the field.
        assert!(!to_toml(&job(&text).unwrap()).contains("ratings"));
    }
    let text = with("ratings = [\"explicit\", \"unrated\"]");
    let named = Ratings::new([Rating::Unrated, Rating::Explicit]);
    assert_eq!(read(&text).unwrap().data.ratings, named);
    check_canonical(&text);
}

#[test]
fn no_rating_and_other_words_are_refused() {
    let error = read(&with("ratings = []")).unwrap_err();
    assert_eq!(
        error,
        "job.toml:7: data.ratings: is []; it must name at least one of general, sensitive, \
         questionable, explicit, unrated"
    );
    let error = read(&with("ratings = [\"safe\"]")).unwrap_err();
    assert!(error.starts_with("job.toml:7: data.ratings"), "{error}");
    assert!(
        error.contains("unknown variant `safe`, expected one of `general`"),
        "{error}"
    );
}
