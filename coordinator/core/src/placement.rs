//! A pure placement solver. Its input is every job that wants to run, the workers that each holds,
//! and all workers. It returns the workers that each job should hold, or why it should wait. It is
//! idempotent: solving a solution again changes nothing. It has no state and no clock.
//!
//! 1. Jobs are admitted with their `workers_min`, each gang whole or not at all: higher priorities
//!    first; within a priority, running jobs first, then jobs whose team was given the fewest
//!    devices for jobs older than they, then in submit order. Devices of a younger job of the team
//!    do not count, so no job starves.
//! 2. The remaining workers are assigned one at a time up to `workers_max`, in the same order of
//!    priorities, each time to the team, then the job, that has the least.
//!
//! A job takes free workers first, then workers that others hold beyond their minimum (those jobs
//! shrink), then workers of lower priorities (those jobs are preempted). A job that does not fit
//! reserves the free workers that it can use, so that no later job starts in its place. A job that
//! could not fit even on an idle cluster reserves nothing.

mod problem;
mod shortage;
mod solution;
mod table;

pub(crate) use problem::{Access, Demand, NodeCapacity, Problem, Takes};
use proto::id::WorkerId;
pub(crate) use solution::{Decision, Devices, LastPlacement, Solution};
use std::cmp::Reverse;
use table::Table;

/// Maximum number of passes. Each pass starts from the result of the previous one, until nothing
/// changes, usually at once. Nodes of different sizes can make passes cycle; the smallest solution
/// of the cycle is then used, so that the result does not depend on the entry point.
const PASSES_MAX: usize = 64;

pub(crate) fn solve(problem: &Problem) -> Solution {
    let mut held = problem.clone();
    let mut seen: Vec<(Vec<Vec<WorkerId>>, Solution)> = Vec::new();
    loop {
        let solution = pass(&held);
        if apply_solution(&mut held, &solution) {
            return solution;
        }
        let holds: Vec<Vec<WorkerId>> = held
            .demands
            .iter()
            .map(|demand| demand.holds.clone())
            .collect();
        let repeated = seen.iter().position(|(known, _)| *known == holds);
        if let Some(first) = repeated.or((seen.len() == PASSES_MAX).then_some(0)) {
            let cycle = seen.drain(first..).min_by(|(a, _), (b, _)| a.cmp(b));
            return cycle.map_or(solution, |(_, smallest)| smallest);
        }
        seen.push((holds, solution));
    }
}

/// Assigns the solution to the problem's jobs. Returns true if nothing changed.
pub(crate) fn apply_solution(problem: &mut Problem, solution: &Solution) -> bool {
    let mut same = true;
    for demand in &mut problem.demands {
        let given = match solution.get(&demand.job) {
            Some(Decision::Run(workers)) => workers.clone(),
            Some(Decision::Wait(_)) | None => Vec::new(),
        };
        same &= given == demand.holds;
        demand.holds = given;
    }
    same
}

fn pass(problem: &Problem) -> Solution {
    let mut table = Table::new(problem);
    let mut order: Vec<usize> = (0..problem.demands.len()).collect();
    order.sort_by_key(|job| Reverse(problem.demands[*job].priority));
    let classes: Vec<&[usize]> = order
        .chunk_by(|a, b| problem.demands[*a].priority == problem.demands[*b].priority)
        .collect();
    for class in &classes {
        admit(&mut table, class);
    }
    for class in &classes {
        deal_out(&mut table, class);
    }
    table.into_solution()
}

/// Step 1 for the jobs of one priority.
fn admit(table: &mut Table<'_>, class: &[usize]) {
    let (running, mut waiting): (Vec<usize>, Vec<usize>) = class
        .iter()
        .partition(|job| !table.demand(**job).holds.is_empty());
    for job in running {
        table.admit(job);
    }
    let queue_key =
        |table: &Table<'_>, job: usize| (table.older_devices(job), table.demand(job).number);
    while let Some((index, _)) = waiting
        .iter()
        .enumerate()
        .min_by_key(|(_, job)| queue_key(table, **job))
    {
        table.admit(waiting.remove(index));
    }
}

/// Step 2 for the jobs of one priority.
fn deal_out(table: &mut Table<'_>, class: &[usize]) {
    let mut growing: Vec<usize> = class
        .iter()
        .copied()
        .filter(|job| table.is_admitted(*job))
        .collect();
    while let Some((index, _)) = growing.iter().enumerate().min_by_key(|(_, job)| {
        (
            table.team_devices(**job),
            table.workers(**job),
            table.demand(**job).number,
        )
    }) {
        if !table.grow(growing[index]) {
            growing.remove(index);
        }
    }
}

#[cfg(test)]
mod tests;
