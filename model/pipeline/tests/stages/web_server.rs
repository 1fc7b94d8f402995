//! Images on a web server: in tars that are read by range, and in folders that its pages list.

use crate::danbooru;
use crate::run::build;
use crate::written::{dataset, metadata};
use model_data::verify::verify;
use proto::build::Stage;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// A server of a folder, as far as a reader needs one. Its threads end with the test.
struct Server {
    url: String,
    /// Bytes of files that were sent.
    sent: Arc<AtomicU64>,
    /// Requests that are answered with an error before others are answered.
    outage: Arc<Mutex<u32>>,
}

fn serve(root: &Path) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sent, outage) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(0)));
    let (root, counted, fails) = (root.to_owned(), Arc::clone(&sent), Arc::clone(&outage));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (root, counted) = (root.clone(), Arc::clone(&counted));
            let fails = Arc::clone(&fails);
            std::thread::spawn(move || while answer(&stream, &root, &counted, &fails).is_some() {});
        }
    });
    Server { url, sent, outage }
}

/// Answers one request. None: the connection has ended.
fn answer(
    mut stream: &TcpStream,
    root: &Path,
    sent: &AtomicU64,
    outage: &Mutex<u32>,
) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let (mut head, mut range) = (String::new(), None);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let lower = line.to_lowercase();
        if let Some(bytes) = lower.strip_prefix("range: bytes=") {
            let (start, end) = bytes.trim().split_once('-')?;
            range = Some((start.parse::<usize>().ok()?, end.parse::<usize>().ok()?));
        }
        if line.trim().is_empty() {
            break;
        }
        if head.is_empty() {
            head = line;
        }
    }
    let mut words = head.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    let path: PathBuf = root.join(target.trim_start_matches('/'));
    let mut fails = outage.lock().unwrap();
    if 0 < *fails {
        *fails -= 1;
        stream
            .write_all(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n")
            .ok()?;
        return Some(());
    }
    drop(fails);
    let (status, extra, body) = if path.is_dir() && !target.ends_with('/') {
        ("301 Moved", format!("location: {target}/\r\n"), Vec::new())
    } else if path.is_dir() {
        let mut page = String::from("<a href=\"../\">..</a>");
        for entry in std::fs::read_dir(&path).ok()? {
            let entry = entry.ok()?;
            let slash = if entry.path().is_dir() { "/" } else { "" };
            let name = entry.file_name().into_string().ok()?;
            write!(page, "<a href=\"{name}{slash}\">{name}</a>").ok()?;
        }
        ("200 OK", String::new(), page.into_bytes())
    } else if let Ok(bytes) = std::fs::read(&path) {
        let tag = format!("etag: \"{}\"\r\n", bytes.len());
        match range {
            Some((start, end)) => {
                let end = end.min(bytes.len() - 1);
                let whole = bytes.len();
                let extra = format!("{tag}content-range: bytes {start}-{end}/{whole}\r\n");
                ("206 Part", extra, bytes[start..=end].to_vec())
            }
            None => ("200 OK", tag, bytes),
        }
    } else {
        ("404 No", String::new(), Vec::new())
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\n{extra}content-length: {length}\r\n\r\n"
    )
    .ok()?;
    if method == "GET" {
        sent.fetch_add(length as u64, Ordering::SeqCst);
        stream.write_all(&body).ok()?;
    }
    Some(())
}

fn text(url: &str) -> String {
    format!(
        "out = \"out\"\n[[posts]]\nfrom = \"posts\"\n[clusters]\nsignature = \"answers\"\nanswers \
         = \"answers\"\nquestions = [\"clothes\"]\n[dataset]\nimages = \"{url}/images\"\nmasks = \
         \"masks\"\nboxes = \"boxes\"\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_read_from_a_web_server_in_folders_and_in_parts_of_tars() {
    let folder = tempfile::tempdir().unwrap();
    let drawn = danbooru::drawn(2, 2, 64);
    metadata(&drawn, folder.path());
    let images = folder.path().join("web/images/some");
    std::fs::create_dir_all(&images).unwrap();
    let mut names = Vec::new();
    for (number, (post, sample)) in drawn.iter().enumerate() {
        let name = format!("{}.png", post.id);
        std::fs::write(images.join(&name), &sample.image).unwrap();
        if number % 2 == 0 {
            names.push(name);
        }
    }
    // Half of them in a tar, beside a file that nobody needs and that is longer than all.
    std::fs::write(images.join("large.bin"), vec![0; 1 << 20]).unwrap();
    let mut tar = Command::new("tar");
    tar.args(["-cf", "shard.tar", "large.bin"]).args(&names);
    assert!(tar.current_dir(&images).status().unwrap().success());
    for name in &names {
        std::fs::remove_file(images.join(name)).unwrap();
    }
    let server = serve(&folder.path().join("web"));
    *server.outage.lock().unwrap() = 2;
    let text = text(&server.url);
    let manifests = build(folder.path(), &text).await.unwrap();
    let report = &manifests[&Stage::Dataset].report;
    assert_eq!((report.rows_in, report.rows_out), (8, 8), "{report:?}");
    assert!(report.found[0].contains("8 images, 1 tars"), "{report:?}");
    let dataset = dataset(folder.path(), &manifests[&Stage::Dataset]).await;
    let verified = verify(&dataset).await.unwrap();
    assert!(verified.findings.is_empty(), "{:?}", verified.findings);
    assert!(
        server.sent.load(Ordering::SeqCst) < 1 << 20,
        "parts are read"
    );
    // Nothing is written there.
    let wrong = text.replace("out = \"out\"", &format!("out = \"{}/out\"", server.url));
    let error = build(folder.path(), &wrong).await.unwrap_err();
    assert!(
        error.contains("the scheme must be file:// or s3://"),
        "{error}"
    );
}
