//! Checks the prompts of a job of images: whether its model reads them whole, and whether they name
//! their subject, if it fuses a reference into that word. Called at submission, because only a
//! tokenizer can say which words a prompt keeps.

use crate::pin::LOST_TAGS;
use model_data::prompt::Prompts;
use model_data::prompt_length::PromptCounter;
use proto::job::parse_training;
use proto::sample::SampleWork;

/// Maximum number of characters of a prompt that an error quotes.
const QUOTED: usize = 60;

/// `job_toml` is the text of the trained job. Returns what the user should know, one sentence each.
pub(crate) fn check(work: &SampleWork, job_toml: &str) -> Result<Vec<String>, String> {
    let Ok(trained) = parse_training("job.toml", job_toml) else {
        return Ok(Vec::new());
    };
    let architecture = &trained.model.architecture;
    let Some(text) = architecture.text_encoder() else {
        return Ok(Vec::new());
    };
    let mut lengths = PromptCounter::new(text.tokens);
    let negative = Some(&work.negative_prompt).filter(|prompt| !prompt.is_empty());
    for prompt in work.prompts.iter().chain(negative) {
        lengths.add(prompt);
    }
    let notes = Vec::from_iter(lengths.finish().sentence(LOST_TAGS));
    let Some(subjects) = architecture.subjects() else {
        return Ok(notes);
    };
    let (name, tokens) = (architecture.facts().name, text.tokens);
    let named = subjects.join(", ");
    if work.prompts.is_empty() && !work.references.is_empty() {
        return Err(format!(
            "sample.prompts: is empty; {name} fuses the reference into a word, so a prompt must \
             have one of the tags {named}"
        ));
    }
    let prompts = Prompts::new(tokens);
    let without = work
        .prompts
        .iter()
        .find(|prompt| prompts.subject_ids(prompt, subjects).1.is_none());
    without.map_or(Ok(notes), |prompt| {
        let quoted: String = prompt.chars().take(QUOTED).collect();
        Err(format!(
            "sample.prompts: has {quoted:?}, which has none of the tags {named} among its first \
             {tokens} tokens; {name} fuses the reference into that word: begin the prompt with it"
        ))
    })
}

/// Whether the trained job's model makes images with sides of so many pixels. None: of its own.
pub(crate) fn check_resolution(side: Option<u32>, job_toml: &str) -> Result<(), String> {
    let (Some(side), Ok(mut trained)) = (side, parse_training("job.toml", job_toml)) else {
        return Ok(());
    };
    trained.data.resolution = side;
    proto::job::check_sizes(&trained)
        .map_err(|why| format!("with evaluate.resolution = {side}: {why}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proto::id::JobId;

    fn checked(architecture: &str, prompts: &[&str]) -> Result<Vec<String>, String> {
        let text = format!(
            "name = \"a\"\n[data]\ndataset = \"file:///none\"\nresolution = 64\n[model]\n\
             architecture = \"{architecture}\"\ninit = \"file:///none\"\n[train]\nsteps = 4\n\
             global_batch = 1\nmicro_batch = 1\n"
        );
        let mut work = SampleWork::of(JobId("a-1".to_owned()));
        work.prompts = prompts.iter().map(|it| (*it).to_owned()).collect();
        check(&work, &text)
    }

    #[test]
    fn a_prompt_whose_subject_is_cut_off_is_refused_for_fastcomposer_alone() {
        let late = format!("{}1girl", "long_tag, ".repeat(40));
        assert!(checked("ip-adapter", &[&late]).is_ok());
        assert_eq!(
            checked("fastcomposer", &["1girl, hat", "hat, 1boy"]),
            Ok(Vec::new())
        );
        assert_eq!(checked("fastcomposer", &[]), Ok(Vec::new()));
        for prompt in [late.as_str(), "solo", ""] {
            let error = checked("fastcomposer", &["1girl", prompt]).unwrap_err();
            let expected = "which has none of the tags 1girl, 1boy among its first 77 tokens";
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn prompts_that_are_cut_are_said() {
        let long = format!("1girl, {}hat", "long_tag, ".repeat(40));
        for architecture in ["ip-adapter", "fastcomposer"] {
            assert_eq!(checked(architecture, &["1girl"]), Ok(Vec::new()));
            let notes = checked(architecture, &["1girl", &long]).unwrap();
            let [note] = notes.as_slice() else {
                panic!("{notes:?}")
            };
            assert!(
                note.starts_with("1 of 2 prompts are longer than the 77"),
                "{note}"
            );
            assert!(note.contains("hat (1)"), "{note}");
        }
    }
}
