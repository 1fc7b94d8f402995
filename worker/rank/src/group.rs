//! Rendezvous of a generation's ranks. Rank 0 opens a store and reports its address; the
//! coordinator sends it to all ranks once every rank has loaded; every rank registers in the store;
//! the process group is formed once all have registered. So a missing rank is named in the error,
//! and slow loading does not cause a timeout. Ranks whose libraries differ are refused before they
//! compute together. Called by [`crate::train`].

use crate::collective::{CollectiveError, Group, Membership, Store};
use crate::deadline::Deadlines;
use crate::link::Link;
use anyhow::Context;
use proto::environment::RankEnvironment;
use proto::id::Rank;
use rank_core::environment::agree;
use rank_core::gang::Order;
use std::time::Duration;

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
/// Ranks whose environment differs from that of most are refused: they fail with a [`Refusal`], and
/// for the others the generation ends.
pub(crate) fn rendezvous(
    link: &Link,
    store: Option<Store>,
    membership: Membership,
    environment: RankEnvironment,
    deadlines: Deadlines,
) -> anyhow::Result<Group> {
    let Membership {
        generation, world, ..
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
        check_in(&store, &membership, &environment, wait)?;
        Ok(Group::join(store, membership)?)
    })
}

/// Registers this rank, waits for all others, and compares the environments of all.
fn check_in(
    store: &Store,
    membership: &Membership,
    environment: &RankEnvironment,
    wait: Duration,
) -> anyhow::Result<()> {
    let Membership { rank, world, .. } = *membership;
    let scope = format!("{}/g{}", membership.job, membership.generation);
    let key = |rank: u32| format!("{scope}/rank {rank}");
    let own = serde_json::to_string(environment).context("an environment is plain data")?;
    store.set(&key(rank), &own)?;
    let mut all = Vec::new();
    for other in 0..world {
        store
            .wait(&key(other), wait)
            .map_err(|error| CollectiveError {
                action: format!("rank {other} did not join: {}", error.action),
                ..error
            })?;
        all.push(environment_of(&store.get(&key(other))?));
    }
    agree(&all).map_err(|refusal| {
        wait_for_readers(store, (rank, world), &scope, wait);
        if refusal.refused.contains(&Rank(rank)) {
            return refusal.into();
        }
        let error = CollectiveError {
            action: "the rendezvous refuses other ranks".into(),
            reason: refusal.to_string(),
        };
        error.into()
    })
}

/// Called by every rank once it has read what all have registered, if they do not join: rank 0,
/// which serves the store and closes it then, waits until every rank has read it. Without a rank
/// that does not answer in time the refusal is the same.
fn wait_for_readers(store: &Store, (rank, world): (u32, u32), scope: &str, wait: Duration) {
    let key = |rank: u32| format!("{scope}/rank {rank} has read");
    let outcome = if rank == 0 {
        (1..world).try_for_each(|other| store.wait(&key(other), wait))
    } else {
        store.set(&key(rank), "yes")
    };
    if let Err(error) = outcome {
        tracing::warn!(%error, "some rank may not learn why the rendezvous was refused");
    }
}

/// What a rank has registered with. Other releases may write something else, which differs.
fn environment_of(text: &str) -> RankEnvironment {
    serde_json::from_str(text).unwrap_or_else(|_| RankEnvironment {
        host: "an unknown host".into(),
        address: "unknown address".into(),
        release: "another release".into(),
        ..RankEnvironment::default()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proto::id::Generation;
    use rank_core::environment::Refusal;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tch::Device;

    const WAIT: Duration = Duration::from_secs(30);

    fn environment(libtorch: &str) -> RankEnvironment {
        RankEnvironment {
            host: format!("host-of-{libtorch}"),
            libtorch: libtorch.into(),
            ..RankEnvironment::default()
        }
    }

    /// Each rank checks in on a thread of its own. Returns its store, which the group would keep,
    /// or why it does not join.
    fn meet(environments: Vec<RankEnvironment>) -> Vec<anyhow::Result<Store>> {
        let world = u32::try_from(environments.len()).unwrap();
        let mut server = Some(Store::serve("127.0.0.1", WAIT).unwrap());
        let address = format!("127.0.0.1:{}", server.as_ref().unwrap().port());
        let ranks = (0..).zip(environments).map(|(rank, environment)| {
            let address = address.clone();
            // Rank 0 closes the store as soon as it does not join.
            let own = server.take();
            let membership = Membership {
                job: "test-1".into(),
                generation: Generation(1),
                rank,
                world,
                host: "127.0.0.1".into(),
                interface: None,
                device: Device::Cpu,
                timeout: WAIT,
            };
            std::thread::spawn(move || {
                let store = own.unwrap_or_else(|| Store::connect(&address, WAIT).unwrap());
                check_in(&store, &membership, &environment, WAIT).map(|()| store)
            })
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|it| it.join().unwrap()).collect()
    }

    #[test]
    fn ranks_with_equal_libraries_join() {
        let all = meet(vec![environment("2.10.0"); 2]);
        assert!(all.iter().all(Result::is_ok), "{all:?}");
    }

    #[test]
    fn the_rank_with_another_library_fails_and_for_the_others_the_generation_ends() {
        let environments = ["2.10.0", "2.9.1", "2.10.0"].map(environment);
        let named = "rank 1 on host-of-2.9.1 () has libtorch \"2.9.1\" instead of \"2.10.0\"";
        for (rank, outcome) in meet(environments.into()).into_iter().enumerate() {
            let error = outcome.unwrap_err();
            assert!(error.to_string().contains(named), "{error}");
            assert_eq!(error.is::<Refusal>(), rank == 1);
            assert_eq!(error.is::<CollectiveError>(), rank != 1);
        }
    }

    #[test]
    fn rank_0_keeps_the_store_open_until_all_ranks_have_read() {
        let server = Store::serve("127.0.0.1", WAIT).unwrap();
        let address = format!("127.0.0.1:{}", server.port());
        let has_read = Arc::new(AtomicBool::new(false));
        let of_other = Arc::clone(&has_read);
        let other = std::thread::spawn(move || {
            let store = Store::connect(&address, WAIT).unwrap();
            of_other.store(true, Ordering::SeqCst);
            wait_for_readers(&store, (1, 2), "test-1/g1", WAIT);
        });
        wait_for_readers(&server, (0, 2), "test-1/g1", WAIT);
        assert!(has_read.load(Ordering::SeqCst));
        other.join().unwrap();
    }

    #[test]
    fn what_another_release_registers_differs() {
        assert_eq!(environment_of("here").release, "another release");
        let known = environment("2.10.0");
        assert_eq!(
            environment_of(&serde_json::to_string(&known).unwrap()),
            known
        );
    }
}
