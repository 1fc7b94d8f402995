//! The node's GPUs as NVIDIA's management library (NVML) sees them, for `/metrics`, and which of
//! them are sick. A thread of its own reads them, because a driver in trouble may block. Without
//! the library there are no figures, and everything else works.

mod health;
mod reading;

pub(crate) use reading::{CLOCKS, Reading, THROTTLES};

use health::Health;
use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::event::EventSet;
use std::ffi::OsString;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Between two readings.
const EVERY: Duration = Duration::from_secs(2);

/// The newest reading. Cheap to clone; all clones share it. Empty without GPUs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gpus(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    readings: Vec<Reading>,
    sick: Option<String>,
}

impl Gpus {
    /// Starts to read. `library`: its path; None: where the system has it.
    pub(crate) fn start(library: Option<&Path>) -> Self {
        let gpus = Self::default();
        let library = library.map(|path| path.as_os_str().to_owned());
        let reader = gpus.clone();
        let thread = std::thread::Builder::new().name("nvml".to_owned());
        if let Err(error) = thread.spawn(move || reader.read(library)) {
            tracing::warn!(%error, "GPUs are not watched");
        }
        gpus
    }

    pub(crate) fn readings(&self) -> Vec<Reading> {
        self.state().readings.clone()
    }

    /// Why the node should not be used, as a sentence.
    pub(crate) fn sick(&self) -> Option<String> {
        self.state().sick.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The body of the thread.
    fn read(&self, library: Option<OsString>) {
        let nvml = match &library {
            Some(path) => Nvml::builder().lib_path(path).init(),
            None => Nvml::init(),
        };
        let nvml = match nvml {
            Ok(nvml) => nvml,
            Err(error) => {
                tracing::info!(%error, "no NVML: figures of GPUs are absent");
                return;
            }
        };
        let events = events(&nvml);
        let mut health = Health::default();
        let mut xids: Vec<(u64, Option<u64>)> = Vec::new();
        // The daemon ends with its process; only tests drop all other handles.
        while 1 < Arc::strong_count(&self.0) {
            let mut readings = reading::all(&nvml);
            xids.resize(readings.len().max(xids.len()), (0, None));
            for reading in &mut readings {
                (reading.xids, reading.newest_xid) = xids[reading.index as usize];
                health.read(reading.index, reading.uncorrected, reading.lost);
                reading.sick = health.is_sick(reading.index);
            }
            self.publish(readings.clone(), health.sentence());
            let Some((gpu, code)) = wait(events.as_ref(), &readings) else {
                continue;
            };
            tracing::error!(gpu, xid = code, "a GPU reports an error");
            health.xid(gpu, code);
            if let Some((count, newest)) = xids.get_mut(gpu as usize) {
                (*count, *newest) = (*count + 1, Some(code));
            }
        }
    }

    fn publish(&self, readings: Vec<Reading>, sick: Option<String>) {
        let mut state = self.state();
        if state.sick != sick {
            match &sick {
                Some(sick) => tracing::error!(sick, "this node has a sick GPU"),
                None => tracing::info!("no GPU of this node is sick any more"),
            }
        }
        *state = State { readings, sick };
    }
}

/// Where errors are reported. None: the GPUs do not report them.
fn events(nvml: &Nvml) -> Option<EventSet<'_>> {
    let mut events = nvml.create_event_set().ok()?;
    let mut any = false;
    for index in 0..nvml.device_count().ok()? {
        let Ok(device) = nvml.device_by_index(index) else {
            continue;
        };
        let supported = device.supported_event_types();
        if !supported.is_ok_and(|it| it.contains(EventTypes::CRITICAL_XID_ERROR)) {
            continue;
        }
        match device.register_events(EventTypes::CRITICAL_XID_ERROR, events) {
            Ok(registered) => (events, any) = (registered, true),
            Err(error) => {
                tracing::warn!(gpu = index, error = %error.error, "Xid errors are not reported");
                return None;
            }
        }
    }
    any.then_some(events)
}

/// Waits until the next reading is due. Returns the GPU and the code of an error that came before.
fn wait(events: Option<&EventSet<'_>>, readings: &[Reading]) -> Option<(u32, u64)> {
    let Some(events) = events else {
        std::thread::sleep(EVERY);
        return None;
    };
    let millis = u32::try_from(EVERY.as_millis()).unwrap_or(u32::MAX);
    match events.wait(millis) {
        Ok(event) => {
            let uuid = event.device.uuid().ok()?;
            let of = |reading: &&Reading| reading.uuid == uuid;
            let gpu = readings.iter().find(of)?.index;
            match event.event_data? {
                XidError::Value(code) => Some((gpu, code)),
                XidError::Unknown => Some((gpu, 0)),
            }
        }
        Err(NvmlError::Timeout) => None,
        Err(_) => {
            std::thread::sleep(EVERY);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::process::Command;

    /// A library with NVML's symbols, made from `fake_nvml.c`, that reads its values from the file
    /// beside it.
    struct Fake {
        dir: tempfile::TempDir,
    }

    impl Fake {
        fn new() -> Self {
            let fake = Self {
                dir: tempfile::tempdir().unwrap(),
            };
            let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/gpu/fake_nvml.c");
            let status = Command::new("cc")
                .args(["-shared", "-fPIC", "-o"])
                .arg(fake.path())
                .args([source, "-ldl"])
                .status()
                .unwrap();
            assert!(status.success());
            fake
        }

        fn path(&self) -> std::path::PathBuf {
            self.dir.path().join("libfake_nvml.so")
        }

        /// Uncorrected errors and Xid are those of the second GPU.
        fn set(&self, ecc: u64, xid: u64) {
            let text = format!("2 73 4096 61 250000 1410 {ecc} {xid} 4\n");
            let file = self.dir.path().join("libfake_nvml.so.values");
            let new = file.with_extension("new");
            std::fs::write(&new, text).unwrap();
            std::fs::rename(new, file).unwrap();
        }
    }

    fn until<T>(look: impl Fn() -> Option<T>) -> T {
        loop {
            if let Some(found) = look() {
                return found;
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_library_of_the_same_symbols_is_read_and_its_errors_make_a_gpu_sick() {
        let fake = Fake::new();
        fake.set(0, 0);
        let gpus = Gpus::start(Some(&fake.path()));
        let readings = until(|| Some(gpus.readings()).filter(|it| !it.is_empty()));
        assert_eq!(readings.len(), 2);
        let first = &readings[0];
        assert_eq!(first.uuid, "GPU-fake-0");
        assert_eq!(first.utilization, Some(0.73));
        assert_eq!(first.memory_used, Some(4096));
        assert_eq!(first.temperature, Some(61.0));
        assert_eq!(first.power_watts, Some(250.0));
        assert_eq!(first.clocks_hz[0], Some(1410e6));
        assert_eq!(first.uncorrected, Some(0));
        assert_eq!(first.throttles, Some([true, false, false, false, false]));
        assert_eq!(gpus.sick(), None);
        fake.set(3, 0);
        let sick = until(|| gpus.sick());
        assert_eq!(sick, "GPU 1 has 3 memory errors that ECC could not correct");
        fake.set(0, 13);
        until(|| gpus.sick().is_none().then_some(()));
        until(|| (gpus.readings()[1].newest_xid == Some(13)).then_some(()));
        assert_eq!(gpus.sick(), None, "a program's fault");
        fake.set(0, 79);
        let sick = until(|| gpus.sick());
        assert_eq!(
            sick,
            "GPU 1 reported Xid 79: the GPU has fallen off the bus"
        );
        let readings = gpus.readings();
        assert!(readings[1].sick && !readings[0].sick);
        assert_eq!(readings[1].xids, 2);
    }

    #[test]
    fn without_the_library_there_is_nothing() {
        let gpus = Gpus::start(Some(Path::new("/nowhere/libnvidia-ml.so")));
        // The thread has ended when only this handle is left.
        until(|| (Arc::strong_count(&gpus.0) == 1).then_some(()));
        assert!(gpus.readings().is_empty() && gpus.sick().is_none());
    }
}
