//! Workers on separate hosts: each in a network namespace, with a link (a pair of veth devices) to
//! every other and to the test. Links can be cut in one or both directions; packets are then
//! dropped silently, as by a failing switch. Needs `unshare`, `nsenter` and `ip`, and root or
//! unprivileged user namespaces.

use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};

const INSIDE: &str = "RETRI_TEST_NETWORK";

/// Runs a test in its own network namespace, so that it does not change this host: the test binary
/// starts itself again in there. `test` is the test's full name.
///
/// # Errors
/// No namespace can be created, or the test fails.
pub fn in_namespace(test: &str, body: impl FnOnce() -> Result<()>) -> Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let own = std::env::current_exe().context("the path of the running test")?;
    let root = rustix::process::geteuid().is_root();
    let status = Command::new("unshare")
        .args(if root {
            &[][..]
        } else {
            &["--user", "--map-root-user"]
        })
        .arg("--net")
        .arg(own)
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .context("starting unshare, of the package util-linux")?;
    ensure!(
        status.success(),
        "{test} failed in its network namespace ({status}); if `unshare` reports an error \
        above, this test needs root or unprivileged user namespaces \
        (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns)"
    );
    Ok(())
}

/// Host 0 is the test's own and has the coordinator; the others have one worker each.
#[derive(Debug)]
pub struct Network(Vec<Host>);

#[derive(Debug)]
struct Host {
    number: usize,
    /// An idle process that holds the host's namespace open, and exits when its stdin is closed.
    /// None: our own namespace.
    holder: Option<(Child, ChildStdin)>,
}

impl Network {
    /// Creates the hosts and all links between them.
    ///
    /// # Errors
    /// The system does not permit it.
    pub fn of_workers(count: usize) -> Result<Self> {
        let hosts: Result<Vec<Host>> = (0..=count).map(Host::start).collect();
        let network = Self(hosts?);
        for host in &network.0 {
            for other in &network.0[..host.number] {
                other.connect(host)?;
            }
        }
        Ok(network)
    }

    #[must_use]
    pub fn address(&self, host: usize) -> String {
        address(host)
    }

    /// The command for a program on that host, not yet started.
    pub fn on(&self, host: usize, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.0[host].command(program)
    }

    /// From now on packets from one host to the other are dropped.
    ///
    /// # Errors
    /// The system does not permit it.
    pub fn cut(&self, from: usize, to: usize) -> Result<()> {
        // No device has this MAC address, so the receiver drops all frames.
        let unused_mac = "02:00:00:00:00:01";
        let (neighbour, device) = (address(to), device(to));
        let lost = [
            "neigh",
            "replace",
            &neighbour,
            "lladdr",
            unused_mac,
            "dev",
            &device,
            "nud",
            "permanent",
        ];
        self.0[from].ip(&lost)
    }

    /// Undoes `cut`.
    ///
    /// # Errors
    /// The link was not cut.
    pub fn restore(&self, from: usize, to: usize) -> Result<()> {
        self.0[from].ip(&["neigh", "del", &address(to), "dev", &device(to)])
    }
}

impl Host {
    fn start(number: usize) -> Result<Self> {
        let mut host = Self {
            number,
            holder: None,
        };
        if number != 0 {
            let mut holder = Command::new("unshare")
                .args(["--net", "sh", "-c", "echo; exec cat"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .context("starting unshare, of the package util-linux")?;
            let input = holder.stdin.take().context("stdin was asked for")?;
            let output = holder.stdout.take().context("stdout was asked for")?;
            // Once it prints a line it is in its namespace.
            BufReader::new(output).read_line(&mut String::new())?;
            host.holder = Some((holder, input));
        }
        host.ip(&["link", "set", "lo", "up"])?;
        host.ip(&[
            "addr",
            "add",
            &format!("{}/32", address(number)),
            "dev",
            "lo",
        ])?;
        Ok(host)
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        match &self.holder {
            None => Command::new(program),
            Some((holder, _)) => {
                let mut command = Command::new("nsenter");
                command
                    .arg(format!("--net=/proc/{}/ns/net", holder.id()))
                    .arg(program);
                command
            }
        }
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        let output = self.command("ip").args(arguments).output();
        let output = output.context("starting ip, of the package iproute2")?;
        ensure!(
            output.status.success(),
            "`ip {}` on host {}: {}",
            arguments.join(" "),
            self.number,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }

    /// Creates the link from a lower host to a higher one.
    fn connect(&self, other: &Self) -> Result<()> {
        let (here, there) = (device(other.number), device(self.number));
        let pid = other.holder.as_ref().map_or(0, |(holder, _)| holder.id());
        let namespace = pid.to_string();
        let pair = [
            "link", "add", &here, "type", "veth", "peer", "name", &there, "netns", &namespace,
        ];
        self.ip(&pair)?;
        for (host, device, to) in [(self, &here, other), (other, &there, self)] {
            host.ip(&["link", "set", device, "up"])?;
            let route = format!("{}/32", address(to.number));
            host.ip(&[
                "route",
                "add",
                &route,
                "dev",
                device,
                "src",
                &address(host.number),
            ])?;
        }
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some((mut holder, input)) = self.holder.take() {
            drop(input);
            // Ignored: a destructor cannot return an error.
            let _ = holder.wait();
        }
    }
}

fn address(host: usize) -> String {
    format!("10.77.0.{}", host + 1)
}

/// The name of the device that leads to that host.
fn device(to: usize) -> String {
    format!("to{to}")
}
