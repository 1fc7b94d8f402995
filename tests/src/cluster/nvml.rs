//! A library with the symbols of NVIDIA's management library, so that workers without a GPU have
//! figures of two. Its values are in a file beside it.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Debug)]
pub struct FakeNvml {
    library: PathBuf,
}

impl FakeNvml {
    /// Compiles it into the folder; its GPUs are healthy.
    ///
    /// # Errors
    /// There is no C compiler, or the folder cannot be written.
    pub fn build(folder: &Path) -> Result<Self> {
        let library = folder.join("libfake_nvml.so");
        let source = super::checkout().join("worker/src/gpu/fake_nvml.c");
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(&library)
            .arg(source)
            .arg("-ldl")
            .status()
            .context("starting cc")?;
        ensure!(status.success(), "cc cannot compile the fake NVML");
        let fake = Self { library };
        fake.set(0, 0)?;
        Ok(fake)
    }

    /// The variable that makes workers load it.
    #[must_use]
    pub fn variable(&self) -> (String, String) {
        let path = self.library.display().to_string();
        ("RETRI_WORKER__NVML".to_owned(), path)
    }

    /// Uncorrected memory errors of the second GPU, and an error that its driver reports once.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn set(&self, uncorrected: u64, xid: u64) -> Result<()> {
        let text = format!("2 73 4294967296 61 250000 1410 {uncorrected} {xid} 4\n");
        let mut file = self.library.clone().into_os_string();
        file.push(".values");
        let new = self.library.with_extension("new");
        std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &file))?;
        Ok(())
    }
}
