//! As much of an HTTP server as the stand-in needs: one thread for each connection, which stays
//! open.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

/// Largest request: an image of 20 MiB as base64.
const BODY_BYTES_MAX: usize = 40 << 20;

/// Answers requests until the client leaves. `say` gets path and body, and gives status and body.
pub(super) fn serve(stream: TcpStream, say: impl Fn(&str, &[u8]) -> (u16, String)) {
    let mut reader = BufReader::new(stream);
    while let Some((path, body)) = request(&mut reader) {
        let (status, text) = say(&path, &body);
        let answer = format!(
            "HTTP/1.1 {status} {}\r\ncontent-type: application/json\r\ncontent-length: \
             {}\r\n\r\n{text}",
            if status < 300 { "OK" } else { "Error" },
            text.len()
        );
        if reader.get_mut().write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// None: the client has left, or does not speak HTTP.
fn request(reader: &mut BufReader<TcpStream>) -> Option<(String, Vec<u8>)> {
    let line = |reader: &mut BufReader<TcpStream>| {
        let mut line = String::new();
        let read = reader.read_line(&mut line).ok()?;
        (read > 0).then(|| line.trim_end().to_owned())
    };
    let path = line(reader)?.split(' ').nth(1)?.to_owned();
    let mut length = 0;
    loop {
        let header = line(reader)?;
        if header.is_empty() {
            break;
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().ok()?;
        }
    }
    if length > BODY_BYTES_MAX {
        return None;
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((path, body))
}
