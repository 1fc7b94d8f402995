//! Questions of users to the ranks of this node: passes them on, and the answers back with the next
//! reports. An answer that does not come is told of, so that the asker need not wait.

use proto::id::JobId;
use proto::limits::{ERROR_BYTES, cut};
use proto::pb;
use proto::probe::{ANSWER_BYTES, PART_BYTES, Question, Stacks};
use shell::threads;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use worker_core::event::RankKey;

/// How long a rank may take to answer. It walks the stacks of some fifty threads, and may read the
/// symbols of libtorch for the first time.
const WITHIN: Duration = Duration::from_secs(30);
/// Parts of answers that wait for a report.
const WAITING_BYTES_MAX: usize = 64 << 20;
/// What a part takes in a report beside its text, at most.
const PART_BYTES_MORE: usize = 64;

/// A rank that can be asked.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) key: RankKey,
    pub(crate) socket: PathBuf,
    pub(crate) process: Option<u32>,
}

/// Parts of answers on their way to the coordinator. Cheap to clone; all clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answers(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    parts: VecDeque<pb::ProbeAnswer>,
    bytes: usize,
}

impl Answers {
    /// In parts. One that has no room is replaced by an error.
    fn push(&self, answer: &pb::ProbeAnswer, text: &str) {
        let mut waiting = self.lock();
        if WAITING_BYTES_MAX < waiting.bytes + text.len() {
            waiting.parts.push_back(pb::ProbeAnswer {
                error: "the worker has no room for more answers".to_owned(),
                last: true,
                ..answer.clone()
            });
            return;
        }
        let mut rest = text;
        loop {
            let (part, after) = rest.split_at(part_end(rest));
            waiting.bytes += part.len();
            waiting.parts.push_back(pb::ProbeAnswer {
                part: part.to_owned(),
                last: after.is_empty(),
                ..answer.clone()
            });
            rest = after;
            if rest.is_empty() {
                return;
            }
        }
    }

    /// As many as take at most `room` bytes of a report.
    pub(crate) fn take(&self, room: usize) -> Vec<pb::ProbeAnswer> {
        let mut waiting = self.lock();
        let size = |part: &pb::ProbeAnswer| part.part.len() + part.error.len() + PART_BYTES_MORE;
        let mut bytes = 0;
        let fits = waiting.parts.iter().take_while(|part| {
            bytes += size(part);
            bytes <= room
        });
        let count = fits.count();
        let taken: Vec<pb::ProbeAnswer> = waiting.parts.drain(..count).collect();
        waiting.bytes -= taken.iter().map(|part| part.part.len()).sum::<usize>();
        taken
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the first part of a text ends.
fn part_end(text: &str) -> usize {
    let mut end = PART_BYTES.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    end
}

/// Asks ranks, each question once.
#[derive(Debug)]
pub(crate) struct Prober {
    newest: u64,
    answers: Answers,
    tasks: JoinSet<()>,
}

impl Prober {
    pub(crate) fn new(answers: Answers) -> Self {
        Self {
            newest: 0,
            answers,
            tasks: JoinSet::new(),
        }
    }

    /// `ranks`: all of this node. The question is repeated until its answer has arrived.
    pub(crate) fn ask(&mut self, probe: &pb::Probe, ranks: Vec<Asked>) {
        while self.tasks.try_join_next().is_some() {}
        if probe.number <= self.newest {
            return;
        }
        self.newest = probe.number;
        let question = match &probe.trace {
            Some(steps) => Question::trace(&(steps.first..=steps.last)),
            None => Question::Stacks,
        };
        let (number, job) = (probe.number, JobId(probe.job.clone()));
        let answers = self.answers.clone();
        let ranks = ranks.into_iter().filter(move |rank| rank.key.job == job);
        let mut asking: JoinSet<()> = ranks
            .map(|rank| {
                let (answers, question) = (answers.clone(), question.clone());
                async move {
                    let answer = pb::ProbeAnswer {
                        number,
                        rank: rank.key.rank.0,
                        generation: rank.key.generation.0,
                        ..Default::default()
                    };
                    match text_of(&rank, &question).await {
                        Ok(text) => answers.push(&answer, &text),
                        Err(error) => answers.push(
                            &pb::ProbeAnswer {
                                error: cut(&error, ERROR_BYTES),
                                ..answer
                            },
                            "",
                        ),
                    }
                }
            })
            .collect();
        let answers = self.answers.clone();
        self.tasks.spawn(async move {
            while asking.join_next().await.is_some() {}
            let done = pb::ProbeAnswer {
                number,
                done: true,
                ..Default::default()
            };
            answers.push(&done, "");
        });
    }
}

/// Of a process that does not answer, what the kernel knows of its threads.
async fn text_of(rank: &Asked, question: &Question) -> Result<String, String> {
    let asked = tokio::time::timeout(WITHIN, ask(&rank.socket, question)).await;
    let error = match asked {
        Ok(Ok(text)) => return Ok(text),
        Ok(Err(error)) => format!("the rank's process does not answer: {error}"),
        Err(_) => format!(
            "the rank's process has not answered within {} s",
            WITHIN.as_secs()
        ),
    };
    let (Question::Stacks, Some(process)) = (question, rank.process) else {
        return Err(error);
    };
    let threads = threads::of_process(process)
        .map_err(|second| format!("{error}; its threads cannot be listed: {second}"))?;
    let stacks = Stacks {
        activity: String::new(),
        threads,
        note: format!("{error}; this is what the kernel knows of its threads"),
    };
    serde_json::to_string(&stacks).map_err(|error| error.to_string())
}

async fn ask(socket: &Path, question: &Question) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket).await?;
    let mut line = serde_json::to_vec(question)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    let mut text = String::new();
    let limit = ANSWER_BYTES as u64;
    let read = stream.take(limit).read_to_string(&mut text).await?;
    if read == 0 {
        return Err(std::io::Error::other("it closed the connection"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proto::id::{Generation, Rank};
    use tokio::net::UnixListener;

    fn rank(dir: &Path, number: u32) -> Asked {
        Asked {
            key: RankKey {
                job: JobId("a-1".into()),
                generation: Generation(2),
                rank: Rank(number),
            },
            socket: dir.join(format!("{number}.ask")),
            process: Some(std::process::id()),
        }
    }

    fn probe(number: u64) -> pb::Probe {
        pb::Probe {
            number,
            job: "a-1".into(),
            trace: None,
        }
    }

    async fn finished(prober: &mut Prober) -> Vec<pb::ProbeAnswer> {
        while prober.tasks.join_next().await.is_some() {}
        prober.answers.take(usize::MAX)
    }

    #[tokio::test]
    async fn every_rank_of_the_job_is_asked_once_and_a_silent_one_is_seen_from_outside() {
        let dir = tempfile::tempdir().unwrap();
        let ranks = vec![rank(dir.path(), 0), rank(dir.path(), 1)];
        let listener = UnixListener::bind(&ranks[0].socket).unwrap();
        let answering = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut question = vec![0; 64];
            let count = stream.read(&mut question).await.unwrap();
            stream
                .write_all("ü".repeat(PART_BYTES).as_bytes())
                .await
                .unwrap();
            String::from_utf8(question[..count].to_vec()).unwrap()
        });
        let mut prober = Prober::new(Answers::default());
        prober.ask(&probe(5), ranks.clone());
        let answers = finished(&mut prober).await;
        assert_eq!(answering.await.unwrap(), "\"stacks\"\n");
        assert!(answers.iter().all(|it| it.number == 5));
        let of = |number| {
            answers
                .iter()
                .filter(move |it| it.rank == number && !it.done)
        };
        let text: String = of(0).map(|it| it.part.as_str()).collect();
        assert_eq!(text, "ü".repeat(PART_BYTES));
        assert!(of(0).all(|it| it.part.len() <= PART_BYTES && it.generation == 2));
        let stacks: String = of(1).map(|it| it.part.as_str()).collect();
        let stacks: Stacks = serde_json::from_str(&stacks).unwrap();
        assert!(stacks.note.contains("does not answer"), "{}", stacks.note);
        assert!(!stacks.threads.is_empty());
        assert!(answers.last().unwrap().done);
        prober.ask(&probe(5), ranks);
        assert_eq!(finished(&mut prober).await, [], "it was answered");
    }

    #[tokio::test]
    async fn a_trace_of_a_silent_rank_is_an_error_and_another_job_has_no_rank() {
        let dir = tempfile::tempdir().unwrap();
        let mut prober = Prober::new(Answers::default());
        let trace = pb::Probe {
            trace: Some(pb::StepRange { first: 1, last: 2 }),
            ..probe(1)
        };
        prober.ask(&trace, vec![rank(dir.path(), 0)]);
        let answers = finished(&mut prober).await;
        assert_eq!(answers.len(), 2);
        assert!(answers[0].last && answers[0].error.contains("does not answer"));
        let other = pb::Probe {
            job: "b-2".into(),
            ..probe(2)
        };
        prober.ask(&other, vec![rank(dir.path(), 0)]);
        let answers = finished(&mut prober).await;
        assert!(answers.len() == 1 && answers[0].done, "{answers:?}");
    }

    #[test]
    fn a_report_takes_as_many_parts_as_it_has_room_for() {
        let answers = Answers::default();
        let answer = pb::ProbeAnswer::default();
        answers.push(&answer, &"x".repeat(2 * PART_BYTES + 1));
        assert_eq!(answers.take(PART_BYTES).len(), 0);
        assert_eq!(answers.take(PART_BYTES + PART_BYTES_MORE).len(), 1);
        let rest = answers.take(usize::MAX);
        assert_eq!((rest.len(), rest[0].last, rest[1].last), (2, false, true));
        assert_eq!(answers.lock().bytes, 0);
    }
}
