//! `[evaluate]`: its defaults, its canonical text, what is refused, and what the command line fills
//! in.

use super::*;
use crate::evaluate::{Characters, EvaluateWork, Prompts};
use crate::id::JobId;
use crate::job::evaluation::{Found, Open, fill, open};
use crate::limits::LIST;
use crate::sample::{SampleMethod, Weights};
use crate::spec::{Pairing, Work};
use std::collections::BTreeMap;

const PLAN: &str = "name = \"table\"\n[evaluate]\nin_domain = { trained = 4 }\n\
    prompts = [\"1girl\"]\nmodels = [{ job = \"r9k-3\" }]\n";

fn plan(text: &str) -> EvaluateWork {
    match job(text).unwrap_or_else(|errors| panic!("{errors}")).work {
        Work::Evaluate(work) => *work,
        other => panic!("it has [{}]", other.table()),
    }
}

fn refused(text: &str, message: &str) {
    let errors = job(text).unwrap_err();
    assert!(errors.contains(message), "{errors}\n{message}");
}

#[test]
fn a_plan_has_the_paper_s_defaults_or_ours() {
    let work = plan(PLAN);
    let model = &work.models[0];
    assert_eq!(
        (model.name.as_str(), model.job.0.as_str(), model.weights),
        ("r9k", "r9k-3", Weights::Newest)
    );
    assert_eq!(
        (model.method, model.steps, model.guidance),
        (SampleMethod::Ddim, 50, 7.5)
    );
    assert_eq!(
        (
            work.plan.seeds.as_slice(),
            work.plan.samples,
            work.plan.pairing
        ),
        ([0].as_slice(), 1, Pairing::B)
    );
    assert_eq!((work.images(), work.units().count), (4, 5));
    check_canonical(PLAN);
}

#[test]
fn every_field_of_evaluate_survives_its_canonical_text() {
    let digest = "0f".repeat(32);
    let text = format!(
        "name = \"table\"\n[evaluate]\nresolution = 384\nin_domain = {{ ids = [\"7\", \"8\"] }}\n\
         out_of_domain = {{ files = [{{ name = \"me\", references = [{{ concept = \"face\", file = \
         \"me.png\", sha256 = \"{digest}\", face_box = [0.5, 0.5, 0.2, 0.2] }}] }}] }}\n\
         own_prompts = 2\nprompt = \"pose\"\nseeds = [3, 4]\nsamples = 2\ntask = \
         \"reconstruction\"\npairing = \"a\"\nsteps = 20\nguidance = 3.0\nfailed_share_max = 0.5\n\
         clip = \"file:///clip\"\n\
         models = [{{ job = \"ip-1\", weights = 30, knobs = {{ image_scale = 0.5 }} }}, {{ name = \
         \"plain\", job = \"ip-1\", init = \"s3://b/x\", steps = 30, negative_prompt = \"bad\" }}]\n\
         [evaluate.vqa]\nendpoint = \"http://h:1/v1/\"\nmodel = \"blip\"\nquestions = [\"who?\"]\n\
         concurrency = 2\nembedder = \"file:///minilm\"\n"
    );
    let work = plan(&text);
    assert_eq!(work.plan.characters(), 3);
    assert_eq!(work.images(), 2 * 3 * 2 * 2 * 2);
    assert!(matches!(&work.plan.in_domain, Some(Characters::Ids(ids)) if ids.len() == 2));
    assert!(matches!(work.plan.prompts, Prompts::Own { count: 2, .. }));
    let [first, second] = work.models.as_slice() else {
        panic!("{:?}", work.models)
    };
    assert_eq!(
        (first.steps, second.steps),
        (20, 30),
        "its own or the plan's"
    );
    assert_eq!(first.guidance, second.guidance);
    assert_eq!(second.weights, Weights::Base);
    let vqa = work.metrics.vqa.as_ref().unwrap();
    assert_eq!(vqa.endpoint, "http://h:1/v1");
    check_canonical(&text);
}

fn with(old: &str, new: &str) -> String {
    PLAN.replace(old, new)
}

/// What is replaced in the plan, by what, and a part of the error.
const FAULTS: &[(&str, &str, &str)] = &[
    (
        "in_domain = { trained = 4 }\n",
        "",
        "has no characters; set evaluate.in_domain",
    ),
    (
        "trained = 4",
        "trained = 0",
        "evaluate.in_domain: has 0 characters",
    ),
    (
        "trained = 4",
        "trained = 4, held_out = 1",
        "has 2 of trained, held_out, ids, files and folder",
    ),
    ("trained = 4", "ids = [\"7\", \"7\"]", "names \"7\" twice"),
    (
        "trained = 4",
        "folder = \"mine\"",
        "names the folder \"mine\"",
    ),
    (
        "trained = 4",
        "files = [{ name = \"me\", references = [] }]",
        "character \"me\" has no references",
    ),
    (
        "prompts = [\"1girl\"]\n",
        "",
        "evaluate.prompts: has 0 prompts",
    ),
    ("[\"1girl\"]", "[\"a\", \"a\"]", "has a prompt twice"),
    (
        "prompts = [\"1girl\"]",
        "own_prompts = 5",
        "evaluate.own_prompts: is 5; prompts are those of in-domain characters",
    ),
    (
        "prompts = [\"1girl\"]",
        "prompt_file = \"p.txt\"",
        "evaluate.prompt_file: is \"p.txt\", which only",
    ),
    (
        "models = [{ job = \"r9k-3\" }]",
        "models = []",
        "has 0 models",
    ),
    (
        "{ job = \"r9k-3\" }",
        "{ job = \"a/b\" }",
        "\"a/b\": job: is \"a/b\"; it must be 1 to 64",
    ),
    (
        "{ job = \"r9k-3\" }",
        "{ job = \"r9k-3\" }, { job = \"r9k-4\" }",
        "has two models named \"r9k\"",
    ),
    (
        "{ job = \"r9k-3\" }",
        "{ job = \"r9k-3\", steps = 501 }",
        "\"r9k\": steps: is 501; ddim takes 1 to 500 steps",
    ),
    (
        "{ job = \"r9k-3\" }",
        "{ job = \"r9k-3\", knobs = { image_scale = 11 } }",
        "\"r9k\": knobs.image_scale: is 11",
    ),
    (
        "{ job = \"r9k-3\" }",
        "{ job = \"r9k-3\", init = \"s3://b/x\", weights = 3 }",
        "\"r9k\": weights: is set beside init",
    ),
    (
        "models",
        "seeds = []\nmodels",
        "evaluate.seeds: has 0 entries",
    ),
    ("models", "seeds = [1, 1]\nmodels", "names a seed twice"),
    ("models", "samples = 0\nmodels", "evaluate.samples: is 0"),
    (
        "models",
        "failed_share_max = 2.0\nmodels",
        "evaluate.failed_share_max: is 2; it must lie between 0 and 1",
    ),
    (
        "models",
        "vqa = { endpoint = \"h\", model = \"m\", embedder = \"file:///m\" }\nmodels",
        "evaluate.vqa.endpoint: is \"h\"; it must be the URL",
    ),
    ("models", "clip = \"https://x\"\nmodels", "evaluate.clip"),
    ("models", "sampels = 1\nmodels", "did you mean `samples`?"),
];

#[test]
fn what_stands_in_evaluate_is_bounded() {
    for (old, new, message) in FAULTS {
        refused(&with(old, new), message);
    }
}

#[test]
fn an_evaluation_too_large_or_beside_other_work_is_refused() {
    let seeds: Vec<usize> = (0..=LIST).collect();
    refused(
        &with("models", &format!("seeds = {seeds:?}\nmodels")),
        "evaluate.seeds: has 4097 entries",
    );
    let many = with("trained = 4", "trained = 4000")
        .replace("models", "samples = 4000\nseeds = [0, 1]\nmodels");
    refused(&many, "results in 32000000 images");
    refused(
        &format!("{PLAN}[checkpoint]\nevery = 5\n"),
        "checkpoint: belongs to [train], but this job has [evaluate]",
    );
    refused(
        &format!("{PLAN}[sample]\njob = \"a-1\"\n"),
        "evaluate: is a second kind of work",
    );
}

#[test]
fn what_a_plan_leaves_open_is_filled_in() {
    let text = "name = \"t\"\nafter = [\"x-1\"]\n[evaluate]\nprompt_file = \"p.txt\"\n\
        in_domain = { trained = 2 }\nout_of_domain = { folder = \"mine\" }\n\
        models = [{ job = \"r9k\" }, { job = \"c9k-7\" }]\n";
    assert_eq!(
        open(text).unwrap(),
        Open {
            prompt_file: Some("p.txt".into()),
            folders: vec!["mine".into()],
            jobs: vec!["r9k".into(), "c9k-7".into()],
        }
    );
    assert_eq!(open("name = \"t\"\n[sample]\njob = \"a-1\"\n"), None);
    let characters = "[[characters]]\nname = \"me\"\nreferences = [{ file = \"a.png\", mask = \
        \"m.png\", concept = \"clothes\" }]\n";
    let found = Found {
        prompts: Some(vec!["1girl".into()]),
        folders: BTreeMap::from([("mine".into(), characters.into())]),
        jobs: BTreeMap::from([("r9k".into(), "r9k-12".into())]),
        after: vec!["r9k-12".into(), "x-1".into()],
    };
    let filled = fill(text, &found).unwrap();
    let spec = job(&filled).unwrap();
    assert_eq!(spec.after, [JobId("r9k-12".into()), JobId("x-1".into())]);
    let work = plan(&filled);
    assert_eq!(work.models[0].name, "r9k");
    assert_eq!(work.models[0].job, JobId("r9k-12".into()));
    assert_eq!(work.models[1].job, JobId("c9k-7".into()));
    assert_eq!(work.plan.prompts, Prompts::Texts(vec!["1girl".into()]));
    let references: Vec<_> = work.plan.named_references().collect();
    assert!(
        format!("{references:?}").contains("mine/a.png"),
        "{references:?}"
    );
    assert!(
        format!("{references:?}").contains("mine/m.png"),
        "{references:?}"
    );
    assert_eq!(
        fill(PLAN, &Found::default()).unwrap(),
        PLAN,
        "as it was written"
    );
    let wrong = Found {
        folders: BTreeMap::from([("mine".into(), "x = 1".into())]),
        ..Found::default()
    };
    let error = fill(text, &wrong).unwrap_err();
    assert!(
        error.starts_with("mine/characters.toml has no list"),
        "{error}"
    );
}
