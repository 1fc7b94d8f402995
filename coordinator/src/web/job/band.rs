//! The history of a job by step: its curve as there is without scripts, and the band of its
//! generations with incidents as marks and checkpoints as ticks. Pure.

use crate::web::curves::{Begun, History};
use crate::web::rows::Link;
use crate::web::show::{self, At};
use crate::web::svg::{self, Lines};
use proto::pb;

/// Points and size of the curve that there is without scripts.
const POINTS: usize = 400;
const CURVE_SIZE: (f64, f64) = (1000.0, 200.0);
/// Ticks and marks on the band of generations; more would be one line.
const TICKS: usize = 400;
/// Height of a generation of as many ranks as the largest one.
const HEIGHT: f64 = 24.0;

#[derive(Debug)]
pub(super) struct Curve {
    pub(super) lines: Lines,
    pub(super) low: String,
    pub(super) high: String,
    pub(super) first: String,
    pub(super) last: String,
    /// The job's last step, from which a script sees that there is more.
    pub(super) newest: u64,
    /// How far the steps are read, if not to their end.
    pub(super) read: String,
    pub(super) compare: Option<Link>,
}

/// Generations by step.
#[derive(Debug)]
pub(super) struct Band {
    /// Ranks now and at most.
    pub(super) world: String,
    pub(super) spans: Vec<BandSpan>,
    pub(super) ticks: Vec<(At, u64)>,
    pub(super) marks: Vec<(At, String)>,
    pub(super) end: String,
}

#[derive(Debug)]
pub(super) struct BandSpan {
    pub(super) x: At,
    pub(super) width: At,
    /// As high as its world is large.
    pub(super) y: At,
    pub(super) height: At,
    pub(super) even: bool,
    pub(super) title: String,
}

pub(super) fn curve(history: &History, view: &pb::JobView) -> Option<Curve> {
    let points = history.curve.means("loss", POINTS);
    let (first, last) = (points.first()?.0, points.last()?.0);
    let lines = svg::lines(&points, CURVE_SIZE);
    let read = if history.complete {
        String::new()
    } else {
        format!(
            "steps read so far: {} of {}",
            show::count(last),
            show::count(view.step)
        )
    };
    Some(Curve {
        low: show::number(lines.least),
        high: show::number(lines.largest),
        lines,
        first: show::count(first),
        last: show::count(last),
        newest: view.step,
        read,
        compare: None,
    })
}

#[allow(clippy::cast_precision_loss)] // Pixels.
pub(super) fn band(history: &History, view: &pb::JobView) -> Option<Band> {
    // Up to the newest step, as the curves: of a million steps, the first thousand would be a line.
    let end = view.step.max(1);
    let x = |step: u64| At(1000.0 * step.min(end) as f64 / end as f64);
    let generations = &history.generations;
    if generations.is_empty() {
        return None;
    }
    let skipped = generations.len().saturating_sub(TICKS);
    let until = |index: usize| generations.get(index + 1).map_or(view.step, |it| it.from);
    let most = generations.iter().map(|it| it.world).max().unwrap_or(1);
    let height = |world: u32| HEIGHT * f64::from(world) / f64::from(most.max(1));
    let spans = generations.iter().enumerate().skip(skipped);
    let spans = spans.map(|(index, it)| {
        let (from, to) = (it.from, until(index).max(it.from));
        BandSpan {
            x: x(from),
            width: At((x(to).0 - x(from).0).max(1.0)),
            y: At(8.0 + HEIGHT - height(it.world)),
            height: At(height(it.world)),
            even: index % 2 == 0,
            title: band_title(it, to),
        }
    });
    let ticks = view.checkpoints.iter().rev().take(TICKS);
    let marks = view.incidents.iter().map(|it| {
        let step = history
            .after(it.generation)
            .map_or(view.step, |next| next.from + next.lost);
        (x(step), it.sentence())
    });
    Some(Band {
        world: match generations.last() {
            Some(_) if most == 1 => "1 rank".to_owned(),
            Some(last) if last.world == most => format!("{most} ranks"),
            Some(last) => format!("{} ranks of {most} at most", last.world),
            None => String::new(),
        },
        spans: spans.collect(),
        ticks: ticks.map(|it| (x(it.step), it.step)).collect(),
        marks: marks.collect(),
        end: match view.steps {
            steps if view.step < steps => {
                format!("{} of {}", show::count(view.step), show::count(steps))
            }
            _ => show::count(view.step),
        },
    })
}

fn band_title(it: &Begun, to: u64) -> String {
    let lost = match it.lost {
        0 => String::new(),
        lost => format!("; {lost} steps were done again"),
    };
    format!(
        "generation {}: {} ranks, steps {} to {to}{lost}",
        it.generation,
        it.world,
        it.from + 1
    )
}
