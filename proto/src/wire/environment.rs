//! Conversion of a rank's environment.

use super::{TEXT_MAX, WireError, wrong};
use crate::environment::RankEnvironment;
use crate::pb;

impl From<&RankEnvironment> for pb::RankEnvironment {
    fn from(environment: &RankEnvironment) -> Self {
        Self {
            host: environment.host.clone(),
            address: environment.address.clone(),
            release: environment.release.clone(),
            libtorch: environment.libtorch.clone(),
            device: environment.device.clone(),
            numerics: environment.numerics.clone(),
            driver: environment.driver.clone(),
        }
    }
}

impl TryFrom<pb::RankEnvironment> for RankEnvironment {
    type Error = WireError;

    fn try_from(environment: pb::RankEnvironment) -> Result<Self, WireError> {
        let short = |value: String| match value.len() {
            0..=TEXT_MAX => Ok(value),
            bytes => wrong(
                "shards.rank_environment",
                format!("{bytes} bytes long"),
                "it must be shorter",
            ),
        };
        Ok(Self {
            host: short(environment.host)?,
            address: short(environment.address)?,
            release: short(environment.release)?,
            libtorch: short(environment.libtorch)?,
            device: short(environment.device)?,
            numerics: short(environment.numerics)?,
            driver: short(environment.driver)?,
        })
    }
}
