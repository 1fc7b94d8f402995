//! The ledger of a job: a hash chain of entries that record which steps were done, by which
//! generation, on which samples. Each entry contains the hash of the previous one, so that a
//! changed, dropped or inserted entry is detected. This file defines the entries, their hashes, and
//! the replay that verifies them. Pure; written by the coordinator's machine, read by `audit`.

use crate::id::{Generation, JobId, Step};
use crate::text::hex_sha256;
use serde::{Deserialize, Serialize};

/// One line of the ledger, stored as one JSON object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Consecutive, from 0.
    pub number: u64,
    pub line: Line,
    /// Hash of the previous entry; [`genesis`] for the first one.
    pub previous: String,
    pub hash: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Line {
    /// A generation continued from the state after step `from`. Later steps of older generations
    /// were lost: they are superseded and no longer count.
    Generation {
        generation: Generation,
        world: u32,
        from: Step,
    },
    /// The newest generation did a step on the samples at positions `first .. first + samples` of
    /// the job's sample order.
    Step {
        generation: Generation,
        step: Step,
        first: u64,
        samples: u32,
        /// None: the loss was not finite.
        loss: Option<f64>,
    },
    /// The newest generation did the steps up to this one, but its reports of them were lost. They
    /// are known to be done because it reported a later step or committed a checkpoint of that
    /// step.
    Unheard {
        generation: Generation,
        through: Step,
        first: u64,
        samples: u64,
    },
    /// A user set a key of job.toml (`coordinator retry --set`), which holds from here on.
    Override { key: String, value: String },
    /// All ranks of the newest generation had this state after a step.
    Digest {
        generation: Generation,
        step: Step,
        sha256: String,
    },
}

/// The end of a ledger; all that is needed to write the next entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tip {
    pub entries: u64,
    pub hash: String,
    /// The newest generation in the ledger; 0 before the first.
    pub generation: Generation,
    /// The last step that is not superseded.
    pub step: Step,
}

/// The hash that the first entry refers to; it identifies the job.
#[must_use]
pub fn genesis(job: &JobId, dataset_version: &str, job_toml: &str) -> String {
    hex_sha256(format!("{job}\0{dataset_version}\0{job_toml}").as_bytes())
}

impl Tip {
    #[must_use]
    pub fn begin(job: &JobId, dataset_version: &str, job_toml: &str) -> Self {
        Self {
            entries: 0,
            hash: genesis(job, dataset_version, job_toml),
            generation: Generation(0),
            step: Step(0),
        }
    }

    /// Appends a line and returns its entry. The caller keeps the order that [`Replay`] requires.
    #[must_use]
    pub fn append(&mut self, line: Line) -> Entry {
        let entry = Entry {
            number: self.entries,
            hash: hash(&self.hash, self.entries, &line),
            previous: self.hash.clone(),
            line,
        };
        match &entry.line {
            Line::Generation {
                generation, from, ..
            } => (self.generation, self.step) = (*generation, *from),
            Line::Step { step, .. } | Line::Unheard { through: step, .. } => self.step = *step,
            Line::Digest { .. } | Line::Override { .. } => {}
        }
        self.entries += 1;
        self.hash.clone_from(&entry.hash);
        entry
    }
}

fn hash(previous: &str, number: u64, line: &Line) -> String {
    let line = serde_json::to_string(line).expect("a line is plain data");
    hex_sha256(format!("{previous}\n{number}\n{line}").as_bytes())
}

/// Why a ledger is invalid from some entry on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("entry {expected} is missing: found entry {found} instead")]
    Missing { expected: u64, found: u64 },
    #[error("entry {number} was changed: its hash is {hash} and should be {expected}")]
    Changed {
        number: u64,
        hash: String,
        expected: String,
    },
    #[error(
        "entry {number} does not follow the previous one: its `previous` is {previous} and should \
        be {expected}"
    )]
    Unchained {
        number: u64,
        previous: String,
        expected: String,
    },
    #[error("entry {number}: {what}")]
    Order { number: u64, what: String },
    #[error(
        "the ledger ends after {found} entries with hash {hash}; the coordinator wrote {expected}, \
        the last with hash {tip}"
    )]
    Truncated {
        found: u64,
        hash: String,
        expected: u64,
        tip: String,
    },
}

/// Consecutive steps `first ..= last` of one generation, according to the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    pub first: Step,
    pub last: Step,
    pub generation: Generation,
    pub world: u32,
    /// A later generation restarted from an earlier step.
    pub superseded: bool,
}

/// Verifies a ledger entry by entry from its beginning and accumulates what it proves.
#[derive(Debug)]
pub struct Replay {
    tip: Tip,
    world: u32,
    global_batch: u32,
    /// In the order in which they were done.
    done: Vec<Done>,
    digests: Vec<(Step, String)>,
    overrides: Vec<(String, String)>,
    unheard: u64,
}

impl Replay {
    /// `global_batch` is the number of samples of one step.
    #[must_use]
    pub fn new(begin: Tip, global_batch: u32) -> Self {
        Self {
            tip: begin,
            world: 0,
            global_batch,
            done: Vec::new(),
            digests: Vec::new(),
            overrides: Vec::new(),
            unheard: 0,
        }
    }

    /// Verifies and applies the next entry.
    ///
    /// # Errors
    /// The entry does not follow the previous one, was changed, or records something impossible.
    /// All later entries are invalid then.
    pub fn take(&mut self, entry: &Entry) -> Result<(), Fault> {
        let number = entry.number;
        if number != self.tip.entries {
            return Err(Fault::Missing {
                expected: self.tip.entries,
                found: number,
            });
        }
        if entry.previous != self.tip.hash {
            let (previous, expected) = (entry.previous.clone(), self.tip.hash.clone());
            return Err(Fault::Unchained {
                number,
                previous,
                expected,
            });
        }
        let expected = hash(&entry.previous, number, &entry.line);
        if entry.hash != expected {
            return Err(Fault::Changed {
                number,
                hash: entry.hash.clone(),
                expected,
            });
        }
        self.apply_line(&entry.line)
            .map_err(|what| Fault::Order { number, what })?;
        drop(self.tip.append(entry.line.clone()));
        Ok(())
    }

    fn apply_line(&mut self, line: &Line) -> Result<(), String> {
        match line {
            Line::Generation {
                generation,
                world,
                from,
            } => {
                if *generation <= self.tip.generation || *world == 0 || self.tip.step < *from {
                    let (newest, last) = (self.tip.generation, self.tip.step);
                    return Err(format!(
                        "generation {generation} of {world} ranks from step {from} cannot follow \
                        generation {newest}, which ended at step {last}"
                    ));
                }
                self.world = *world;
                self.supersede(*from);
            }
            Line::Step {
                generation,
                step,
                first,
                samples,
                loss,
            } => {
                self.check_current(*generation)?;
                let start = self.tip.step.0 * u64::from(self.global_batch);
                if step.0 != self.tip.step.0 + 1 || (*first, *samples) != (start, self.global_batch)
                {
                    return Err(format!(
                        "step {step} on {samples} samples from position {first} cannot follow \
                        step {}; expected {} samples from position {start}",
                        self.tip.step, self.global_batch
                    ));
                }
                self.unheard += u64::from(loss.is_none());
                self.record_steps(*step);
            }
            Line::Unheard {
                generation,
                through,
                first,
                samples,
            } => {
                self.check_current(*generation)?;
                let batch = u64::from(self.global_batch);
                let steps = through.0.saturating_sub(self.tip.step.0);
                let start = self.tip.step.0 * batch;
                if steps == 0 || (*first, *samples) != (start, steps.saturating_mul(batch)) {
                    return Err(format!(
                        "{samples} samples from position {first} are not those of steps {} to \
                        {through}",
                        self.tip.step.0 + 1
                    ));
                }
                self.unheard += steps;
                self.record_steps(*through);
            }
            Line::Digest {
                generation,
                step,
                sha256,
            } => {
                self.check_current(*generation)?;
                if self.tip.step < *step {
                    return Err(format!(
                        "a digest of step {step}, but step {} was the last",
                        self.tip.step
                    ));
                }
                self.digests.push((*step, sha256.clone()));
            }
            Line::Override { key, value } => {
                self.overrides.push((key.clone(), value.clone()));
            }
        }
        Ok(())
    }

    /// Records that the newest generation did all steps up to this one.
    fn record_steps(&mut self, last: Step) {
        let first = Step(self.tip.step.0 + 1);
        let generation = self.tip.generation;
        match self.done.last_mut() {
            Some(done) if !done.superseded && done.generation == generation => done.last = last,
            Some(_) | None => {
                let (world, superseded) = (self.world, false);
                self.done.push(Done {
                    first,
                    last,
                    generation,
                    world,
                    superseded,
                });
            }
        }
    }

    /// Marks all steps after `from` as superseded.
    fn supersede(&mut self, from: Step) {
        let mut index = self.done.len();
        while let Some(previous) = index.checked_sub(1) {
            let done = &mut self.done[previous];
            if done.last <= from && !done.superseded {
                break;
            }
            if !done.superseded && done.first <= from {
                let lost = Done {
                    first: Step(from.0 + 1),
                    superseded: true,
                    ..*done
                };
                done.last = from;
                self.done.insert(index, lost);
                break;
            }
            done.superseded = true;
            index = previous;
        }
    }

    fn check_current(&self, generation: Generation) -> Result<(), String> {
        if generation == self.tip.generation && self.world != 0 {
            return Ok(());
        }
        Err(format!(
            "the entry is of generation {generation}, but generation {} is the newest",
            self.tip.generation
        ))
    }

    /// Checks that the ledger is complete.
    ///
    /// # Errors
    /// The ledger does not end where the coordinator's record says.
    pub fn ends_at(&self, tip: &Tip) -> Result<(), Fault> {
        if self.tip == *tip {
            return Ok(());
        }
        Err(Fault::Truncated {
            found: self.tip.entries,
            hash: self.tip.hash.clone(),
            expected: tip.entries,
            tip: tip.hash.clone(),
        })
    }

    #[must_use]
    pub fn tip(&self) -> &Tip {
        &self.tip
    }

    /// All steps in the order in which they were done, including superseded ones.
    #[must_use]
    pub fn done(&self) -> &[Done] {
        &self.done
    }

    /// Digests that all ranks agreed on. If a step has several, the last one counts.
    #[must_use]
    pub fn digests(&self) -> &[(Step, String)] {
        &self.digests
    }

    /// Keys of job.toml that users set, with their values, in order.
    #[must_use]
    pub fn overrides(&self) -> &[(String, String)] {
        &self.overrides
    }

    /// Number of steps whose loss was not reported or was not finite.
    #[must_use]
    pub fn unheard(&self) -> u64 {
        self.unheard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BATCH: u32 = 4;

    fn begin() -> Tip {
        Tip::begin(&JobId("demo-1".into()), "version", "toml")
    }

    fn generation(generation: u64, world: u32, from: u64) -> Line {
        Line::Generation {
            generation: Generation(generation),
            world,
            from: Step(from),
        }
    }

    fn step(generation: u64, step: u64) -> Line {
        let (generation, step) = (Generation(generation), Step(step));
        let first = (step.0 - 1) * u64::from(BATCH);
        Line::Step {
            generation,
            step,
            first,
            samples: BATCH,
            loss: Some(0.1 + 0.2),
        }
    }

    fn unheard(generation: u64, from: u64, through: u64) -> Line {
        let (generation, through) = (Generation(generation), Step(through));
        let (first, samples) = (
            (from - 1) * u64::from(BATCH),
            (through.0 + 1 - from) * u64::from(BATCH),
        );
        Line::Unheard {
            generation,
            through,
            first,
            samples,
        }
    }

    fn ledger(lines: &[Line]) -> (Vec<Entry>, Tip) {
        let mut tip = begin();
        let entries = lines.iter().cloned().map(|line| tip.append(line)).collect();
        (entries, tip)
    }

    fn replay(entries: &[Entry]) -> Result<Replay, String> {
        let mut replay = Replay::new(begin(), BATCH);
        entries
            .iter()
            .try_for_each(|entry| replay.take(entry))
            .map_err(|fault| fault.to_string())?;
        Ok(replay)
    }

    fn whole() -> Vec<Line> {
        let digest = Line::Digest {
            generation: Generation(2),
            step: Step(3),
            sha256: "ab".into(),
        };
        vec![
            generation(1, 2, 0),
            step(1, 1),
            step(1, 2),
            step(1, 3),
            generation(2, 3, 1),
            step(2, 2),
            step(2, 3),
            digest,
            step(2, 4),
        ]
    }

    #[test]
    fn steps_that_were_lost_are_superseded_and_done_again() {
        let (entries, tip) = ledger(&whole());
        let replay = replay(&entries).expect("the ledger is valid");
        replay.ends_at(&tip).expect("the ledger is complete");
        let done = |replay: &Replay| -> Vec<(u64, u64, u64, bool)> {
            let one = |done: &Done| {
                (
                    done.first.0,
                    done.last.0,
                    done.generation.0,
                    done.superseded,
                )
            };
            replay.done().iter().map(one).collect()
        };
        assert_eq!(
            done(&replay),
            [(1, 1, 1, false), (2, 3, 1, true), (2, 4, 2, false)]
        );
        assert_eq!(replay.digests(), [(Step(3), "ab".to_owned())]);
        let (more, _) = ledger(&[whole(), vec![generation(3, 1, 0), unheard(3, 1, 5)]].concat());
        let replay = self::replay(&more).expect("the ledger is valid");
        let expected = [
            (1, 1, 1, true),
            (2, 3, 1, true),
            (2, 4, 2, true),
            (1, 5, 3, false),
        ];
        assert_eq!(done(&replay), expected);
        assert_eq!(replay.unheard(), 5);
    }

    #[test]
    fn text_and_back_is_the_same_to_the_last_bit() {
        for entry in ledger(&whole()).0 {
            let text = serde_json::to_string(&entry).expect("plain data");
            assert_eq!(
                serde_json::from_str::<Entry>(&text).expect("what was written"),
                entry
            );
        }
    }

    #[test]
    fn what_was_tampered_with_is_named() {
        let (entries, tip) = ledger(&whole());
        let fault = |change: &dyn Fn(&mut Vec<Entry>)| {
            let mut entries = entries.clone();
            change(&mut entries);
            replay(&entries).err().unwrap_or_default()
        };
        let changed = fault(&|entries| {
            if let Line::Step { loss, .. } = &mut entries[2].line {
                *loss = Some(0.0);
            }
        });
        assert!(
            changed.starts_with("entry 2 was changed: its hash is "),
            "{changed}"
        );
        assert_eq!(
            fault(&|entries| drop(entries.remove(3))),
            "entry 3 is missing: found entry 4 instead"
        );
        let forged = fault(&|entries| {
            let mut tip = Tip {
                entries: 1,
                hash: entries[0].hash.clone(),
                generation: Generation(1),
                step: Step(0),
            };
            entries[1] = tip.append(Line::Step {
                generation: Generation(1),
                step: Step(1),
                first: 0,
                samples: BATCH,
                loss: None,
            });
        });
        assert!(
            forged.starts_with("entry 2 does not follow the previous one"),
            "{forged}"
        );
        let replay = replay(&entries[..7]).expect("a prefix is a valid ledger");
        let cut = replay
            .ends_at(&tip)
            .expect_err("two are missing")
            .to_string();
        assert!(
            cut.starts_with("the ledger ends after 7 entries with hash"),
            "{cut}"
        );
    }

    #[test]
    fn what_cannot_be_is_named() {
        let fault = |lines: &[Line]| replay(&ledger(lines).0).err().unwrap_or_default();
        assert_eq!(
            fault(&[step(1, 1)]),
            "entry 0: the entry is of generation 1, but generation 0 is the newest"
        );
        assert_eq!(
            fault(&[generation(1, 2, 0), step(1, 2)]),
            "entry 1: step 2 on 4 samples from position 4 cannot follow step 0; expected 4 \
            samples from position 0"
        );
        assert_eq!(
            fault(&[generation(1, 2, 0), step(1, 1), unheard(1, 1, 3)]),
            "entry 2: 12 samples from position 0 are not those of steps 2 to 3"
        );
        assert_eq!(
            fault(&[generation(2, 2, 0), step(2, 1), generation(1, 1, 1)]),
            "entry 2: generation 1 of 1 ranks from step 1 cannot follow generation 2, which ended \
            at step 1"
        );
        assert_eq!(
            fault(&[
                generation(1, 2, 0),
                step(1, 1),
                generation(2, 2, 1),
                step(1, 2)
            ]),
            "entry 3: the entry is of generation 1, but generation 2 is the newest"
        );
    }
}
