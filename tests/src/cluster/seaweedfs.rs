//! A real S3 server: SeaweedFS in one process, on free ports and in a folder of its own, with one bucket.

use super::process::Process;
use super::tool;
use anyhow::{Context, Result};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

pub const BUCKET: &str = "retri";
const ACCESS_KEY: &str = "test-key";
const SECRET_KEY: &str = "test-secret-of-no-worth";
/// All that the server listens on; each would take a fixed port otherwise.
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
    /// Killed when dropped.
    _process: Process,
    port: u16,
}

impl SeaweedFs {
    /// Returns when the bucket is there. Files go below `directory`.
    ///
    /// # Errors
    /// The tool is not installed, or did not start.
    pub fn start(directory: &Path) -> Result<Self> {
        let data = directory.join("seaweedfs");
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
        let ports = free_ports()?;
        command.args(
            PORTS
                .iter()
                .zip(ports)
                .map(|(name, port)| format!("-{name}={port}")),
        );
        command.arg(format!("-bucket={BUCKET}"));
        command
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        let process = Process::start(
            "seaweedfs",
            command,
            directory,
            "components are running and ready",
        )?;
        Ok(Self {
            _process: process,
            port: ports[0],
        })
    }

    /// What a client of this server needs in its environment.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        let endpoint = format!("http://127.0.0.1:{}", self.port);
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

/// Ports that nobody listens on. All are held until all are known, so that they differ.
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
