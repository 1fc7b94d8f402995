//! Twins on real processes: two trainings that draw the same samples and the same noise, so that
//! the difference of their losses is that of their settings.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result};
use tests::cluster::job::{TinyJob, with_figures};

#[test]
fn twins_draw_the_same_and_their_difference_is_that_of_their_settings() -> Result<()> {
    let (cluster, dataset) = with_figures(2)?;
    let text = TinyJob::forty_steps(&dataset, 1).to_toml();
    let write = |name: &str, text: &str| -> Result<String> {
        let path = cluster.directory().join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let same = write("same.toml", &text)?;
    let faster = text.replace("learning_rate = 1e-3", "learning_rate = 1e-2");
    assert_ne!(text, faster);
    let faster = write("faster.toml", &faster)?;
    let apart = write("apart.toml", &text.replace("seed = 5", "seed = 6"))?;

    // Nothing is stored of a pair that would not draw the same.
    let refused = cluster
        .run(&["submit", "--twin", &same, &apart])?
        .failure()?;
    let expected = format!(
        "{same} and {apart} would draw different samples or noise: data.seed is 5 and 6; twins"
    );
    assert!(refused.contains(&expected), "{refused}");
    let wrong = write("wrong.toml", &text.replace("steps = 40", "steps = 0"))?;
    cluster
        .run(&["submit", "--twin", &same, &wrong])?
        .failure()?;
    cluster.ok(&["submit", "--dry-run", "--twin", &same, &faster])?;
    assert_eq!(cluster.json(&["jobs"])?.as_array().map(Vec::len), Some(0));

    let pair = |a: &str, b: &str| -> Result<[String; 2]> {
        let ids = cluster.ok(&["submit", "--twin", a, b])?;
        let ids: Vec<String> = ids.lines().map(str::to_owned).collect();
        for id in &ids {
            cluster.wait_done(id)?;
        }
        ids.try_into().ok().context("two ids")
    };
    let [first, second] = pair(&same, &same)?;
    let compared = cluster.json(&["compare", &first, &second])?;
    let paired = &compared["paired"];
    // Bit for bit the same, although they ran on different workers.
    assert_eq!(
        (&paired["mean"], &paired["low"], &paired["high"]),
        (&0.0.into(), &0.0.into(), &0.0.into()),
        "{compared}"
    );
    assert_eq!(paired["steps"], 40);
    let label = |id: &str| -> Result<String> {
        let view = cluster.json(&["describe", id])?;
        let label = view["labels"]["twin"].as_str().map(str::to_owned);
        label.with_context(|| format!("a label of {id}: {view}"))
    };
    assert_eq!(label(&first)?, label(&second)?);

    let [slow, fast] = pair(&same, &faster)?;
    assert_ne!(label(&first)?, label(&slow)?);
    let compared = cluster.json(&["compare", &slow, &fast])?;
    assert!(compared["paired"]["mean"] != 0.0, "{compared}");
    let shown = cluster.ok(&["compare", &slow, &fast])?;
    assert!(
        shown.contains(&format!("paired: {fast} minus {slow} is ")),
        "{shown}"
    );
    let alone = cluster.submit(&text.replace("seed = 5", "seed = 6"))?;
    cluster.wait_done(&alone)?;
    let shown = cluster.ok(&["compare", &slow, &alone])?;
    assert!(
        shown.contains("not paired, because data.seed is 5 and 6: they draw differently"),
        "{shown}"
    );
    cluster.stop()
}
