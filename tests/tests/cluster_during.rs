//! Evaluations while a job trains, on real processes: the training gives a worker up and takes it
//! back, its weights are those of a training that is never evaluated, bit for bit, its scores are
//! shown, and the best checkpoint stays; plans that cannot work are refused before anything runs.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result};
use proto::pb::JobView;
use tests::cluster::Cluster;
use tests::cluster::job::{TinyJob, clip, digest, with_figures};

/// Twelve steps with a checkpoint of every second one, on one or two workers.
fn training(name: &str, dataset: &str) -> String {
    let job = TinyJob {
        name: name.to_owned(),
        dataset: dataset.to_owned(),
        workers: 2,
        steps: 12,
        checkpoint_every: 2,
    };
    job.to_toml()
        .replace("min = 2", "min = 1")
        .replace("keep = 2", "keep = 1")
        // One character is trained on, and three are held out.
        .replace("holdout = 0.25", "holdout = 0.5")
        .replace("[checkpoint]", "reduction = \"exact\"\n[checkpoint]")
}

/// The same, evaluated at every fourth step on a worker that it gives up.
fn evaluated(name: &str, dataset: &str, clip: &str) -> String {
    let plan = format!(
        "keep_best = \"clip_i * clip_t\"\n[evaluate]\nin_domain = {{ trained = 1 }}\n\
         out_of_domain = {{ held_out = 2 }}\nprompts = [\"1girl, smile\"]\nsteps = 2\nguidance = \
         3.0\nclip = \"{clip}\"\n"
    );
    let every = "reduction = \"exact\"\nevaluate_every = 4\nevaluate_on = \"shrink\"\n";
    let text = training(name, dataset).replace("reduction = \"exact\"\n", every);
    format!("{text}{plan}")
}

fn are_closed(view: &JobView) -> bool {
    let open = |state: &str| state == "running" || state == "reading";
    view.evaluation_due.is_none() && !view.evaluations.iter().any(|it| open(&it.state))
}

/// The view of a job that is over, once its evaluations are over, too.
fn evaluated_view(cluster: &Cluster, id: &str) -> Result<JobView> {
    loop {
        let view = cluster.wait(id, "its view", |_| true)?;
        if are_closed(&view) {
            return Ok(view);
        }
        for it in view.evaluations.iter().filter(|it| it.state == "running") {
            cluster.wait_done(&it.job)?;
        }
    }
}

#[test]
fn a_training_that_gives_workers_up_for_its_evaluations_ends_with_the_same_bits() -> Result<()> {
    let (mut cluster, dataset) = with_figures(2)?;
    let clip = clip(&cluster, &dataset)?;
    let plain = cluster.submit(&training("plain", &dataset))?;
    cluster.wait_done(&plain)?;

    let id = cluster.submit(&evaluated("tiny", &dataset, &clip))?;
    // The first evaluation runs beside the training, which is on one worker meanwhile.
    let view = cluster.wait(&id, "an evaluation", |view| !view.evaluations.is_empty())?;
    let first = view.evaluations[0].job.clone();
    let child = cluster.json(&["describe", &first])?;
    assert_eq!(child["parent"], id);
    assert_eq!(child["work"], "evaluate");
    cluster.kill_coordinator()?;
    cluster.start_coordinator()?;
    cluster.wait_done(&id)?;
    let view = evaluated_view(&cluster, &id)?;
    assert_eq!(
        digest(&cluster, &id)?,
        digest(&cluster, &plain)?,
        "the weights differ"
    );

    let scored: Vec<_> = view
        .evaluations
        .iter()
        .filter(|it| it.state == "scored")
        .collect();
    let (count, skipped) = (view.evaluations.len() as u64, view.evaluations_skipped);
    assert_eq!(count + skipped, 3, "{view:?}");
    assert_eq!(scored.len() as u64, count, "{view:?}");
    for it in &scored {
        let names: Vec<&str> = it.means.iter().map(|mean| mean.name.as_str()).collect();
        assert!(
            names.contains(&"clip_i") && names.contains(&"clip_t"),
            "{it:?}"
        );
        assert_eq!((it.images, it.missing), (3, 0), "{it:?}");
    }
    // The mean of the products of each image, not the product of the means.
    let best = scored
        .iter()
        .max_by(|a, b| a.score.partial_cmp(&b.score).unwrap());
    let best = best.context("a best one")?;
    assert!(best.best || scored.iter().any(|it| it.best && it.score == best.score));
    let steps: Vec<u64> = view.checkpoints.iter().map(|it| it.step).collect();
    let marked = scored.iter().find(|it| it.best).context("a best one")?.step;
    assert!(
        steps.contains(&marked) && steps.contains(&12),
        "{steps:?}, best {marked}"
    );
    cluster.ok(&["checkpoint", "verify", &format!("{id}@{marked}")])?;

    let curve = cluster.directory().join("curve.png").display().to_string();
    let described = cluster.ok(&["describe", &id, "--curve", &curve])?;
    assert!(described.contains("KEEP_BEST"), "{described}");
    let table = cluster.ok(&["checkpoints", &id])?;
    assert_eq!(table.matches("best").count(), 1, "{table}");
    // A job of a user with the same plan has the same table: the same units, keys and code.
    let again = format!(
        "name = \"again\"\n[evaluate]\nin_domain = {{ trained = 1 }}\nout_of_domain = \
         {{ held_out = 2 }}\nprompts = [\"1girl, smile\"]\nsteps = 2\nguidance = 3.0\nclip = \
         \"{clip}\"\nmodels = [{{ name = \"{id}@12\", job = \"{id}\", weights = 12 }}]\n"
    );
    let again = cluster.submit(&again)?;
    cluster.wait_done(&again)?;
    let last = scored.iter().find(|it| it.step == 12).context("the last")?;
    let table = |job: &str| {
        let store = cluster.directory().join("store/jobs");
        std::fs::read(store.join(job).join("images/rows.parquet"))
    };
    assert!(table(&again)? == table(&last.job)?, "the tables differ");

    cluster.ok(&["delete", &again, "--checkpoints"])?;
    cluster.ok(&["delete", &id, "--checkpoints"])?;
    let left = cluster.json(&["jobs"])?;
    let left: Vec<&str> = left
        .as_array()
        .context("a list")?
        .iter()
        .filter_map(|it| it["job"].as_str())
        .collect();
    assert!(!left.iter().any(|job| job.contains("-eval-")), "{left:?}");
    let gone = cluster
        .directory()
        .join("store/jobs")
        .join(&last.job)
        .join("images");
    assert!(
        !gone.join("rows.parquet").exists(),
        "its files are deleted, too"
    );
    cluster.stop()
}

#[test]
fn samples_every_makes_images_and_no_scores() -> Result<()> {
    let (cluster, dataset) = with_figures(1)?;
    let every = "reduction = \"exact\"\nsamples_every = 6\n";
    let text = training("sampled", &dataset).replace("reduction = \"exact\"\n", every);
    // Without a plan it would show two characters that are trained on; here is one.
    let file = cluster.write_job(&text)?;
    let error = cluster.run(&["submit", &file])?.failure()?;
    assert!(error.contains("asks for 2 characters"), "{error}");
    let plan = "[evaluate]\nin_domain = { trained = 1 }\nout_of_domain = { held_out = 2 }\n\
                prompts = [\"1girl, smile\", \"1girl, hat\"]\nsteps = 2\n";
    let id = cluster.submit(&format!("{text}{plan}"))?;
    cluster.wait_done(&id)?;
    let view = evaluated_view(&cluster, &id)?;
    // Two steps are due; the device may be free only after the second.
    let count = view.evaluations.len() as u64;
    assert_eq!(count + view.evaluations_skipped, 2, "{view:?}");
    let last = view.evaluations.last().context("one of the last step")?;
    assert_eq!((last.step, last.state.as_str()), (12, "scored"), "{view:?}");
    assert_eq!((last.images, last.missing), (6, 0), "{last:?}");
    let names: Vec<&str> = last.means.iter().map(|mean| mean.name.as_str()).collect();
    assert!(!names.contains(&"clip_i"), "{names:?}");
    cluster.stop()
}

#[test]
fn what_cannot_be_evaluated_is_refused_at_submission() -> Result<()> {
    let (cluster, dataset) = with_figures(1)?;
    let clip = clip(&cluster, &dataset)?;
    let good = evaluated("wrong", &dataset, &clip);
    for (old, new, expected) in [
        ("trained = 1", "trained = 99", "asks for 99 characters"),
        ("clip = \"", "clip = \"file:///none\" # \"", ""),
        (
            "steps = 2\nguidance",
            "resolution = 33\nsteps = 2\nguidance",
            "evaluate.resolution = 33",
        ),
        (
            "reduction = \"exact\"",
            "reduction = \"fast\"",
            "train.evaluate_on",
        ),
    ] {
        assert!(good.contains(old), "{old}");
        let file = cluster.write_job(&good.replacen(old, new, 1))?;
        if expected.is_empty() {
            // A folder that only workers see is no fault.
            cluster.ok(&["submit", &file, "--dry-run"])?;
            continue;
        }
        let error = cluster.run(&["submit", &file])?.failure()?;
        assert!(error.contains(expected), "{new}: {error}");
    }
    // Weights of another kind, in a plan of its own.
    let job = TinyJob {
        steps: 2,
        ..TinyJob::forty_steps(&dataset, 1)
    };
    let id = cluster.submit(&job.to_toml())?;
    cluster.wait_done(&id)?;
    let text = |models: &str| {
        format!(
            "name = \"init\"\n[evaluate]\nin_domain = {{ trained = 1 }}\nprompts = [\"1girl\"]\n\
             models = [{models}]\n"
        )
    };
    let file = cluster.write_job(&text(&format!(
        "{{ name = \"m\", job = \"{id}\", init = \"{clip}\" }}"
    )))?;
    let error = cluster.run(&["evaluate", &file])?.failure()?;
    assert!(error.contains("evaluate.models: \"m\": init: "), "{error}");
    // A model that other characters were held out from.
    let other = job.to_toml().replace("seed = 5", "seed = 6");
    let other = cluster.submit(&other)?;
    cluster.wait_done(&other)?;
    let models =
        format!("{{ name = \"a\", job = \"{id}\" }}, {{ name = \"b\", job = \"{other}\" }}");
    let file = cluster.write_job(&text(&models))?;
    let error = cluster.run(&["evaluate", &file])?.failure()?;
    let expected = "evaluate.models: \"b\": was trained with data.seed = 6";
    assert!(error.contains(expected), "{error}");
    cluster.stop()
}
