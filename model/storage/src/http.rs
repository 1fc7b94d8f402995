//! A folder of a web server, which is only read: images are published as tars and files on servers
//! that answer range requests. Files are listed by the links of the server's own pages of folders
//! (those of nginx, Apache and others).

use async_trait::async_trait;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result,
};
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, RANGE};
use reqwest::{Client, Method, Response, StatusCode};
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;
use url::Url;

const STORE: &str = "HTTP";
/// Requests for one thing before it is given up.
const ATTEMPTS: u32 = 6;
/// Before the second attempt; twice as long before each further one.
const PAUSE: Duration = Duration::from_millis(250);
/// Without a byte.
const SILENCE: Duration = Duration::from_secs(30);
/// At a time, for the sizes of listed files.
const REQUESTS: usize = 16;
/// Largest page of a folder, and most folders that are listed.
const PAGE_BYTES_MAX: usize = 64 << 20;
const FOLDERS_MAX: usize = 100_000;

/// A folder below a URL.
#[derive(Debug, Clone)]
pub(crate) struct WebFolder {
    /// Ends in a slash.
    base: Url,
    client: Client,
}

impl fmt::Display for WebFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.base)
    }
}

fn failed(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Generic {
        store: STORE,
        source: source.into(),
    }
}

fn read_only() -> Error {
    Error::NotSupported {
        source: "a folder of a web server is only read".into(),
    }
}

impl WebFolder {
    /// # Errors
    /// There is no HTTP client.
    pub(crate) fn open(url: &Url) -> Result<Self> {
        crate::install_tls();
        let client = Client::builder().read_timeout(SILENCE).build();
        let mut base = url.clone();
        base.set_query(None);
        base.set_fragment(None);
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        Ok(Self {
            base,
            client: client.map_err(failed)?,
        })
    }

    fn url(&self, location: &Path) -> Result<Url> {
        let mut url = self.base.clone();
        {
            let mut parts = url
                .path_segments_mut()
                .map_err(|()| failed("it has no path"))?;
            parts.pop_if_empty();
            // Parts of a path are encoded once: here.
            parts.extend(location.as_ref().split('/').filter(|it| !it.is_empty()));
        }
        Ok(url)
    }

    /// Sends a request until the server answers it.
    async fn send(&self, method: Method, url: Url, range: Option<&str>) -> Result<Response> {
        let mut pause = PAUSE;
        for attempt in 1.. {
            let mut request = self.client.request(method.clone(), url.clone());
            if let Some(range) = range {
                request = request.header(RANGE, range);
            }
            let is_last = attempt == ATTEMPTS;
            match request.send().await {
                Ok(response) if response.status() == StatusCode::NOT_FOUND => {
                    return Err(Error::NotFound {
                        path: url.to_string(),
                        source: "the server has no such file".into(),
                    });
                }
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) => {
                    let status = response.status();
                    if is_last || !(status.is_server_error() || status.as_u16() == 429) {
                        return Err(failed(format!("{url}: the server answered {status}")));
                    }
                }
                Err(error) if is_last => return Err(failed(error)),
                Err(_) => {}
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Err(failed("no attempt was made"))
    }

    /// The page of a folder.
    async fn page(&self, url: &Url) -> Result<String> {
        let mut response = self.send(Method::GET, url.clone(), None).await?;
        let mut text = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            text.extend_from_slice(&chunk);
            if PAGE_BYTES_MAX < text.len() {
                return Err(failed(format!(
                    "{url}: its list of files has more than {PAGE_BYTES_MAX} bytes"
                )));
            }
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// All files below the folder.
    async fn files(&self, prefix: Option<Path>) -> Result<Vec<ObjectMeta>> {
        let mut start = match prefix {
            Some(prefix) => self.url(&prefix)?,
            None => self.base.clone(),
        };
        if !start.path().ends_with('/') {
            start.set_path(&format!("{}/", start.path()));
        }
        let (mut folders, mut seen, mut names) = (vec![start], BTreeSet::new(), Vec::new());
        while let Some(folder) = folders.pop() {
            if FOLDERS_MAX < seen.len() {
                return Err(failed(format!(
                    "{self} has more than {FOLDERS_MAX} folders"
                )));
            }
            if !seen.insert(folder.to_string()) {
                continue;
            }
            for link in links(&self.page(&folder).await?, &folder) {
                if link.path().ends_with('/') {
                    folders.push(link);
                } else {
                    let relative = link.path().strip_prefix(self.base.path());
                    names.push(Path::from_url_path(relative.unwrap_or_default())?);
                }
            }
        }
        let sizes = names
            .into_iter()
            .map(|name| async move { self.head_of(&name).await });
        stream::iter(sizes).buffered(REQUESTS).try_collect().await
    }

    async fn head_of(&self, location: &Path) -> Result<ObjectMeta> {
        let response = self.send(Method::HEAD, self.url(location)?, None).await?;
        // A server sends from a folder's name to its page.
        if response.url().path().ends_with('/') {
            return Err(Error::NotFound {
                path: location.to_string(),
                source: "it is a folder".into(),
            });
        }
        meta(&response, location, total(&response))
    }
}

/// The links of a page to what is below its folder.
fn links(page: &str, folder: &Url) -> Vec<Url> {
    let mut found = BTreeSet::new();
    for part in page.split("href=").skip(1) {
        let quote = part.chars().next().filter(|it| matches!(it, '"' | '\''));
        let Some(quote) = quote else { continue };
        let Some(target) = part[1..].split(quote).next() else {
            continue;
        };
        let Ok(mut url) = folder.join(&target.replace("&amp;", "&")) else {
            continue;
        };
        // Links that sort the page, and links to elsewhere.
        if url.query().is_some() || url.origin() != folder.origin() {
            continue;
        }
        url.set_fragment(None);
        if url.path().starts_with(folder.path()) && url.path() != folder.path() {
            found.insert(url);
        }
    }
    found.into_iter().collect()
}

fn header(response: &Response, name: reqwest::header::HeaderName) -> Option<&str> {
    response.headers().get(name)?.to_str().ok()
}

/// The size of the whole file.
fn total(response: &Response) -> Option<u64> {
    let range = header(response, CONTENT_RANGE);
    match range {
        Some(range) => range.rsplit('/').next()?.parse().ok(),
        None => header(response, CONTENT_LENGTH)?.parse().ok(),
    }
}

fn meta(response: &Response, location: &Path, size: Option<u64>) -> Result<ObjectMeta> {
    let size = size.ok_or_else(|| {
        failed(format!(
            "{}: the server does not say how large it is",
            response.url()
        ))
    })?;
    Ok(ObjectMeta {
        location: location.clone(),
        last_modified: Default::default(),
        size,
        e_tag: header(response, ETAG).map(str::to_owned),
        version: None,
    })
}

#[async_trait]
impl ObjectStore for WebFolder {
    async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> Result<PutResult> {
        Err(read_only())
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(read_only())
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let range = match &options.range {
            None => None,
            Some(GetRange::Bounded(range)) => {
                Some(format!("bytes={}-{}", range.start, range.end.max(1) - 1))
            }
            Some(GetRange::Offset(offset)) => Some(format!("bytes={offset}-")),
            Some(GetRange::Suffix(length)) => Some(format!("bytes=-{length}")),
        };
        if options.head {
            let meta = self.head_of(location).await?;
            let payload = GetResultPayload::Stream(stream::empty().boxed());
            return Ok(GetResult {
                payload,
                range: 0..0,
                meta,
                attributes: Default::default(),
                extensions: Default::default(),
            });
        }
        let url = self.url(location)?;
        let response = self.send(Method::GET, url, range.as_deref()).await?;
        if range.is_some() && response.status() != StatusCode::PARTIAL_CONTENT {
            return Err(failed(format!(
                "{}: the server sends the whole file when it is asked for a range of bytes",
                response.url()
            )));
        }
        let meta = meta(&response, location, total(&response))?;
        let part = header(&response, CONTENT_RANGE).and_then(|text| {
            let (start, end) = text
                .strip_prefix("bytes ")?
                .split('/')
                .next()?
                .split_once('-')?;
            Some(start.parse::<u64>().ok()?..end.parse::<u64>().ok()? + 1)
        });
        let range = part.unwrap_or(0..meta.size);
        let chunks = stream::try_unfold(response, |mut response| async move {
            let chunk = response.chunk().await.map_err(failed)?;
            Ok(chunk.map(|chunk| (chunk, response)))
        });
        Ok(GetResult {
            payload: GetResultPayload::Stream(chunks.boxed()),
            meta,
            range,
            attributes: Default::default(),
            extensions: Default::default(),
        })
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        locations.map(|_| Err(read_only())).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let prefix = prefix.filter(|it| !it.as_ref().is_empty()).cloned();
        let folder = self.clone();
        let files = async move {
            match folder.files(prefix).await {
                Ok(files) => files.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            }
        };
        stream::once(files).flat_map(stream::iter).boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        Err(Error::NotSupported {
            source: "folders of a web server are listed as a whole".into(),
        })
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(read_only())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn links_are_those_below_the_folder() {
        let folder = Url::parse("http://host/data/images/").unwrap();
        let page = "<a href=\"../\">up</a><a href='0000.tar'>a</a> <a href=\"a%20b/\">c</a>\
            <a href=\"?C=N;O=D\">Name</a><a href=\"http://other/data/images/x\">x</a>\
            <a href=\"/data/images/d&amp;e.png\">d</a><a href=\"0000.tar#x\">again</a><a href=z>";
        let found = links(page, &folder);
        let found: Vec<&str> = found.iter().map(Url::path).collect();
        assert_eq!(
            found,
            [
                "/data/images/0000.tar",
                "/data/images/a%20b/",
                "/data/images/d&e.png"
            ]
        );
    }
}
