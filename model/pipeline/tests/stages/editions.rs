//! Every edition gives the same figures, and what is planted is left out for its reason.

use crate::danbooru::{self, FakePost};
use crate::mirrors;
use crate::run::build;
use proto::build::Stage;
use proto::build::report::StageManifest;
use std::collections::BTreeMap;
use std::path::Path;

pub(crate) const TEXT: &str = "out = \"out\"\n[[posts]]\nfrom = \"posts\"\n";

/// Posts that the filter leaves out, one of each kind.
fn planted(posts: &mut [FakePost]) {
    posts[3].characters.push("figure_99999".to_owned());
    posts[4].characters.clear();
    posts[5].artists.clear();
    posts[6].artists.push("inkwell_2".to_owned());
    posts[7].general = vec!["1girl".to_owned(), "solo".to_owned(), "no_hat".to_owned()];
    posts[8].deleted = true;
    posts[9].rating = 'e';
    posts[10].rating = 'q';
}

fn losses(manifest: &StageManifest) -> BTreeMap<&str, u64> {
    let losses = manifest.report.losses.iter();
    losses
        .map(|loss| (loss.reason.as_str(), loss.rows))
        .filter(|(_, rows)| 0 < *rows)
        .collect()
}

type Export = fn(&[FakePost], &Path);

#[tokio::test]
async fn every_edition_is_recognised_by_its_content_and_gives_the_same_clusters() {
    let mut posts = danbooru::posts(6, 6);
    planted(&mut posts);
    let exports: [(&str, Export); 7] = [
        ("JSON of 2017 to 2020", |posts, folder| {
            let text = danbooru::lines(posts.iter().map(danbooru::old));
            std::fs::write(folder.join("x"), text).unwrap();
        }),
        ("JSON of 2021 or later", |posts, folder| {
            let text = danbooru::lines(posts.iter().map(danbooru::new));
            std::fs::write(folder.join("x"), text).unwrap();
            let tags = "{\"id\":\"1\",\"name\":\"hat\",\"category\":\"0\",\"post_count\":\"9\"}\n";
            std::fs::write(folder.join("tags"), tags).unwrap();
        }),
        ("JSON of 2021 or later", |posts, folder| {
            // One file for each post, on several lines.
            for post in posts {
                let text = serde_json::to_vec_pretty(&danbooru::new(post)).unwrap();
                std::fs::write(folder.join(post.id.to_string()), text).unwrap();
            }
        }),
        ("JSON of 2021 or later", |posts, folder| {
            let list: Vec<_> = posts.iter().map(danbooru::new).collect();
            std::fs::write(folder.join("x"), serde_json::to_vec(&list).unwrap()).unwrap();
        }),
        ("Parquet", |posts, folder| {
            mirrors::parquet(posts, &folder.join("x"))
        }),
        ("SQLite (tag_string_* columns)", |posts, folder| {
            mirrors::sqlite_strings(posts, &folder.join("x"));
        }),
        ("tag types are not Danbooru's", |posts, folder| {
            mirrors::sqlite_lists(posts, mirrors::CONSECUTIVE, &folder.join("x"));
        }),
    ];
    let mut first = None;
    for (description, export) in exports {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("posts")).unwrap();
        export(&posts, &folder.path().join("posts"));
        // Small pieces, so that every edition has several.
        let text = format!("{TEXT}[units]\nposts = 3\npiece_rows = 1000\n");
        let manifests = build(folder.path(), &text).await.unwrap();
        let found = manifests[&Stage::Sources].report.found.join("\n");
        assert!(found.contains(description), "{found}");
        let filter = &manifests[&Stage::Filter];
        assert_eq!(filter.report.rows_in, 72, "{description}");
        let expected = [
            ("a rating that is not wanted", 2),
            ("deleted or banned", 1),
            ("no artist", 1),
            ("no character", 1),
            ("no cloth tag", 1),
            ("several artists", 1),
            ("several characters", 1),
        ];
        assert_eq!(losses(filter), BTreeMap::from(expected), "{description}");
        assert_eq!(filter.rows(), 64);
        let clusters = &manifests[&Stage::Clusters];
        assert!(0 < clusters.rows() && clusters.rows() < 64);
        let first = first.get_or_insert_with(|| clusters.parts.clone());
        assert_eq!(*first, clusters.parts, "{description}");
    }
}

#[tokio::test]
async fn rating_s_means_safe_only_where_there_is_no_g() {
    for (old, expected) in [(true, 24), (false, 0)] {
        let posts = danbooru::posts(2, 6);
        let folder = tempfile::tempdir().unwrap();
        let rows = posts.iter();
        let text = match old {
            true => danbooru::lines(rows.map(danbooru::old)),
            false => danbooru::lines(rows.map(danbooru::new)),
        };
        std::fs::write(folder.path().join("posts"), text).unwrap();
        let manifests = build(folder.path(), TEXT).await.unwrap();
        let report = &manifests[&Stage::Filter].report;
        let safe = report
            .counts
            .get("rated safe by an edition that has no general");
        assert_eq!(safe.copied().unwrap_or(0), expected);
        let general = format!("{TEXT}[filter]\nratings = [\"general\"]\n");
        let manifests = build(folder.path(), &general).await.unwrap();
        // A safe post of an old edition is not known to be general.
        assert_eq!(manifests[&Stage::Filter].rows(), if old { 0 } else { 16 });
    }
}

#[tokio::test]
async fn of_duplicates_over_editions_the_last_source_counts() {
    let posts = danbooru::posts(2, 6);
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = posts.clone();
    for post in &mut wrong {
        post.characters = vec!["somebody_else".to_owned()];
    }
    let old = danbooru::lines(wrong.iter().map(danbooru::old));
    std::fs::write(folder.path().join("z_old"), old).unwrap();
    let new = danbooru::lines(posts[..20].iter().map(danbooru::new));
    std::fs::write(folder.path().join("a_new"), new).unwrap();
    let text = "out = \"out\"\n[[posts]]\nfrom = \"z_old\"\n[[posts]]\nfrom = \"a_new\"\n";
    let manifests = build(folder.path(), text).await.unwrap();
    let filter = &manifests[&Stage::Filter];
    assert_eq!(
        losses(filter),
        BTreeMap::from([("another source has the same post", 20)])
    );
    let characters = &manifests[&Stage::Clusters].report.tables["characters"];
    let wrong = characters.iter().find(|(name, _)| name == "somebody_else");
    assert!(wrong.is_none_or(|(_, rows)| *rows <= 4), "{characters:?}");
}

#[tokio::test]
async fn only_posts_with_a_picture_of_a_figure_are_kept() {
    let posts = danbooru::posts(2, 6);
    let folder = tempfile::tempdir().unwrap();
    let text = danbooru::lines(posts.iter().map(danbooru::new));
    std::fs::write(folder.path().join("posts"), text).unwrap();
    let listed: Vec<String> = posts[..10]
        .iter()
        .map(|it| format!("figures/{:04}/{}_1.png", it.id % 1000, it.id))
        .collect();
    let listed = format!("{}\n7\n{}\n", listed.join("\n"), posts[0].id);
    std::fs::write(folder.path().join("figures.txt"), listed).unwrap();
    let text = format!("{TEXT}[filter]\nfigures = \"figures.txt\"\n");
    let manifests = build(folder.path(), &text).await.unwrap();
    let report = &manifests[&Stage::Filter].report;
    assert_eq!(report.lost("no picture of a figure"), 14);
    assert_eq!(report.rows_out, 10);
    assert_eq!(report.counts["figures listed without metadata"], 1);
    assert_eq!(report.counts["figures listed twice"], 1);
}
