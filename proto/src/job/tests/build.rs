//! `[build]`: its defaults, its canonical text, and what is refused.

use super::*;
use crate::build::Stage;
use crate::spec::Work;

fn text(lines: &str) -> String {
    let key = "0f".repeat(32);
    format!(
        "name = \"b\"\n[build]\nstage = \"posts\"\nkey = \"{key}\"\nout = \"file:///out\"\n{lines}"
    )
}

#[test]
fn a_stage_is_units_and_a_closing_one() {
    let spec = job(&text("units = 16\n")).unwrap();
    let plan = spec.work.units().unwrap();
    assert_eq!((plan.count, plan.closing), (17, true));
    assert!(spec.work.reads().is_empty());
    let Work::Build(work) = spec.work else {
        panic!("the job builds")
    };
    assert_eq!(work.key.stage, Stage::Posts);
    assert_eq!(
        work.key.folder(),
        format!("stages/posts/{}", "0f".repeat(16))
    );
    check_canonical(&text("units = 16\n"));
    check_canonical(&text(""));
}

#[test]
fn what_stands_in_build_is_bounded() {
    let refused = |text: &str, message: &str| {
        let errors = job(text).unwrap_err();
        assert!(errors.contains(message), "{errors}");
    };
    refused(
        &text("units = 0\n"),
        "job.toml:6: build.units: is 0; it must be at least 1",
    );
    refused(
        &text("units = 70000\n"),
        "build.units: is 70000; it must be at most 65536",
    );
    refused(&text("").replace("0f0f", "0F0F"), "build.key: is \"0F0F");
    refused(
        &text("").replace("posts", "post"),
        "build.stage: unknown variant `post`",
    );
    refused(
        &text("").replace("file:", "http:"),
        "the scheme must be file:// or s3://",
    );
    refused(
        &format!("{}[checkpoint]\nevery = 1\n", text("")),
        "but this job has [build]",
    );
}
