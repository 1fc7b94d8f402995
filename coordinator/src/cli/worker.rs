//! `coordinator workers`.

use super::client::{connect, request_error};
use super::{Global, Outcome, Output, json, print_json, table};
use crate::text::duration;
use anyhow::Result;
use proto::pb;
use std::time::Duration;

pub(crate) async fn workers(global: &Global) -> Result<Outcome> {
    let mut client = connect(global).await?;
    let reply = client
        .list_workers(pb::ListWorkersRequest {})
        .await
        .map_err(|status| request_error(global, &status))?;
    let workers = reply.into_inner().workers;
    if global.output == Output::Json {
        print_json(&workers.iter().map(json::worker).collect());
        return Ok(Outcome::True);
    }
    let mut table = table(&["WORKER", "STATE", "DEVICE", "USED", "JOBS", "LAST REPORT"]);
    for worker in &workers {
        table.add_row([
            worker
                .worker
                .as_ref()
                .map_or_else(String::new, |it| it.name.clone()),
            state(worker),
            worker.device.clone(),
            format!("{}/{}", worker.devices_used, worker.devices),
            if worker.jobs.is_empty() {
                "-".into()
            } else {
                worker.jobs.join(", ")
            },
            format!(
                "{} ago",
                duration(Duration::from_millis(worker.last_heard_ms))
            ),
        ]);
    }
    table.print();
    Ok(Outcome::True)
}

fn state(worker: &pb::WorkerView) -> String {
    let state = match (worker.up, worker.drained) {
        (true, false) => "up",
        (true, true) => "drained",
        (false, false) => "down",
        (false, true) => "down, drained",
    };
    let mut state = state.to_owned();
    if let Some(sick) = &worker.sick {
        state += &format!(", sick: {sick}");
    }
    if !worker.unreachable.is_empty() {
        state += &format!(", cannot reach {}", worker.unreachable.join(", "));
    }
    if let Some(older) = &worker.displaced {
        let at = older.address.as_deref().unwrap_or("an unknown address");
        let ago = duration(Duration::from_secs(older.ago_ms / 1000)).replace("0ms", "0s");
        state += &format!(", displaced another daemon of its name at {at} {ago} ago");
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_names_what_is_wrong() {
        let mut worker = pb::WorkerView {
            up: true,
            ..Default::default()
        };
        assert_eq!(state(&worker), "up");
        worker.displaced = Some(pb::Displaced {
            worker: None,
            address: Some("10.0.0.1:7073".to_owned()),
            ago_ms: 61_000,
        });
        assert_eq!(
            state(&worker),
            "up, displaced another daemon of its name at 10.0.0.1:7073 1m01s ago"
        );
        worker.unreachable = vec!["w2".to_owned()];
        worker.displaced = None;
        assert_eq!(state(&worker), "up, cannot reach w2");
        worker.sick = Some("GPU 3 reported Xid 79".to_owned());
        worker.drained = true;
        assert_eq!(
            state(&worker),
            "drained, sick: GPU 3 reported Xid 79, cannot reach w2"
        );
    }
}
