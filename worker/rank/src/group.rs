//! How the ranks of a generation meet: rank 0 opens a store and says where, everybody writes its name there,
//! and only when all have is the process group formed. So a rank that does not come is named. Called by
//! [`crate::train`].

use crate::collective::{Group, Membership, Store};
use crate::deadline::Deadlines;
use crate::hash::hex;
use crate::link::Link;
use anyhow::{Context, ensure};
use proto::message::Assignment;
use sha2::{Digest, Sha256};
use tch::{Device, Tensor};

/// Rank 0's store, open and announced as early as can be, so that nobody waits for it while loading.
pub(crate) fn open_store(
    link: &Link,
    assignment: &Assignment,
    rank: u32,
    address: &str,
) -> anyhow::Result<Option<Store>> {
    if rank != 0 || assignment.world == 1 {
        return Ok(None);
    }
    let deadlines = Deadlines::new(assignment.detect_within_ms);
    let store = Store::serve(address, deadlines.join())
        .context("is `address` of this worker's settings an address of this machine?")?;
    link.store_address(format!("{address}:{}", store.port()));
    Ok(Some(store))
}

/// Returns when all ranks are there. `store`: from [`open_store`].
pub(crate) fn meet(
    link: &Link,
    store: Option<Store>,
    assignment: &Assignment,
    (rank, address, device): (u32, &str, Device),
) -> anyhow::Result<Group> {
    let deadlines = Deadlines::new(assignment.detect_within_ms);
    let world = assignment.world;
    let membership = Membership {
        job: assignment.job.0.clone(),
        generation: assignment.generation,
        rank,
        world,
        host: address.to_owned(),
        device,
        timeout: deadlines.collective(),
    };
    if world == 1 {
        return Ok(Group::alone(membership));
    }
    let store = match store {
        Some(store) => store,
        None => Store::connect(&link.wait_store_address(deadlines)?, deadlines.join())?,
    };
    let key = |rank: u32| format!("{}/g{}/rank {rank}", assignment.job, assignment.generation);
    store.set(&key(rank), "here")?;
    for other in (0..world).filter(|&other| other != rank) {
        store
            .wait(&key(other), deadlines.join())
            .with_context(|| format!("rank {other} did not come"))?;
    }
    Ok(Group::join(store, membership)?)
}

/// Refuses to train on from weights that differ between ranks: averaged gradients would keep them apart for
/// ever.
pub(crate) fn agree(group: &Group, parameters: &[(String, Tensor)]) -> anyhow::Result<()> {
    if group.membership().world == 1 {
        return Ok(());
    }
    let named = parameters
        .iter()
        .map(|(name, tensor)| (name.clone(), tensor.detach()))
        .collect();
    let digest = Sha256::digest(model::weights::digest(&named).as_bytes());
    let words: Vec<i64> = digest
        .chunks_exact(8)
        .map(|chunk| i64::from_le_bytes(chunk.try_into().expect("chunks of eight bytes")))
        .collect();
    let shared = Tensor::from_slice(&words).to_device(group.membership().device);
    group.broadcast(&shared, 0, "comparing the weights of all ranks")?;
    let first = Vec::<i64>::try_from(&shared.to_device(Device::Cpu))?;
    ensure!(
        first == words,
        "this rank's weights differ from rank 0's (own digest {}…); have all nodes the same base weights?",
        hex(&digest[..8])
    );
    Ok(())
}
