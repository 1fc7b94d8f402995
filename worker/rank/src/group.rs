//! How the ranks of a generation meet: rank 0 opens a store and says where, everybody writes its name there,
//! and only when all have is the process group formed. So a rank that does not come is named. Called by
//! [`crate::train`].

use crate::collective::{CollectiveError, Group, Membership, Store};
use crate::deadline::Deadlines;
use crate::link::Link;
use anyhow::Context;
use proto::message::Assignment;
use tch::Device;

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
    let address = match store {
        Some(_) => None,
        None => Some(link.wait_store_address(assignment.generation, deadlines)?),
    };
    let wait = deadlines.join();
    link.unless_over(assignment.generation, move || {
        let store = match (store, address) {
            (Some(store), _) => store,
            (None, address) => Store::connect(&address.unwrap_or_default(), wait)?,
        };
        let scope = format!("{}/g{}", membership.job, membership.generation);
        let key = |rank: u32| format!("{scope}/rank {rank}");
        store.set(&key(rank), "here")?;
        for other in (0..world).filter(|&other| other != rank) {
            store.wait(&key(other), wait).map_err(|error| CollectiveError {
                action: format!("rank {other} did not come: {}", error.action),
                ..error
            })?;
        }
        Group::join(store, membership)
    })
}
