//! Output and exit codes of commands that need no cluster, in real processes.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use tests::cluster::binary;

fn run(program: &str, folder: &Path, arguments: &[&str]) -> Output {
    Command::new(binary(program).unwrap())
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

/// Stdout of a command that must succeed.
fn succeed(program: &str, folder: &Path, arguments: &[&str]) -> String {
    let output = run(program, folder, arguments);
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Stderr of a command that must fail with exit code 1.
fn fail(program: &str, folder: &Path, arguments: &[&str]) -> String {
    let output = run(program, folder, arguments);
    assert_eq!(
        output.status.code(),
        Some(1),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stdout)
    );
    String::from_utf8(output.stderr).unwrap()
}

fn figures(folder: &Path, out: &str) -> String {
    let sizes = [
        "--characters",
        "3",
        "--outfits",
        "1",
        "--images",
        "4",
        "--size",
        "32",
    ];
    let arguments = [
        ["dataset", "synthesize", "--out", out, "--seed", "5"].as_slice(),
        &sizes,
    ]
    .concat();
    succeed("coordinator", folder, &arguments)
}

#[test]
fn figures_are_drawn_described_verified_and_the_same_again() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    assert!(figures(here, "first").contains("12 samples of 3 characters"));
    figures(here, "second");
    let listed = |name: &str| {
        let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(here.join(name))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| {
                (
                    path.file_name().unwrap().to_str().unwrap().to_owned(),
                    std::fs::read(path).unwrap(),
                )
            })
            .collect();
        files.sort();
        files
    };
    assert_eq!(
        listed("first"),
        listed("second"),
        "the same seed gives the same bytes"
    );
    let described = succeed(
        "coordinator",
        here,
        &["dataset", "describe", "first", "--output", "json"],
    );
    let described: Value = serde_json::from_str(&described).unwrap();
    assert_eq!(described["samples"], 12, "{described}");
    assert!(
        succeed("coordinator", here, &["dataset", "verify", "first"])
            .contains("12 samples read: all good")
    );

    // Change one byte of an image: `verify` names its file.
    let (name, mut bytes) = listed("first")
        .into_iter()
        .find(|(name, _)| name.starts_with("samples"))
        .unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(here.join("first").join(&name), bytes).unwrap();
    let output = run("coordinator", here, &["dataset", "verify", "first"]);
    assert_eq!(output.status.code(), Some(1));
    let output_text = [output.stdout, output.stderr].concat();
    assert!(String::from_utf8(output_text).unwrap().contains(&name));
}

#[test]
fn what_a_job_shows_its_model_can_be_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    figures(here, "figures");
    let job = "name = \"show\"\n[data]\ndataset = \"figures\"\nresolution = 32\nreferences = \
    2\n[model]\n\
               architecture = \"retrinet\"\nsize = \"tiny\"\n[train]\nsteps = 1\nglobal_batch = \
    4\nmicro_batch = 2\n";
    std::fs::write(here.join("job.toml"), job).unwrap();
    let preview = [
        "dataset", "preview", "--job", "job.toml", "--out", "grid.png", "--output", "json",
    ];
    let shown: Value = serde_json::from_str(&succeed("coordinator", here, &preview)).unwrap();
    let samples = shown["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 4);
    for sample in samples {
        let references = sample["references"].as_array().unwrap();
        assert_eq!(references.len(), 2);
        assert!(
            references.iter().all(|it| it["id"] != sample["id"]),
            "pairing b: {sample}"
        );
    }
    let png = std::fs::read(here.join("grid.png")).unwrap();
    assert!(png.starts_with(b"\x89PNG"));
    assert_eq!(
        shown,
        serde_json::from_str::<Value>(&succeed("coordinator", here, &preview)).unwrap()
    );
    let wrong = fail(
        "coordinator",
        here,
        &[
            "dataset", "preview", "nowhere", "--job", "job.toml", "--out", "x.png",
        ],
    );
    assert!(wrong.contains("nowhere"), "{wrong}");
}

/// A folder to import: two good rows, and two that are rejected. Returns a job on `figures`.
fn folder_to_import(here: &Path) -> String {
    let import = here.join("import");
    std::fs::create_dir(&import).unwrap();
    // The image is a grid from `dataset preview`.
    figures(here, "figures");
    let job = "name = \"show\"\n[data]\ndataset = \"figures\"\nresolution = \
    32\n[model]\narchitecture = \"autoencoder\"\n\
               size = \"tiny\"\n[train]\nsteps = 1\nglobal_batch = 1\nmicro_batch = 1\n";
    std::fs::write(here.join("job.toml"), job).unwrap();
    succeed(
        "coordinator",
        here,
        &[
            "dataset",
            "preview",
            "--job",
            "job.toml",
            "--out",
            "import/a.png",
        ],
    );
    std::fs::copy(import.join("a.png"), import.join("b.png")).unwrap();
    let (width, height) = image::image_dimensions(import.join("a.png")).unwrap();
    let value = |x, _| image::Luma([if x < width * 3 / 4 { 255 } else { 0 }]);
    let mask = image::GrayImage::from_fn(width, height, value);
    mask.save(import.join("mask.png")).unwrap();
    let row = |id: &str, image: &str| {
        format!(
            "{{\"id\":\"{id}\",\"character\":\"c\",\"artists\":\"x\",\
             \"bbox\":[0.5,0.3,0.2,0.2],\"prompts\":\"1girl\",\
             \"outfit\":\"o\",\"image\":\"{image}\",\"mask\":\"mask.png\"}}\n"
        )
    };
    let rated = row("1", "a.png").replace("\"image\"", "\"rating\":\"Explicit\",\"image\"");
    let rows = [
        // As a Windows editor saves it.
        format!("\u{feff}{rated}"),
        row("2", "b.png"),
        row("3", "missing.png"),
        "no json\n".to_owned(),
    ]
    .concat();
    std::fs::write(import.join("samples.jsonl"), rows).unwrap();
    job.to_owned()
}

#[test]
fn an_import_reports_each_rejected_row_and_strict_makes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    folder_to_import(here);
    let strict = fail(
        "coordinator",
        here,
        &["dataset", "import", "import", "--out", "strict", "--strict"],
    );
    assert!(
        strict.contains("samples.jsonl:3: rejected")
            && strict.contains("samples.jsonl:4: rejected"),
        "{strict}"
    );
    assert!(strict.contains("no data set was made"), "{strict}");
    assert!(!here.join("strict/dataset.json").exists());
    let output_text = succeed(
        "coordinator",
        here,
        &["dataset", "import", "import", "--out", "out"],
    );
    assert!(
        output_text.contains(
            "4 rows read, 2 accepted, 2 rejected, 0 similar entries dropped, 0 identities split, \
             0 face boxes guessed, 0 without"
        ),
        "{output_text}"
    );
    let counted = "ratings: 1 explicit, 1 unrated\nno prompt is longer than the 77 tokens of \
                   CLIP\nof 2 images are smaller in pixels: 2 than 256, 2 than 384, ";
    assert!(output_text.contains(counted), "{output_text}");
    let changed = "\nchanged or guessed, in samples:\n  \
                   1: byte order mark (BOM) at the start of a line skipped (for instance line \
                   1)\n  \
                   1: short or capitalised rating spelled out (for instance line 1: \"Explicit\" \
                   is explicit)\n";
    assert!(output_text.contains(changed), "{output_text}");
    succeed("coordinator", here, &["dataset", "verify", "out"]);
}

#[test]
fn a_job_gets_the_ratings_that_it_names_and_is_told_what_it_does_not_get() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let job = folder_to_import(here);
    let import = ["dataset", "import", "import", "--out", "out"];
    succeed("coordinator", here, &import);
    let out = job.replace("\"figures\"", "\"out\"");
    let preview = [
        "dataset",
        "preview",
        "--job",
        "rated.toml",
        "--out",
        "grid.png",
    ];
    std::fs::write(here.join("rated.toml"), &out).unwrap();
    let nothing = fail("coordinator", here, &preview);
    let left_out = "2 samples are left out by their rating (1 explicit, 1 unrated): data.ratings \
                    is general, sensitive";
    assert!(nothing.contains(left_out), "{nothing}");
    let named = out.replace("[model]", "ratings = [\"explicit\"]\n[model]");
    std::fs::write(here.join("rated.toml"), named).unwrap();
    let shown = succeed("coordinator", here, &preview);
    let left_out = "1 samples are left out by their rating (1 unrated): data.ratings is explicit";
    assert!(shown.contains(left_out), "{shown}");
}

#[test]
fn a_reader_that_leaves_is_no_panic() {
    let folder = tempfile::tempdir().unwrap();
    figures(folder.path(), "figures");
    let mut child = Command::new(binary("coordinator").unwrap())
        .args(["dataset", "describe", "figures"])
        .current_dir(folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[test]
fn the_doctor_says_what_is_wrong_and_its_exit_code_too() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    std::fs::create_dir(here.join("store")).unwrap();
    let store = format!("file://{}", here.join("store").display());
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let listening = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let coordinator = format!("http://{}", listening.local_addr().unwrap());
    let doctor = |store: &str, coordinator: &str| {
        Command::new(binary("worker").unwrap())
            .args(["doctor", "--output", "json", "--store", store])
            .env("RETRI_WORKER__METRICS_LISTEN", free.to_string())
            .env("RETRI_WORKER__COORDINATOR", coordinator)
            .env("RETRI_WORKER__NAME", "w7")
            .output()
            .unwrap()
    };
    let sound = doctor(&store, &coordinator);
    let found: Value = serde_json::from_slice(&sound.stdout).unwrap();
    assert!(sound.status.success() && found["ok"] == true, "{found}");
    let names: Vec<&str> = found["checks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "libtorch",
            "threads",
            "devices",
            "rank ports",
            "metrics port",
            "network",
            "coordinator",
            "object store"
        ]
    );
    // What it found, and nothing of its trial.
    let left = std::fs::read_dir(here.join("store")).unwrap().count();
    assert_eq!(left, 1, "`doctor` left something else in the store");
    let left = std::fs::read(here.join("store/workers/w7/doctor.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&left).unwrap(), found);
    drop(listening);
    let wrong = doctor("file:///no/such/folder", &coordinator);
    assert_eq!(wrong.status.code(), Some(1));
    let output_text = String::from_utf8(wrong.stdout).unwrap();
    for part in ["there is no such folder", "is the coordinator running"] {
        assert!(output_text.contains(part), "{output_text}");
    }
}

#[test]
fn wrong_settings_end_both_daemons_with_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    std::fs::write(here.join("settings.toml"), "\nlisen = 1\n").unwrap();
    for (program, command) in [("coordinator", "serve"), ("worker", "daemon")] {
        let output_text = fail(program, here, &[command, "--config", "settings.toml"]);
        assert!(
            output_text.contains("settings.toml:2: lisen: there is no such setting"),
            "{output_text}"
        );
    }
}

/// The layout of the unpacked Wesnoth data package: one unit with four usable frames, and two that
/// do not show the whole figure.
fn wesnoth_package(cache: &Path) {
    let core = cache.join("wesnoth/files/usr/share/games/wesnoth/1.16/data/core");
    let frames = core.join("images/units/elves-wood");
    std::fs::create_dir_all(&frames).unwrap();
    std::fs::create_dir_all(core.join("units")).unwrap();
    let unit = "[unit_type]\nid=Elvish \
    Archer\nrace=elf\nlevel=1\nimage=\"units/elves-wood/archer.png\"\n\
                gender=female\ndescription= _ \"An archer in a green \
    cloak.\"\n[attack]\nname=bow\n[/attack]\n[/unit_type]\n";
    std::fs::write(core.join("units/Archer.cfg"), unit).unwrap();
    for (index, name) in [
        "archer",
        "archer-bow",
        "archer-defend",
        "archer-idle-1",
        "archer-die-1",
        "archer-shadow",
    ]
    .iter()
    .enumerate()
    {
        let image = image::RgbaImage::from_fn(24, 24, |x, y| {
            let inside = (6..18).contains(&x) && (2..22).contains(&y);
            image::Rgba([index as u8 * 20, 90, 40, if inside { 255 } else { 0 }])
        });
        image.save(frames.join(format!("{name}.png"))).unwrap();
    }
}

#[test]
fn sprites_of_a_package_become_a_data_set() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    wesnoth_package(here);
    let script = tests::cluster::checkout().join("deploy/data/wesnoth.py");
    let output = Command::new("python3")
        .args([script.as_os_str(), "--out".as_ref(), "import".as_ref()])
        .current_dir(here)
        .env("RETRI_CACHE", here)
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        stdout.contains("4 frames of 1 units") && stdout.contains("guesses"),
        "{stdout}"
    );
    let imported = succeed(
        "coordinator",
        here,
        &["dataset", "import", "import", "--out", "sprites"],
    );
    assert!(imported.contains('4'), "{imported}");
    let described = succeed(
        "coordinator",
        here,
        &["dataset", "describe", "sprites", "--output", "json"],
    );
    let described: Value = serde_json::from_str(&described).unwrap();
    assert_eq!(described["samples"], 4, "{described}");
    assert!(
        described.to_string().contains("elvish_archer") && described.to_string().contains("cloak"),
        "{described}"
    );
    succeed("coordinator", here, &["dataset", "verify", "sprites"]);
}

#[test]
fn a_missing_prerequisite_is_named_with_its_package() {
    let folder = tempfile::tempdir().unwrap();
    for tool in ["bash", "sed", "sort", "head", "cut", "cargo"] {
        let found = std::env::split_paths(&std::env::var_os("PATH").unwrap())
            .map(|folder| folder.join(tool))
            .find(|path| path.is_file());
        std::os::unix::fs::symlink(found.unwrap(), folder.path().join(tool)).unwrap();
    }
    let checkout = tests::cluster::checkout();
    let output = Command::new("bash")
        .arg(checkout.join("deploy/setup/prerequisites.sh"))
        .current_dir(checkout)
        .env("PATH", folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<&str> = stderr.lines().collect();
    assert_eq!(
        lines,
        [
            "setup: c++ is missing: apt-get install g++",
            "setup: python3 is missing: apt-get install python3"
        ]
    );
}

#[test]
fn a_job_is_checked_without_a_coordinator_and_what_cannot_be_reached_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    figures(folder, "figures");
    let submit = ["submit", "job.toml", "--dry-run", "--offline"];
    let job = |dataset: &str, train: &str| {
        let text = format!(
            "name = \"demo\"\n[data]\ndataset = \"{dataset}\"\nresolution = 32\n[model]\n\
            architecture = \"autoencoder\"\nsize = \"tiny\"\n[train]\nsteps = 4\nglobal_batch = 4\n\
            micro_batch = 2\n{train}\n"
        );
        std::fs::write(folder.join("job.toml"), text).unwrap();
    };
    job("figures", "");
    let text = succeed("coordinator", folder, &submit);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines[0], lines.len()), ("job.toml is valid", 2), "{text}");
    assert!(
        lines[1].starts_with("checked: data.dataset file://") && lines[1].contains("(version "),
        "{text}"
    );
    let json = [&submit[..], &["--output", "json"]].concat();
    let json: Value = serde_json::from_str(&succeed("coordinator", folder, &json)).unwrap();
    assert_eq!(json["not_checked"], serde_json::json!([]));
    assert_eq!(json["checked"].as_array().unwrap().len(), 1);

    job("elsewhere", "");
    let text = succeed("coordinator", folder, &submit);
    assert!(
        text.starts_with(
            "job.toml is valid\nNOT checked: data.dataset: there is no folder file://"
        ) && text.lines().count() == 2,
        "{text}"
    );
    assert!(
        !folder.join("elsewhere").exists(),
        "a check creates nothing"
    );

    job("figures", "clip = -1");
    let error = fail("coordinator", folder, &submit);
    assert!(
        error.contains("job.toml:12: train.clip: is -1; it must be a number of at least 0"),
        "{error}"
    );
    std::fs::create_dir(folder.join("empty")).unwrap();
    job("empty", "");
    let error = fail("coordinator", folder, &submit);
    assert!(
        error.contains("job.toml:3: data.dataset: no data set at \"file://"),
        "{error}"
    );
    let alone = run("coordinator", folder, &["submit", "job.toml", "--offline"]);
    let usage = String::from_utf8(alone.stderr).unwrap();
    assert!(
        !alone.status.success() && usage.contains("--dry-run"),
        "{usage}"
    );
}
