//! Conversion of a rank's environment.

use super::{WireError, short};
use crate::environment::RankEnvironment;
use crate::limits::TEXT_BYTES;
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
        let short = |value| short("shards.rank_environment", value, TEXT_BYTES);
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
