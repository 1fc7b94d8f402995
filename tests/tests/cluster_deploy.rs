//! The files in deploy/ match the programs: systemd units start existing commands with existing
//! files, the real daemons accept the example settings, and every metric that is named is served.

use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use tests::cluster::command::run;
use tests::cluster::process::Process;
use tests::cluster::{binary, checkout};
use worker_core::GRACE;

fn read(file: &str) -> Result<String> {
    std::fs::read_to_string(checkout().join(file)).with_context(|| format!("reading {file}"))
}

/// The values of every `Key=value` line of a unit, by `Section.Key`.
fn unit(file: &str) -> Result<BTreeMap<String, Vec<String>>> {
    let mut section = String::new();
    let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in read(file)?
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            name.clone_into(&mut section);
        } else {
            let (key, value) = line
                .split_once('=')
                .with_context(|| format!("{file}: {line:?} is not `Key=value`"))?;
            values
                .entry(format!("{section}.{key}"))
                .or_default()
                .push(value.to_owned());
        }
    }
    Ok(values)
}

/// The setting in the shipped configuration.
fn detect_within_ms() -> Result<u64> {
    let settings = read("deploy/coordinator.toml")?;
    let value = settings
        .lines()
        .find_map(|line| line.strip_prefix("detect_within_ms = "));
    Ok(value
        .context("detect_within_ms in deploy/coordinator.toml")?
        .parse()?)
}

fn check_unit(role: &str, subcommand: &str) -> Result<()> {
    let file = format!("deploy/systemd/retri-{role}.service");
    let unit = unit(&file)?;
    let one = |key: &str| match unit.get(key).map(Vec::as_slice) {
        Some([value]) => Ok(value.as_str()),
        other => Err(anyhow::anyhow!(
            "{file}: {key} should be set once, and is {other:?}"
        )),
    };
    for (key, value) in [
        // The daemons call sd_notify; without this systemd would consider them ready too early.
        ("Service.Type", "notify"),
        ("Service.Restart", "always"),
        ("Unit.StartLimitIntervalSec", "0"),
        // Only the daemon gets SIGTERM; it stops its children itself.
        ("Service.KillMode", "mixed"),
        ("Service.DynamicUser", "yes"),
        ("Service.StateDirectory", "retri"),
        ("Service.EnvironmentFile", "-/etc/retri/s3.env"),
        // More than `RESERVED_FILES`, all workers and all other connections take.
        ("Service.LimitNOFILE", "65536"),
        ("Install.WantedBy", "multi-user.target"),
    ] {
        ensure!(
            one(key)? == value,
            "{file}: {key} is {}, it should be {value}",
            one(key)?
        );
    }
    for key in ["Service.MemoryMax", "Service.TasksMax"] {
        ensure!(
            !matches!(one(key)?, "" | "infinity"),
            "{file}: {key} is no limit"
        );
    }
    let seconds: u64 = one("Service.TimeoutStopSec")?.parse()?;
    if role == "worker" {
        // What a daemon exits with that another one of its name has displaced.
        ensure!(one("Service.RestartPreventExitStatus")? == "78", "{file}");
        let needs = (GRACE + 1) * detect_within_ms()? / 1000;
        ensure!(
            needs < seconds,
            "{file}: a worker may need {needs} s to shut down"
        );
    }
    let start = one("Service.ExecStart")?;
    let expected = format!("/opt/retri/bin/{role} {subcommand} --config /etc/retri/{role}.toml");
    ensure!(
        start == expected,
        "{file}: ExecStart is {start:?}, it should be {expected:?}"
    );
    let mut help = Command::new(binary(role)?);
    help.args([subcommand, "--help"]);
    ensure!(
        run(help)?.success()?.contains("--config"),
        "`{role} {subcommand}` does not take --config"
    );
    Ok(())
}

#[test]
fn the_units_start_what_exists() -> Result<()> {
    check_unit("coordinator", "serve")?;
    check_unit("worker", "daemon")
}

#[test]
fn the_worker_writes_only_where_its_unit_lets_it() -> Result<()> {
    let unit = unit("deploy/systemd/retri-worker.service")?;
    let config = read("deploy/worker.toml")?;
    for (key, parent, field) in [
        ("RuntimeDirectory", "/run/", "run_dir"),
        ("CacheDirectory", "/var/cache/", "cache_dir"),
    ] {
        let folder = &unit
            .get(&format!("Service.{key}"))
            .with_context(|| format!("no {key}"))?[0];
        let line = format!("{field} = \"{parent}{folder}\"");
        ensure!(
            config.contains(&line),
            "deploy/worker.toml should say {line}, as the unit has {key}={folder}"
        );
    }
    Ok(())
}

/// Starts the daemon with the example file. Environment variables override ports and folders; all
/// other values come from the file, whose keys must all be known.
fn check_example(
    role: &str,
    subcommand: &str,
    ready: &str,
    overrides: &[(&str, &str)],
) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let expand = |value: &str| value.replace("{}", &directory.path().display().to_string());
    let mut command = Command::new(binary(role)?);
    command
        .args([subcommand, "--config"])
        .arg(checkout().join(format!("deploy/{role}.toml")));
    command.envs(overrides.iter().map(|(name, value)| (name, expand(value))));
    Process::start(role, command, directory.path(), ready)?.terminate()
}

#[test]
fn the_example_settings_are_taken() -> Result<()> {
    let overrides = [
        ("RETRI_COORDINATOR__LISTEN", "127.0.0.1:0"),
        ("RETRI_COORDINATOR__METRICS_LISTEN", "127.0.0.1:0"),
        ("RETRI_COORDINATOR__WEB_LISTEN", "127.0.0.1:0"),
        ("RETRI_COORDINATOR__STORE", "file://{}/store"),
    ];
    check_example(
        "coordinator",
        "serve",
        "coordinator ready rpc=http",
        &overrides,
    )?;
    let overrides = [
        ("RETRI_WORKER__METRICS_LISTEN", "127.0.0.1:0"),
        ("RETRI_WORKER__RUN_DIR", "{}/run"),
        ("RETRI_WORKER__CACHE_DIR", "{}/cache"),
    ];
    check_example("worker", "daemon", "worker ready name=", &overrides)
}

#[test]
fn installing_keeps_settings_that_are_there() -> Result<()> {
    let root = tempfile::tempdir()?;
    let install = || -> Result<()> {
        let mut command = Command::new(checkout().join("deploy/systemd/install.sh"));
        command
            .arg("coordinator")
            .env("DESTDIR", root.path())
            // The programs of `make test`. A release build is for real nodes.
            .env("PROFILE", "debug")
            .env_remove("CUDA");
        run(command)?.success()?;
        Ok(())
    };
    install()?;
    for file in [
        "opt/retri/bin/coordinator",
        "etc/systemd/system/retri-coordinator.service",
        "etc/retri/s3.env",
    ] {
        ensure!(root.path().join(file).is_file(), "{file} was not installed");
    }
    let link = std::fs::read_link(root.path().join("usr/local/bin/coordinator"))?;
    ensure!(
        link == Path::new("/opt/retri/bin/coordinator"),
        "the link on PATH points to {}",
        link.display()
    );
    let config = root.path().join("etc/retri/coordinator.toml");
    std::fs::write(&config, "# ours\n")?;
    install()?;
    ensure!(
        std::fs::read_to_string(&config)? == "# ours\n",
        "a second install replaced the node's settings"
    );
    Ok(())
}

/// A checkout that is somebody else's, with what `make release` makes, and every right on it for
/// all.
fn build_of_another_user(checkout_copy: &Path) -> Result<()> {
    let programs = ["worker", "worker-rank", "worker-build", "coordinator"];
    let programs = programs.map(|name| checkout_copy.join("target/debug").join(name));
    let libraries = ["libtorch/lib/libtorch_cpu.so", "libtorch/lib/sub/libc10.so"];
    let libraries = libraries.map(|file| checkout_copy.join(file));
    for file in programs.iter().chain(&libraries) {
        std::fs::create_dir_all(file.parent().context("a folder above")?)?;
        std::fs::write(file, "#!/bin/sh\n")?;
    }
    std::os::unix::fs::symlink("libtorch", checkout_copy.join(".libtorch"))?;
    let mut copy = Command::new("cp");
    copy.arg("-r")
        .arg(checkout().join("deploy"))
        .arg(checkout_copy);
    run(copy)?.success()?;
    let mut open = Command::new("chmod");
    open.args(["-R", "a+rwX"]).arg(checkout_copy);
    open.arg(checkout_copy.join("target/debug"));
    run(open)?.success()?;
    let mut executable = Command::new("chmod");
    executable.arg("a+x").args(&programs);
    run(executable)?.success()?;
    // Only root can give files away; for others the rights alone are checked.
    if rustix::process::geteuid().is_root() {
        let mut give = Command::new("chown");
        give.args(["-hR", "1001:1001"]).arg(checkout_copy);
        run(give)?.success()?;
    }
    Ok(())
}

#[test]
fn what_is_installed_can_be_changed_by_the_installing_user_alone() -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let (build, root) = (tempfile::tempdir()?, tempfile::tempdir()?);
    build_of_another_user(build.path())?;
    let mut install = Command::new(build.path().join("deploy/systemd/install.sh"));
    install.arg("worker").env("DESTDIR", root.path());
    install.env("PROFILE", "debug").env_remove("CUDA");
    run(install)?.success()?;
    let own = rustix::process::geteuid().as_raw();
    let mut folders = vec![root.path().to_owned()];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            let found = std::fs::symlink_metadata(&path)?;
            let shown = path.display();
            ensure!(
                found.uid() == own,
                "{shown} belongs to user {}",
                found.uid()
            );
            let mode = found.mode() & 0o7777;
            let others = mode & 0o022;
            ensure!(
                found.is_symlink() || others == 0,
                "{shown} has mode {mode:o}"
            );
            if found.is_dir() {
                folders.push(path);
            } else {
                files += 1;
            }
        }
    }
    ensure!(8 <= files, "only {files} files were installed");
    let library = root.path().join("opt/retri/torch/lib/sub/libc10.so");
    ensure!(library.is_file(), "{} is missing", library.display());
    Ok(())
}

/// Every word of `text` that has the prefix of our metrics.
fn metrics_in(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("retri_"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_metric_that_is_named_is_served() -> Result<()> {
    let tables = proto::metric::TABLES.iter();
    let served: BTreeSet<String> = tables
        .flat_map(|(_, table)| table.iter())
        .map(|metric| metric.name.to_owned())
        .collect();
    let file = "deploy/README.md";
    let named = metrics_in(&read(file)?);
    ensure!(!named.is_empty(), "{file} names no metric");
    let unknown: Vec<&String> = named.difference(&served).collect();
    ensure!(
        unknown.is_empty(),
        "{file} names {unknown:?}, which no daemon serves"
    );
    Ok(())
}

#[test]
fn every_file_that_the_runbook_names_exists() -> Result<()> {
    let text = read("deploy/README.md")?;
    for path in text.split('`').skip(1).step_by(2) {
        let ours = ["deploy/", "coordinator/", "worker/"]
            .iter()
            .any(|top| path.starts_with(top));
        if ours && !path.contains(' ') {
            ensure!(
                Path::new(&checkout()).join(path).exists(),
                "deploy/README.md names {path}, which does not exist"
            );
        }
    }
    Ok(())
}
