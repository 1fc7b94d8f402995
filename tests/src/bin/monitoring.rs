//! Writes the monitoring files of `deploy/` (`make monitoring`).

use anyhow::{Context as _, Result};
use tests::cluster::checkout;

fn main() -> Result<()> {
    for (name, text) in tests::monitoring::files() {
        let file = checkout().join("deploy").join(name);
        std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}
