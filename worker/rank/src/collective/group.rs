//! The process group of one generation: collectives, and DistributedDataParallel's Reducer over the
//! trained parameters. With a world size of one, the same calls do nothing, so that the step loop
//! has a single code path.

use super::network::Interface;
use super::store::{Store, c_text, millis};
use super::{CollectiveError, ffi};
use proto::id::Generation;
use std::ffi::{c_int, c_void};
use std::ptr::NonNull;
use std::time::Duration;
use tch::{Device, Tensor};

/// This rank's identity within a generation, and its address.
#[derive(Debug, Clone)]
pub(crate) struct Membership {
    /// Job and generation scope every key in the store, so that generations cannot mix.
    pub(crate) job: String,
    pub(crate) generation: Generation,
    pub(crate) rank: u32,
    pub(crate) world: u32,
    /// The address of this machine for traffic between ranks (Gloo).
    pub(crate) host: String,
    /// What NCCL's sockets use; None with Gloo.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    pub(crate) interface: Option<Interface>,
    pub(crate) device: Device,
    /// Timeout of one collective call.
    pub(crate) timeout: Duration,
}

#[derive(Debug)]
pub(crate) struct Group {
    /// None with a world size of one.
    raw: Option<NonNull<c_void>>,
    membership: Membership,
    /// Kept open: rank 0 serves the store to the others.
    store: Option<Store>,
}

// SAFETY: c10d's objects may be used from any thread, one at a time.
unsafe impl Send for Group {}

/// Aborts the collectives of a group from another thread.
#[derive(Debug)]
pub(crate) struct Aborter(NonNull<c_void>);

// SAFETY: as for `Group`; c10d supports `abort` while another thread waits.
unsafe impl Send for Aborter {}

impl Aborter {
    /// Running collectives of the group fail, on this rank and on its peers.
    pub(crate) fn abort(self) {
        // SAFETY: the shim takes ownership of the pointer from `aborter`; `forget` prevents a
        // double free.
        unsafe { ffi::retri_backend_abort(self.0.as_ptr()) }
        std::mem::forget(self);
    }
}

impl Drop for Aborter {
    fn drop(&mut self) {
        // SAFETY: the pointer came from the shim and is freed once.
        unsafe { ffi::retri_backend_free(self.0.as_ptr()) }
    }
}

impl Group {
    pub(crate) fn alone(membership: Membership) -> Self {
        Self {
            raw: None,
            membership,
            store: None,
        }
    }

    /// Forms the group through `store`. All ranks have joined when it returns.
    pub(crate) fn join(store: Store, membership: Membership) -> Result<Self, CollectiveError> {
        let prefix = format!("{}/g{}/", membership.job, membership.generation);
        let raw = open(&store, &prefix, &membership)?;
        let raw = NonNull::new(raw).ok_or_else(|| {
            let Membership {
                rank,
                world,
                generation,
                ..
            } = &membership;
            CollectiveError::last(format!(
                "rank {rank} of {world} cannot join generation {generation}"
            ))
        })?;
        Ok(Self {
            raw: Some(raw),
            membership,
            store: Some(store),
        })
    }

    pub(crate) fn membership(&self) -> &Membership {
        &self.membership
    }

    /// Sums over all ranks in place, bit-identical on every rank.
    pub(crate) fn all_reduce(&self, tensor: &Tensor, what: &str) -> Result<(), CollectiveError> {
        self.all_reduce_each(std::slice::from_ref(tensor), what, |_| ())
    }

    /// Starts an all-reduce of each tensor, and calls `done` with the index of each in order, while
    /// later ones are still in transit. No operation is pending when it returns, also on failure.
    pub(crate) fn all_reduce_each(
        &self,
        tensors: &[Tensor],
        what: &str,
        mut done: impl FnMut(usize),
    ) -> Result<(), CollectiveError> {
        let Some(raw) = self.raw else {
            (0..tensors.len()).for_each(done);
            return Ok(());
        };
        let mut outcome = Ok(());
        let mut works = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            // SAFETY: `raw` is a live group, and the tensor is borrowed until its work is waited
            // for below.
            let work =
                unsafe { ffi::retri_all_reduce(raw.as_ptr(), tensor.as_ptr().cast_mut().cast()) };
            if work.is_null() {
                outcome = self.checked(-1, what);
                break;
            }
            works.push(work);
        }
        for (index, work) in works.into_iter().enumerate() {
            // SAFETY: the pointer came from the shim and is waited for once.
            let code = unsafe { ffi::retri_work_wait(work) };
            if outcome.is_ok() {
                outcome = self.checked(code, what);
                match &outcome {
                    Ok(()) => done(index),
                    // Abort the others: each would wait for another timeout.
                    Err(_) => self.aborter().into_iter().for_each(Aborter::abort),
                }
            }
        }
        outcome
    }

    /// Broadcasts `root`'s values in place.
    pub(crate) fn broadcast(
        &self,
        tensor: &Tensor,
        root: u32,
        what: &str,
    ) -> Result<(), CollectiveError> {
        let Some(raw) = self.raw else { return Ok(()) };
        let root = c_int::try_from(root).expect("ranks are far fewer than 2^31");
        // SAFETY: as in `all_reduce`.
        let code =
            unsafe { ffi::retri_broadcast(raw.as_ptr(), tensor.as_ptr().cast_mut().cast(), root) };
        self.checked(code, what)
    }

    /// Attaches the Reducer to the parameters, whose list and order must be the same on every rank.
    /// Gradients become views into its buckets, so they must be zeroed in place from now on. In
    /// every backward that reduces, `ready` is called as soon as this rank's last local gradient is
    /// computed, on the thread that computed it: from then on the backward waits for other ranks.
    /// Does nothing with a world size of one.
    pub(crate) fn attach_reducer(
        &mut self,
        parameters: &[(String, Tensor)],
        ready: impl Fn() + Send + Sync + 'static,
    ) -> Result<(), CollectiveError> {
        let Some(raw) = self.raw else { return Ok(()) };
        let pointers: Vec<*mut c_void> = parameters
            .iter()
            .map(|(_, tensor)| tensor.as_ptr().cast_mut().cast())
            .collect();
        let count = c_int::try_from(pointers.len()).expect("parameters are far fewer than 2^31");
        let ready: Box<Ready> = Box::new(Box::new(ready));
        // SAFETY: `pointers` are live tensors during the call; the reducer keeps its own references
        // to them. The shim takes ownership of `ready` and passes it to `release` once, after the
        // last `notify`.
        let code = unsafe {
            let user = Box::into_raw(ready).cast();
            ffi::retri_reducer(
                raw.as_ptr(),
                pointers.as_ptr(),
                count,
                user,
                notify,
                release,
            )
        };
        self.checked(code, "preparing to reduce gradients")
    }

    /// Call before the forward whose backward reduces. The second call waits for the other ranks:
    /// the Reducer then knows the order in which gradients become ready, and the ranks agree on
    /// buckets.
    pub(crate) fn agree_on_buckets(&self, what: &str) -> Result<(), CollectiveError> {
        let Some(raw) = self.raw else { return Ok(()) };
        // SAFETY: `raw` is a live group.
        let code = unsafe { ffi::retri_reducer_forward(raw.as_ptr()) };
        self.checked(code, what)
    }

    /// The next backward reduces every gradient to the mean over the ranks. Other backwards only
    /// accumulate locally.
    pub(crate) fn reduce_next_backward(&self, what: &str) -> Result<(), CollectiveError> {
        let Some(raw) = self.raw else { return Ok(()) };
        // SAFETY: `raw` is a live group.
        let code = unsafe { ffi::retri_reducer_backward(raw.as_ptr()) };
        self.checked(code, what)
    }

    /// Time from `reduce_next_backward` until this rank's last local gradient was ready. None if
    /// nothing was reduced.
    pub(crate) fn local_backward(&self) -> Option<Duration> {
        let raw = self.raw?;
        // SAFETY: `raw` is a live group.
        let nanos = unsafe { ffi::retri_reducer_ready_nanos(raw.as_ptr()) };
        u64::try_from(nanos).ok().map(Duration::from_nanos)
    }

    /// None with a world size of one.
    pub(crate) fn aborter(&self) -> Option<Aborter> {
        let raw = self.raw?;
        // SAFETY: `raw` is a live group; the returned pointer holds its own reference to the
        // backend.
        NonNull::new(unsafe { ffi::retri_group_backend(raw.as_ptr()) }).map(Aborter)
    }

    fn checked(&self, code: c_int, what: &str) -> Result<(), CollectiveError> {
        if code == 0 {
            Ok(())
        } else {
            Err(self.name_peer(CollectiveError::last(what)))
        }
    }

    /// Translates a transport error into which peer failed and how, if the message is known.
    pub(crate) fn name_peer(&self, error: CollectiveError) -> CollectiveError {
        let Membership {
            rank,
            world,
            generation,
            timeout,
            ..
        } = &self.membership;
        let peer = match world {
            2 => format!("rank {} of generation {generation}", 1 - rank),
            _ => format!("a peer in generation {generation}"),
        };
        let lower = error.reason.to_lowercase();
        let meaning = if [
            "closed by peer",
            "reset by peer",
            "broken pipe",
            "connection refused",
        ]
        .iter()
        .any(|pattern| lower.contains(pattern))
        {
            format!("{peer} closed its connection")
        } else if lower.contains("timed out") || lower.contains("timeout") {
            format!("{peer} did not answer within {} s", timeout.as_secs_f64())
        } else {
            return error;
        };
        CollectiveError {
            reason: format!("{meaning} ({})", error.reason),
            ..error
        }
    }
}

/// Called by the shim when the local gradients of a backward are ready.
type Ready = Box<dyn Fn() + Send + Sync>;

unsafe extern "C" fn notify(user: *mut c_void) {
    // SAFETY: `user` is the `Ready` that `attach_reducer` passed, and is valid until `release`.
    let ready = unsafe { &*user.cast::<Ready>() };
    ready();
}

unsafe extern "C" fn release(user: *mut c_void) {
    // SAFETY: as above, and called once.
    drop(unsafe { Box::from_raw(user.cast::<Ready>()) });
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(raw) = self.raw {
            // SAFETY: `raw` came from the shim and is freed once.
            unsafe { ffi::retri_group_free(raw.as_ptr()) }
        }
        // In the background: dropping the store may wait for ranks that are still connected.
        if let Some(store) = self.store.take() {
            std::thread::spawn(move || drop(store));
        }
    }
}

fn open(
    store: &Store,
    prefix: &str,
    membership: &Membership,
) -> Result<*mut c_void, CollectiveError> {
    let prefix = c_text("prefix", prefix)?;
    let rank = c_int::try_from(membership.rank).expect("ranks are far fewer than 2^31");
    let world = c_int::try_from(membership.world).expect("ranks are far fewer than 2^31");
    let timeout = millis(membership.timeout);
    match membership.device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => {
            let device = c_int::try_from(device).expect("devices are far fewer than 2^31");
            let sockets = membership.interface.as_ref().and_then(Interface::to_set);
            let sockets = c_text("interface", &sockets.unwrap_or_default())?;
            // SAFETY: the store is alive during the call and the group keeps its own reference;
            // strings are copied.
            Ok(unsafe {
                ffi::retri_group_nccl(
                    store.raw(),
                    prefix.as_ptr(),
                    sockets.as_ptr(),
                    device,
                    rank,
                    world,
                    timeout,
                )
            })
        }
        Device::Cpu => {
            let host = c_text("address", &membership.host)?;
            // SAFETY: as above.
            Ok(unsafe {
                ffi::retri_group_gloo(
                    store.raw(),
                    prefix.as_ptr(),
                    host.as_ptr(),
                    rank,
                    world,
                    timeout,
                )
            })
        }
        other => Err(CollectiveError {
            action: format!("ranks on {other:?} cannot form a group"),
            reason: "this build has no collectives for that device; build with CUDA=1".into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};
    use tch::Kind;

    const TIMEOUT: Duration = Duration::from_secs(30);

    fn membership(rank: u32) -> Membership {
        Membership {
            job: "test-1".into(),
            generation: Generation(1),
            rank,
            world: 2,
            host: "127.0.0.1".into(),
            interface: None,
            device: Device::Cpu,
            timeout: TIMEOUT,
        }
    }

    /// Runs both ranks, each on its own thread, and returns their results.
    fn two<T: Send + 'static>(body: impl Fn(Group) -> T + Clone + Send + 'static) -> (T, T) {
        let store = Store::serve("127.0.0.1", TIMEOUT).unwrap();
        let address = format!("127.0.0.1:{}", store.port());
        let same = body.clone();
        let other = std::thread::spawn(move || {
            same(Group::join(Store::connect(&address, TIMEOUT).unwrap(), membership(1)).unwrap())
        });
        let first = body(Group::join(store, membership(0)).unwrap());
        (first, other.join().unwrap())
    }

    #[test]
    fn sums_and_broadcasts_reach_both_ranks() {
        let (a, b) = two(|group| {
            let rank = f64::from(group.membership().rank);
            let sum = Tensor::from_slice(&[1.0 + rank, 10.0]);
            group.all_reduce(&sum, "summing").unwrap();
            let sent = Tensor::from_slice(&[rank + 5.0]);
            group.broadcast(&sent, 1, "sharing").unwrap();
            (
                Vec::<f64>::try_from(sum).unwrap(),
                Vec::<f64>::try_from(sent).unwrap(),
            )
        });
        assert_eq!(a, (vec![3.0, 20.0], vec![6.0]));
        assert_eq!(a, b);
    }

    #[test]
    fn concurrent_sums_complete_in_order_and_one_failure_ends_all() {
        let (a, b) = two(|group| {
            let tensors: Vec<Tensor> = (1..=5)
                .map(|n| Tensor::from_slice(&[f64::from(n); 1000]))
                .collect();
            let mut sums = Vec::new();
            let done = |index: usize| sums.push((index, tensors[index].double_value(&[999])));
            group.all_reduce_each(&tensors, "summing", done).unwrap();
            if group.membership().rank == 1 {
                return (sums, None);
            }
            let error = group.all_reduce_each(&tensors, "summing more", |index| panic!("{index}"));
            (sums, Some(error.unwrap_err().to_string()))
        });
        assert_eq!(a.0, [(0, 2.0), (1, 4.0), (2, 6.0), (3, 8.0), (4, 10.0)]);
        assert_eq!(a.0, b.0);
        let error = a.1.unwrap();
        assert!(
            error.starts_with("summing more: rank 1 of generation 1 closed its connection"),
            "{error}"
        );
    }

    fn weight(values: i64) -> (String, Tensor) {
        let tensor = Tensor::zeros([values], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        (format!("weight of {values}"), tensor)
    }

    /// Two micro-batches: the first only accumulates, the second reduces the sum of both to the
    /// mean over ranks.
    #[test]
    fn only_the_prepared_backward_communicates_and_it_reduces_what_accumulated() {
        let (a, b) = two(|mut group| {
            let rank = f64::from(group.membership().rank);
            let (name, weight) = weight(3);
            group
                .attach_reducer(&[(name, weight.shallow_clone())], || {})
                .unwrap();
            (weight.sum(Kind::Float) * (1.0 + rank))
                .f_backward()
                .unwrap();
            let before = Vec::<f32>::try_from(weight.grad()).unwrap();
            group.agree_on_buckets("agreeing").unwrap();
            group.reduce_next_backward("reducing").unwrap();
            (weight.sum(Kind::Float) * 10.0).f_backward().unwrap();
            assert!(group.local_backward().is_some());
            (before, Vec::<f32>::try_from(weight.grad()).unwrap())
        });
        assert_eq!(a.0, vec![1.0; 3]);
        assert_eq!(b.0, vec![2.0; 3]);
        assert_eq!(a.1, vec![11.5; 3]);
        assert_eq!(a.1, b.1);
    }

    /// Rank 1 enters the reduction only after rank 0's notification. The test would hang if the
    /// notification came only with the reduced gradients.
    #[test]
    fn a_rank_is_notified_when_its_local_gradients_are_ready_and_only_then_waits_for_others() {
        const STEPS: usize = 3;
        let (sender, receiver) = std::sync::mpsc::channel();
        let receiver = Arc::new(Mutex::new(receiver));
        let (first, second) = two(move |mut group| {
            let rank = group.membership().rank;
            let (count, sender) = (Arc::new(AtomicUsize::new(0)), sender.clone());
            let counter = Arc::clone(&count);
            let weights = [weight(3), weight(5)];
            let shallow =
                |(name, weight): &(String, Tensor)| (name.clone(), weight.shallow_clone());
            group
                .attach_reducer(&weights.each_ref().map(shallow), move || {
                    counter.fetch_add(1, Ordering::SeqCst);
                    if rank == 0 {
                        sender.send(()).unwrap();
                    }
                })
                .unwrap();
            let [one, both] = [1, 2].map(|used| {
                let weights = weights.each_ref().map(|(_, weight)| weight.shallow_clone());
                move || {
                    let sums = weights[..used].iter().map(|weight| weight.sum(Kind::Float));
                    sums.reduce(|a, b| a + b).unwrap().f_backward().unwrap();
                }
            });
            for step in 1..=STEPS {
                both();
                assert_eq!(
                    count.load(Ordering::SeqCst),
                    step - 1,
                    "this backward only accumulates"
                );
                group.agree_on_buckets("agreeing").unwrap();
                group.reduce_next_backward("reducing").unwrap();
                if rank == 1 {
                    receiver.lock().unwrap().recv_timeout(TIMEOUT).unwrap();
                }
                both();
                assert_eq!(count.load(Ordering::SeqCst), step);
            }
            group.agree_on_buckets("agreeing").unwrap();
            group.reduce_next_backward("reducing").unwrap();
            one();
            assert_eq!(
                count.load(Ordering::SeqCst),
                STEPS,
                "one gradient is not ready yet"
            );
            let released = Arc::downgrade(&count);
            drop((count, group));
            assert!(released.upgrade().is_none(), "released with its group");
            Vec::<f32>::try_from(weights[0].1.grad()).unwrap()
        });
        assert_eq!(first, second);
    }

    #[test]
    fn a_peer_that_leaves_is_named() {
        let (error, _) = two(|group| {
            let tensor = Tensor::from_slice(&[1.0f64]);
            // Both ranks join; then rank 1's group is dropped, so the second sum must fail.
            group.all_reduce(&tensor, "joining").unwrap();
            (group.membership().rank == 0).then(|| {
                group
                    .all_reduce(&tensor, "reducing step 12")
                    .unwrap_err()
                    .to_string()
            })
        });
        let error = error.unwrap();
        assert!(
            error.starts_with("reducing step 12: rank 1 of generation 1 closed its connection"),
            "{error}"
        );
    }

    #[test]
    fn a_rank_that_waits_for_an_absent_live_peer_is_released_by_an_abort() {
        let ((error, _), _) = two(|group| {
            let tensor = Tensor::from_slice(&[1.0f64]);
            group.all_reduce(&tensor, "joining").unwrap();
            if group.membership().rank == 1 {
                // Kept alive until rank 0 has its result.
                return (String::new(), Some(group));
            }
            let aborter = group.aborter().unwrap();
            let (name, named) = std::sync::mpsc::channel();
            let waiting = std::thread::spawn(move || {
                name.send(std::fs::read_link("/proc/thread-self").unwrap())
                    .unwrap();
                group
                    .all_reduce(&tensor, "reducing step 3")
                    .unwrap_err()
                    .to_string()
            });
            let stat = std::path::Path::new("/proc")
                .join(named.recv().unwrap())
                .join("stat");
            // Spin until the kernel reports the thread as sleeping.
            while !std::fs::read_to_string(&stat).unwrap().contains(") S ") {
                std::thread::yield_now();
            }
            aborter.abort();
            (waiting.join().unwrap(), None)
        });
        // By the abort, not by the timeout.
        assert!(
            error.starts_with("reducing step 3") && error.contains("the group is aborted"),
            "{error}"
        );
    }

    #[test]
    fn a_world_of_one_needs_nobody() {
        let mut group = Group::alone(Membership {
            world: 1,
            ..membership(0)
        });
        let tensor = Tensor::from_slice(&[2.0f64]);
        group.attach_reducer(&[], || {}).unwrap();
        group.agree_on_buckets("agreeing").unwrap();
        group.all_reduce(&tensor, "summing").unwrap();
        assert_eq!(Vec::<f64>::try_from(tensor).unwrap(), vec![2.0]);
        assert_eq!(group.local_backward(), None);
    }

    #[test]
    fn an_invalid_address_is_refused() {
        let error = Store::connect("nowhere", TIMEOUT).unwrap_err().to_string();
        assert!(
            error.contains("\"nowhere\"") && error.contains("host:port"),
            "{error}"
        );
    }
}
