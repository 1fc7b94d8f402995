//! Where the time of a job's devices went, as a bar of its buckets. Pure.

use crate::web::show::{self, At};
use proto::account::{Account, Bucket};
use proto::pb;

#[derive(Debug)]
pub(super) struct Goodput {
    pub(super) percent: String,
    pub(super) held: String,
    pub(super) waited: String,
    pub(super) parts: Vec<Part>,
}

#[derive(Debug)]
pub(super) struct Part {
    pub(super) word: &'static str,
    pub(super) class: String,
    pub(super) x: At,
    pub(super) width: At,
    pub(super) time: String,
    pub(super) share: String,
}

pub(super) fn goodput(view: &pb::JobView) -> Option<Goodput> {
    let account = view.account.as_ref().map(Account::from)?;
    let held = account.held_ms();
    let open = [("in progress", account.open_ms)];
    let buckets = Bucket::ALL.into_iter();
    let buckets = buckets.map(|bucket| (bucket.word(), account.of(bucket)));
    let mut x = 0.0;
    let parts = buckets
        .chain(open)
        .filter(|(_, ms)| 0 < *ms)
        .map(|(word, ms)| {
            let share = show::fraction(ms, held);
            let begin = x;
            x += 1000.0 * share;
            Part {
                word,
                class: word.replace(' ', "-"),
                x: At(begin),
                width: At(1000.0 * share),
                time: show::span(ms),
                share: show::percent(share),
            }
        });
    let parts: Vec<Part> = parts.collect();
    (!parts.is_empty()).then(|| Goodput {
        percent: account
            .goodput()
            .map_or_else(|| show::NONE.to_owned(), show::percent),
        held: show::span(held),
        waited: show::span(account.waited_ms),
        parts,
    })
}
