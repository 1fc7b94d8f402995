//! Questions of users to the ranks of a job, on their way to the workers and back: what is asked is
//! part of a worker's desired state until it has answered. In memory: a restart forgets questions,
//! and their askers are told by the end of their stream.

use crate::streams::Reader;
use crate::text::now_ms;
use proto::pb;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tonic::Status;

/// A worker that sends nothing for so long is late. Its ranks have 30 s.
const SILENT: Duration = Duration::from_secs(40);
/// Questions at a time.
const QUESTIONS_MAX: usize = 8;
/// Bytes of all answers to one question.
const ANSWERS_BYTES_MAX: usize = 256 << 20;

/// Cheap to clone; all clones share the questions.
#[derive(Debug, Clone)]
pub(crate) struct Probes {
    state: Arc<Mutex<State>>,
    /// Changes with every question, and when a worker may be asked the next one.
    changes: Arc<watch::Sender<u64>>,
}

#[derive(Debug)]
struct State {
    next: u64,
    questions: BTreeMap<u64, Question>,
}

#[derive(Debug)]
struct Question {
    probe: pb::Probe,
    /// Those that have not answered.
    workers: BTreeSet<String>,
    answers: mpsc::UnboundedSender<Answer>,
    bytes_left: usize,
}

/// Part of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    pub(crate) worker: String,
    pub(crate) answer: pb::ProbeAnswer,
}

/// A question until it is dropped.
#[derive(Debug)]
pub(crate) struct Asking {
    number: u64,
    probes: Probes,
    pub(crate) answers: mpsc::UnboundedReceiver<Answer>,
}

impl Default for Probes {
    fn default() -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                // Workers answer a number once; those of an earlier process were lower.
                next: now_ms(),
                questions: BTreeMap::new(),
            })),
            changes: Arc::new(watch::Sender::new(0)),
        }
    }
}

impl Probes {
    /// None: too many are asked already.
    pub(crate) fn ask(&self, probe: pb::Probe, workers: BTreeSet<String>) -> Option<Asking> {
        let mut state = self.lock();
        if QUESTIONS_MAX <= state.questions.len() {
            return None;
        }
        let number = state.next;
        state.next += 1;
        let (sender, answers) = mpsc::unbounded_channel();
        let question = Question {
            probe: pb::Probe { number, ..probe },
            workers,
            answers: sender,
            bytes_left: ANSWERS_BYTES_MAX,
        };
        state.questions.insert(number, question);
        drop(state);
        self.changed();
        Some(Asking {
            number,
            probes: self.clone(),
            answers,
        })
    }

    /// The oldest question that this worker has not answered.
    pub(crate) fn of(&self, worker: &str) -> Option<pb::Probe> {
        let state = self.lock();
        let mut questions = state.questions.values();
        let open = questions.find(|question| question.workers.contains(worker));
        open.map(|question| question.probe.clone())
    }

    /// Answers to other questions, and of other workers, are dropped.
    pub(crate) fn answer(&self, worker: &str, answers: Vec<pb::ProbeAnswer>) {
        if answers.is_empty() {
            return;
        }
        let mut state = self.lock();
        let mut is_done = false;
        for answer in answers {
            let Some(question) = state.questions.get_mut(&answer.number) else {
                continue;
            };
            if !question.workers.contains(worker) {
                continue;
            }
            let Some(left) = question.bytes_left.checked_sub(answer.part.len()) else {
                continue;
            };
            question.bytes_left = left;
            if answer.done {
                question.workers.remove(worker);
                is_done = true;
            }
            let worker = worker.to_owned();
            // Fails if the asker has left.
            question.answers.send(Answer { worker, answer }).ok();
        }
        drop(state);
        if is_done {
            self.changed();
        }
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn changed(&self) {
        self.changes.send_modify(|it| *it += 1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asking {
    /// The workers that have not answered.
    pub(crate) fn silent(&self) -> BTreeSet<String> {
        let state = self.probes.lock();
        let question = state.questions.get(&self.number);
        question.map_or_else(BTreeSet::new, |question| question.workers.clone())
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.probes.lock().questions.remove(&self.number);
        self.probes.changed();
    }
}

/// Sends the answers until all workers have answered or are late.
pub(crate) async fn send(mut asking: Asking, to: &Reader<pb::ProbeReply>) -> Result<(), Status> {
    while !asking.silent().is_empty() {
        let next = tokio::select! {
            next = timeout(SILENT, asking.answers.recv()) => next,
            () = to.closed() => return Ok(()),
        };
        // It is not closed: `asking` is in the list of questions.
        let Ok(Some(Answer { worker, answer })) = next else {
            break;
        };
        if !answer.done && !to.send(reply(worker, answer)).await? {
            return Ok(());
        }
    }
    while let Ok(Answer { worker, answer }) = asking.answers.try_recv() {
        if !answer.done && !to.send(reply(worker, answer)).await? {
            return Ok(());
        }
    }
    for worker in asking.silent() {
        let late = pb::ProbeReply {
            worker,
            error: format!("the worker has sent no answer for {} s", SILENT.as_secs()),
            late: true,
            ..Default::default()
        };
        to.send(late).await?;
    }
    Ok(())
}

fn reply(worker: String, answer: pb::ProbeAnswer) -> pb::ProbeReply {
    pb::ProbeReply {
        worker,
        rank: answer.rank,
        generation: answer.generation,
        part: answer.part,
        last: answer.last,
        error: answer.error,
        late: false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn done(number: u64) -> pb::ProbeAnswer {
        pb::ProbeAnswer {
            number,
            done: true,
            ..Default::default()
        }
    }

    #[test]
    fn a_worker_is_asked_one_question_after_the_other_and_only_those_who_are_asked_answer() {
        let probes = Probes::default();
        let mut first = probes
            .ask(pb::Probe::default(), names(&["w1", "w2"]))
            .unwrap();
        let mut second = probes.ask(pb::Probe::default(), names(&["w1"])).unwrap();
        assert_eq!(probes.of("w1").unwrap().number, first.number);
        assert_eq!(probes.of("w3"), None);
        probes.answer("w3", vec![done(first.number)]);
        probes.answer("w1", vec![done(first.number + 9)]);
        assert!(first.answers.try_recv().is_err());
        probes.answer("w1", vec![done(first.number)]);
        assert_eq!(first.answers.try_recv().unwrap().worker, "w1");
        assert_eq!(first.silent(), names(&["w2"]));
        assert_eq!(probes.of("w1").unwrap().number, second.number);
        drop(first);
        assert_eq!(probes.of("w2"), None, "nobody waits for it");
        probes.answer("w1", vec![done(second.number)]);
        assert!(second.answers.try_recv().unwrap().answer.done);
    }

    #[test]
    fn there_is_room_for_a_few_questions_and_for_answers_of_some_size() {
        let probes = Probes::default();
        let ask = || probes.ask(pb::Probe::default(), names(&["w1"]));
        let mut asking: Vec<Asking> = (0..QUESTIONS_MAX).filter_map(|_| ask()).collect();
        assert!(ask().is_none());
        let mut first = asking.swap_remove(0);
        assert_eq!(asking.len(), QUESTIONS_MAX - 1);
        probes
            .lock()
            .questions
            .get_mut(&first.number)
            .unwrap()
            .bytes_left = 3;
        let part = |text: &str| pb::ProbeAnswer {
            number: first.number,
            part: text.to_owned(),
            ..Default::default()
        };
        probes.answer("w1", vec![part("ab"), part("cd"), part("e")]);
        let mut text = String::new();
        while let Ok(answer) = first.answers.try_recv() {
            text += &answer.answer.part;
        }
        assert_eq!(text, "abe");
    }
}
