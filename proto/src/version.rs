//! Which protocol a process speaks. Everyone says it on every call, and is answered only by those
//! who speak the same: a daemon that dropped a field it does not know would do something else than
//! it was told.

use tonic::metadata::MetadataValue;
use tonic::{Request, Status};

/// One higher with every change of `train.proto` or of what its fields mean.
pub const PROTOCOL: u32 = 7;
const PROTOCOL_KEY: &str = "retri-protocol";
const RELEASE_KEY: &str = "retri-release";
const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// What [`stamp`] is, for the types of clients.
pub type Stamp = fn(Request<()>) -> Result<Request<()>, Status>;

/// Says on a call which protocol the caller speaks.
///
/// # Errors
/// Never.
pub fn stamp(mut request: Request<()>) -> Result<Request<()>, Status> {
    request
        .metadata_mut()
        .insert(PROTOCOL_KEY, MetadataValue::from(PROTOCOL));
    request
        .metadata_mut()
        .insert(RELEASE_KEY, MetadataValue::from_static(RELEASE));
    Ok(request)
}

/// Lets through who speaks this protocol.
///
/// # Errors
/// FAILED_PRECONDITION for everybody else, with what each side speaks.
pub fn check(request: Request<()>) -> Result<Request<()>, Status> {
    let said = |key| {
        request
            .metadata()
            .get(key)
            .and_then(|value| value.to_str().ok())
    };
    let theirs = match said(PROTOCOL_KEY) {
        Some(protocol) if protocol == PROTOCOL.to_string() => return Ok(request),
        Some(protocol) => format!(
            "the caller speaks {protocol:?} (release {:?})",
            said(RELEASE_KEY).unwrap_or("unknown")
        ),
        None => "the caller does not say what it speaks".to_owned(),
    };
    Err(Status::failed_precondition(format!(
        "whoever was called speaks protocol {PROTOCOL} (release {RELEASE}), and {theirs}; run the \
        same release everywhere"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_speaks_the_same_is_let_through_and_everybody_else_is_told_why() {
        let stamped = stamp(Request::new(())).expect("it only adds");
        assert!(check(stamped).is_ok());
        let says = |change: &dyn Fn(&mut Request<()>)| {
            let mut request = stamp(Request::new(())).expect("it only adds");
            change(&mut request);
            check(request)
                .expect_err("it is another protocol")
                .message()
                .to_owned()
        };
        let newer = says(&|it| {
            drop(
                it.metadata_mut()
                    .insert(PROTOCOL_KEY, MetadataValue::from(PROTOCOL + 1)),
            )
        });
        let expected = format!(
            "the caller speaks \"{}\" (release \"{RELEASE}\"); run",
            PROTOCOL + 1
        );
        assert!(newer.contains(&expected), "{newer}");
        let silent = says(&|it| drop(it.metadata_mut().remove(PROTOCOL_KEY)));
        assert!(
            silent.contains("the caller does not say what it speaks"),
            "{silent}"
        );
    }
}
