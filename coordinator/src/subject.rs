//! Checks the prompts of a job of images whose model fuses a reference into the word that names its
//! subject. Called at submission, because only a tokenizer can say which words a prompt keeps.

use model_data::prompt::Prompts;
use proto::job::parse_training;
use proto::sample::SampleWork;

/// Maximum number of characters of a prompt that an error quotes.
const QUOTED: usize = 60;

/// `job_toml` is the text of the trained job.
pub(crate) fn check(work: &SampleWork, job_toml: &str) -> Result<(), String> {
    let Ok(trained) = parse_training("job.toml", job_toml) else {
        return Ok(());
    };
    let architecture = &trained.model.architecture;
    let (Some(subjects), Some(text)) = (architecture.subjects(), architecture.text_encoder())
    else {
        return Ok(());
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
    without.map_or(Ok(()), |prompt| {
        let quoted: String = prompt.chars().take(QUOTED).collect();
        Err(format!(
            "sample.prompts: has {quoted:?}, which has none of the tags {named} among its first \
             {tokens} tokens; {name} fuses the reference into that word: begin the prompt with it"
        ))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proto::id::JobId;

    fn checked(architecture: &str, prompts: &[&str]) -> Result<(), String> {
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
        assert_eq!(checked("ip-adapter", &[&late]), Ok(()));
        assert_eq!(
            checked("fastcomposer", &["1girl, hat", "hat, 1boy"]),
            Ok(())
        );
        assert_eq!(checked("fastcomposer", &[]), Ok(()));
        for prompt in [late.as_str(), "solo", ""] {
            let error = checked("fastcomposer", &["1girl", prompt]).unwrap_err();
            let expected = "which has none of the tags 1girl, 1boy among its first 77 tokens";
            assert!(error.contains(expected), "{error}");
        }
    }
}
