//! Who runs what: a pure solver. It is given every job that wants to run, what each holds now, and
//! every worker, and answers with what each job should hold, or why it should wait. Solving a
//! solution changes nothing. It holds no state and knows no time.
//!
//! 1. Jobs are admitted with their `workers_min`, each gang whole or not at all: higher priorities
//!    first; among equals those that run already, then those whose team was given least for jobs
//!    older than they, then in submit order. What a younger job of the team holds sets nobody back,
//!    so everyone's turn comes.
//! 2. What is left is dealt out one worker at a time up to `workers_max`, in the same order of
//!    priorities, each time to the team, then the job, that has least.
//!
//! A job takes free workers first, then those that others hold beyond their minimum (they shrink),
//! then those of lower priorities (they make way). A job that does not fit keeps what is free for
//! itself, so that nobody behind it starts in its place; one that could not fit even on an idle
//! cluster keeps nothing.

mod problem;
mod shortage;
mod solution;
mod table;

pub(crate) use problem::{Access, Demand, NodeCapacity, Problem};
use proto::id::WorkerId;
pub(crate) use shortage::Shortage;
pub(crate) use solution::{Decision, Devices, Solution, Solved};
use std::cmp::Reverse;
use table::Table;

/// One pass decides from what is held, and what it decides is held in the next, until nothing
/// changes: mostly at once. Where passes come round in a circle, as seats of many sizes can make
/// them, the least of the circle is the solution, wherever one enters it. So many passes bound
/// both.
const PASSES_MAX: usize = 64;

pub(crate) fn solve(problem: &Problem) -> Solution {
    let mut held = problem.clone();
    let mut seen: Vec<(Vec<Vec<WorkerId>>, Solution)> = Vec::new();
    loop {
        let solution = pass(&held);
        if carry_out(&mut held, &solution) {
            return solution;
        }
        let holds: Vec<Vec<WorkerId>> = held
            .demands
            .iter()
            .map(|demand| demand.holds.clone())
            .collect();
        let before = seen.iter().position(|(known, _)| *known == holds);
        if let Some(first) = before.or((seen.len() == PASSES_MAX).then_some(0)) {
            let circle = seen.drain(first..).min_by(|(a, _), (b, _)| a.cmp(b));
            return circle.map_or(solution, |(_, least)| least);
        }
        seen.push((holds, solution));
    }
}

/// Lets every job hold what it was given. True when it held that already.
pub(crate) fn carry_out(problem: &mut Problem, solution: &Solution) -> bool {
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
    let turn = |table: &Table<'_>, job: usize| (table.older_devices(job), table.demand(job).number);
    while let Some((index, _)) = waiting
        .iter()
        .enumerate()
        .min_by_key(|(_, job)| turn(table, **job))
    {
        table.admit(waiting.remove(index));
    }
}

/// Step 2 for the jobs of one priority.
fn deal_out(table: &mut Table<'_>, class: &[usize]) {
    let mut hungry: Vec<usize> = class
        .iter()
        .copied()
        .filter(|job| table.is_admitted(*job))
        .collect();
    while let Some((index, _)) = hungry.iter().enumerate().min_by_key(|(_, job)| {
        (
            table.team_devices(**job),
            table.workers(**job),
            table.demand(**job).number,
        )
    }) {
        if !table.grow(hungry[index]) {
            hungry.remove(index);
        }
    }
}

#[cfg(test)]
mod tests;
