//! Pages that change while somebody looks: the parts of a page that templates mark are sent by
//! server-sent events whenever they differ from what was sent before, at most once a second. All
//! who look at one page share its making. Who reads too slowly is dropped.
//!
//! A part is what lies between `<!--live ID-->` and `<!--/live-->`; the element around it has that
//! id.

use super::guard::Visitor;
use super::problem::Problem;
use super::query::Query;
use super::{Web, query_of};
use crate::budget::{Payer, paid};
use axum::extract::{ConnectInfo, State};
use axum::http::Uri;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use proto::limits::{URL_BYTES, cut};
use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::{Arc, Mutex as Sync, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, mpsc};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;

/// Between two looks of one reader.
const EVERY: Duration = Duration::from_secs(1);
/// A page is made again for another reader only if it is older.
const SHARED: Duration = Duration::from_millis(800);
/// Events that wait for their reader, and how long they may.
const QUEUE: usize = 4;
const SLOW: Duration = Duration::from_secs(30);
/// A silent connection would look broken.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Parts of a page by id.
type Parts = BTreeMap<String, String>;
type Made = Arc<Mutex<Option<(Instant, Arc<Parts>)>>>;

/// Pages that are looked at, by URL. Cheap to clone; all clones share the pages.
#[derive(Debug, Clone, Default)]
pub(super) struct Shared(Arc<Sync<HashMap<String, Made>>>);

impl Shared {
    fn entry(&self, url: &str) -> Made {
        let mut pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pages.retain(|_, made| 1 < Arc::strong_count(made));
        Arc::clone(pages.entry(url.to_owned()).or_default())
    }
}

pub(super) async fn stream(
    State(web): State<Web>,
    ConnectInfo(Visitor(peer)): ConnectInfo<Visitor>,
    uri: Uri,
) -> Response {
    let url = cut(query_of(&uri).text("page"), URL_BYTES);
    let made = web.shared.entry(&url);
    // One that cannot be shown is no stream, so that a browser does not ask again and again.
    let first = match web.parts(&url, &made).await {
        Ok(first) => first,
        Err(problem) => return super::answer(Err(problem)),
    };
    let (sender, receiver) = mpsc::channel(QUEUE);
    let in_progress = peer.begin();
    let payer = Payer::current();
    let task = async move {
        let _in_progress = in_progress;
        let mut sent = Parts::new();
        let mut parts = first;
        loop {
            for (id, html) in changed(&sent, &parts) {
                let data = serde_json::json!({ "id": id, "html": html }).to_string();
                let event: Result<Event, Infallible> = Ok(Event::default().data(data));
                match timeout(SLOW, sender.send(event)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return,
                    Err(_) => {
                        peer.close("the reader of a page is too slow");
                        return;
                    }
                }
            }
            sent = (*parts).clone();
            tokio::select! {
                () = sleep(EVERY) => {}
                () = sender.closed() => return,
            }
            // Who has used too much waits; the page then changes less often.
            if web.budgets.wait(peer.address, "pages").await.is_err() {
                continue;
            }
            match web.parts(&url, &made).await {
                Ok(next) => parts = next,
                // The job was deleted, or the coordinator stops.
                Err(_) => return,
            }
        }
    };
    tokio::spawn(paid(payer, task));
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    Sse::new(ReceiverStream::new(receiver))
        .keep_alive(keep_alive)
        .into_response()
}

impl Web {
    /// The parts of a page, at most [`SHARED`] old.
    async fn parts(&self, url: &str, made: &Made) -> Result<Arc<Parts>, Problem> {
        let mut made = made.lock().await;
        if let Some((at, parts)) = &*made
            && at.elapsed() < SHARED
        {
            return Ok(Arc::clone(parts));
        }
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let page = self.page(path, &Query::parse(Some(query))).await?;
        let parts = Arc::new(split(&page));
        *made = Some((Instant::now(), Arc::clone(&parts)));
        Ok(parts)
    }
}

fn changed<'a>(sent: &Parts, parts: &'a Parts) -> Vec<(&'a String, &'a String)> {
    let is_new = |(id, html): &(&String, &String)| sent.get(*id) != Some(*html);
    parts.iter().filter(is_new).collect()
}

fn split(page: &str) -> Parts {
    let mut parts = Parts::new();
    for piece in page.split("<!--live ").skip(1) {
        let (Some((id, rest)), end) = (piece.split_once("-->"), "<!--/live-->") else {
            continue;
        };
        if let Some((html, _)) = rest.split_once(end) {
            parts.insert(id.to_owned(), html.to_owned());
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parts_that_changed_are_sent() {
        let page = |step| {
            let a = format!("<p id=a><!--live a--><b>{step}</b><!--/live--></p>");
            format!("<h1>x</h1>{a}<!--live b-->c<!--/live-->")
        };
        let (old, new) = (split(&page(1)), split(&page(2)));
        assert_eq!(old["a"], "<b>1</b>");
        let ids: Vec<&String> = changed(&old, &new).into_iter().map(|it| it.0).collect();
        assert_eq!(ids, ["a"]);
        assert_eq!(changed(&Parts::new(), &new).len(), 2);
        assert_eq!(split("<!--live a-->never ends"), Parts::new());
    }
}
