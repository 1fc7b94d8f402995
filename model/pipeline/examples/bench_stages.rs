//! Time and memory of the tabular stages on generated metadata: `bench_stages FOLDER POSTS`. The
//! folder gets the metadata (about 700 bytes a post) and the outputs.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use model_data::pipeline_inputs::inputs;
use pipeline::output::Outputs;
use proto::build::BuildWork;
use proto::build::funnel;
use proto::build::pipeline::Pipeline;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A sequence of numbers that look random.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    /// Small numbers are more frequent, as names and tags are.
    fn skewed(&mut self, bound: u64) -> u64 {
        let power = self.below(bound) * self.below(bound) / bound;
        power * self.below(bound) / bound
    }
}

const CLOTHS: [&str; 12] = [
    "skirt",
    "hat",
    "long_sleeves",
    "shirt",
    "dress",
    "thighhighs",
    "school_uniform",
    "hair_bow",
    "pleated_skirt",
    "serafuku",
    "black_legwear",
    "hairband",
];

fn generate(file: &Path, posts: u64) {
    let mut numbers = Numbers(7);
    let mut out = BufWriter::new(std::fs::File::create(file).unwrap());
    for id in 1..=posts {
        let mut general = String::new();
        for _ in 0..24 {
            let tag = numbers.skewed(8000);
            general += &format!("tag_number_{tag} ");
        }
        for _ in 0..numbers.below(4) {
            general += CLOTHS[usize::try_from(numbers.skewed(12)).unwrap()];
            general.push(' ');
        }
        let character = numbers.skewed(30_000);
        let second = if numbers.below(10) < 3 {
            " and_somebody_else"
        } else {
            ""
        };
        // A character has a few artists, so that there are clusters.
        let artist = character * 2 + numbers.skewed(3);
        let rating = ["g", "g", "s", "q", "e"][usize::try_from(numbers.below(5)).unwrap()];
        writeln!(
            out,
            "{{\"id\":{id},\"md5\":\"{id:032x}\",\"rating\":\"{rating}\",\"image_width\":1200,\
             \"image_height\":1600,\"file_ext\":\"jpg\",\"parent_id\":null,\"has_children\":false,\
             \"is_deleted\":false,\"is_banned\":false,\"tag_string_general\":\"{}\",\
             \"tag_string_character\":\"character_{character}{second}\",\
             \"tag_string_artist\":\"artist_{artist}\",\"tag_string_copyright\":\"original\",\
             \"tag_string_meta\":\"highres\",\"source\":\"\",\"score\":12,\"fav_count\":30}}",
            general.trim_end()
        )
        .unwrap();
    }
}

/// The most memory that this process has had, in MiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    words[1].parse::<u64>().unwrap() >> 10
}

/// Processor time of this process in seconds.
fn processor() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let words: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks = words[11].parse::<f64>().unwrap() + words[12].parse::<f64>().unwrap();
    ticks / 100.0
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let folder = PathBuf::from(&arguments[1]);
    let posts: u64 = arguments[2].parse().unwrap();
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("posts.json");
    if !file.exists() {
        generate(&file, posts);
    }
    let text = format!(
        "out = {:?}\n[[posts]]\nfrom = \"posts.json\"\n",
        folder.join("out")
    );
    let pipeline = Pipeline::parse("bench", &text, &folder).unwrap();
    let mut manifests = Vec::new();
    println!(
        "{:<10} {:>10} {:>8} {:>8} {:>10} {:>8}",
        "stage", "rows", "s", "cpu s", "rows/s", "MiB"
    );
    for planned in pipeline.stages(&inputs(&pipeline).await.unwrap()) {
        let work = BuildWork {
            out: pipeline.out.clone(),
            key: planned.plan.key(),
            units: planned.units,
        };
        let output = Outputs::open(&work.out).unwrap().stage(&work.key);
        output.put_plan(&planned.plan).await.unwrap();
        let (begun, cpu) = (Instant::now(), processor());
        for unit in 0..=u64::from(work.units) {
            pipeline::unit::run(&work, unit, &folder.join("scratch"))
                .await
                .unwrap();
        }
        let manifest = output.manifest().await.unwrap().unwrap();
        let (seconds, rows) = (begun.elapsed().as_secs_f64(), manifest.report.rows_in);
        println!(
            "{:<10} {rows:>10} {seconds:>8.1} {:>8.1} {:>10.0} {:>8}",
            planned.plan.stage().to_string(),
            processor() - cpu,
            rows as f64 / seconds,
            peak()
        );
        manifests.push(manifest);
    }
    for step in funnel::steps(&manifests) {
        let rows = step.rows.or(step.lost).unwrap_or(0);
        println!(
            "{rows:>10} {}{}",
            if step.rows.is_some() { "" } else { "- " },
            step.what
        );
    }
}
