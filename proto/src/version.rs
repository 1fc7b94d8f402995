//! Which protocol a process speaks, and with whom it can talk. Every caller names its protocol on
//! each call. Protocol N talks with N - 1 and N + 1, so that a coordinator can be upgraded before
//! its workers and its users' command lines, or after them.
//!
//! What keeps this true: fields of `train.proto` are only added, with a default that means what the
//! older protocol did; enum values that the other side does not know are ignored or replaced, never
//! an error of the whole message; and a job's canonical text names a newer field only where the job
//! uses it, so that an older worker refuses exactly such jobs, by the field's name. A request that
//! an older coordinator does not have is answered with UNIMPLEMENTED, which the command line
//! explains. A newer field of a request would be ignored there: a caller that sets one says so with
//! [`need`], and [`check`] of the older side refuses the call.

use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Request, Status};

/// The protocol of this release: one higher with every release that changes `train.proto`, the
/// keys of job.toml, or what they mean. When it is released, a report, an order and the text of a
/// job are recorded beside those of protocol 7 (`proto/tests/protocol.rs`); before, they change.
pub const PROTOCOL: u32 = 8;
/// Protocols 5 and 6 gave other meanings to fields of the same number: nobody talks with them.
const FIRST_COMPATIBLE: u32 = 7;

const PROTOCOL_KEY: &str = "retri-protocol";
const RELEASE_KEY: &str = "retri-release";
/// A field that the call sets, and the protocol that it came with: `8 labels`. May be repeated.
const NEEDS_KEY: &str = "retri-needs";
const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// What [`stamp`] is, for the types of clients.
pub type Stamp = fn(Request<()>) -> Result<Request<()>, Status>;

/// What is wrong with talking to a process of another protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mismatch {
    /// It is too old for this release.
    Old,
    /// This release is too old for it.
    New,
}

/// Whether protocol `own` talks with protocol `theirs`: they are the same or neighbours, and both
/// are compatible at all.
fn compare(own: u32, theirs: u32) -> Result<(), Mismatch> {
    if theirs < FIRST_COMPATIBLE || theirs.saturating_add(1) < own {
        return Err(Mismatch::Old);
    }
    if own.saturating_add(1) < theirs {
        return Err(Mismatch::New);
    }
    Ok(())
}

/// Names the protocol that the caller speaks.
///
/// # Errors
/// Never.
pub fn stamp(mut request: Request<()>) -> Result<Request<()>, Status> {
    stamp_as(request.metadata_mut(), PROTOCOL);
    Ok(request)
}

/// The same for a process of another protocol, so that a test can be one.
pub fn stamp_as(metadata: &mut MetadataMap, protocol: u32) {
    metadata.insert(PROTOCOL_KEY, MetadataValue::from(protocol));
    metadata.insert(RELEASE_KEY, MetadataValue::from_static(RELEASE));
}

/// The protocol that a caller names; None: it names none.
#[must_use]
pub fn protocol_of(metadata: &MetadataMap) -> Option<u32> {
    metadata.get(PROTOCOL_KEY)?.to_str().ok()?.parse().ok()
}

/// Says that the call sets a field which came with `protocol`. A side of the protocol before would
/// ignore the field, and refuses the call instead.
pub fn need(metadata: &mut MetadataMap, protocol: u32, field: &'static str) {
    let value = format!("{protocol} {field}");
    let value = value.parse().unwrap_or(MetadataValue::from(protocol));
    metadata.append(NEEDS_KEY, value);
}

/// The first field that the caller needs and that came after protocol `own`.
fn unknown_field(own: u32, metadata: &MetadataMap) -> Option<(u32, &str)> {
    let needs = metadata.get_all(NEEDS_KEY).iter();
    let mut needs = needs.filter_map(|value| {
        let value = value.to_str().ok()?;
        let (protocol, field) = value.split_once(' ').unwrap_or((value, "a field"));
        Some((protocol.parse().ok()?, field))
    });
    needs.find(|(protocol, _)| own < *protocol)
}

/// Accepts callers of the same protocol, of the one before and of the one after.
///
/// # Errors
/// FAILED_PRECONDITION for everybody else: what each side speaks, and who must be upgraded; and for
/// a call that [`need`]s a field of a later protocol.
pub fn check(request: Request<()>) -> Result<Request<()>, Status> {
    let text = |key| {
        let value = request.metadata().get(key);
        value
            .and_then(|value| value.to_str().ok())
            .unwrap_or("unknown")
    };
    let Some(theirs) = protocol_of(request.metadata()) else {
        return Err(Status::failed_precondition(format!(
            "the caller names no protocol (it says {:?}); this is release {RELEASE}, which speaks \
             protocol {PROTOCOL}; upgrade the caller",
            text(PROTOCOL_KEY)
        )));
    };
    let todo = match compare(PROTOCOL, theirs) {
        Ok(()) => match unknown_field(PROTOCOL, request.metadata()) {
            None => return Ok(request),
            Some((protocol, field)) => {
                return Err(Status::failed_precondition(format!(
                    "the call sets {field}, which came with protocol {protocol}; this is release \
                     {RELEASE}, which speaks protocol {PROTOCOL}: upgrade it, or leave out {field}"
                )));
            }
        },
        Err(Mismatch::New) => "upgrade this one first",
        Err(Mismatch::Old) if theirs < FIRST_COMPATIBLE => {
            "protocols before 7 cannot be mixed with later ones: upgrade the coordinator, every \
             worker and every command line; stored jobs and checkpoints stay valid"
        }
        Err(Mismatch::Old) => "upgrade the caller",
    };
    Err(Status::failed_precondition(format!(
        "the caller speaks protocol {theirs} (release {}), and this is release {RELEASE}, which \
         talks with protocols {} to {}; {todo}",
        text(RELEASE_KEY),
        FIRST_COMPATIBLE.max(PROTOCOL - 1),
        PROTOCOL + 1
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What [`check`] says to a caller of this protocol.
    fn answer(protocol: u32) -> Result<(), String> {
        let mut request = Request::new(());
        stamp_as(request.metadata_mut(), protocol);
        check(request)
            .map(drop)
            .map_err(|status| status.message().to_owned())
    }

    #[test]
    fn neighbours_talk_with_each_other_and_others_are_told_whom_to_upgrade() {
        for (own, theirs, expected) in [
            (7, 7, Ok(())),
            (7, 8, Ok(())),
            (7, 9, Err(Mismatch::New)),
            (7, 6, Err(Mismatch::Old)),
            (8, 7, Ok(())),
            (8, 6, Err(Mismatch::Old)),
            (9, 8, Ok(())),
            (9, 7, Err(Mismatch::Old)),
            (9, 11, Err(Mismatch::New)),
            (u32::MAX, u32::MAX, Ok(())),
        ] {
            assert_eq!(compare(own, theirs), expected, "{own} and {theirs}");
            if FIRST_COMPATIBLE <= theirs {
                let back = compare(theirs, own).is_ok();
                assert_eq!(back, expected.is_ok(), "{theirs} and {own} both ways");
            }
        }
        assert_eq!(answer(PROTOCOL), Ok(()));
        assert_eq!(answer(PROTOCOL + 1), Ok(()));
        for (protocol, todo) in [
            (
                5,
                "upgrade the coordinator, every worker and every command line",
            ),
            (
                6,
                "upgrade the coordinator, every worker and every command line",
            ),
            (PROTOCOL + 2, "upgrade this one first"),
        ] {
            let error = answer(protocol).expect_err("it is too far away");
            assert!(
                error.contains(&format!("speaks protocol {protocol} ")),
                "{error}"
            );
            assert!(error.contains(todo), "{error}");
        }
    }

    #[test]
    fn a_call_that_sets_a_field_of_a_later_protocol_is_refused_by_its_name() {
        let call = |protocol, field| {
            let mut request = Request::new(());
            stamp_as(request.metadata_mut(), PROTOCOL + 1);
            need(request.metadata_mut(), PROTOCOL, "team");
            need(request.metadata_mut(), protocol, field);
            check(request)
        };
        assert!(call(PROTOCOL, "name").is_ok());
        let error = call(PROTOCOL + 1, "labels").expect_err("it is too new");
        let expected = format!(
            "the call sets labels, which came with protocol {}",
            PROTOCOL + 1
        );
        assert!(error.message().starts_with(&expected), "{error}");
    }

    #[test]
    fn a_caller_that_names_no_protocol_is_refused() {
        let error = check(Request::new(())).expect_err("it names none");
        assert!(error.message().contains("names no protocol"), "{error}");
        let mut odd = Request::new(());
        odd.metadata_mut()
            .insert(PROTOCOL_KEY, MetadataValue::from_static("seven"));
        let error = check(odd).expect_err("it is no number");
        assert!(error.message().contains("\"seven\""), "{error}");
    }
}
