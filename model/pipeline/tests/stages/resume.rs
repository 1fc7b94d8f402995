//! Whatever is lost or done twice, the same bytes result, and a second run does nothing.

use crate::danbooru;
use crate::editions::TEXT;
use crate::run::{build, plan, prepare, run_unit};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_owned();
                found.insert(name, std::fs::read(path).unwrap());
            }
        }
    }
    found
}

#[tokio::test]
async fn a_kill_after_any_write_gives_the_same_bytes() {
    let posts = danbooru::posts(3, 4);
    let folder = tempfile::tempdir().unwrap();
    let text = danbooru::lines(posts.iter().map(danbooru::new));
    std::fs::write(folder.path().join("posts"), text).unwrap();
    let text = format!("{TEXT}[units]\nposts = 2\n");
    build(folder.path(), &text).await.unwrap();
    let out = folder.path().join("out");
    let whole = files(&out);
    assert!(8 < whole.len());
    // What is there after a kill lacks one object, or one and all of later stages.
    for lost in whole.keys().filter(|it| !it.ends_with("plan.json")) {
        std::fs::remove_file(out.join(lost)).unwrap();
        let stage = lost.parent().unwrap();
        for later in ["unit", "manifest"] {
            for entry in std::fs::read_dir(out.join(stage)).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap();
                // An object that names others is written after them.
                let is_later = name.starts_with(later);
                if is_later
                    && !lost
                        .file_name()
                        .unwrap()
                        .to_str()
                        .unwrap()
                        .starts_with("manifest")
                {
                    std::fs::remove_file(path).unwrap();
                }
            }
        }
        build(folder.path(), &text).await.unwrap();
        let again = files(&out);
        assert_eq!(
            again.keys().collect::<Vec<_>>(),
            whole.keys().collect::<Vec<_>>()
        );
        assert!(again == whole, "{} was lost", lost.display());
    }
}

#[tokio::test]
async fn a_second_run_writes_nothing_and_a_changed_setting_only_what_depends_on_it() {
    let posts = danbooru::posts(3, 4);
    let folder = tempfile::tempdir().unwrap();
    let text = danbooru::lines(posts.iter().map(danbooru::new));
    std::fs::write(folder.path().join("posts"), text).unwrap();
    build(folder.path(), TEXT).await.unwrap();
    let first = files(&folder.path().join("out"));
    build(folder.path(), TEXT).await.unwrap();
    assert!(files(&folder.path().join("out")) == first);
    build(folder.path(), &format!("{TEXT}[clusters]\nsize_min = 3\n"))
        .await
        .unwrap();
    let second = files(&folder.path().join("out"));
    let new: Vec<_> = second
        .keys()
        .filter(|it| !first.contains_key(*it))
        .collect();
    assert!(
        !new.is_empty() && new.iter().all(|it| it.starts_with("stages/clusters")),
        "{new:?}"
    );
}

#[tokio::test]
async fn units_in_any_order_and_number_give_the_same_rows() {
    let posts = danbooru::posts(3, 4);
    let folder = tempfile::tempdir().unwrap();
    let text = danbooru::lines(posts.iter().map(danbooru::new));
    std::fs::write(folder.path().join("posts"), text).unwrap();
    let mut plans = plan(folder.path(), TEXT).await.unwrap();
    let proto::build::settings::Settings::Sources(settings) = &mut plans[0].plan.settings else {
        panic!("sources are first");
    };
    settings.piece_bytes = 2000;
    let (sources, output) = prepare(folder.path(), TEXT, &plans[0]).await;
    for unit in [0, 0, 1, 1] {
        run_unit(folder.path(), &sources, unit).await.unwrap();
    }
    assert!(5 < output.manifest().await.unwrap().unwrap().report.rows_out);
    plans[1].plan.inputs = vec![plans[0].plan.key()];
    let mut parts = Vec::new();
    for units in [1, 3, 50] {
        plans[1].units = units;
        let (work, output) = prepare(folder.path(), TEXT, &plans[1]).await;
        let early = run_unit(folder.path(), &work, units.into()).await;
        if units == 1 {
            assert!(
                early
                    .unwrap_err()
                    .contains("unit-00000-of-00001.json is missing")
            );
        }
        for unit in (0..=u64::from(units)).rev().skip(1).chain([units.into()]) {
            run_unit(folder.path(), &work, unit).await.unwrap();
        }
        let stage = folder.path().join("out").join(work.key.folder());
        parts.push(output.manifest().await.unwrap().unwrap().parts);
        std::fs::remove_dir_all(stage).unwrap();
    }
    assert!(parts.iter().all(|it| *it == parts[0]) && 5 < parts[0].len());
}
