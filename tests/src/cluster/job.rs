//! The tests' job: RetriNet of the smallest size on 32 pixels and a handful of synthetic figures, small
//! enough that its processes cost more than its training.

/// Arguments that make the tests' data set at `url`.
#[must_use]
pub fn synthesize(url: &str) -> Vec<&str> {
    let sizes = [
        "--characters",
        "4",
        "--outfits",
        "2",
        "--images",
        "4",
        "--size",
        "32",
        "--seed",
        "1",
    ];
    [&["dataset", "synthesize"], &sizes[..], &["--out", url]].concat()
}

/// What differs between the tests' jobs.
#[derive(Debug, Clone)]
pub struct TinyJob {
    pub name: String,
    /// URL of the data set's folder.
    pub dataset: String,
    /// Exactly so many workers, one rank each.
    pub workers: u32,
    pub steps: u64,
    pub checkpoint_every: u64,
}

impl TinyJob {
    /// job.toml's text.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let Self {
            name,
            dataset,
            workers,
            steps,
            checkpoint_every,
        } = self;
        format!(
            "name = \"{name}\"\n\
             [resources]\n\
             workers = {{ min = {workers}, max = {workers} }}\n\
             [data]\n\
             dataset = \"{dataset}\"\n\
             references = 2\n\
             resolution = 32\n\
             holdout = 0.25\n\
             seed = 5\n\
             [model]\n\
             architecture = \"retrinet\"\n\
             size = \"tiny\"\n\
             [train]\n\
             steps = {steps}\n\
             global_batch = 4\n\
             micro_batch = 2\n\
             learning_rate = 1e-3\n\
             digest_every = 4\n\
             [checkpoint]\n\
             every = {checkpoint_every}\n\
             keep = 2\n"
        )
    }
}
