//! How the ranks of a generation meet: rank 0 opens a store and says where, the coordinator tells
//! everybody once no rank is loading any more, everybody writes its name there, and only when all
//! have is the process group formed. So a rank that does not come is named, and one that loads for
//! long is waited for. Called by [`crate::train`].

use crate::collective::{CollectiveError, Group, Membership, Store};
use crate::deadline::Deadlines;
use crate::link::Link;
use anyhow::Context;
use rank_core::gang::Order;

/// Rank 0's store, open and announced as early as can be, so that nobody waits for it while
/// loading. `address`: of this machine.
pub(crate) fn open_store(link: &Link, order: Order, address: &str) -> anyhow::Result<Store> {
    let deadlines = Deadlines::new(order.detect_within_ms);
    let store = Store::serve(address, deadlines.join())
        .context("is `address` of this worker's settings an address of this machine?")?;
    link.store_address(format!("{address}:{}", store.port()));
    Ok(store)
}

/// Returns when all ranks are there. `store`: from [`open_store`], on rank 0.
pub(crate) fn meet(
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
    // Rank 0 too: from here on the others are on their way.
    let address = link.wait_store_address(generation, deadlines)?;
    let wait = deadlines.join();
    link.unless_over(generation, move || {
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
                    action: format!("rank {other} did not come: {}", error.action),
                    ..error
                })?;
        }
        Group::join(store, membership)
    })
}
