use super::*;
use crate::partitions::Partitions;
use proptest::prelude::*;
use proto::id::JobId;
use proto::reason::{Constraint, Reservation, Shortage, UnreachablePair};
use proto::spec::DeviceKind;
use std::collections::{BTreeMap, BTreeSet};

fn gang(number: u64, workers_min: u32, workers_max: u32, devices_per_worker: u32) -> Demand {
    Demand {
        job: JobId(format!("job-{number}")),
        number,
        priority: 0,
        team: "default".to_owned(),
        workers_min,
        workers_max,
        devices_per_worker,
        device: DeviceKind::Cpu,
        in_grace_period: false,
        holds: vec![],
        warm: vec![],
        avoid: vec![],
        takes: Takes::Any,
        partitions: Partitions::default(),
    }
}

fn id(number: u32) -> WorkerId {
    WorkerId {
        name: format!("w{number}"),
        boot: 1,
    }
}

fn node(number: u32, devices: u32) -> NodeCapacity {
    NodeCapacity {
        worker: id(number),
        device: DeviceKind::Cpu,
        devices,
        access: Access::Open,
    }
}

/// `count` workers with one device each.
fn nodes(count: u32) -> Vec<NodeCapacity> {
    (1..=count).map(|number| node(number, 1)).collect()
}

fn holding(demand: Demand, workers: &[u32]) -> Demand {
    Demand {
        holds: workers.iter().copied().map(id).collect(),
        ..demand
    }
}

fn problem(demands: &[Demand], nodes: Vec<NodeCapacity>) -> Problem {
    Problem {
        demands: demands.to_vec(),
        nodes,
        quotas: BTreeMap::new(),
    }
}

/// `expected` is [`describe`]d for each job, in the order of the jobs.
fn expect(problem: &Problem, expected: &[&str]) {
    let solution = solve(problem);
    let actual: Vec<String> = problem
        .demands
        .iter()
        .map(|demand| describe(&solution[&demand.job]))
        .collect();
    assert_eq!(actual, expected);
}

/// The workers of a job, or its shortage.
fn describe(decision: &Decision) -> String {
    match decision {
        Decision::Run(workers) => workers
            .iter()
            .map(|w| w.name.as_str())
            .collect::<Vec<_>>()
            .join(" "),
        Decision::Wait(shortage) => describe_shortage(shortage),
    }
}

/// In the notation of these tests: what it needs, as workers, devices of each, and their kind; then
/// the constraint, unless it is that of workers; then the lists that are not empty.
fn describe_shortage(shortage: &Shortage) -> String {
    let mut parts = vec![format!(
        "{}x{} {}",
        shortage.workers_min,
        shortage.devices_per_worker,
        shortage.device.name()
    )];
    match shortage.constraint {
        Constraint::Workers => {}
        Constraint::GracePeriod { workers_max } => parts.push(format!("grace {workers_max}")),
        Constraint::Quota { quota, used } => {
            parts.push(format!("quota {} {used}/{quota}", shortage.team));
        }
    }
    let reserved = |it: &Reservation| format!("{}={}", it.worker, it.job);
    let reserved: Vec<String> = shortage.reserved.iter().map(reserved).collect();
    for (list, workers) in [
        ("ready", &shortage.ready),
        ("busy", &shortage.busy),
        ("reserved", &reserved),
        ("drained", &shortage.drained),
        ("small", &shortage.too_small),
    ] {
        if !workers.is_empty() {
            parts.push(format!("{list} {}", workers.join(" ")));
        }
    }
    for UnreachablePair {
        workers: (a, b), ..
    } in &shortage.unreachable
    {
        parts.push(format!("apart {a}-{b}"));
    }
    parts.join(", ")
}

#[test]
fn a_gang_takes_what_it_can_use_and_no_less_than_it_needs() {
    expect(&problem(&[gang(1, 1, 2, 1)], nodes(3)), &["w1 w2"]);
    expect(&problem(&[gang(1, 2, 3, 1)], nodes(2)), &["w1 w2"]);
    let waits = "2x3 cpu, ready w2, busy w1";
    let busy = holding(gang(1, 1, 1, 2), &[1]);
    expect(
        &problem(&[busy, gang(2, 2, 2, 3)], vec![node(1, 4), node(2, 4)]),
        &["w1", waits],
    );
}

#[test]
fn a_job_that_could_not_fit_delays_no_other() {
    let waits = "3x1 cpu, ready w1, busy w2";
    let demands = [gang(1, 3, 3, 1), gang(2, 1, 1, 2)];
    expect(
        &problem(&demands, vec![node(1, 1), node(2, 2)]),
        &[waits, "w2"],
    );
}

#[test]
fn a_gang_in_its_grace_period_waits_for_all_workers_that_it_can_use() {
    let in_grace_period = Demand {
        in_grace_period: true,
        ..gang(1, 1, 2, 1)
    };
    let waits = "1x1 cpu, grace 2, ready w1";
    expect(
        &problem(std::slice::from_ref(&in_grace_period), nodes(1)),
        &[waits],
    );
    expect(&problem(&[in_grace_period], nodes(2)), &["w1 w2"]);
}

#[test]
fn the_reason_tells_workers_apart() {
    let cuda = Demand {
        device: DeviceKind::Cuda,
        ..gang(1, 1, 1, 1)
    };
    expect(&problem(&[cuda], nodes(1)), &["1x1 cuda"]);
    let waits = "1x8 cpu, small w1";
    expect(&problem(&[gang(1, 1, 1, 8)], vec![node(1, 4)]), &[waits]);
    let drained = NodeCapacity {
        access: Access::Drained,
        ..node(1, 1)
    };
    let waits = problem(&[gang(1, 1, 1, 1)], vec![drained]);
    expect(&waits, &["1x1 cpu, drained w1"]);
}

#[test]
fn a_drained_worker_loses_what_it_has_and_one_that_is_cut_off_keeps_it() {
    let drained = NodeCapacity {
        access: Access::Drained,
        ..node(1, 1)
    };
    expect(
        &problem(
            &[holding(gang(1, 1, 1, 1), &[1])],
            vec![drained, node(2, 1)],
        ),
        &["w2"],
    );
    let disconnected = NodeCapacity {
        access: Access::CutOff,
        ..node(1, 1)
    };
    let busy = "1x1 cpu, busy w1";
    expect(
        &problem(
            &[holding(gang(1, 1, 1, 1), &[1]), gang(2, 1, 1, 1)],
            vec![disconnected],
        ),
        &["w1", busy],
    );
}

#[test]
fn a_higher_priority_shrinks_others_first_and_then_preempts_them() {
    let high = |workers| Demand {
        priority: 5,
        ..gang(9, workers, workers, 1)
    };
    let wide = holding(gang(1, 1, 3, 1), &[1, 2, 3]);
    let narrow = holding(gang(2, 1, 1, 1), &[4]);
    let run = |workers| problem(&[wide.clone(), narrow.clone(), high(workers)], nodes(4));
    expect(&run(2), &["w3", "w4", "w1 w2"]);
    let waits = "1x1 cpu, busy w1 w2 w3 w4";
    expect(&run(3), &["w3", waits, "w1 w2 w4"]);
    expect(&run(4), &[waits, waits, "w1 w2 w3 w4"]);
}

#[test]
fn a_higher_priority_grows_before_lower_ones_do() {
    let high = Demand {
        priority: 5,
        ..gang(2, 1, 3, 1)
    };
    expect(
        &problem(&[holding(gang(1, 1, 4, 1), &[1, 2, 3, 4]), high], nodes(4)),
        &["w2", "w1 w3 w4"],
    );
}

#[test]
fn equals_share_and_do_not_push_each_other_out() {
    let wide = holding(gang(1, 1, 4, 1), &[1, 2, 3, 4]);
    expect(
        &problem(&[wide, gang(2, 1, 4, 1)], nodes(4)),
        &["w1 w3", "w2 w4"],
    );
    let whole = holding(gang(1, 2, 2, 1), &[1, 2]);
    let waits = "1x1 cpu, busy w1 w2";
    expect(
        &problem(&[whole, gang(2, 1, 1, 1)], nodes(2)),
        &["w1 w2", waits],
    );
}

#[test]
fn teams_take_turns() {
    let of = |team: &str, demand: Demand| Demand {
        team: team.to_owned(),
        ..demand
    };
    let demands = [
        of("a", holding(gang(1, 1, 1, 1), &[1])),
        of("a", gang(2, 1, 1, 1)),
        of("b", gang(3, 1, 1, 1)),
    ];
    let waits = "1x1 cpu, busy w1 w2";
    expect(&problem(&demands, nodes(2)), &["w1", waits, "w2"]);
    let wide = [
        of("a", gang(1, 1, 4, 1)),
        of("a", gang(2, 1, 4, 1)),
        of("b", gang(3, 1, 4, 1)),
    ];
    expect(&problem(&wide, nodes(6)), &["w1 w5", "w3", "w2 w4 w6"]);
}

#[test]
fn a_quota_bounds_a_team_and_holds_nobody_else_back() {
    let mut limited = problem(
        &[holding(gang(1, 1, 3, 1), &[1]), gang(2, 2, 2, 1)],
        nodes(4),
    );
    limited.quotas.insert("default".to_owned(), 2);
    limited.demands.push(Demand {
        team: "other".to_owned(),
        ..gang(3, 1, 2, 1)
    });
    let over = "2x1 cpu, quota default 1/2";
    expect(&limited, &["w1 w3", over, "w2 w4"]);
}

#[test]
fn a_job_that_waits_reserves_what_it_could_use() {
    let running = holding(gang(1, 1, 1, 1), &[1]);
    let big = "2x1 cpu, ready w2, busy w1";
    let reserved = "1x1 cpu, busy w1, reserved w2=job-2";
    expect(
        &problem(
            &[running.clone(), gang(2, 2, 2, 1), gang(3, 1, 1, 1)],
            nodes(2),
        ),
        &["w1", big, reserved],
    );
    // Workers that the first job cannot use or does not need are not reserved for it.
    let mut nodes = vec![node(1, 2), node(2, 2), node(3, 1)];
    let demands = [
        holding(gang(1, 1, 1, 2), &[1]),
        gang(2, 2, 2, 2),
        gang(3, 1, 1, 1),
    ];
    let big = "2x2 cpu, ready w2, busy w1, small w3";
    expect(&problem(&demands, nodes.clone()), &["w1", big, "w3"]);
    nodes[1] = node(2, 3);
    nodes.pop();
    let big = "2x2 cpu, ready w2, busy w1";
    expect(&problem(&demands, nodes), &["w1", big, "w2"]);
}

fn any_demands(priorities: u32) -> impl Strategy<Value = Vec<Demand>> {
    let team = prop::sample::select(vec!["a", "b", "c"]);
    let kind = prop::sample::select(vec![DeviceKind::Cpu, DeviceKind::Cpu, DeviceKind::Cuda]);
    let one = (
        1..4_u32,
        0..3_u32,
        1..4_u32,
        kind,
        prop::bool::weighted(0.1),
        0..priorities,
        team,
    );
    prop::collection::vec(one, 0..9).prop_map(|demands| {
        let make =
            |((min, more, devices, device, in_grace_period, priority, team), number)| Demand {
                device,
                in_grace_period,
                priority: i32::try_from(priority).expect("a few"),
                team: String::from(team),
                ..gang(number, min, min + more, devices)
            };
        demands.into_iter().zip(1..).map(make).collect()
    })
}

fn any_nodes() -> impl Strategy<Value = Vec<NodeCapacity>> {
    let access = prop::sample::select(vec![
        Access::Open,
        Access::Open,
        Access::Open,
        Access::CutOff,
        Access::Drained,
    ]);
    let kind = prop::sample::select(vec![DeviceKind::Cpu, DeviceKind::Cpu, DeviceKind::Cuda]);
    prop::collection::vec((1..6_u32, kind, access), 0..8).prop_map(|nodes| {
        let make = |((devices, device, access), number)| NodeCapacity {
            device,
            access,
            ..node(number, devices)
        };
        nodes.into_iter().zip(1..).map(make).collect()
    })
}

/// Some jobs run where an earlier solution placed them. The others came later, and workers have
/// changed since.
fn any_problem(priorities: u32) -> impl Strategy<Value = Problem> {
    let quotas = prop::option::of(1..10_u32);
    (
        any_demands(priorities),
        any_nodes(),
        any_nodes(),
        quotas,
        any::<u16>(),
    )
        .prop_map(|(demands, before, nodes, quota, started)| {
            let early = demands
                .iter()
                .filter(|demand| started >> demand.number & 1 == 1)
                .cloned()
                .collect();
            let mut early = Problem {
                demands: early,
                nodes: before,
                quotas: BTreeMap::new(),
            };
            let solution = solve(&early);
            apply_solution(&mut early, &solution);
            let holds: BTreeMap<JobId, Vec<WorkerId>> = early
                .demands
                .into_iter()
                .map(|demand| (demand.job, demand.holds))
                .collect();
            let held = |demand: Demand| Demand {
                holds: holds.get(&demand.job).cloned().unwrap_or_default(),
                ..demand
            };
            let quotas = quota
                .map(|quota| ("a".to_owned(), quota))
                .into_iter()
                .collect();
            Problem {
                demands: demands.into_iter().map(held).collect(),
                nodes,
                quotas,
            }
        })
}

/// The same, and some workers cannot reach each other.
fn any_partitioned_problem(priorities: u32) -> impl Strategy<Value = Problem> {
    let pairs = prop::collection::vec((1..8_u32, 1..8_u32), 0..6);
    let warm = prop::collection::vec(1..8_u32, 0..3);
    (any_problem(priorities), pairs, warm).prop_map(|(problem, pairs, warm)| {
        let mut partitions = Partitions::default();
        for (a, b) in pairs.into_iter().filter(|(a, b)| a != b) {
            partitions.add(&id(a), &id(b), "no answer");
        }
        let partitioned = |demand: Demand| Demand {
            partitions: partitions.not_among(demand.holds.iter()),
            warm: if demand.holds.is_empty() {
                warm.iter().copied().map(id).collect()
            } else {
                vec![]
            },
            ..demand
        };
        Problem {
            demands: problem.demands.into_iter().map(partitioned).collect(),
            ..problem
        }
    })
}

fn runs<'a>(solution: &'a Solution, demand: &Demand) -> &'a [WorkerId] {
    match &solution[&demand.job] {
        Decision::Run(workers) => workers,
        Decision::Wait(_) => &[],
    }
}

/// How many nodes have room for the job in addition to the other jobs.
fn room(problem: &Problem, demand: &Demand, others: &[(&Demand, &[WorkerId])]) -> usize {
    let free = |node: &NodeCapacity| {
        let here = others
            .iter()
            .filter(|(_, workers)| workers.contains(&node.worker));
        node.devices
            .saturating_sub(here.map(|(other, _)| other.devices_per_worker).sum())
    };
    let fits = |node: &&NodeCapacity| {
        node.device == demand.device
            && node.access == Access::Open
            && demand.devices_per_worker <= free(node)
    };
    problem.nodes.iter().filter(fits).count()
}

fn partitions(demand: Demand, pairs: &[(u32, u32)]) -> Demand {
    let mut demand = demand;
    for (a, b) in pairs {
        demand.partitions.add(&id(*a), &id(*b), "w:7073: no answer");
    }
    demand
}

#[test]
fn a_job_that_waits_goes_on_where_its_state_is() {
    let warm = |demand: Demand, workers: &[u32]| Demand {
        warm: workers.iter().copied().map(id).collect(),
        ..demand
    };
    expect(&problem(&[warm(gang(1, 1, 1, 1), &[3])], nodes(3)), &["w3"]);
    expect(
        &problem(&[warm(gang(1, 2, 2, 1), &[3])], nodes(3)),
        &["w1 w3"],
    );
    // Even if it excludes more workers than necessary.
    let alone = [(3, 1), (3, 2)];
    expect(
        &problem(
            &[partitions(warm(gang(1, 1, 3, 1), &[3]), &alone)],
            nodes(3),
        ),
        &["w3"],
    );
}

#[test]
fn workers_that_do_not_reach_each_other_are_not_given_together() {
    let pair = [(1, 2)];
    expect(
        &problem(&[partitions(gang(1, 2, 2, 1), &pair)], nodes(3)),
        &["w1 w3"],
    );
    expect(
        &problem(&[partitions(gang(1, 1, 3, 1), &pair)], nodes(3)),
        &["w1 w3"],
    );
    let alone = [(1, 2), (1, 3), (1, 4)];
    expect(
        &problem(&[partitions(gang(1, 2, 4, 1), &alone)], nodes(4)),
        &["w2 w3 w4"],
    );
    // A job that the partition makes impossible reserves no devices.
    let waits = "2x1 cpu, ready w2, busy w1, apart w1-w2";
    expect(
        &problem(
            &[partitions(gang(1, 2, 2, 1), &pair), gang(2, 1, 1, 1)],
            nodes(2),
        ),
        &[waits, "w1"],
    );
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn gangs_are_whole_and_no_device_is_given_twice(problem in any_partitioned_problem(3)) {
        let solution = solve(&problem);
        let mut used: BTreeMap<&WorkerId, u32> = BTreeMap::new();
        let mut teams: BTreeMap<&str, u32> = BTreeMap::new();
        for demand in &problem.demands {
            let workers = runs(&solution, demand);
            if workers.is_empty() {
                continue;
            }
            let count = u32::try_from(workers.len()).expect("a few");
            prop_assert!(demand.workers_min <= count && count <= demand.workers_max);
            let distinct = workers.iter().collect::<BTreeSet<_>>().len();
            prop_assert_eq!(distinct, workers.len(), "one member per worker");
            let partitioned = demand.partitions.among(workers.iter());
            prop_assert!(partitioned.is_empty(), "{:?} of {:?}", workers, demand.partitions);
            for worker in workers {
                let node = problem.nodes.iter().find(|node| node.worker == *worker);
                let node = node.expect("a node");
                prop_assert_eq!(node.device, demand.device);
                let may = match node.access {
                    Access::Open => true,
                    Access::CutOff => demand.holds.contains(worker),
                    Access::Drained => false,
                };
                prop_assert!(may, "{} goes to {:?}", demand.job, node);
                *used.entry(&node.worker).or_default() += demand.devices_per_worker;
            }
            *teams.entry(&demand.team).or_default() += count * demand.devices_per_worker;
        }
        for node in &problem.nodes {
            let used_here = used.get(&node.worker).copied().unwrap_or(0);
            prop_assert!(used_here <= node.devices, "{:?}: {:?}", node, used);
        }
        for (team, quota) in &problem.quotas {
            prop_assert!(teams.get(team.as_str()).copied().unwrap_or(0) <= *quota);
        }
    }

    #[test]
    fn solving_a_solution_changes_nothing(problem in any_partitioned_problem(3)) {
        let solution = solve(&problem);
        let mut held = problem;
        apply_solution(&mut held, &solution);
        let again = solve(&held);
        prop_assert_eq!(again, solution);
    }

    /// Jobs that start behind a waiting job do not delay it: whichever of the running jobs end, it
    /// can start whenever it could have started without them.
    #[test]
    fn a_job_that_starts_behind_a_waiting_job_does_not_delay_it(
        problem in any_problem(3),
        ended: u16,
    ) {
        let solution = solve(&problem);
        for demand in problem.demands.iter().filter(|demand| runs(&solution, demand).is_empty()) {
            let behind = |other: &Demand| {
                other.priority < demand.priority
                    || (other.priority == demand.priority
                        && other.team == demand.team
                        && demand.number < other.number)
            };
            let Decision::Wait(shortage) = &solution[&demand.job] else { continue };
            if matches!(shortage.constraint, Constraint::Quota { .. })
                || room(&problem, demand, &[]) < demand.workers_min as usize
            {
                continue;
            }
            let assigned = |other: &'_ Demand| runs(&solution, other).to_vec();
            let others: Vec<(&Demand, Vec<WorkerId>)> = problem
                .demands
                .iter()
                .filter(|other| other.job != demand.job)
                .map(|other| (other, assigned(other)))
                .collect();
            let stays = |other: &Demand| !behind(other) && ended >> other.number & 1 == 0;
            let without: Vec<(&Demand, &[WorkerId])> = others
                .iter()
                .filter(|(other, _)| stays(other))
                .map(|(other, workers)| (*other, workers.as_slice()))
                .collect();
            let started = |other: &Demand| behind(other) && other.holds.is_empty();
            let with: Vec<(&Demand, &[WorkerId])> = others
                .iter()
                .filter(|(other, _)| stays(other) || started(other))
                .map(|(other, workers)| (*other, workers.as_slice()))
                .collect();
            let least = demand.workers_min as usize;
            prop_assert!(
                room(&problem, demand, &without) < least || least <= room(&problem, demand, &with),
                "{} is delayed: {:?}", demand.job, solution
            );
        }
    }

    /// Jobs end, the longest running first, and new ones keep coming: every job that fits on the
    /// cluster starts eventually.
    #[test]
    fn no_job_starves(
        demands in any_demands(1),
        nodes in any_nodes(),
        newcomers in any_demands(1),
    ) {
        let open = |node: NodeCapacity| NodeCapacity { access: Access::Open, ..node };
        let mut problem = problem(&demands, nodes.into_iter().map(open).collect());
        problem.demands.iter_mut().for_each(|demand| demand.in_grace_period = false);
        let empty = Problem { demands: vec![], ..problem.clone() };
        problem.demands.retain(|demand| demand.workers_min as usize <= room(&empty, demand, &[]));
        let mut waiting: BTreeSet<JobId> =
            problem.demands.iter().map(|demand| demand.job.clone()).collect();
        let mut running: Vec<JobId> = Vec::new();
        let mut number = 100;
        for _ in 0..60 {
            let solution = solve(&problem);
            apply_solution(&mut problem, &solution);
            for demand in problem.demands.iter().filter(|demand| !demand.holds.is_empty()) {
                waiting.remove(&demand.job);
                if !running.contains(&demand.job) {
                    running.push(demand.job.clone());
                }
            }
            if !running.is_empty() {
                let ended = running.remove(0);
                problem.demands.retain(|demand| demand.job != ended);
            }
            for newcomer in &newcomers {
                number += 1;
                let job = JobId(format!("job-{number}"));
                problem.demands.push(Demand {
                    job,
                    number,
                    in_grace_period: false,
                    ..newcomer.clone()
                });
            }
            // Bounds the queue by dropping jobs at its end.
            let mut index = 0;
            problem.demands.retain(|demand| {
                index += 1;
                index <= 40 || !demand.holds.is_empty()
            });
        }
        prop_assert!(waiting.is_empty(), "{:?} never started", waiting);
    }
}

/// An evaluation of `job-{parent}`.
fn evaluation(number: u64, takes: Takes) -> Demand {
    Demand {
        takes,
        ..gang(number, 1, 1, 1)
    }
}

fn of(parent: u64) -> Takes {
    Takes::FreeOrOf(JobId(format!("job-{parent}")))
}

#[test]
fn a_job_that_takes_only_free_workers_takes_no_others_and_reserves_none() {
    let parent = holding(gang(1, 1, 3, 1), &[1, 2, 3]);
    let low = Demand {
        priority: -1,
        ..holding(gang(2, 1, 1, 1), &[4])
    };
    let free = evaluation(3, Takes::Free);
    let demands = [parent.clone(), low.clone(), free.clone()];
    let waits = "1x1 cpu, busy w1 w2 w3 w4";
    expect(&problem(&demands, nodes(4)), &["w1 w2 w3", "w4", waits]);
    expect(&problem(&demands, nodes(5)), &["w1 w2 w3", "w4", "w5"]);
    // It reserves nothing: a later job makes the first one shrink as if it were not there.
    let later = [parent, low, free, gang(4, 1, 1, 1)];
    let solution = solve(&problem(&later, nodes(4)));
    assert!(matches!(
        &solution[&JobId("job-4".to_owned())],
        Decision::Run(_)
    ));
}

/// It takes a device beside job 3 on w2. Job 3 then still counts w2 as its minimum, so job 2 does
/// not grow there.
#[test]
fn a_job_that_takes_a_free_device_does_not_change_which_workers_others_may_lose() {
    let waits = Demand {
        in_grace_period: true,
        ..gang(1, 3, 4, 1)
    };
    let important = Demand {
        priority: 1,
        ..gang(2, 2, 4, 1)
    };
    let mut problem = problem(
        &[waits, important, gang(3, 1, 2, 3)],
        vec![node(1, 4), node(2, 4), node(3, 5)],
    );
    let settled = solve(&problem);
    apply_solution(&mut problem, &settled);
    problem.demands.push(Demand {
        priority: 1,
        ..evaluation(100, Takes::Free)
    });
    let solution = solve(&problem);
    for job in ["job-2", "job-3"].map(|job| JobId(job.to_owned())) {
        assert_eq!(describe(&solution[&job]), describe(&settled[&job]), "{job}");
    }
}

#[test]
fn an_evaluation_takes_a_worker_of_its_own_job_and_of_no_other_above_the_minimum() {
    let waits = "1x1 cpu, busy w1 w2 w3";
    let both = |min, parent| {
        [
            holding(gang(1, min, 2, 1), &[1, 2]),
            holding(gang(2, 1, 1, 1), &[3]),
            evaluation(3, of(parent)),
        ]
    };
    expect(&problem(&both(1, 1), nodes(3)), &["w1", "w3", "w2"]);
    expect(&problem(&both(2, 1), nodes(3)), &["w1 w2", "w3", waits]);
    expect(&problem(&both(1, 2), nodes(3)), &["w1 w2", "w3", waits]);
    expect(&problem(&both(1, 9), nodes(3)), &["w1 w2", "w3", waits]);
    expect(&problem(&both(1, 1), nodes(4)), &["w1 w2", "w3", "w4"]);
}

#[test]
fn an_evaluation_on_free_workers_leaves_its_team_s_quota_to_those_that_hold_devices() {
    let demands = |takes| [holding(gang(1, 1, 2, 1), &[1, 2]), evaluation(2, takes)];
    let mut limited = problem(&demands(Takes::Free), nodes(3));
    limited.quotas = BTreeMap::from([("default".to_owned(), 2)]);
    let solution = solve(&limited);
    assert!(matches!(
        &solution[&JobId("job-2".to_owned())],
        Decision::Wait(_)
    ));
    limited.demands = demands(of(1)).to_vec();
    let solution = solve(&limited);
    assert!(matches!(
        &solution[&JobId("job-2".to_owned())],
        Decision::Run(_)
    ));
}

/// Some of these jobs are evaluations.
fn any_evaluations() -> impl Strategy<Value = Vec<Demand>> {
    let takes = prop::collection::vec(0..4_u64, 9);
    (any_demands(2), takes).prop_map(|(demands, takes)| {
        let with = |(demand, takes): (Demand, u64)| match takes {
            0 => Demand {
                takes: Takes::Free,
                workers_min: 1,
                workers_max: 1,
                ..demand
            },
            1 => Demand {
                takes: of(demand.number.saturating_sub(1)),
                workers_min: 1,
                workers_max: 1,
                ..demand
            },
            _ => demand,
        };
        demands.into_iter().zip(takes).map(with).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_solution_with_evaluations_is_solved_again_as_itself(
        demands in any_evaluations(),
        nodes in any_nodes(),
    ) {
        let mut problem = problem(&demands, nodes);
        let first = solve(&problem);
        apply_solution(&mut problem, &first);
        prop_assert_eq!(solve(&problem), first);
    }

    /// Those that take only free workers take nothing from the others.
    #[test]
    fn waiting_evaluations_change_nothing_for_jobs_that_run(
        demands in any_demands(2),
        nodes in any_nodes(),
        number in 0..9_usize,
    ) {
        let mut problem = problem(&demands, nodes);
        let settled = solve(&problem);
        apply_solution(&mut problem, &settled);
        // A job that runs is in no grace period (`Gang::in_grace_period`).
        for demand in &mut problem.demands {
            demand.in_grace_period &= demand.holds.is_empty();
        }
        let settled = solve(&problem);
        apply_solution(&mut problem, &settled);
        let mut with = problem.clone();
        with.demands.push(Demand {
            priority: i32::try_from(number % 3).expect("a few"),
            ..evaluation(100, Takes::Free)
        });
        let solution = solve(&with);
        for (job, decision) in &settled {
            if let Decision::Run(workers) = decision {
                let Decision::Run(now) = &solution[job] else {
                    panic!("{job:?} stops for an evaluation");
                };
                prop_assert!(
                    workers.iter().all(|worker| now.contains(worker)),
                    "{:?} gives up a worker", job
                );
            }
        }
    }
}
