//! Whatever is admitted at submission fits into the messages that carry it, at any size: the
//! worker's decoder takes it, alone and in the fullest state that a worker can have. What is beyond
//! a limit is refused alone, by name.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use prost::Message;
use proto::id::{Generation, JobId, Rank, Step, WorkerId};
use proto::job::overrides::{Override, check_limits, effective_text, parse_with_overrides};
use proto::limits::{
    ASSIGNMENT_BYTES, ASSIGNMENTS, DEVICES, ERROR_BYTES, JOB_TOML_BYTES, LEASE_RANGES, LIST,
    PROMPTS_BYTES, STATE_BYTES, URL_BYTES,
};
use proto::message::{
    Assignment, DesiredState, GangOrder, Peer, RankPhase, Run, SourceJob, UnitOrder, UnitRange,
    WorkerReport,
};
use proto::pb;
use proto::reason::RankFailure;
use proto::spec::JobSpec;
use std::collections::BTreeMap;

const TRAIN: &str = "name = \"a\"\n[data]\ndataset = \"file:///DATA\"\nresolution = 32\n\
    [model]\narchitecture = \"autoencoder\"\nsize = \"tiny\"\ninit = \"s3://INIT\"\n\
    [train]\nsteps = 10\nglobal_batch = 4096\nmicro_batch = 1\n";

/// A text of about this length: around a limit, and with characters that TOML must escape.
fn near(limit: usize) -> impl Strategy<Value = String> {
    let length = prop_oneof![
        0..20_usize,
        (limit / 2)..(limit + 40),
        (limit.saturating_sub(30))..(limit + 30),
    ];
    let unit = prop::sample::select(vec!["x", "ü", "\\\\", "\\n", "\\u0001", "%23", "\\\""]);
    (length, unit).prop_map(|(length, unit)| unit.repeat(length.div_ceil(unit.len())))
}

fn training() -> impl Strategy<Value = String> {
    let devices = prop_oneof![1..66_u32, Just(1024)];
    (near(URL_BYTES), near(URL_BYTES), devices).prop_map(|(data, init, devices)| {
        let text = TRAIN.replace("DATA", &data).replace("INIT", &init);
        format!(
            "{}\n[resources]\ndevices_per_worker = {devices}\n\
             workers = {{ min = 1, max = 1 }}\n",
            text.trim_end()
        )
    })
}

fn sampling() -> impl Strategy<Value = String> {
    let prompts = prop_oneof![
        prop::collection::vec(near(200), 0..4),
        (near(16 << 10), 50..80_usize).prop_map(|(text, count)| vec![text; count]),
        (near(300), 3000..4097_usize).prop_map(|(text, count)| vec![text; count]),
    ];
    let seeds = prop_oneof![1..3_usize, Just(LIST), Just(LIST + 1)];
    let ids = prop::collection::vec(near(1024), 0..66);
    (prompts, near(16 << 10), seeds, ids).prop_map(|(prompts, negative, seeds, ids)| {
        let quoted = |texts: &[String]| {
            let texts: Vec<String> = texts.iter().map(|text| format!("\"{text}\"")).collect();
            texts.join(", ")
        };
        let references: Vec<String> = ids
            .iter()
            .map(|id| format!("{{ id = \"{id}\" }}"))
            .collect();
        format!(
            "name = \"s\"\n[sample]\njob = \"a-1\"\ncount = 1\nprompts = [{}]\n\
             negative_prompt = \"{negative}\"\nseeds = {:?}\nreferences = [{}]\n",
            quoted(&prompts),
            vec![u64::MAX >> 1; seeds],
            references.join(", ")
        )
    })
}

fn evaluating() -> impl Strategy<Value = String> {
    let prompts = prop::collection::vec(near(300), 1..4);
    let count = prop_oneof![1..4_usize, 250..260_usize];
    (prompts, near(16 << 10), count).prop_map(|(prompts, negative, count)| {
        let prompts: Vec<String> = prompts.iter().map(|text| format!("\"{text}\"")).collect();
        let model = |number: usize| format!("{{ name = \"m{number}\", job = \"a-{number}\" }}");
        let models: Vec<String> = (0..count).map(model).collect();
        format!(
            "name = \"e\"\n[evaluate]\nin_domain = {{ trained = 2 }}\nprompts = [{}]\n\
             negative_prompt = \"{negative}\"\nmodels = [{}]\n",
            prompts.join(", "),
            models.join(", ")
        )
    })
}

/// The canonical text, if the job is admitted.
fn admitted(text: &str) -> Option<(JobSpec, String)> {
    let spec = proto::job::parse("job.toml", text, None).ok()?;
    let canonical = proto::job::admit("job.toml", &spec).ok()?;
    Some((spec, canonical))
}

fn worker(number: usize) -> WorkerId {
    WorkerId {
        name: format!("{number:064}"),
        boot: u64::MAX,
    }
}

fn assignment(number: usize, job_toml: String, run: Run) -> Assignment {
    let units = matches!(run, Run::Units(_));
    Assignment {
        job: JobId(format!("{}-{number:08}", "j".repeat(40))),
        generation: Generation(u64::MAX),
        job_toml,
        dataset_version: "f".repeat(64),
        store_url: format!("s3://{}", "s".repeat(URL_BYTES - 5)),
        detect_within_ms: u64::MAX,
        first_rank: Rank(if units { 0 } else { 4 * DEVICES }),
        ranks: DEVICES,
        graceful_stop: None,
        run,
    }
}

fn gang() -> Run {
    Run::Gang(GangOrder {
        world: 1 << 16,
        store_address: Some("a".repeat(250)),
        resume: None,
        acknowledged_step: Step(u64::MAX),
        committed_step: Step(u64::MAX),
    })
}

/// Every rank has a lease of as many ranges as a lease may have.
fn units(source: &str) -> Run {
    let range = |number: u64| UnitRange {
        first: (1 << 62) + 2 * number,
        end: (1 << 62) + 2 * number + 1,
    };
    let lease: Vec<UnitRange> = (0..LEASE_RANGES as u64).map(range).collect();
    Run::Units(UnitOrder {
        models: Vec::new(),
        source: Some(SourceJob {
            job_toml: source.to_owned(),
            checkpoint: None,
        }),
        leases: (0..DEVICES)
            .map(|rank| (Rank(rank), lease.clone()))
            .collect::<BTreeMap<_, _>>(),
    })
}

fn state(assignments: Vec<Assignment>, peers: usize) -> DesiredState {
    let peer = |number| Peer {
        worker: worker(number),
        address: format!("{}:65535", "h".repeat(253)),
    };
    DesiredState {
        worker: worker(0),
        assignments,
        detect_within_ms: u64::MAX,
        peers: (0..peers).map(peer).collect(),
        refused: Vec::new(),
        // It is sent with nothing else.
        successor: None,
    }
}

/// What the worker's decoder makes of the state's bytes.
fn sent(state: &DesiredState) -> (usize, DesiredState) {
    let bytes = pb::DesiredState::from(state).encode_to_vec();
    let wire = pb::DesiredState::decode(bytes.as_slice()).unwrap();
    (bytes.len(), wire.try_into().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        failure_persistence: None,
        max_shrink_iters: 64,
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_is_admitted_is_taken_by_the_worker_and_by_the_rank(
        text in prop_oneof![training(), sampling(), evaluating()],
        source in training(),
    ) {
        let Some((spec, canonical)) = admitted(&text) else { return Ok(()) };
        let run = match (spec.work.units(), admitted(&source)) {
            (None, _) => gang(),
            (Some(_), Some((_, source))) => units(&source),
            (Some(_), None) => units("name"),
        };
        let wanted = assignment(1, canonical, run);
        prop_assert!(pb::Assignment::from(&wanted).encoded_len() <= ASSIGNMENT_BYTES);
        let (_, received) = sent(&state(vec![wanted.clone()], 1));
        prop_assert_eq!(&received.refused, &[]);
        prop_assert_eq!(received.assignments.as_slice(), std::slice::from_ref(&wanted));
        // The rank parses it again.
        let again = proto::job::parse_stored(&wanted.job, &wanted.job_toml);
        prop_assert_eq!(again.unwrap(), spec);
    }

    #[test]
    fn what_is_admitted_with_overrides_is_taken_too(
        text in training(),
        devices in prop_oneof![Just(0_u32), 1..70_u32],
        team in near(1024),
    ) {
        let Some((_, stored)) = admitted(&text) else { return Ok(()) };
        let set = |key: &str, value: String| Override { key: key.to_owned(), value };
        let overrides = vec![
            set("resources.devices_per_worker", devices.to_string()),
            set("train.steps", "20".to_owned()),
        ];
        let id = JobId("a-1".to_owned());
        if let Ok(spec) = parse_with_overrides(&id, &stored, &overrides)
            && check_limits(&spec, &overrides).is_ok()
        {
            prop_assert!(spec.resources.devices_per_worker <= DEVICES);
            let text = effective_text(&stored, &spec, &overrides);
            let (_, received) = sent(&state(vec![assignment(1, text, gang())], 0));
            prop_assert_eq!(received.refused, &[]);
        }
        let long = vec![set("resources.team", team.clone())];
        if 1024 < team.len() {
            let spec = proto::job::parse_stored(&id, &stored).unwrap();
            prop_assert!(check_limits(&spec, &long).unwrap_err().contains("at most 1024"));
        }
    }
}

/// The largest job that is admitted: its prompts are all that is long in it.
fn largest() -> String {
    let text = |bytes: usize| {
        let prompt = "x".repeat(16 << 10);
        let (full, rest) = (bytes / prompt.len(), bytes % prompt.len());
        let mut prompts = vec![prompt; full];
        prompts.push("y".repeat(rest));
        format!("name = \"s\"\n[sample]\njob = \"a-1\"\nprompts = {prompts:?}\n")
    };
    let mut bytes = PROMPTS_BYTES;
    loop {
        if let Some((_, canonical)) = admitted(&text(bytes)) {
            assert!(
                JOB_TOML_BYTES - 64 < canonical.len(),
                "{} bytes",
                canonical.len()
            );
            return canonical;
        }
        bytes -= 16;
    }
}

#[test]
fn the_fullest_state_of_the_largest_jobs_fits_into_one_message() {
    let largest = largest();
    let assignments = (0..ASSIGNMENTS).map(|it| assignment(it, largest.clone(), units(&largest)));
    let full = state(assignments.collect(), LIST);
    let (bytes, received) = sent(&full);
    assert!(
        bytes <= STATE_BYTES,
        "{bytes} bytes, and the limit is {STATE_BYTES}"
    );
    assert_eq!(received.refused, []);
    assert!(received == full, "the state changed on its way");
}

/// In each of these texts every character or two would take the parser 2 kB.
#[test]
fn a_text_that_would_unfold_to_much_is_refused_before_it_is_parsed() {
    let deep = |line: usize| format!("k{line}{}=1\n", ".a".repeat(70));
    let hostile = [
        (0..6000).map(deep).collect::<String>(),
        format!("x=[{}]", "{a={b={}}},".repeat(80_000)),
        format!("x=[{}]", "1,".repeat(400_000)),
        (0..60_000).map(|it| format!("[[a.b{it}.c.d]]\n")).collect(),
        format!("x={}", "[".repeat(500_000)),
        format!("x{}=1", ".a".repeat(400_000)),
        // What is not closed is no string beyond its line.
        format!("y = \"\nx=[{}]", "1,".repeat(400_000)),
        format!("y = '\nx=[{}]", "1,".repeat(400_000)),
    ];
    for text in hostile {
        let error = proto::job::parse("job.toml", &text, None).unwrap_err();
        let error = error.to_string();
        assert!(
            error.len() < 200 && error.contains("outside of strings; at most 32768 are accepted"),
            "{error}"
        );
    }
    // In strings they are text, and what a job may have is far below the limit.
    let prompts = vec![".,=[{".repeat(40); 4096];
    let seeds = vec![u64::MAX >> 1; 200];
    let text = format!(
        "name = \"s\"\n[sample]\njob = \"a-1\"\ncount = 1\nprompts = {prompts:?}\n\
         negative_prompt = '''\n{}'''\nseeds = {seeds:?}\n",
        "[.\n".repeat(5000)
    );
    assert!(admitted(&text).is_some());
}

#[test]
fn a_bad_assignment_is_refused_alone_with_field_length_and_limit() {
    let good = assignment(1, "name".into(), gang());
    let mut wire = pb::DesiredState::from(&state(vec![good.clone(), good.clone()], 2));
    wire.assignments[1].job = "bad-2".into();
    wire.assignments[1].job_toml = "x".repeat(1_200_000);
    wire.peers[0].address = "nowhere".into();
    let received = DesiredState::try_from(wire.clone()).unwrap();
    assert_eq!(received.assignments, std::slice::from_ref(&good));
    assert_eq!(received.peers.len(), 1);
    let [job, peer] = received.refused.as_slice() else {
        panic!("{:?}", received.refused)
    };
    assert_eq!(
        job.error,
        "field `job_toml` is 1200000 bytes long; at most 1048576 are accepted"
    );
    let ranks = (
        job.job.0.as_str(),
        job.generation,
        job.first_rank,
        job.ranks,
    );
    assert_eq!(
        ranks,
        ("bad-2", good.generation, good.first_rank, good.ranks)
    );
    assert_eq!((peer.ranks, peer.error.contains("peer_address")), (0, true));
    // Ranks that cannot exist are not reported as failed.
    wire.assignments[1].first_rank = u32::MAX;
    let received = DesiredState::try_from(wire).unwrap();
    assert_eq!(received.refused[0].ranks, 0);
}

#[test]
fn a_rank_s_report_beyond_a_limit_fails_that_rank_alone_and_an_error_is_cut() {
    let rank = |rank| pb::RankReport {
        job: "a-1".into(),
        rank,
        phase: pb::rank_report::Phase::Broken.into(),
        error: "e".repeat(2 << 20),
        ..Default::default()
    };
    let wire = pb::WorkerReport {
        worker: Some(pb::WorkerId {
            name: "w1".into(),
            boot: 1,
        }),
        device: "cpu".into(),
        devices: 2,
        ranks: vec![
            rank(0),
            pb::RankReport {
                store_address: Some("s".repeat(5000)),
                ..rank(1)
            },
        ],
        ..Default::default()
    };
    let report = WorkerReport::try_from(wire).unwrap();
    let RankPhase::Broken { error } = &report.ranks[0].phase else {
        panic!("{:?}", report.ranks[0])
    };
    assert!(error.len() <= ERROR_BYTES, "{} bytes", error.len());
    assert!(error.ends_with("(cut: it has 2097152 bytes)"), "{error}");
    let RankPhase::Failed {
        failure: RankFailure::Error { text, .. },
    } = &report.ranks[1].phase
    else {
        panic!("{:?}", report.ranks[1])
    };
    assert_eq!(
        text,
        "the rank's report is refused: field `store_address` is 5000 bytes long; at most 259 are \
         accepted"
    );
}

#[test]
fn errors_of_a_job_are_bounded_in_number_and_length() {
    let refused = |text: &str| proto::job::parse("job.toml", text, None).unwrap_err();
    let url = format!("/{}", "./".repeat(600_000));
    let error = refused(&TRAIN.replace("/DATA", &url)).to_string();
    assert!(
        error.contains("the text has 1200")
            && error.contains("bytes; at most 1048576 are accepted"),
        "{error}"
    );
    let url = "x".repeat(3000);
    let error = refused(&TRAIN.replace("INIT", &url)).to_string();
    assert_eq!(
        error,
        "job.toml:8: model.init: is a URL of 3005 bytes; at most 2048 are accepted"
    );
    // 256 bad ids, each with its own error.
    let ids: Vec<String> = (0..256)
        .map(|id| format!("{id}/{}", "x".repeat(3000)))
        .collect();
    let errors = refused(&TRAIN.replacen('\n', &format!("\nafter = {ids:?}\n"), 1));
    assert_eq!(errors.0.len(), 33);
    assert_eq!(errors.0[32].message, "224 more errors are not listed");
    let longest = errors.0.iter().map(|error| error.message.len()).max();
    assert!(longest <= Some(1024), "{longest:?}");
}
