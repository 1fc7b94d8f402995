//! Output without a reader, without room, or with a reader that has stopped reading, in real
//! processes: daemons go on, commands end quietly, and nobody panics.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, pipe};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tests::cluster::command::run;
use tests::cluster::process::signal;
use tests::cluster::{binary, checkout};

/// What shells report of a program that SIGPIPE has killed.
const READER_GONE: i32 = 141;

/// A process that is killed with the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Killed {
    /// Sends SIGTERM; the exit must be orderly.
    fn terminate(mut self) -> Result<()> {
        signal("TERM", self.0.id())?;
        let status = self.0.wait()?;
        ensure!(status.success(), "{status}");
        Ok(())
    }
}

fn serve(folder: &Path) -> Result<Command> {
    let mut command = Command::new(binary("coordinator")?);
    command
        .arg("serve")
        .env("RETRI_COORDINATOR__LISTEN", "127.0.0.1:0")
        .env("RETRI_COORDINATOR__METRICS_LISTEN", "127.0.0.1:0")
        .env("RETRI_COORDINATOR__WEB_LISTEN", "127.0.0.1:0")
        .env(
            "RETRI_COORDINATOR__STORE",
            format!("file://{}/store", folder.display()),
        )
        .stdin(Stdio::null());
    Ok(command)
}

/// Reads lines until one contains `part`; returns it.
fn wait_for(stream: &mut impl BufRead, part: &str) -> Result<String> {
    for line in stream.lines() {
        let line = line?;
        if line.contains(part) {
            return Ok(line);
        }
    }
    anyhow::bail!("the output ended without {part:?}")
}

/// The URL in the coordinator's first line.
fn url(ready: &str) -> Result<String> {
    let url = ready
        .split_whitespace()
        .find_map(|it| it.strip_prefix("rpc="));
    Ok(url
        .with_context(|| format!("no rpc= in {ready:?}"))?
        .to_owned())
}

/// The coordinator answers, and logs lines: a worker that attaches and is drained.
fn works(folder: &Path, url: &str) -> Result<()> {
    let mut worker = Command::new(binary("worker")?);
    worker
        .arg("daemon")
        .env("RETRI_WORKER__NAME", "w1")
        .env("RETRI_WORKER__COORDINATOR", url)
        .env("RETRI_WORKER__METRICS_LISTEN", "127.0.0.1:0")
        .env("RETRI_WORKER__RUN_DIR", folder.join("run"))
        .env("RETRI_WORKER__CACHE_DIR", folder.join("cache"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut worker = Killed(worker.spawn()?);
    let log = worker.0.stderr.take().context("stderr was asked for")?;
    let mut log = BufReader::new(log);
    wait_for(&mut log, "attached to the coordinator")?;
    let command = |words: &[&str]| -> Result<String> {
        let mut command = Command::new(binary("coordinator")?);
        command.args(words).env("COORDINATOR_URL", url);
        run(command)?.success()
    };
    ensure!(command(&["drain", "w1"])?.contains("w1"));
    ensure!(command(&["workers"])?.contains("drained"));
    // Nobody reads the worker's log from now on; it is asked to write more.
    drop(log);
    ensure!(command(&["undrain", "w1"])?.contains("w1"));
    worker.terminate()
}

#[test]
fn a_coordinator_lives_on_when_the_reader_of_its_log_leaves() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (reader, writer) = pipe()?;
    let mut command = serve(folder.path())?;
    command.stdout(writer.try_clone()?).stderr(writer);
    let coordinator = Killed(command.spawn()?);
    // Otherwise the test itself would keep the pipe open.
    drop(command);
    let mut reader = BufReader::new(reader);
    let url = url(&wait_for(&mut reader, "coordinator ready rpc=http")?)?;
    drop(reader);
    works(folder.path(), &url)?;
    coordinator.terminate()
}

#[test]
fn a_coordinator_starts_and_works_without_any_stream_or_without_room() -> Result<()> {
    for redirection in [
        // Closed, as by some init systems. Stdout must carry the address here.
        "exec \"$0\" serve <&- 2>&-",
        "exec \"$0\" serve 2>/dev/full",
    ] {
        let folder = tempfile::tempdir()?;
        let mut command = Command::new("sh");
        command
            .args(["-c", redirection])
            .arg(binary("coordinator")?);
        for (key, value) in serve(folder.path())?.get_envs() {
            command.env(key, value.context("a variable is set")?);
        }
        let mut coordinator = Killed(command.stdout(Stdio::piped()).spawn()?);
        let out = coordinator.0.stdout.take().context("it was asked for")?;
        let ready = wait_for(&mut BufReader::new(out), "coordinator ready")?;
        works(folder.path(), &url(&ready)?)?;
        coordinator.terminate()?;
    }
    // Stdout is closed or full from the start; the log has the address, too.
    for redirection in ["exec \"$0\" serve >&-", "exec \"$0\" serve >/dev/full"] {
        let folder = tempfile::tempdir()?;
        let mut command = Command::new("sh");
        command
            .args(["-c", redirection])
            .arg(binary("coordinator")?);
        for (key, value) in serve(folder.path())?.get_envs() {
            command.env(key, value.context("a variable is set")?);
        }
        let mut coordinator = Killed(command.stderr(Stdio::piped()).spawn()?);
        let log = coordinator.0.stderr.take().context("it was asked for")?;
        let mut log = BufReader::new(log);
        let ready = wait_for(&mut log, "coordinator ready")?;
        let rpc = url(&ready)?;
        works(folder.path(), &format!("http://{rpc}"))?;
        coordinator.terminate()?;
    }
    Ok(())
}

#[test]
fn a_reader_that_stops_reading_does_not_stop_a_daemon() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut command = Command::new("sh");
    // A pipe holds 64 KiB: its reader, this test, reads nothing, so the first line of the log finds
    // no room.
    let script = "head -c 65536 /dev/zero >&2; exec \"$0\" serve";
    command.args(["-c", script]).arg(binary("coordinator")?);
    for (key, value) in serve(folder.path())?.get_envs() {
        command.env(key, value.context("a variable is set")?);
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut coordinator = Killed(command.spawn()?);
    // Neither stream can be read for the address, so it is looked up in /proc.
    let url = listening(&mut coordinator.0)?;
    works(folder.path(), &url)?;
    let mut log = coordinator.0.stderr.take().context("it was asked for")?;
    coordinator.terminate()?;
    // Everything else is lost, and no line is torn: what is there are the zeros.
    let mut text = Vec::new();
    log.read_to_end(&mut text)?;
    ensure!(text.iter().take(65536).all(|byte| *byte == 0));
    Ok(())
}

/// The URL at which the process answers commands: the one of its listening ports that speaks our
/// protocol. Returns when there is one.
fn listening(process: &mut Child) -> Result<String> {
    loop {
        let ended = process.try_wait()?;
        ensure!(ended.is_none(), "it ended: {ended:?}");
        for port in listening_ports(process.id())? {
            let url = format!("http://127.0.0.1:{port}");
            let mut command = Command::new(binary("coordinator")?);
            command.args(["jobs"]).env("COORDINATOR_URL", &url);
            if run(command)?.success().is_ok() {
                return Ok(url);
            }
        }
    }
}

/// From /proc: the sockets that the process has open, among those that listen.
fn listening_ports(pid: u32) -> Result<Vec<u16>> {
    let mut inodes = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        // A descriptor may be closed meanwhile.
        let Ok(target) = std::fs::read_link(entry?.path()) else {
            continue;
        };
        let target = target.display().to_string();
        let inode = target
            .strip_prefix("socket:[")
            .and_then(|it| it.strip_suffix(']'));
        inodes.extend(inode.map(str::to_owned));
    }
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp"))?;
    let ports = table.lines().skip(1).filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (address, state, inode) = (words.get(1)?, words.get(3)?, words.get(9)?);
        let is_own = *state == "0A" && inodes.iter().any(|it| it == inode);
        let port = address.split_once(':')?.1;
        is_own.then(|| u16::from_str_radix(port, 16).ok())?
    });
    Ok(ports.collect())
}

/// Runs a command whose stdout (and stderr, if `both`) has no reader.
fn without_reader(
    program: &str,
    arguments: &[&str],
    folder: &Path,
    both: bool,
) -> Result<(Option<i32>, String)> {
    let (reader, writer) = pipe()?;
    drop(reader);
    let mut command = Command::new(binary(program)?);
    command
        .args(arguments)
        .current_dir(folder)
        .stdin(File::open(folder.join("prompts"))?)
        .stdout(writer.try_clone()?);
    if both {
        command.stderr(writer);
    } else {
        command.stderr(Stdio::piped());
    }
    let child = command.spawn()?;
    drop(command);
    let output = child.wait_with_output()?;
    Ok((
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    ))
}

#[test]
fn commands_end_quietly_without_a_reader_and_with_a_cause_without_room() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let here = folder.path();
    std::fs::write(here.join("prompts"), "\"1girl\"\n\"solo\"\n")?;
    let figures = [
        "dataset",
        "synthesize",
        "--characters",
        "2",
        "--outfits",
        "1",
        "--images",
        "2",
        "--size",
        "32",
        "--out",
        "figures",
    ];
    let mut made = Command::new(binary("coordinator")?);
    made.args(figures).current_dir(here);
    run(made)?.success()?;
    std::fs::copy(
        checkout().join("deploy/jobs/demo.toml"),
        here.join("job.toml"),
    )?;
    for (program, arguments) in [
        ("coordinator", &["dataset", "describe", "figures"][..]),
        (
            "coordinator",
            &["dataset", "verify", "figures", "--output", "json"],
        ),
        ("worker", &["tokenize"]),
        ("worker", &["doctor"]),
    ] {
        for both in [false, true] {
            let (code, said) = without_reader(program, arguments, here, both)?;
            ensure!(
                code == Some(READER_GONE) && said.is_empty(),
                "{program} {arguments:?}: {code:?} {said:?}"
            );
        }
        let mut full = Command::new(binary(program)?);
        full.args(arguments)
            .current_dir(here)
            .stdin(File::open(here.join("prompts"))?)
            .stdout(File::options().write(true).open("/dev/full")?);
        let output = full.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        let error = "No space left on device (os error 28)";
        ensure!(
            output.status.code() == Some(1)
                && said == format!("error: cannot write to standard output: {error}\n"),
            "{program} {arguments:?}: {} {said:?}",
            output.status
        );
    }
    for (program, arguments) in [
        ("coordinator", &["--help"][..]),
        ("worker", &["--help"]),
        // The error itself has no reader.
        ("coordinator", &["dataset", "describe", "nowhere"]),
        ("worker", &["daemon", "--config", "nowhere"]),
        ("coordinator", &["serve", "--config", "nowhere"]),
    ] {
        let (code, _) = without_reader(program, arguments, here, true)?;
        ensure!(
            matches!(code, Some(0..=2)),
            "{program} {arguments:?}: {code:?}"
        );
    }
    Ok(())
}

#[test]
fn an_import_does_its_work_whoever_reads_its_remarks() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let here = folder.path();
    std::fs::write(here.join("prompts"), "")?;
    let input = here.join("in");
    std::fs::create_dir(&input)?;
    let row = |id: usize, image: &str| {
        format!(
            "{{\"id\":\"{id}\",\"character\":\"c\",\"artists\":\"x\",\"outfit\":\"o\",\
             \"prompts\":\"a\",\"bbox\":[0.5,0.25,0.5,0.3],\"image\":\"{image}\"}}\n"
        )
    };
    // Far more remarks than a pipe holds.
    let rows: String = std::iter::once(row(0, "p.png"))
        .chain((1..3000).map(|id| row(id, &format!("missing{id}.png"))))
        .collect();
    std::fs::write(input.join("samples.jsonl"), rows)?;
    let mut image = image::RgbaImage::from_pixel(64, 64, image::Rgba([200, 30, 30, 255]));
    for y in 0..64 {
        for x in 0..10 {
            image.put_pixel(x, y, image::Rgba([0, 0, 0, 0]));
        }
    }
    image.save(input.join("p.png"))?;
    for (out, both) in [("first", false), ("second", true)] {
        let arguments = ["dataset", "import", "in", "--out", out];
        let (code, said) = without_reader("coordinator", &arguments, here, both)?;
        ensure!(code == Some(READER_GONE), "{code:?} {said}");
        ensure!(!said.contains("panicked"), "{said}");
        let mut verify = Command::new(binary("coordinator")?);
        verify.args(["dataset", "verify", out]).current_dir(here);
        ensure!(run(verify)?.success()?.contains("1 samples read"));
    }
    Ok(())
}

#[test]
fn a_log_on_a_terminal_has_colours_unless_they_are_not_wanted() -> Result<()> {
    for (variables, has_colours) in [
        ("TERM=xterm", true),
        ("TERM=xterm NO_COLOR=1", false),
        ("TERM=xterm NO_COLOR=", true),
        ("TERM=dumb", false),
        ("-u TERM", false),
    ] {
        let folder = tempfile::tempdir()?;
        let program = binary("coordinator")?;
        let command = format!("env -u NO_COLOR {variables} {} serve", program.display());
        let mut script = Command::new("script");
        script
            .args(["--quiet", "--return", "--command", &command, "/dev/null"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        for (key, value) in serve(folder.path())?.get_envs() {
            script.env(key, value.context("a variable is set")?);
        }
        let mut terminal = Killed(script.spawn()?);
        let out = terminal.0.stdout.take().context("it was asked for")?;
        let line = wait_for(&mut BufReader::new(out), "state restored")?;
        ensure!(
            line.contains("\x1b[") == has_colours,
            "{variables}: {line:?}"
        );
    }
    Ok(())
}
