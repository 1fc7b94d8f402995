//! The ranks of a job: what each does, and how far their work per step is apart. Pure.

use crate::web::board::RankLine;
use crate::web::rows::Link;
use crate::web::show;
use proto::message::PhaseSeconds;

/// Rows of ranks that are shown.
pub(super) const RANKS: usize = 64;

#[derive(Debug)]
pub(super) struct RankRow {
    pub(super) rank: u32,
    pub(super) worker: Link,
    pub(super) phase: String,
    pub(super) activity: String,
    /// Its own work per step, and what it waited.
    pub(super) own: String,
    pub(super) waited: String,
    /// Thousandths of the slowest rank's work.
    pub(super) share: u64,
    pub(super) slowest: bool,
}

fn own_work(it: &PhaseSeconds) -> f64 {
    it.data + it.forward + it.backward + it.optimizer
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Thousandths.
pub(super) fn rank_rows(ranks: &[RankLine]) -> Vec<RankRow> {
    let works = ranks
        .iter()
        .filter_map(|it| it.step_seconds.as_ref().map(own_work));
    let most = works.clone().fold(0.0, f64::max);
    let least = works.fold(f64::INFINITY, f64::min);
    let seconds = |value: f64| format!("{} s", show::number(value));
    ranks
        .iter()
        .take(RANKS)
        .map(|it| {
            let own = it.step_seconds.as_ref().map(own_work);
            let share = own.map_or(0.0, |own| if 0.0 < most { own / most } else { 0.0 });
            RankRow {
                rank: it.rank,
                worker: Link::worker(&it.worker),
                phase: it.phase.clone(),
                activity: it
                    .activity
                    .as_ref()
                    .map_or_else(String::new, |(stage, for_ms)| {
                        format!("{stage}, {}", show::span(*for_ms))
                    }),
                own: own.map_or_else(|| show::NONE.to_owned(), seconds),
                waited: it
                    .step_seconds
                    .map_or_else(|| show::NONE.to_owned(), |all| seconds(all.communication)),
                share: (1000.0 * share).round() as u64,
                // Beyond what noise explains.
                slowest: own.is_some_and(|own| own == most && 1.2 * least < most),
            }
        })
        .collect()
}

/// How far the ranks are apart; empty if less than two have done a step.
pub(super) fn spread(ranks: &[RankLine]) -> String {
    let works = ranks
        .iter()
        .filter_map(|it| it.step_seconds.as_ref().map(own_work));
    if works.clone().count() < 2 {
        return String::new();
    }
    let most = works.clone().fold(0.0, f64::max);
    let least = works.fold(f64::INFINITY, f64::min);
    let percent = if 0.0 < most {
        (most - least) / most
    } else {
        0.0
    };
    format!(
        "own work {} to {} s per step: {} apart",
        show::number(least),
        show::number(most),
        show::percent(percent)
    )
}
