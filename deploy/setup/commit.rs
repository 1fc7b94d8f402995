// Included by the build scripts of the programs: the commit that they are built from, for
// `--version` and for manifests.

/// Sets `RETRI_COMMIT`: the commit, with `-dirty` where files differ from it; `unknown` outside a
/// git checkout.
fn commit() {
    let git = |arguments: &[&str]| {
        let output = std::process::Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (output.status.success() && !text.is_empty()).then_some(text)
    };
    let commit = git(&["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]);
    println!("cargo:rustc-env=RETRI_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
    // Git appends a line to this log at every commit and checkout.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo:rerun-if-changed={log}");
    }
}
