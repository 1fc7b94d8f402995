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
    match worker.unreachable.is_empty() {
        true => state.to_owned(),
        false => format!("{state}, cannot reach {}", worker.unreachable.join(", ")),
    }
}
