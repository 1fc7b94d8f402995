//! Which GPU is sick. Pure. A GPU is sick if it has counted memory errors that ECC could not
//! correct since its last reset, if it cannot be reached any more, or if its driver has reported
//! one of [`FATAL`]. Errors that a program causes (Xid 13, 31, 43, 45) are none of them.

use std::collections::BTreeMap;

/// Xids after which NVIDIA's catalogue of Xid errors asks to reset or to replace the GPU, and what
/// they mean.
const FATAL: [(u64, &str); 9] = [
    (48, "double-bit ECC error"),
    (62, "halt of an internal microcontroller"),
    (64, "a memory row cannot be remapped"),
    (74, "NVLink error"),
    (79, "the GPU has fallen off the bus"),
    (95, "uncontained memory error"),
    (119, "its system processor does not answer"),
    (120, "error of its system processor"),
    (140, "memory error without recovery"),
];

/// Why GPUs are sick, by number. What a driver has reported stays until the daemon restarts.
#[derive(Debug, Default)]
pub(crate) struct Health {
    reported: BTreeMap<u32, String>,
    read: BTreeMap<u32, String>,
}

impl Health {
    /// What a reading of a GPU says.
    pub(crate) fn read(&mut self, gpu: u32, uncorrected: Option<u64>, lost: bool) {
        let why = match uncorrected {
            _ if lost => "cannot be reached any more".to_owned(),
            Some(errors) if 0 < errors => {
                format!("has {errors} memory errors that ECC could not correct")
            }
            _ => {
                self.read.remove(&gpu);
                return;
            }
        };
        self.read.insert(gpu, why);
    }

    /// Its driver has reported an error.
    pub(crate) fn xid(&mut self, gpu: u32, code: u64) {
        if let Some((_, meaning)) = FATAL.iter().find(|(fatal, _)| *fatal == code) {
            self.reported
                .insert(gpu, format!("reported Xid {code}: {meaning}"));
        }
    }

    pub(crate) fn is_sick(&self, gpu: u32) -> bool {
        self.reported.contains_key(&gpu) || self.read.contains_key(&gpu)
    }

    /// Of all GPUs, as a sentence; None: none is sick.
    pub(crate) fn sentence(&self) -> Option<String> {
        let all = self.reported.iter().chain(&self.read);
        let mut parts: Vec<(u32, String)> = all
            .map(|(gpu, why)| (*gpu, format!("GPU {gpu} {why}")))
            .collect();
        parts.sort();
        let parts: Vec<String> = parts.into_iter().map(|(_, text)| text).collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_hardware_make_sick_and_those_of_programs_do_not() {
        let mut health = Health::default();
        health.read(0, Some(0), false);
        health.read(1, None, false);
        for code in [13, 31, 43, 45, 63, 0] {
            health.xid(0, code);
        }
        assert_eq!(health.sentence(), None);
        health.read(1, Some(2), false);
        health.xid(0, 79);
        assert_eq!(
            health.sentence().as_deref(),
            Some(
                "GPU 0 reported Xid 79: the GPU has fallen off the bus; \
                 GPU 1 has 2 memory errors that ECC could not correct"
            )
        );
        health.read(1, Some(0), false);
        assert!(
            health.is_sick(0) && !health.is_sick(1),
            "a reset clears the count"
        );
        health.read(2, None, true);
        assert!(health.is_sick(2));
    }
}
