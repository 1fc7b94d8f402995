//! Images of two jobs side by side: those that were made from the same prompt, seed and noise, or
//! at least from the same text.

use crate::web::Web;
use crate::web::problem::Problem;
use crate::web::query::Query;
use crate::web::rows::Link;
use crate::web::samples::{self, Image, scored};
use crate::web::show;
use proto::pb;
use std::collections::{BTreeSet, HashMap};

/// Pairs on a page.
const ROWS: usize = 12;

#[derive(Debug)]
pub(super) struct Pairs {
    /// The jobs that made them.
    pub(super) makers: [Link; 2],
    pub(super) rows: Vec<Pair>,
    pub(super) shown: String,
    pub(super) previous: Option<String>,
    pub(super) next: Option<String>,
    /// Steps of which both have images: text, URL, and whether it is shown.
    pub(super) steps: Vec<(String, String, bool)>,
    pub(super) note: String,
}

/// The text, and the URLs of both images.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) text: String,
    pub(super) urls: [String; 2],
}

/// None: one of them has no images.
pub(super) async fn pairs(
    web: &Web,
    [a, b]: [&pb::JobView; 2],
    query: &Query,
) -> Result<Option<Pairs>, Problem> {
    let steps = |view: &pb::JobView| -> BTreeSet<u64> { scored(view).map(|it| it.step).collect() };
    let common: Vec<u64> = steps(a).intersection(&steps(b)).copied().collect();
    let asked = query.number("sample")?;
    if let Some(step) = asked.filter(|step| !common.contains(step)) {
        return Err(no_step(step, [a, b], &common));
    }
    let step = asked.or(common.last().copied());
    let (Some(first), Some(second)) = (maker(a, step), maker(b, step)) else {
        return Ok(None);
    };
    let images_a = samples::all(web, &first.0).await?;
    let images_b = samples::all(web, &second.0).await?;
    let (pairs, by_text) = matching(&images_a, &images_b);
    if images_a.is_empty() || images_b.is_empty() {
        return Ok(None);
    }
    let mut note = Vec::new();
    if step.is_none() && (first.1.is_some() || second.1.is_some()) {
        let of = |it: Option<u64>| it.map_or("the job".to_owned(), |it| format!("step {it}"));
        note.push(format!(
            "of {} and {}: they have images of no common step",
            of(first.1),
            of(second.1)
        ));
    }
    if pairs.is_empty() {
        note.push("none of their images has the same prompt and seed".to_owned());
    } else if by_text {
        note.push("the same prompt and seed, but of another plan, so other noise".to_owned());
    }
    let page = query.number("images")?.unwrap_or(1).max(1);
    let begin = usize::try_from(page - 1)
        .unwrap_or(usize::MAX)
        .saturating_mul(ROWS);
    let count = pairs.len();
    let rows: Vec<Pair> = pairs.into_iter().skip(begin).take(ROWS).collect();
    let url = |page: u64| query.with(&[("images", &page.to_string())]) + "#images";
    let of_step = |it: &u64| {
        let changes = [("sample", it.to_string()), ("images", String::new())];
        let changes = changes
            .each_ref()
            .map(|(name, value)| (*name, value.as_str()));
        (
            show::count(*it),
            query.with(&changes) + "#images",
            Some(*it) == step,
        )
    };
    Ok(Some(Pairs {
        makers: [Link::job(&first.0), Link::job(&second.0)],
        shown: match rows.len() {
            0 => format!("none of {}", show::count(count as u64)),
            shown => format!(
                "{} to {} of {}",
                begin + 1,
                begin + shown,
                show::count(count as u64)
            ),
        },
        previous: (1 < page).then(|| url(page - 1)),
        next: (begin.saturating_add(ROWS) < count).then(|| url(page + 1)),
        steps: common.iter().map(of_step).collect(),
        rows,
        note: note.join("; "),
    }))
}

/// The job that made the images, and of which step. None: there is none.
fn maker(view: &pb::JobView, step: Option<u64>) -> Option<(String, Option<u64>)> {
    if matches!(view.work.as_str(), "sample" | "evaluate") {
        return Some((view.job.clone(), None));
    }
    let found = match step {
        Some(step) => scored(view).find(|it| it.step == step),
        None => scored(view).next_back(),
    }?;
    Some((found.job.clone(), Some(found.step)))
}

/// Images with the same key, or if there are none, those with the same text; and whether it is the
/// text.
fn matching(a: &[Image], b: &[Image]) -> (Vec<Pair>, bool) {
    let by = |of: fn(&Image) -> &str| -> Vec<Pair> {
        let others: HashMap<&str, &Image> = b.iter().map(|it| (of(it), it)).collect();
        let known = a.iter().filter(|it| !it.key.is_empty());
        let pair = |it: &Image| {
            let other = others.get(of(it)).filter(|other| !other.key.is_empty())?;
            Some(Pair {
                text: it.text.clone(),
                urls: [it.url.clone(), other.url.clone()],
            })
        };
        known.filter_map(pair).collect()
    };
    let same = by(|it| &it.key);
    if same.is_empty() {
        (by(|it| &it.text), true)
    } else {
        (same, false)
    }
}

fn no_step(step: u64, views: [&pb::JobView; 2], common: &[u64]) -> Problem {
    let [a, b] = views.map(|it| it.job.as_str());
    let newest = common.iter().rev().take(8);
    let mut links: Vec<(String, String)> = newest
        .map(|it| {
            let step = it.to_string();
            let changes = [("a", a), ("b", b), ("sample", step.as_str())];
            let url = format!("/compare{}", Query::default().with(&changes));
            (format!("step {}", show::count(*it)), url)
        })
        .collect();
    links.extend(views.map(|it| (format!("job {}", it.job), Link::job(&it.job).url)));
    let known = match common.is_empty() {
        true => "there is no step of which both have images",
        false => "the newest of which both have images are these",
    };
    let text = format!("{a} and {b} have not both images of step {step}; {known}");
    Problem::not_found("No such images", &text, links)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(key: &str, text: &str, url: &str) -> Image {
        Image {
            url: url.to_owned(),
            key: key.to_owned(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn images_of_the_same_noise_stand_side_by_side_and_else_those_of_the_same_text() {
        let a = [
            image("k1", "x", "a1"),
            image("k2", "y", "a2"),
            image("", "z", "a3"),
        ];
        let b = [
            image("k2", "y", "b2"),
            image("k9", "x", "b9"),
            image("", "z", "b3"),
        ];
        let (pairs, by_text) = matching(&a, &b);
        assert!(pairs.len() == 1 && pairs[0].urls == ["a2", "b2"] && !by_text);
        let other = [image("q", "y", "c2")];
        let (pairs, by_text) = matching(&a, &other);
        assert!(pairs.len() == 1 && pairs[0].urls == ["a2", "c2"] && by_text);
        assert!(matching(&a, &[]).0.is_empty());
    }
}
