//! What a job may be in size when it is submitted or continued, so that every message that will
//! carry it has room for it ([`crate::limits`]). Jobs that are stored already are not checked: a
//! limit of a later release must not make them unreadable.

use super::faults::{Fault, Faults};
use super::overrides::Override;
use super::{JobErrors, located, to_toml};
use crate::evaluate::Prompts;
use crate::limits::{
    DEVICES, JOB_TOML_BYTES, OVERRIDES, PROMPTS_BYTES, TEXT_BYTES, TOML_ITEMS, URL_BYTES,
};
use crate::spec::{JobSpec, Work};
use toml_parser::Source;
use toml_parser::lexer::TokenKind;

/// The canonical text can be longer than the written one by its defaults, and by a backslash for a
/// character. A text below this fraction cannot grow beyond the limit.
const SURELY_SHORT: usize = JOB_TOML_BYTES / 8;

/// Before the text is parsed.
pub(super) fn check_text(text: &str) -> Result<(), Fault> {
    let refused = |message| {
        let field = String::new();
        Err(Fault { field, message })
    };
    if JOB_TOML_BYTES < text.len() {
        let bytes = text.len();
        return refused(format!(
            "the text has {bytes} bytes; at most {JOB_TOML_BYTES} are accepted"
        ));
    }
    // Each of them adds a table or a value at most.
    let is_item = |kind| {
        use TokenKind::{Comma, Dot, Equals, LeftCurlyBracket, LeftSquareBracket};
        matches!(
            kind,
            Comma | Dot | Equals | LeftCurlyBracket | LeftSquareBracket
        )
    };
    let tokens = Source::new(text).lex();
    let items = tokens.filter(|token| is_item(token.kind())).count();
    if TOML_ITEMS < items {
        return refused(format!(
            "the text has {items} dots, commas, equals signs and opening brackets outside of \
             strings; at most {TOML_ITEMS} are accepted"
        ));
    }
    Ok(())
}

/// `text`: as it was written.
pub(super) fn check(text: &str, spec: &JobSpec) -> Result<(), Vec<Fault>> {
    let mut faults = Faults::default();
    sizes(spec, &mut faults);
    if SURELY_SHORT < text.len() {
        canonical(spec, &mut faults);
    }
    if faults.0.is_empty() {
        Ok(())
    } else {
        Err(faults.0)
    }
}

/// The canonical text of a job that is about to be stored.
///
/// # Errors
/// It is longer than a job.toml may be.
pub fn admit(file: &str, spec: &JobSpec) -> Result<String, JobErrors> {
    let mut faults = Faults::default();
    let text = canonical(spec, &mut faults);
    if faults.0.is_empty() {
        Ok(text)
    } else {
        Err(located(file, "", faults.0))
    }
}

/// Refuses a job with overrides that could not have been submitted so.
///
/// # Errors
/// Names the field, its length and the limit.
pub(super) fn check_overrides(spec: &JobSpec, overrides: &[Override]) -> Result<(), String> {
    if OVERRIDES < overrides.len() {
        let found = overrides.len();
        return Err(format!(
            "--set: the job would have {found} overrides; at most {OVERRIDES} are accepted"
        ));
    }
    let long = |it: &&Override| TEXT_BYTES < it.key.len().max(it.value.len());
    if let Some(Override { key, value }) = overrides.iter().find(long) {
        return Err(format!(
            "--set: a key of {} bytes with a value of {}; at most {TEXT_BYTES} are accepted",
            key.len(),
            value.len()
        ));
    }
    let mut faults = Faults::default();
    sizes(spec, &mut faults);
    canonical(spec, &mut faults);
    match faults.0.first() {
        None => Ok(()),
        Some(Fault { field, message }) if field.is_empty() => Err(message.clone()),
        Some(Fault { field, message }) => Err(format!("{field}: {message}")),
    }
}

fn sizes(spec: &JobSpec, faults: &mut Faults) {
    let devices = spec.resources.devices_per_worker;
    faults.need(devices <= DEVICES, "resources.devices_per_worker", || {
        format!("is {devices}; a worker has at most {DEVICES} devices")
    });
    match &spec.work {
        Work::Train(work) => {
            let urls = [
                ("data.dataset", Some(&work.data.dataset)),
                ("model.init", work.model.init.as_ref()),
            ];
            for (field, url) in urls {
                let bytes = url.map_or(0, String::len);
                faults.need(bytes <= URL_BYTES, field, || {
                    format!("is a URL of {bytes} bytes; at most {URL_BYTES} are accepted")
                });
            }
        }
        Work::Build(work) => {
            let bytes = work.out.len();
            faults.need(bytes <= URL_BYTES, "build.out", || {
                format!("has {bytes} bytes; at most {URL_BYTES} are accepted")
            });
        }
        Work::Evaluate(work) => {
            let prompts: usize = match &work.plan.prompts {
                Prompts::Texts(texts) => texts.iter().map(String::len).sum(),
                Prompts::Own { .. } => 0,
            };
            let negative = work.models.iter().map(|model| model.negative_prompt.len());
            let bytes = prompts + negative.sum::<usize>();
            faults.need(bytes <= PROMPTS_BYTES, "evaluate.prompts", || {
                format!("have {bytes} bytes in all; at most {PROMPTS_BYTES} are accepted")
            });
            let inits = work.models.iter().map(|it| ("evaluate.models", &it.init));
            let metrics = [
                ("evaluate.clip", &work.metrics.clip),
                ("evaluate.lpips", &work.metrics.lpips),
                ("evaluate.faces", &work.metrics.faces),
            ];
            for (field, url) in inits.chain(metrics) {
                let bytes = url.as_ref().map_or(0, String::len);
                faults.need(bytes <= URL_BYTES, field, || {
                    format!("has a URL of {bytes} bytes; at most {URL_BYTES} are accepted")
                });
            }
        }
        Work::Sample(work) => {
            let prompts = work.prompts.iter().chain([&work.negative_prompt]);
            let bytes: usize = prompts.map(String::len).sum();
            faults.need(bytes <= PROMPTS_BYTES, "sample.prompts", || {
                format!("have {bytes} bytes in all; at most {PROMPTS_BYTES} are accepted")
            });
        }
    }
}

fn canonical(spec: &JobSpec, faults: &mut Faults) -> String {
    let text = to_toml(spec);
    let bytes = text.len();
    faults.need(bytes <= JOB_TOML_BYTES, "", || {
        format!(
            "the job has {bytes} bytes with all its defaults written out; at most \
             {JOB_TOML_BYTES} are accepted"
        )
    });
    text
}
