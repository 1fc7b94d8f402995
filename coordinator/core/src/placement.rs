//! Who runs what: a pure solver. Gangs are taken in submit order, each whole or not at all; a later gang may
//! start when an earlier one does not fit. Solving again after the answer was carried out changes nothing. It
//! holds no state; the machine calls it after every event.

use proto::id::{JobId, WorkerId};
use proto::spec::DeviceKind;
use std::fmt;

/// A job that waits for workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gang {
    pub(crate) job: JobId,
    pub(crate) workers_min: u32,
    pub(crate) workers_max: u32,
    pub(crate) devices_per_worker: u32,
    pub(crate) device: DeviceKind,
    /// It still waits for `workers_max` before it is content with fewer.
    pub(crate) settling: bool,
}

/// A worker that is up, and how many of its devices nobody holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seat {
    pub(crate) worker: WorkerId,
    pub(crate) device: DeviceKind,
    pub(crate) devices: u32,
    pub(crate) free: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    /// One member on each of these workers, in rank order.
    Start(Vec<WorkerId>),
    Wait(Shortage),
}

/// Why a gang waits. Worker names, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shortage {
    gang: Gang,
    ready: Vec<String>,
    busy: Vec<String>,
    too_small: Vec<String>,
}

/// One decision per gang, in the order of `gangs`.
pub(crate) fn place(gangs: &[Gang], mut seats: Vec<Seat>) -> Vec<(JobId, Decision)> {
    let starts: Vec<Option<Vec<WorkerId>>> = gangs.iter().map(|gang| seat(gang, &mut seats)).collect();
    // The reasons are given against what is left after all starts, so that solving again gives the same
    // reasons.
    let decide = |(gang, start): (&Gang, Option<Vec<WorkerId>>)| {
        let decision = start.map_or_else(|| Decision::Wait(shortage(gang, &seats)), Decision::Start);
        (gang.job.clone(), decision)
    };
    gangs.iter().zip(starts).map(decide).collect()
}

/// Takes devices for a gang, if enough workers have them: those with the most free devices first.
fn seat(gang: &Gang, seats: &mut [Seat]) -> Option<Vec<WorkerId>> {
    let mut ready: Vec<&mut Seat> = seats.iter_mut().filter(|seat| is_ready(gang, seat)).collect();
    let needed = if gang.settling {
        gang.workers_max
    } else {
        gang.workers_min
    };
    if ready.len() < needed.max(1) as usize {
        return None;
    }
    ready.sort_by(|a, b| b.free.cmp(&a.free).then_with(|| a.worker.cmp(&b.worker)));
    let mut members = Vec::new();
    for seat in ready.into_iter().take(gang.workers_max.max(1) as usize) {
        seat.free -= gang.devices_per_worker;
        members.push(seat.worker.clone());
    }
    members.sort();
    Some(members)
}

fn is_ready(gang: &Gang, seat: &Seat) -> bool {
    seat.device == gang.device && gang.devices_per_worker <= seat.free
}

fn shortage(gang: &Gang, seats: &[Seat]) -> Shortage {
    let names = |wanted: &dyn Fn(&Seat) -> bool| -> Vec<String> {
        let seats = seats
            .iter()
            .filter(|seat| seat.device == gang.device && wanted(seat));
        seats.map(|seat| seat.worker.name.clone()).collect()
    };
    let fits = |seat: &Seat| gang.devices_per_worker <= seat.devices;
    Shortage {
        gang: gang.clone(),
        ready: names(&|seat| is_ready(gang, seat)),
        busy: names(&|seat| fits(seat) && !is_ready(gang, seat)),
        too_small: names(&|seat| !fits(seat)),
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gang = &self.gang;
        let kind = match gang.device {
            DeviceKind::Cpu => "cpu",
            DeviceKind::Cuda => "cuda",
        };
        let (workers, devices) = (gang.workers_min.max(1), gang.devices_per_worker);
        let plural = |n: u32| if n == 1 { "" } else { "s" };
        let (workers_s, devices_s) = (plural(workers), plural(devices));
        write!(
            f,
            "needs {workers} {kind} worker{workers_s} with {devices} free device{devices_s}; "
        )?;
        match self.ready.len() {
            0 => f.write_str("none is up")?,
            1 => write!(f, "1 is up ({})", self.ready.join(", "))?,
            n => write!(f, "{n} are up ({})", self.ready.join(", "))?,
        }
        if !self.busy.is_empty() {
            write!(f, "; busy: {}", self.busy.join(", "))?;
        }
        if !self.too_small.is_empty() {
            write!(f, "; too few devices: {}", self.too_small.join(", "))?;
        }
        if gang.settling && workers as usize <= self.ready.len() {
            write!(f, "; waits a moment for up to {}", gang.workers_max)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
