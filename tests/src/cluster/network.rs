//! Workers on hosts of their own: each in a network namespace, with a cable (a pair of veth
//! devices) to every other and to the test, that can be cut in one direction or both. What is sent
//! into a cut cable gets lost in silence, as in a switch that fails; nobody is told. Needs
//! `unshare`, `nsenter` and `ip`, and root or a kernel that lets users make namespaces.

use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};

const INSIDE: &str = "RETRI_TEST_NETWORK";

/// Runs a test in a network namespace of its own, so that it changes nothing of this machine: the
/// test starts itself again in there. `test` is its full name.
///
/// # Errors
/// There can be no namespace here, or the test fails.
pub fn alone(test: &str, body: impl FnOnce() -> Result<()>) -> Result<()> {
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
        "{test} failed in its network namespace ({status}); if `unshare: …` stands above, this \
        test needs root or a kernel that \
         lets users make namespaces (sysctl user.max_user_namespaces, \
        kernel.apparmor_restrict_unprivileged_userns)"
    );
    Ok(())
}

/// Host 0 is the test's own, with the coordinator; workers follow.
#[derive(Debug)]
pub struct Network(Vec<Host>);

#[derive(Debug)]
struct Host {
    number: usize,
    /// A process that does nothing in the host's namespace, and ends when its input does. None: our
    /// own.
    holder: Option<(Child, ChildStdin)>,
}

impl Network {
    /// All cables are whole.
    ///
    /// # Errors
    /// The system does not let us.
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

    /// This program, not yet started, on that host.
    pub fn on(&self, host: usize, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.0[host].command(program)
    }

    /// From now on what one host sends to the other is lost.
    ///
    /// # Errors
    /// The system does not let us.
    pub fn cut(&self, from: usize, to: usize) -> Result<()> {
        // Nobody has that number: whatever is sent to it is dropped on the other side.
        let nobody = "02:00:00:00:00:01";
        let (neighbour, device) = (address(to), device(to));
        let lost = [
            "neigh",
            "replace",
            &neighbour,
            "lladdr",
            nobody,
            "dev",
            &device,
            "nud",
            "permanent",
        ];
        self.0[from].ip(&lost)
    }

    /// It arrives again.
    ///
    /// # Errors
    /// It was not cut.
    pub fn mend(&self, from: usize, to: usize) -> Result<()> {
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
            // It is in its namespace when it speaks.
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

    /// A cable from a lower host to a higher one.
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
            // Ignored: there is nobody to tell.
            let _ = holder.wait();
        }
    }
}

fn address(host: usize) -> String {
    format!("10.77.0.{}", host + 1)
}

/// What leads to that host.
fn device(to: usize) -> String {
    format!("to{to}")
}
