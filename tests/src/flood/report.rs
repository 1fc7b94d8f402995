//! What `make chaos FLOOD=1` prints.

use super::{Rate, Report, Round};
use std::fmt;

/// How to read the numbers.
const HELP: &str = "\
Steps per second of the victim, without and beside each flood, by turns in the same minutes. The
flood runs on this machine, too, so it takes processor time from the victim that a sender elsewhere
would not take: \"available\" divides by the processor seconds that neither the flood (\"sender\",
which is held to a share of one processor) nor other programs took. What the coordinator takes for
refusing is not deducted: it is the product's. \"change\" is beside / without - 1. Processor time is
in percent of one processor. If others took much of it, measure again when they do not.";

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "FLOOD: {} steps of the victim, none lost", self.steps)?;
        let is_compared = self.rounds.iter().any(|round| round.without.is_some());
        if is_compared {
            writeln!(f, "{HELP}")?;
        }
        writeln!(
            f,
            "  {:<36} {:>8} {:>8} {:>7} {:>10} {:>7} {:>8} {:>9} {:>9} {:>9}",
            "beside",
            "steps/s",
            "without",
            "change",
            "available",
            "change",
            "memory",
            "silence",
            "sent",
            "refused"
        )?;
        for round in &self.rounds {
            line(f, round)?;
        }
        let all = self
            .rounds
            .iter()
            .filter_map(|it| Some((it.without?, it.beside)));
        let (mut without, mut beside) = (Rate::default(), Rate::default());
        for (a, b) in all {
            without.add(a);
            beside.add(b);
        }
        if is_compared {
            let raw = change(beside.per_second(), without.per_second());
            let available = change(
                beside.per_available_second(),
                without.per_available_second(),
            );
            writeln!(
                f,
                "  all together: {raw} raw, {available} per available second"
            )?;
        }
        Ok(())
    }
}

fn line(f: &mut fmt::Formatter<'_>, round: &Round) -> fmt::Result {
    let beside = &round.beside;
    let (mut without, mut raw, mut available) = ("-".to_owned(), "-".to_owned(), "-".to_owned());
    if let Some(rate) = &round.without {
        without = format!("{:.2}", rate.per_second());
        raw = change(beside.per_second(), rate.per_second());
        available = change(beside.per_available_second(), rate.per_available_second());
    }
    writeln!(
        f,
        "  {:<36} {:>8.2} {without:>8} {raw:>7} {:>10.2} {available:>7} {:>5.0} MB {:>7.2} s \
         {:>9} {:>9}",
        round.kind.description(),
        beside.per_second(),
        beside.per_available_second(),
        round.memory_mb,
        round.longest_silence.as_secs_f64(),
        round.tally.sent,
        round.tally.refused,
    )?;
    if let Some(rate) = &round.without {
        writeln!(f, "    processors without: {}", processors(rate))?;
    }
    writeln!(f, "    processors beside:  {}", processors(beside))?;
    let words = round.tally.words.iter().chain(&round.warning);
    for words in words.chain(&round.why) {
        let words: String = words.chars().take(200).collect();
        writeln!(f, "    {words}")?;
    }
    Ok(())
}

/// "-3.2 %".
fn change(beside: f64, without: f64) -> String {
    format!("{:+.1} %", 100.0 * (beside / without - 1.0))
}

/// Who took the processors, in percent of one.
fn processors(rate: &Rate) -> String {
    let percent = |seconds: f64| 100.0 * seconds / rate.seconds;
    format!(
        "victim {:.0} %, coordinator {:.0} %, sender {:.0} %, others {:.0} %, idle {:.0} %",
        percent(rate.cpu.victim),
        percent(rate.cpu.coordinator),
        percent(rate.cpu.sender),
        percent(rate.cpu.others),
        percent(rate.cpu.idle)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flood::{Cpu, Kind, Tally};
    use std::time::Duration;

    #[test]
    fn rates_are_compared_raw_and_per_available_second() {
        let rate = |steps, sender, idle| Rate {
            steps,
            seconds: 10.0,
            cpu: Cpu {
                victim: 10.0,
                sender,
                idle,
                ..Cpu::default()
            },
        };
        let round = Round {
            kind: Kind::Reports,
            without: Some(rate(100, 0.0, 10.0)),
            beside: rate(75, 5.0, 5.0),
            memory_mb: 50.0,
            longest_silence: Duration::from_millis(20),
            probes: 3,
            tally: Tally::default(),
            warning: None,
            why: Some("meanwhile: x".to_owned()),
        };
        let report = Report {
            rounds: vec![round],
            steps: 175,
        };
        let text = report.to_string();
        for part in [
            "   7.50    10.00 -25.0 %       5.00  +0.0 %",
            "all together: -25.0 % raw, +0.0 % per available second",
            "beside:  victim 100 %, coordinator 0 %, sender 50 %, others 0 %, idle 50 %",
            "meanwhile: x",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }
}
