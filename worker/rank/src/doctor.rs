//! `worker-rank doctor`: checks that this node can train. Checks libtorch, devices, the object
//! store and the ports, and prints one line per check. Leaves the findings in the store, where the
//! coordinator's page of the worker reads them, and nothing else. Called by `worker doctor` with the
//! node's settings.

use crate::collective::device::{gpus, library_architectures, libtorch_version, supports};
use crate::collective::network;
use crate::deadline::Deadlines;
use crate::environment::host_name;
use anyhow::Context;
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt};
use proto::findings::{Check, Findings, findings_path};
use proto::spec::DeviceKind;
use shell::{errln, outln};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tch::{Device, Kind, Tensor};

/// The name of the check of the store.
const STORE: &str = "object store";
/// The default `detect_within`; the probe timeout derives from it.
const DETECT_WITHIN_MS: u64 = 3_000;

#[derive(Debug, clap::Args)]
pub(crate) struct Node {
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Number of ranks that this node runs at once.
    #[arg(long, default_value_t = 1)]
    devices: u32,
    /// Address on which ranks listen.
    #[arg(long, default_value = "127.0.0.1")]
    address: String,
    #[arg(long)]
    metrics_listen: Option<SocketAddr>,
    /// Coordinator to connect to, http://HOST:PORT.
    #[arg(long)]
    coordinator: Option<String>,
    /// The worker whose findings are left in the store.
    #[arg(long)]
    name: Option<String>,
    /// Object store to check.
    #[arg(long)]
    store: Option<String>,
    /// Output format: table or json.
    #[arg(long, default_value = "table")]
    output: String,
}

/// Prints the results. Returns true if every check passed.
pub(crate) fn run(node: &Node) -> anyhow::Result<bool> {
    let mut checks = vec![libtorch(), threads(node)];
    checks.extend(devices(node));
    checks.extend(ports(node));
    checks.push(network(node, std::env::var(network::VARIABLE).ok()));
    checks.extend(node.coordinator.as_deref().map(coordinator));
    checks.push(match &node.store {
        Some(url) => object_store(url)?,
        None => check(STORE, Ok("not checked; pass one with --store".to_owned())),
    });
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    let findings = Findings {
        ok: checks.iter().all(|check| check.ok),
        at_ms: since_1970.map_or(0, |it| it.as_millis().try_into().unwrap_or(u64::MAX)),
        checks,
    };
    if node.output == "json" {
        let json = serde_json::to_string_pretty(&findings)?;
        shell::print::out_lines(&proto::printable::printable_json(&json));
    } else {
        for Check { name, ok, found } in &findings.checks {
            let verdict = if *ok { "ok" } else { "WRONG" };
            outln!("{verdict:<8} {name:<13} {found}");
        }
    }
    if let (Some(name), Some(url)) = (&node.name, &node.store)
        && findings.checks.iter().any(|it| it.name == STORE && it.ok)
        && let Err(error) = leave(&findings, name, url)
    {
        errln!("the page of {name} does not show this: {url}: {error:#}");
    }
    Ok(findings.ok)
}

fn check(name: &'static str, outcome: Result<String, String>) -> Check {
    let ok = outcome.is_ok();
    Check {
        name: name.to_owned(),
        ok,
        found: outcome.unwrap_or_else(|error| error),
    }
}

fn libtorch() -> Check {
    let architectures = library_architectures();
    let build = match cfg!(feature = "cuda") {
        true => format!("CUDA build with code for {}", architectures.join(" ")),
        false => "CPU build".to_owned(),
    };
    // The library is loaded already. The product of two matrices of ones checks that it computes.
    let ones = Tensor::ones([8, 8], (Kind::Float, Device::Cpu));
    let sum = ones.matmul(&ones).sum(Kind::Double).double_value(&[]);
    let outcome = if (sum - 512.0).abs() < 1e-6 {
        Ok(format!("{}, {build}", libtorch_version()))
    } else {
        Err(format!(
            "{} computes 8 x 8 ones as {sum} instead of 512",
            libtorch_version()
        ))
    };
    check("libtorch", outcome)
}

fn threads(node: &Node) -> Check {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let found = format!(
        "{cores} cores, libtorch uses {} threads unless the job sets them",
        tch::get_num_threads()
    );
    let enough = node.device != "cpu" || node.devices as usize <= cores;
    let outcome = if enough {
        Ok(found)
    } else {
        Err(format!(
            "{found}; {} CPU devices are more than the cores",
            node.devices
        ))
    };
    check("threads", outcome)
}

fn devices(node: &Node) -> Vec<Check> {
    let found = match gpus() {
        Ok(found) => found,
        Err(error) => return vec![check("devices", Err(error.to_string()))],
    };
    if node.device != DeviceKind::Cuda.name() {
        let slots = format!("{} CPU slots", node.devices);
        let gpus = if cfg!(feature = "cuda") {
            format!("; {} GPUs found but not used: `device` is cpu", found.len())
        } else {
            String::new()
        };
        return vec![check("devices", Ok(slots + &gpus))];
    }
    let library = library_architectures();
    let count = format!(
        "{} GPUs found, {} in the settings",
        found.len(),
        node.devices
    );
    let enough = found.len() >= node.devices as usize;
    let mut checks = vec![check(
        "devices",
        if enough { Ok(count) } else { Err(count) },
    )];
    for gpu in found {
        let text = format!("GPU {}: {}, {}", gpu.index, gpu.name, gpu.architecture);
        let fits = supports(&library, &gpu.architecture);
        let outcome = if fits {
            Ok(text)
        } else {
            Err(format!("{text}; libtorch has no code for it"))
        };
        checks.push(check("device", outcome));
    }
    checks
}

fn ports(node: &Node) -> Vec<Check> {
    let address = &node.address;
    let ranks = TcpListener::bind((address.as_str(), 0))
        .map(|_| format!("ranks can listen on {address}"))
        .map_err(|error| {
            format!(
                "ranks cannot listen on {address}: {error}; set `address` to an address of \
            this machine"
            )
        });
    let mut checks = vec![check("rank ports", ranks)];
    if let Some(listen) = node.metrics_listen {
        let metrics = match TcpListener::bind(listen) {
            Ok(_) => Ok(format!("{listen} is free")),
            Err(_) if answers_as_worker(listen) => {
                Ok(format!("{listen} is served by a running worker"))
            }
            Err(error) => Err(format!(
                "{listen}: {error}; set `metrics_listen` to a free port"
            )),
        };
        checks.push(check("metrics port", metrics));
    }
    checks
}

/// The interface that carries gradients. `set`: the value of [`network::VARIABLE`].
fn network(node: &Node, set: Option<String>) -> Check {
    let (library, set) = match node.device == DeviceKind::Cuda.name() {
        true => ("NCCL", set),
        // Gloo reads no such variable.
        false => ("Gloo", None),
    };
    let interface = network::choose(set, &node.address);
    let outcome = interface.map(|it| format!("{library} uses {it}"));
    check("network", outcome.map_err(|error| error.to_string()))
}

fn answers_as_worker(listen: SocketAddr) -> bool {
    let ask = || -> std::io::Result<String> {
        let wait = Duration::from_secs(1);
        let mut stream = TcpStream::connect_timeout(&listen, wait)?;
        stream.set_read_timeout(Some(wait))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(1 << 20).read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.contains("retri_worker_"))
}

/// Checks that the coordinator accepts connections. Usual causes of failure: a firewall, a wrong
/// port.
fn coordinator(url: &str) -> Check {
    let wait = Deadlines::new(DETECT_WITHIN_MS).probe();
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    let reached = authority
        .trim_end_matches('/')
        .to_socket_addrs()
        .and_then(|mut addresses| {
            let no_address = || std::io::Error::other("the host name has no address");
            TcpStream::connect_timeout(&addresses.next().ok_or_else(no_address)?, wait)
        });
    let outcome = match reached {
        Ok(_) => Ok(format!("{url} accepts connections")),
        Err(error) => Err(format!(
            "{url}: {error}; is the coordinator running, and does `coordinator` name its `listen`?"
        )),
    };
    check("coordinator", outcome)
}

/// Puts the findings where the coordinator's pages look for them.
fn leave(findings: &Findings, name: &str, url: &str) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (objects, prefix) = storage::open(url)?;
    let path = findings_path(name)
        .into_iter()
        .fold(prefix, |path, part| path.join(part));
    let json = serde_json::to_vec_pretty(findings)?;
    let wait = Deadlines::new(DETECT_WITHIN_MS).probe();
    runtime.block_on(async {
        let put = tokio::time::timeout(wait, objects.put(&path, json.into())).await;
        put.context("writing takes too long")?.context("writing")
    })?;
    Ok(())
}

fn object_store(url: &str) -> anyhow::Result<Check> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    // Opening a local store would create its folder.
    if let Ok(Some(folder)) = storage::local_folder(url)
        && !folder.is_dir()
    {
        let missing = format!("{url}: there is no such folder");
        return Ok(check(STORE, Err(missing)));
    }
    let wait = Deadlines::new(DETECT_WITHIN_MS).probe();
    let outcome = match runtime
        .block_on(async { tokio::time::timeout(wait, write_read_delete(url)).await })
    {
        Ok(Ok(())) => Ok(format!("{url} can be listed, written and read")),
        Ok(Err(error)) => Err(format!("{url}: {error:#}{}", advice(url))),
        Err(_) => Err(format!("{url} does not answer within {} s", wait.as_secs())),
    };
    Ok(check(STORE, outcome))
}

/// Lists, writes, reads and deletes one small object, as ranks do.
async fn write_read_delete(url: &str) -> anyhow::Result<()> {
    let (objects, prefix) = storage::open(url)?;
    objects
        .list(Some(&prefix))
        .try_next()
        .await
        .context("listing")?;
    // With the host's name, so that nodes that run at the same time do not share an object.
    let probe = prefix.join(format!("doctor-{}-{}", host_name(), std::process::id()));
    let written = probe.to_string();
    objects
        .put(&probe, written.clone().into())
        .await
        .context("writing")?;
    let read = async { objects.get(&probe).await?.bytes().await }.await;
    objects.delete(&probe).await.context("deleting")?;
    let read = read.context("reading")?;
    anyhow::ensure!(
        read == written.as_bytes(),
        "{probe} reads back different from what was written"
    );
    Ok(())
}

/// The most common cause: no endpoint or credentials are set.
fn advice(url: &str) -> &'static str {
    if url.starts_with("s3:") {
        "; are AWS_ENDPOINT, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY set?"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn node() -> Node {
        Node {
            device: "cpu".into(),
            devices: 1,
            address: "127.0.0.1".into(),
            metrics_listen: None,
            coordinator: None,
            name: None,
            store: None,
            output: "json".into(),
        }
    }

    #[test]
    fn a_sound_node_is_found_sound() {
        let folder = tempfile::tempdir().unwrap();
        let store = Some(format!("file://{}", folder.path().display()));
        let name = Some("w1".to_owned());
        assert!(
            run(&Node {
                store,
                name,
                ..node()
            })
            .unwrap()
        );
        let left = std::fs::read(folder.path().join("workers/w1/doctor.json")).unwrap();
        let left: Findings = serde_json::from_slice(&left).unwrap();
        assert!(
            left.ok && left.at_ms != 0 && left.checks.len() == 6,
            "{left:?}"
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = taken.local_addr().unwrap();
        let serving = std::thread::spawn(move || drop(taken.accept()));
        let checks = ports(&Node {
            address: "203.0.113.1".into(),
            metrics_listen: Some(listen),
            ..node()
        });
        serving.join().unwrap();
        assert!(checks.iter().all(|check| !check.ok), "{checks:?}");
        assert!(
            checks[0].found.contains("203.0.113.1") && checks[1].found.contains("metrics_listen")
        );
        let store = object_store("ftp://somewhere").unwrap();
        assert!(!store.ok && store.found.contains("ftp"), "{store:?}");
        let store = object_store("file:///no/such/folder").unwrap();
        assert!(
            !store.ok && store.found.contains("no such folder"),
            "{store:?}"
        );
        assert!(
            !threads(&Node {
                devices: 100_000,
                ..node()
            })
            .ok
        );
    }

    #[test]
    fn the_network_interface_is_named_with_the_reason() {
        let found = |device: &str, address: &str, set: Option<&str>| {
            let node = Node {
                device: device.into(),
                address: address.into(),
                ..node()
            };
            let Check { ok, found, .. } = network(&node, set.map(str::to_owned));
            (ok, found)
        };
        let (ok, text) = found("cuda", "127.0.0.1", None);
        assert!(ok && text.starts_with("NCCL uses "), "{text}");
        assert!(
            text.ends_with(", which has 127.0.0.1 (`address`)"),
            "{text}"
        );
        let (ok, text) = found("cuda", "203.0.113.1", Some("eth7"));
        assert!(
            ok && text.contains("eth7: NCCL_SOCKET_IFNAME is set"),
            "{text}"
        );
        let (ok, text) = found("cpu", "203.0.113.1", Some("eth7"));
        assert!(!ok && text.contains("203.0.113.1: no interface"), "{text}");
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_gpu_in_a_cpu_build_is_missing() {
        let checks = devices(&Node {
            device: "cuda".into(),
            ..node()
        });
        assert!(
            !checks[0].ok && checks[0].found.contains("0 GPUs found, 1 in the settings"),
            "{checks:?}"
        );
    }
}
