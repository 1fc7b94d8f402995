use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn gang(job: u32, workers_min: u32, workers_max: u32, devices_per_worker: u32) -> Gang {
    let job = JobId(format!("job-{job}"));
    Gang {
        job,
        workers_min,
        workers_max,
        devices_per_worker,
        device: DeviceKind::Cpu,
        settling: false,
    }
}

fn worker(number: u32, free: u32) -> Seat {
    let worker = WorkerId {
        name: format!("w{number}"),
        boot: 1,
    };
    Seat {
        worker,
        device: DeviceKind::Cpu,
        devices: 4,
        free,
    }
}

/// `expected` names the workers of each gang, or what it waits for.
fn check(gangs: &[Gang], seats: Vec<Seat>, expected: &[&str]) {
    let told: Vec<String> = place(gangs, seats)
        .into_iter()
        .map(|(_, decision)| tell(&decision))
        .collect();
    assert_eq!(told, expected);
}

fn tell(decision: &Decision) -> String {
    match decision {
        Decision::Start(workers) => workers
            .iter()
            .map(|w| w.name.as_str())
            .collect::<Vec<_>>()
            .join(" "),
        Decision::Wait(shortage) => shortage.to_string(),
    }
}

#[test]
fn a_gang_takes_what_it_can_use_and_no_less_than_it_needs() {
    check(
        &[gang(1, 1, 2, 1)],
        vec![worker(1, 1), worker(2, 1), worker(3, 1)],
        &["w1 w2"],
    );
    check(&[gang(1, 2, 3, 1)], vec![worker(1, 1), worker(2, 1)], &["w1 w2"]);
    let lacks = "needs 2 cpu workers with 3 free devices; 1 is up (w2); busy: w1";
    check(&[gang(1, 2, 2, 3)], vec![worker(1, 2), worker(2, 3)], &[lacks]);
}

#[test]
fn earlier_jobs_choose_first_and_later_ones_need_not_wait_for_those_that_do_not_fit() {
    let lacks = "needs 3 cpu workers with 1 free device; 1 is up (w1); busy: w2";
    let gangs = [gang(1, 3, 3, 1), gang(2, 1, 1, 2)];
    check(&gangs, vec![worker(1, 1), worker(2, 2)], &[lacks, "w2"]);
}

#[test]
fn a_settling_gang_wants_all_that_it_can_use() {
    let settling = Gang {
        settling: true,
        ..gang(1, 1, 2, 1)
    };
    let lacks = "needs 1 cpu worker with 1 free device; 1 is up (w1); waits a moment for up to 2";
    check(std::slice::from_ref(&settling), vec![worker(1, 1)], &[lacks]);
    check(&[settling], vec![worker(1, 1), worker(2, 1)], &["w1 w2"]);
}

#[test]
fn the_reason_tells_other_kinds_and_small_workers_apart() {
    let cuda = Gang {
        device: DeviceKind::Cuda,
        ..gang(1, 1, 1, 1)
    };
    check(
        &[cuda],
        vec![worker(1, 1)],
        &["needs 1 cuda worker with 1 free device; none is up"],
    );
    let lacks = "needs 1 cpu worker with 8 free devices; none is up; too few devices: w1";
    check(&[gang(1, 1, 1, 8)], vec![worker(1, 4)], &[lacks]);
}

fn any_kind() -> impl Strategy<Value = DeviceKind> {
    prop_oneof![Just(DeviceKind::Cpu), Just(DeviceKind::Cuda)]
}

fn any_gangs() -> impl Strategy<Value = Vec<Gang>> {
    let one = (1..4_u32, 0..3_u32, 1..4_u32, any_kind(), any::<bool>());
    prop::collection::vec(one, 0..6).prop_map(|gangs| {
        let numbered = gangs.into_iter().zip(1..);
        let make = |((min, more, devices, device, settling), number)| Gang {
            device,
            settling,
            ..gang(number, min, min + more, devices)
        };
        numbered.map(make).collect()
    })
}

fn any_seats() -> impl Strategy<Value = Vec<Seat>> {
    prop::collection::vec((0..5_u32, any_kind()), 0..7).prop_map(|seats| {
        let numbered = seats.into_iter().zip(1..);
        numbered
            .map(|((free, device), number)| Seat {
                device,
                ..worker(number, free)
            })
            .collect()
    })
}

/// What is left after the decisions were carried out.
fn carry_out(
    gangs: &[Gang],
    mut seats: Vec<Seat>,
    decisions: &[(JobId, Decision)],
) -> (Vec<Gang>, Vec<Seat>) {
    let mut waiting = Vec::new();
    for (gang, (_, decision)) in gangs.iter().zip(decisions) {
        let Decision::Start(workers) = decision else {
            waiting.push(gang.clone());
            continue;
        };
        for seat in seats.iter_mut().filter(|seat| workers.contains(&seat.worker)) {
            seat.free = seat
                .free
                .checked_sub(gang.devices_per_worker)
                .expect("within capacity");
        }
    }
    (waiting, seats)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn gangs_are_whole_and_within_capacity(gangs in any_gangs(), seats in any_seats()) {
        let kinds: BTreeMap<WorkerId, DeviceKind> = seats.iter().map(|s| (s.worker.clone(), s.device)).collect();
        let decisions = place(&gangs, seats.clone());
        carry_out(&gangs, seats, &decisions);
        for (gang, (job, decision)) in gangs.iter().zip(&decisions) {
            prop_assert_eq!(&gang.job, job);
            let Decision::Start(workers) = decision else { continue };
            let count = workers.len() as u32;
            let least = if gang.settling { gang.workers_max } else { gang.workers_min };
            prop_assert!(least <= count && count <= gang.workers_max);
            prop_assert_eq!(workers.iter().collect::<BTreeSet<_>>().len(), workers.len(), "one member per worker");
            prop_assert!(workers.iter().all(|worker| kinds[worker] == gang.device));
        }
    }

    #[test]
    fn solving_again_changes_nothing(gangs in any_gangs(), seats in any_seats()) {
        let decisions = place(&gangs, seats.clone());
        let (waiting, left) = carry_out(&gangs, seats, &decisions);
        let again: Vec<String> = place(&waiting, left).iter().map(|(_, decision)| tell(decision)).collect();
        let waits = decisions.iter().filter(|(_, decision)| matches!(decision, Decision::Wait(_)));
        let before: Vec<String> = waits.map(|(_, decision)| tell(decision)).collect();
        prop_assert_eq!(again, before);
    }
}
