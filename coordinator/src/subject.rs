//! Checks the prompts of a job of images: whether its model reads them whole, and whether they name
//! their subject, if it fuses a reference into that word. Called at submission, because only a
//! tokenizer can say which words a prompt keeps.

use crate::pin::LOST_TAGS;
use model_data::prompt::Prompts;
use model_data::prompt_length::PromptCounter;
use proto::job::parse_training;
use proto::sample::SampleWork;
use proto::spec::Data;

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

/// An evaluation shows all models the characters and references of the first one's job. Refuses a
/// trained model for which these would mean something else: characters that are held out for the
/// first one must be held out for it, too. Returns what else of the first one's data replaces its
/// own, as one sentence.
pub(crate) fn check_data(
    first: &str,
    other: &str,
    is_trained: bool,
) -> Result<Vec<String>, String> {
    let parse = |text: &str| parse_training("job.toml", text).map(|work| work.data);
    let (Ok(first), Ok(other)) = (parse(first), parse(other)) else {
        return Ok(Vec::new());
    };
    let holds_out = |data: &Data| data.holdout != 0.0;
    let held_out = [
        ("data.seed", first.seed.to_string(), other.seed.to_string()),
        (
            "data.holdout",
            first.holdout.to_string(),
            other.holdout.to_string(),
        ),
    ];
    let held_out = held_out
        .into_iter()
        .filter(|_| is_trained && (holds_out(&first) || holds_out(&other)));
    if let Some((field, first, own)) = held_out.into_iter().find(|(_, a, b)| a != b) {
        return Err(format!(
            "was trained with {field} = {own}, and the first model's job has {first}: other \
             characters were held out from it, so that they would be compared on characters that \
             only one of them knows; train them with the same value, or evaluate them apart"
        ));
    }
    if is_trained && first.ratings != other.ratings {
        return Err(format!(
            "was trained with data.ratings = {:?}, and the first model's job has {:?}: it knows \
             other characters; train them with the same value, or evaluate them apart",
            other.ratings, first.ratings
        ));
    }
    let replaced = [
        ("data.seed", first.seed != other.seed),
        ("data.dataset", first.dataset != other.dataset),
        (
            "data.prompt_order",
            first.prompt_order != other.prompt_order,
        ),
    ];
    let replaced: Vec<&str> = replaced
        .into_iter()
        .filter_map(|(field, differs)| differs.then_some(field))
        .collect();
    if replaced.is_empty() {
        return Ok(Vec::new());
    }
    Ok(vec![format!(
        "models differ in {}; that of the first one's job holds for all",
        replaced.join(", ")
    )])
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
    fn the_scores_that_an_expression_may_name_are_measures() {
        let known: Vec<&str> = metric::Measure::ALL.iter().map(|it| it.name()).collect();
        for (name, _) in proto::score::SCORES {
            assert!(known.contains(&name), "{name} is no measure");
        }
    }

    #[test]
    fn models_that_were_trained_on_other_characters_are_not_compared() {
        let text = |data: &str| {
            format!(
                "name = \"a\"\n[data]\ndataset = \"file:///none\"\nresolution = 64\n{data}\n[model]\n\
                 architecture = \"retrinet\"\nsize = \"tiny\"\n[train]\nsteps = 4\nglobal_batch = 1\n\
                 micro_batch = 1\n"
            )
        };
        let check = |first: &str, other: &str, is_trained| {
            check_data(&text(first), &text(other), is_trained)
        };
        let held_out = "holdout = 0.5";
        assert_eq!(check(held_out, held_out, true), Ok(Vec::new()));
        for (other, part) in [
            (
                "holdout = 0.25",
                "data.holdout = 0.25, and the first model's job has 0.5",
            ),
            (
                "holdout = 0.5\nseed = 7",
                "data.seed = 7, and the first model's job has 0",
            ),
            ("holdout = 0.5\nratings = [\"general\"]", "data.ratings = "),
        ] {
            let error = check(held_out, other, true).unwrap_err();
            assert!(error.contains(part), "{error}");
            assert!(check(held_out, other, false).is_ok(), "untrained: {other}");
        }
        // Nobody is held out: the seed only chooses references.
        let notes = check("holdout = 0", "holdout = 0\nseed = 7", true).unwrap();
        let [note] = notes.as_slice() else {
            panic!("{notes:?}")
        };
        assert!(note.contains("models differ in data.seed"), "{note}");
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
