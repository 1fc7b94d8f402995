//! The Python package animeface as a process beside this one. `deploy/setup/onnx.py` installs it.

use super::Face;
use crate::error::{BuildError, Result};
use crate::onnx::installed;
use image::RgbImage;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

const PROGRAM: &str = include_str!("animeface.py");
/// Longest answer that is read.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// What the package gives is likelier than this in any case.
const SCORE_MIN: f64 = 0.5;

/// The running process. It ends when its input does.
#[derive(Debug)]
pub(crate) struct Animeface {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    versions: [String; 2],
    score_min: f64,
}

impl Animeface {
    pub(crate) fn start(score_min: Option<f64>) -> Result<Self> {
        let packages = installed("python")?;
        let mut child = Command::new("python3")
            .args(["-c", PROGRAM])
            .env("PYTHONPATH", packages)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| BuildError::Input(format!("python3 cannot be started: {error}")))?;
        let input = child.stdin.take();
        let output = child.stdout.take().expect("it is piped");
        let mut started = Self {
            child,
            input,
            output: BufReader::new(output),
            versions: Default::default(),
            score_min: score_min.unwrap_or(SCORE_MIN),
        };
        let line = started.line()?;
        started.versions = serde_json::from_str(&line).map_err(|_| started.odd(&line))?;
        Ok(started)
    }

    pub(crate) fn description(&self) -> String {
        let [animeface, pillow] = &self.versions;
        format!(
            "faces of animeface {animeface} with Pillow {pillow}, likelihoods of at least {}",
            self.score_min
        )
    }

    /// The faces of an image, likeliest first.
    pub(crate) fn find(&mut self, image: &RgbImage) -> Result<Vec<Face>> {
        let header = format!("{} {}\n", image.width(), image.height());
        let input = self
            .input
            .as_mut()
            .expect("it is there until this is dropped");
        let sent = input
            .write_all(header.as_bytes())
            .and_then(|()| input.write_all(image.as_raw()))
            .and_then(|()| input.flush());
        if sent.is_err() {
            return Err(self.ended());
        }
        let line = self.line()?;
        let rows: Vec<[f64; 5]> = serde_json::from_str(&line).map_err(|_| self.odd(&line))?;
        let faces = rows
            .into_iter()
            .map(|[score, left, top, width, height]| Face {
                score,
                bbox: [left + width / 2.0, top + height / 2.0, width, height],
            });
        let mut faces: Vec<Face> = faces.filter(|it| self.score_min <= it.score).collect();
        faces.sort_by(|a, b| b.score.total_cmp(&a.score));
        Ok(faces)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self
            .output
            .by_ref()
            .take(LINE_BYTES_MAX)
            .read_line(&mut line);
        match read {
            Ok(1..) => Ok(line),
            Ok(_) | Err(_) => Err(self.ended()),
        }
    }

    fn odd(&self, line: &str) -> BuildError {
        let start: String = line.chars().take(100).collect();
        BuildError::Input(format!("animeface's process answered {start:?}"))
    }

    /// Why the process has ended.
    fn ended(&mut self) -> BuildError {
        self.input = None;
        let mut said = String::new();
        if let Some(errors) = self.child.stderr.as_mut() {
            errors.take(LINE_BYTES_MAX).read_to_string(&mut said).ok();
        }
        let last = said.lines().rfind(|line| !line.trim().is_empty());
        BuildError::Input(format!(
            "animeface's process ended: {}",
            last.unwrap_or("it said nothing")
        ))
    }
}

impl Drop for Animeface {
    fn drop(&mut self) {
        self.input = None;
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
