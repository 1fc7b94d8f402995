//! Rendezvous of a generation's ranks. Rank 0 opens a store and reports its address; the
//! coordinator sends it to all ranks once every rank has loaded; every rank registers in the store;
//! the process group is formed once all have registered. So a missing rank is named in the error,
//! and slow loading does not cause a timeout. Called by [`crate::train`].

use crate::collective::{CollectiveError, Group, Membership, Store};
use crate::deadline::Deadlines;
use crate::link::Link;
use anyhow::Context;
use rank_core::gang::Order;

/// Opens rank 0's store and reports its address. Called as early as possible, so that no rank waits
/// for it. `address`: an address of this machine.
pub(crate) fn open_store(link: &Link, order: Order, address: &str) -> anyhow::Result<Store> {
    let deadlines = Deadlines::new(order.detect_within_ms);
    let store = Store::serve(address, deadlines.join())
        .context("is `address` in the settings of this worker an address of this machine?")?;
    link.store_address(format!("{address}:{}", store.port()));
    Ok(store)
}

/// Forms the process group once all ranks have registered. `store`: from [`open_store`], on rank 0.
pub(crate) fn rendezvous(
    link: &Link,
    store: Option<Store>,
    membership: Membership,
    deadlines: Deadlines,
) -> anyhow::Result<Group> {
    let Membership {
        generation,
        rank,
        world,
        ..
    } = membership;
    if world == 1 {
        return Ok(Group::alone(membership));
    }
    // Rank 0 waits too: the timeouts below start once all ranks have loaded.
    let address = link.wait_store_address(generation, deadlines)?;
    let wait = deadlines.join();
    link.unless_superseded_blocking(generation, move || {
        let store = match store {
            Some(store) => store,
            None => Store::connect(&address, wait)?,
        };
        let scope = format!("{}/g{}", membership.job, membership.generation);
        let key = |rank: u32| format!("{scope}/rank {rank}");
        store.set(&key(rank), "here")?;
        for other in (0..world).filter(|&other| other != rank) {
            store
                .wait(&key(other), wait)
                .map_err(|error| CollectiveError {
                    action: format!("rank {other} did not join: {}", error.action),
                    ..error
                })?;
        }
        Group::join(store, membership)
    })
}
