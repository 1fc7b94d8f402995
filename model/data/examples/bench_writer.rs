//! `make bench-writer`: rows per second, processor time and memory of the data-set writer alone,
//! for rows of 1 kB whose images are random bytes. Writes 100,000 rows, then ROWS (1,000,000) rows,
//! to a temporary folder. The growth of the peak memory between the two is the memory per row.
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use bytes::Bytes;
use model_data::sample::{Metadata, Sample};
use model_data::writer::{DatasetWriter, WriteOptions};

const IMAGE_BYTES: usize = 780;
const MASK_BYTES: usize = 60;
const IDENTITY_ROWS: u64 = 4;

fn main() {
    let rows = std::env::args().nth(1);
    let rows: u64 = rows.map_or(1_000_000, |text| text.parse().expect("ROWS is a number"));
    let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
    let few = runtime.block_on(write(100_000.min(rows)));
    let many = runtime.block_on(write(rows));
    let per_row = (many - few) as f64 / (rows - 100_000.min(rows)).max(1) as f64;
    println!("peak memory grows by {per_row:.0} bytes per row");
}

/// Writes a data set and prints the figures. Returns the peak memory in bytes.
async fn write(rows: u64) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    // Random enough that nothing can be compressed; the rows share it.
    let noise: Vec<u8> = (0..1u64 << 20)
        .map(|n| (model_data::random::hash_words(n / 8, &[]) >> (n % 8 * 8)) as u8)
        .collect();
    let noise = Bytes::from(noise);
    let (started, cpu) = (Instant::now(), cpu_seconds());
    let options = WriteOptions::new("bench");
    let mut writer = DatasetWriter::open(&url, options).await.unwrap();
    for identity in 0..rows / IDENTITY_ROWS {
        let first = identity * IDENTITY_ROWS;
        let samples = (first..first + IDENTITY_ROWS).map(|row| sample(row, first, &noise));
        writer.add(samples.collect()).await.unwrap();
    }
    let written = writer.finish().await.unwrap();
    let (wall, cpu) = (started.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let bytes: u64 = written.manifest.files.iter().map(|it| it.size_bytes).sum();
    let peak = peak_memory();
    println!(
        "{} rows, {} MB: {wall:.1} s, {:.0} rows/s, {cpu:.1} s of processor time, peak memory {} \
         MB",
        written.manifest.samples,
        bytes / 1_000_000,
        written.manifest.samples as f64 / wall,
        peak / 1_000_000,
    );
    peak
}

fn sample(row: u64, first: u64, noise: &Bytes) -> Sample {
    let id = |row: u64| format!("{:016x}", row.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let start = (row as usize * 997) % (noise.len() - IMAGE_BYTES - MASK_BYTES);
    let others = (first..first + IDENTITY_ROWS).filter(|other| *other != row);
    Sample {
        metadata: Metadata {
            id: id(row),
            character: format!("character_{}", first / 64),
            artists: format!("artist_{}", first / 1024),
            bbox: [0.5, 0.25, 0.5, 0.3],
            prompts: format!("1girl, looking_at_viewer, solo, standing, tag_{}", row % 97),
            cloths: vec!["red skirt".to_owned()],
            similar: others.map(id).collect(),
            width: 64,
            height: 64,
            ..Metadata::default()
        },
        image: noise.slice(start..start + IMAGE_BYTES),
        mask: noise.slice(start + IMAGE_BYTES..start + IMAGE_BYTES + MASK_BYTES),
    }
}

/// Processor time of this process so far.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    // utime and stime, in hundredths of a second on Linux.
    let ticks = fields.split(' ').skip(11).take(2);
    ticks.map(|it| it.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

/// Largest resident size of this process so far, in bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|it| it.starts_with("VmHWM:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}
