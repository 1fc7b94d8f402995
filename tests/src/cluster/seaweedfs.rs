//! A real S3 server: SeaweedFS in one process, on free ports and in its own folder, with one
//! bucket. It can be killed and restarted, and keeps its data.

use super::process::Process;
use super::tool;
use anyhow::{Context, Result, bail};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

pub const BUCKET: &str = "retri";
const ACCESS_KEY: &str = "test-key";
const SECRET_KEY: &str = "test-secret-of-no-worth";
/// Sets of ports to try.
const ATTEMPTS: usize = 5;
/// All ports of the server; each has a fixed default that must be overridden.
const PORTS: [&str; 10] = [
    "s3.port",
    "s3.port.grpc",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "admin.port",
    "admin.port.grpc",
];

#[derive(Debug)]
pub struct SeaweedFs {
    directory: PathBuf,
    ports: [u16; PORTS.len()],
    /// None: it was killed.
    process: Option<Process>,
}

impl SeaweedFs {
    /// Returns when the bucket exists. Its files are below `directory`.
    ///
    /// # Errors
    /// The tool is not installed, or did not start.
    pub fn start(directory: &Path) -> Result<Self> {
        for _ in 0..ATTEMPTS {
            let mut server = Self {
                directory: directory.to_owned(),
                ports: free_ports()?,
                process: None,
            };
            match server.restart() {
                Ok(()) => return Ok(server),
                // Another process took one of the ports since they were found to be free.
                Err(error) if error.to_string().contains("Port allocation failed") => {}
                Err(error) => return Err(error),
            }
        }
        bail!("none of {ATTEMPTS} sets of free ports stayed free until the S3 server used them")
    }

    /// Starts it with the same ports and files as before.
    ///
    /// # Errors
    /// It did not start.
    pub fn restart(&mut self) -> Result<()> {
        let data = self.directory.join("seaweedfs");
        std::fs::create_dir_all(&data).with_context(|| format!("creating {}", data.display()))?;
        let mut command = Command::new(tool::path("seaweedfs/weed")?);
        command.arg("mini").arg(format!("-dir={}", data.display()));
        command.args([
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-admin.ui=false",
            "-webdav=false",
        ]);
        command.args([
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-master.telemetry=false",
        ]);
        command.args(
            PORTS
                .iter()
                .zip(self.ports)
                .map(|(name, port)| format!("-{name}={port}")),
        );
        command.arg(format!("-bucket={BUCKET}"));
        command
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        self.process = Some(Process::start(
            "seaweedfs",
            command,
            &self.directory,
            "components are running and ready",
        )?);
        Ok(())
    }

    /// Sends SIGKILL and waits for the exit.
    ///
    /// # Errors
    /// It is not running.
    pub fn kill(&mut self) -> Result<()> {
        self.process
            .take()
            .context("the S3 server is not running")?
            .kill()
    }

    /// Its process id.
    ///
    /// # Errors
    /// It is not running.
    pub fn pid(&self) -> Result<u32> {
        let process = self
            .process
            .as_ref()
            .context("the S3 server is not running")?;
        Ok(process.id())
    }

    /// The environment variables that clients of this server need.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        let endpoint = format!("http://127.0.0.1:{}", self.ports[0]);
        let variables = [
            ("AWS_ENDPOINT", endpoint.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
        ];
        variables
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec()
    }
}

/// Free ports. All are held until all are known, so that they differ.
fn free_ports() -> Result<[u16; PORTS.len()]> {
    let mut held = Vec::new();
    let mut ports = [0; PORTS.len()];
    for port in &mut ports {
        let listener = TcpListener::bind("127.0.0.1:0").context("a free port")?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}
