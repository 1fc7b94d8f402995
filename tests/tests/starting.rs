//! Real daemons that cannot start yet, or never: each kind of failure with each signal. They say
//! what they wait for, end with the cause where waiting cannot help, and obey signals meanwhile.
//! Tests wait for a line of the log or for the exit, never for a time.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::thread::scope;
use tests::cluster::binary;
use tests::cluster::fake_s3::{Failure, FakeS3};
use tests::cluster::process::{Process, signal};

const SIGNALS: [&str; 3] = ["TERM", "INT", "HUP"];
const UNKNOWN_HOST: &str = "http://nowhere.invalid:8333";
const STOPPED_EARLY: &str = "is stopping before it was ready";

/// `coordinator serve` with this store, on free ports.
fn coordinator(store: &str) -> Result<Command> {
    let mut command = Command::new(binary("coordinator")?);
    command
        .arg("serve")
        .env("RETRI_COORDINATOR__LISTEN", "127.0.0.1:0")
        .env("RETRI_COORDINATOR__METRICS_LISTEN", "127.0.0.1:0")
        .env("RETRI_COORDINATOR__WEB_LISTEN", "127.0.0.1:0")
        .env("RETRI_COORDINATOR__STORE", store);
    Ok(command)
}

/// `worker daemon` with its folders below `folder`.
fn worker(folder: &Path, coordinator: &str) -> Result<Command> {
    let mut command = Command::new(binary("worker")?);
    command
        .arg("daemon")
        .env("RETRI_WORKER__NAME", "w1")
        .env("RETRI_WORKER__COORDINATOR", coordinator)
        .env("RETRI_WORKER__METRICS_LISTEN", "127.0.0.1:0")
        .env("RETRI_WORKER__RUN_DIR", folder.join("run"))
        .env("RETRI_WORKER__CACHE_DIR", folder.join("cache"));
    Ok(command)
}

/// Starts the daemon, waits for a line with `line`, sends the signal, and checks the exit code 0.
/// Returns its last output.
fn stop_at(command: Command, line: &str, name: &str) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let process = Process::start("daemon", command, folder.path(), line)?;
    signal(name, process.id())?;
    let (status, output) = process.wait()?;
    ensure!(
        status.success(),
        "after SIG{name} at {line:?}: {status}\n{output}"
    );
    Ok(output)
}

/// Starts a daemon that ends by itself; returns how, with its last output.
fn end(command: Command) -> Result<(ExitStatus, String)> {
    let folder = tempfile::tempdir()?;
    // The last line before the exit: `main` prints the error.
    let process = Process::start("daemon", command, folder.path(), "error: ")?;
    process.wait()
}

fn ends_with(command: Command, parts: &[&str]) -> Result<()> {
    let (status, output) = end(command)?;
    ensure!(status.code() == Some(1), "{parts:?}: {status}\n{output}");
    for part in parts {
        ensure!(output.contains(part), "{part:?} is missing in\n{output}");
    }
    ensure!(!output.contains("panicked"), "{output}");
    Ok(())
}

/// Runs all cases at once, because each mostly waits, and returns the first failure.
fn all<T: Sync>(cases: &[T], test: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    scope(|scope| {
        let threads: Vec<_> = cases.iter().map(|it| scope.spawn(|| test(it))).collect();
        threads
            .into_iter()
            .try_for_each(|it| it.join().expect("a case panicked"))
    })
}

fn with_server(failure: Failure) -> Result<Command> {
    let server = FakeS3::start(failure)?;
    let mut command = coordinator("s3://bucket/state")?;
    command.envs(server.environment());
    Ok(command)
}

#[test]
fn a_coordinator_says_how_its_store_fails_and_obeys_every_signal_meanwhile() -> Result<()> {
    let failures = Failure::REFUSALS.iter().chain(&Failure::PASSING);
    let cases: Vec<_> = failures
        .flat_map(|(failure, part)| SIGNALS.map(|signal| (*failure, *part, signal)))
        .collect();
    for some in cases.chunks(6) {
        all(some, |(failure, part, signal)| {
            let output = stop_at(with_server(*failure)?, "waiting for the store: ", signal)?;
            ensure!(
                output.contains(part) && output.contains(STOPPED_EARLY),
                "{failure:?}: {output}"
            );
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_coordinator_whose_store_goes_on_refusing_ends_with_the_cause() -> Result<()> {
    all(&Failure::REFUSALS, |(failure, part)| {
        ends_with(
            with_server(*failure)?,
            &["waiting for the store", "refuses to be used", part],
        )
    })
}

/// With a store at this endpoint.
fn at_endpoint(endpoint: &str) -> Result<Command> {
    let mut command = coordinator("s3://bucket/state")?;
    command
        .env("AWS_ENDPOINT", endpoint)
        .env("AWS_ALLOW_HTTP", "true")
        .env("AWS_ACCESS_KEY_ID", "k")
        .env("AWS_SECRET_ACCESS_KEY", "s");
    Ok(command)
}

#[test]
fn a_coordinator_waits_for_a_server_that_is_not_there() -> Result<()> {
    // Nothing listens on port 9 (discard), and no name ends with .invalid.
    let cases: Vec<_> = ["http://127.0.0.1:9", UNKNOWN_HOST]
        .into_iter()
        .flat_map(|endpoint| SIGNALS.map(|signal| (endpoint, signal)))
        .collect();
    all(&cases, |(endpoint, signal)| {
        let output = stop_at(at_endpoint(endpoint)?, "waiting for the store: ", signal)?;
        ensure!(output.contains(endpoint), "{output}");
        Ok(())
    })
}

/// For these the daemons wait half a minute, because somebody may just be mending it.
#[test]
fn an_unknown_host_a_full_disk_and_something_that_is_no_coordinator_end_with_the_cause()
-> Result<()> {
    let other = FakeS3::start(Failure::Busy)?;
    all(&["store", "disk", "coordinator", "other"], |case| {
        let folder = tempfile::tempdir()?;
        match *case {
            "store" => ends_with(
                at_endpoint(UNKNOWN_HOST)?,
                &[
                    "waiting for the store",
                    "refuses to be used",
                    "no name server",
                ],
            ),
            "disk" => {
                let full = folder.path().join("full");
                let store = format!("file://{}/store", full.display());
                let command = on_a_full_disk(&coordinator(&store)?, &full)?;
                ends_with(command, &["waiting for the store", "free some room"])?;
                // The background process of the shell ends, too.
                Ok(std::fs::write(full.with_extension("room"), "now\n")?)
            }
            "coordinator" => ends_with(
                worker(folder.path(), UNKNOWN_HOST)?,
                &[UNKNOWN_HOST, "cannot be used", "waiting does not help"],
            ),
            _ => ends_with(
                worker(folder.path(), &format!("http://{}", other.address()))?,
                &["stream to the coordinator broke", "waiting does not help"],
            ),
        }
    })
}

#[test]
fn a_coordinator_with_a_store_that_is_wrong_ends_at_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("file");
    std::fs::write(&file, "x")?;
    let below = format!("file://{}/store", file.display());
    ends_with(coordinator(&below)?, &["Not a directory", &below])?;
    ends_with(coordinator("ftp://x/y")?, &["only file:// and s3://"])?;
    ends_with(coordinator("./here")?, &["file:///absolute/folder"])?;
    let mut command = coordinator("s3://bucket/state")?;
    command
        .env("AWS_ENDPOINT", "http://127.0.0.1:9")
        .env_remove("AWS_ALLOW_HTTP")
        .env("AWS_ACCESS_KEY_ID", "k")
        .env("AWS_SECRET_ACCESS_KEY", "s");
    ends_with(command, &["AWS_ALLOW_HTTP=true"])
}

/// Runs `command` with a file system of 256 KiB at `folder`, which is full until a line is written
/// to the pipe `folder.room`. Only the command sees the file system.
fn on_a_full_disk(command: &Command, folder: &Path) -> Result<Command> {
    std::fs::create_dir_all(folder)?;
    let pipe = folder.with_extension("room");
    let made = Command::new("mkfifo").arg(&pipe).status()?;
    ensure!(made.success(), "mkfifo {}", pipe.display());
    let script = "mount -t tmpfs -o size=256k tmpfs \"$1\" || exit 99
        head -c 1000000 /dev/zero >\"$1/fill\" 2>/dev/null
        (read -r line <\"$2\"; rm \"$1/fill\") >/dev/null 2>&1 &
        shift 2; exec \"$@\"";
    let mut full = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        full.args(["--user", "--map-root-user"]);
    }
    full.args(["--mount", "sh", "-c", script, "sh"])
        .args([folder, &pipe])
        .arg(command.get_program())
        .args(command.get_args());
    for (key, value) in command.get_envs() {
        full.env(key, value.context("a variable is set")?);
    }
    Ok(full)
}

#[test]
fn a_coordinator_on_a_full_disk_says_so_obeys_signals_and_starts_when_there_is_room() -> Result<()>
{
    for name in SIGNALS {
        let folder = tempfile::tempdir()?;
        let full = folder.path().join("full");
        let store = format!("file://{}/store", full.display());
        let command = on_a_full_disk(&coordinator(&store)?, &full)?;
        let output = stop_at(command, "waiting for the store: ", name)?;
        ensure!(
            output.contains("No space left on device") && output.contains("free some room"),
            "{output}"
        );
        // The background process of the shell ends, too.
        std::fs::write(full.with_extension("room"), "now\n")?;
    }
    let folder = tempfile::tempdir()?;
    let full = folder.path().join("full");
    let store = format!("file://{}/store", full.display());
    let command = on_a_full_disk(&coordinator(&store)?, &full)?;
    let waiting = "waiting for the store: ";
    let process = Process::start("daemon", command, folder.path(), waiting)?;
    std::fs::write(full.with_extension("room"), "now\n")?;
    process.wait_for("coordinator ready rpc=http")?;
    process.terminate()
}

#[test]
fn a_daemon_says_how_its_coordinator_is_missing_and_obeys_every_signal_meanwhile() -> Result<()> {
    let mute = FakeS3::start(Failure::Mute)?;
    let other = FakeS3::start(Failure::Busy)?;
    let unreached = "waiting for the coordinator, which cannot be reached";
    let broken = "stream to the coordinator broke";
    let urls = [
        ("http://127.0.0.1:9".to_owned(), unreached),
        (UNKNOWN_HOST.to_owned(), unreached),
        (format!("http://{}", mute.address()), broken),
        // Something that is no coordinator.
        (format!("http://{}", other.address()), broken),
    ];
    let cases: Vec<_> = urls
        .iter()
        .flat_map(|(url, line)| SIGNALS.map(|signal| (url, line, signal)))
        .collect();
    all(&cases, |(url, line, signal)| {
        let folder = tempfile::tempdir()?;
        let output = stop_at(worker(folder.path(), url)?, line, signal)?;
        ensure!(
            output.contains(url.as_str()) && output.contains(&format!("signal=SIG{signal}")),
            "{output}"
        );
        Ok(())
    })
}

#[test]
fn a_daemon_whose_folders_cannot_be_used_ends_with_the_cause() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("file");
    std::fs::write(&file, "x")?;
    let long = folder.path().join("x".repeat(120));
    for (variable, path, parts) in [
        ("RETRI_WORKER__RUN_DIR", &long, ["`run_dir`", "at most 87"]),
        ("RETRI_WORKER__RUN_DIR", &file, ["`run_dir`", "exists"]),
        ("RETRI_WORKER__CACHE_DIR", &file, ["`cache_dir`", "exists"]),
    ] {
        let mut command = worker(folder.path(), "http://127.0.0.1:9")?;
        command.env(variable, path);
        let path = path.display().to_string();
        ends_with(command, &[parts[0], parts[1], &path])?;
    }
    ensure!(!long.exists(), "it is refused before it is made");
    Ok(())
}

#[test]
fn an_ignored_hangup_stays_ignored() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = FakeS3::start(Failure::Busy)?;
    let mut command = Command::new("sh");
    // As nohup does.
    command.args(["-c", "trap '' HUP; exec \"$0\" serve"]);
    command.arg(binary("coordinator")?);
    let plain = coordinator("s3://bucket/state")?;
    for (key, value) in plain.get_envs() {
        command.env(key, value.context("a variable is set")?);
    }
    command.envs(server.environment());
    let waiting = "waiting for the store: ";
    let process = Process::start("daemon", command, folder.path(), waiting)?;
    signal("HUP", process.id())?;
    signal("TERM", process.id())?;
    let (status, output) = process.wait()?;
    ensure!(
        status.success() && output.contains("signal=SIGTERM") && !output.contains("SIGHUP"),
        "{status}\n{output}"
    );
    Ok(())
}
