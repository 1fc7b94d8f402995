//! Parts of a Grafana dashboard.

use super::select;
use proto::metric::coordinator as table;
use proto::metric::{Metric, TRAINING_JOB};
use serde_json::{Value, json};

/// Grafana's grid has so many columns.
const COLUMNS: u64 = 24;
/// The schema of the dashboards, that of Grafana 9 and later.
const SCHEMA: u64 = 38;
/// The coordinator's pages, `web_listen`. An installation that serves them elsewhere replaces this.
const PAGES: &str = "http://127.0.0.1:7080";
pub const RED: &str = "red";
pub const AMBER: &str = "orange";
pub const GREEN: &str = "green";

/// A query and the name of its series.
#[derive(Debug, Clone)]
pub struct Target {
    pub expression: String,
    pub legend: &'static str,
}

#[must_use]
pub fn target(expression: impl Into<String>, legend: &'static str) -> Target {
    Target {
        expression: expression.into(),
        legend,
    }
}

/// The series of the dashboard's job.
#[must_use]
pub fn of_job(metric: &Metric) -> String {
    select(metric, &[(TRAINING_JOB, "=", "$job")])
}

/// A panel before it has a place.
#[derive(Debug, Clone)]
pub struct Panel {
    kind: &'static str,
    title: &'static str,
    description: &'static str,
    unit: &'static str,
    targets: Vec<Target>,
    width: u64,
    height: u64,
    defaults: Value,
    options: Value,
    /// The heading of the runbook that says what to do, as an anchor.
    runbook: Option<&'static str>,
}

fn panel(
    kind: &'static str,
    title: &'static str,
    description: &'static str,
    unit: &'static str,
    targets: Vec<Target>,
) -> Panel {
    Panel {
        kind,
        title,
        description,
        unit,
        targets,
        width: 12,
        height: 8,
        defaults: json!({}),
        options: json!({}),
        runbook: None,
    }
}

/// One number, coloured by thresholds: (from this value on, colour).
#[must_use]
pub fn stat(
    title: &'static str,
    description: &'static str,
    unit: &'static str,
    expression: impl Into<String>,
    thresholds: &[(f64, &str)],
) -> Panel {
    let mut it = panel(
        "stat",
        title,
        description,
        unit,
        vec![target(expression, "")],
    );
    (it.width, it.height) = (3, 4);
    it.defaults = json!({
        "color": { "mode": "thresholds" },
        "thresholds": steps(thresholds),
    });
    it.options = json!({
        "colorMode": if thresholds.is_empty() { "value" } else { "background" },
        "graphMode": "none",
        "justifyMode": "center",
        "reduceOptions": { "calcs": ["lastNotNull"], "fields": "", "values": false },
        "textMode": "auto",
    });
    it
}

fn steps(thresholds: &[(f64, &str)]) -> Value {
    let first = thresholds
        .first()
        .filter(|(from, _)| *from == f64::NEG_INFINITY);
    let base = first.map_or("blue", |(_, colour)| *colour);
    let mut steps = vec![json!({ "color": base, "value": null })];
    for (from, colour) in thresholds.iter().skip(usize::from(first.is_some())) {
        steps.push(json!({ "color": colour, "value": from }));
    }
    json!({ "mode": "absolute", "steps": steps })
}

#[must_use]
pub fn graph(
    title: &'static str,
    description: &'static str,
    unit: &'static str,
    targets: Vec<Target>,
) -> Panel {
    let mut it = panel("timeseries", title, description, unit, targets);
    it.defaults = json!({
        "color": { "mode": "palette-classic" },
        "custom": {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 8,
            "showPoints": "never",
            "spanNulls": false,
            "scaleDistribution": { "type": "linear" },
            "stacking": { "mode": "none", "group": "A" },
        },
    });
    it.options = json!({
        "legend": { "displayMode": "list", "placement": "bottom", "showLegend": true, "calcs": [] },
        "tooltip": { "mode": "multi", "sort": "desc" },
    });
    it
}

/// A value with a text and a colour.
pub type Mapping = (u64, &'static str, &'static str);

/// States over time.
#[must_use]
pub fn timeline(
    title: &'static str,
    description: &'static str,
    targets: Vec<Target>,
    mappings: &[Mapping],
) -> Panel {
    let mut it = panel("state-timeline", title, description, "short", targets);
    (it.width, it.height) = (24, 6);
    it.defaults = json!({
        "color": { "mode": "palette-classic" },
        "custom": { "fillOpacity": 70, "lineWidth": 0 },
        "mappings": mappings_json(mappings),
    });
    it.options = json!({
        "mergeValues": true,
        "showValue": "auto",
        "rowHeight": 0.9,
        "legend": { "displayMode": "list", "placement": "bottom", "showLegend": true },
        "tooltip": { "mode": "single" },
    });
    it
}

fn mappings_json(mappings: &[Mapping]) -> Value {
    let one = |(value, text, colour): &Mapping| {
        (
            value.to_string(),
            json!({ "text": text, "color": colour, "index": value }),
        )
    };
    let options: serde_json::Map<String, Value> = mappings.iter().map(one).collect();
    if options.is_empty() {
        json!([])
    } else {
        json!([{ "type": "value", "options": options }])
    }
}

/// Bars of the newest values, one per series.
#[must_use]
pub fn bars(
    title: &'static str,
    description: &'static str,
    unit: &'static str,
    targets: Vec<Target>,
) -> Panel {
    let mut it = panel("bargauge", title, description, unit, targets);
    it.defaults = json!({
        "color": { "mode": "palette-classic" },
        "min": 0,
        "thresholds": steps(&[]),
    });
    it.options = json!({
        "displayMode": "gradient",
        "orientation": "horizontal",
        "showUnfilled": true,
        "valueMode": "color",
        "reduceOptions": { "calcs": ["lastNotNull"], "fields": "", "values": false },
    });
    it
}

impl Panel {
    #[must_use]
    pub fn sized(mut self, width: u64, height: u64) -> Self {
        (self.width, self.height) = (width, height);
        self
    }

    /// Series on top of each other.
    #[must_use]
    pub fn stacked(mut self) -> Self {
        self.defaults["custom"]["stacking"]["mode"] = json!("normal");
        self.defaults["custom"]["fillOpacity"] = json!(60);
        self
    }

    #[must_use]
    pub fn logarithmic(mut self) -> Self {
        self.defaults["custom"]["scaleDistribution"] = json!({ "type": "log", "log": 10 });
        self
    }

    #[must_use]
    pub fn between(mut self, min: f64, max: f64) -> Self {
        self.defaults["min"] = json!(min);
        self.defaults["max"] = json!(max);
        self
    }

    #[must_use]
    pub fn from_zero(mut self) -> Self {
        self.defaults["min"] = json!(0);
        self
    }

    #[must_use]
    pub fn decimals(mut self, decimals: u64) -> Self {
        self.defaults["decimals"] = json!(decimals);
        self
    }

    /// Texts and colours in place of numbers.
    #[must_use]
    pub fn mapped(mut self, mappings: &[Mapping]) -> Self {
        self.defaults["mappings"] = mappings_json(mappings);
        self.options["colorMode"] = json!("background");
        self
    }

    /// A click on a series opens the page of the job that it is about, in the coordinator's pages.
    #[must_use]
    pub fn opens_jobs(self) -> Self {
        self.opens("Page of the job", "jobs", TRAINING_JOB)
    }

    #[must_use]
    pub fn opens_workers(self) -> Self {
        self.opens("Page of the worker", "workers", "worker")
    }

    fn opens(mut self, title: &str, folder: &str, label: &str) -> Self {
        let named = format!("${{__field.labels.{label}:percentencode}}");
        self.defaults["links"] = json!([{
            "title": title,
            "url": format!("${{pages}}/{folder}/{named}"),
            "targetBlank": true,
        }]);
        self
    }

    /// The panel names this heading of the runbook.
    #[must_use]
    pub fn explained(mut self, runbook: &'static str) -> Self {
        self.runbook = Some(runbook);
        self
    }

    /// What the panel shows while there is no value.
    #[must_use]
    pub fn or_text(mut self, text: &'static str) -> Self {
        self.defaults["noValue"] = json!(text);
        self
    }

    fn placed(&self, id: u64, x: u64, y: u64) -> Value {
        let datasource = json!({ "type": "prometheus", "uid": "${datasource}" });
        let is_instant = ["stat", "bargauge"].contains(&self.kind);
        let targets = self.targets.iter().zip(b'A'..).map(|(target, letter)| {
            json!({
                "datasource": datasource,
                "expr": target.expression,
                "legendFormat": target.legend,
                "refId": char::from(letter).to_string(),
                // Only the newest value is shown: one of a series that has ended must not be.
                "instant": is_instant,
                "range": !is_instant,
            })
        });
        let targets: Vec<Value> = targets.collect();
        let mut defaults = self.defaults.clone();
        defaults["unit"] = json!(self.unit);
        let runbook = |anchor: &str| {
            json!({
                "title": "Runbook",
                "url": format!("${{runbook}}#{anchor}"),
                "targetBlank": true,
            })
        };
        let links: Vec<Value> = self.runbook.map(runbook).into_iter().collect();
        json!({
            "id": id,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": datasource,
            "gridPos": { "x": x, "y": y, "w": self.width, "h": self.height },
            "fieldConfig": { "defaults": defaults, "overrides": [] },
            "options": self.options,
            "links": links,
            "targets": targets,
        })
    }
}

/// A dashboard: its rows with their panels, which are placed from left to right.
#[derive(Debug, Clone)]
pub struct Dashboard {
    pub uid: &'static str,
    pub title: &'static str,
    pub description: &'static str,
    /// Whether it is about one job.
    pub of_job: bool,
    pub rows: Vec<(&'static str, Vec<Panel>)>,
}

impl Dashboard {
    #[must_use]
    pub fn json(&self) -> Value {
        let mut panels = Vec::new();
        let (mut id, mut y) = (0, 0);
        for (title, row) in &self.rows {
            id += 1;
            panels.push(json!({
                "id": id,
                "type": "row",
                "title": title,
                "collapsed": false,
                "gridPos": { "x": 0, "y": y, "w": COLUMNS, "h": 1 },
                "panels": [],
            }));
            y += 1;
            let (mut x, mut height) = (0, 0);
            for panel in row {
                if COLUMNS < x + panel.width {
                    (x, y, height) = (0, y + height, 0);
                }
                id += 1;
                panels.push(panel.placed(id, x, y));
                x += panel.width;
                height = height.max(panel.height);
            }
            y += height;
        }
        json!({
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["retri"],
            "schemaVersion": SCHEMA,
            "version": 1,
            "editable": true,
            "graphTooltip": 1,
            "refresh": "10s",
            "time": { "from": "now-1h", "to": "now" },
            "timezone": "browser",
            "templating": { "list": self.variables() },
            "annotations": { "list": self.annotations() },
            "links": self.links(),
            "panels": panels,
        })
    }

    fn variables(&self) -> Vec<Value> {
        let mut variables = vec![json!({
            "name": "datasource",
            "label": "Data source",
            "type": "datasource",
            "query": "prometheus",
            "hide": 0,
        })];
        for (name, label, default) in [
            ("pages", "Coordinator's pages", PAGES),
            ("runbook", "Runbook", super::rules::RUNBOOK),
        ] {
            variables.push(json!({
                "name": name,
                "label": label,
                "type": "textbox",
                "query": default,
                "hide": 0,
            }));
        }
        if self.of_job {
            let query = format!("label_values({}, {TRAINING_JOB})", table::JOB_PHASE.name);
            variables.push(json!({
                "name": "job",
                "label": "Job",
                "type": "query",
                "datasource": { "type": "prometheus", "uid": "${datasource}" },
                "query": { "query": query, "refId": "job" },
                "refresh": 2,
                // The newest first: ids end with ascending numbers.
                "sort": 4,
            }));
        }
        variables
    }

    /// Marks in all graphs.
    fn annotations(&self) -> Vec<Value> {
        let of = |metric: &Metric| {
            if self.of_job {
                of_job(metric)
            } else {
                select(metric, &[])
            }
        };
        let mark = |name: &str, colour: &str, expression: String| {
            json!({
                "name": name,
                "datasource": { "type": "prometheus", "uid": "${datasource}" },
                "enable": true,
                "iconColor": colour,
                "expr": expression,
                "step": "10s",
                "titleFormat": name,
                "textFormat": "{{training_job}}",
            })
        };
        let changes = |metric: &Metric| format!("changes({}[$__interval]) > 0", of(metric));
        vec![
            mark("Restart", RED, changes(&table::JOB_RESTARTS)),
            mark("Checkpoint", GREEN, changes(&table::CHECKPOINT_STEP)),
        ]
    }

    /// The other dashboards, the coordinator's own page of the same, and the runbook. Not every
    /// dashboard has the variable `job`.
    fn links(&self) -> Value {
        let job = if self.of_job {
            "?${job:queryparam}"
        } else {
            ""
        };
        let dashboard = |title: &str, uid: &str| {
            json!({
                "title": title,
                "type": "link",
                "icon": "dashboard",
                "url": format!("/d/{uid}{job}"),
                "keepTime": true,
            })
        };
        let elsewhere = |title: &str, icon: &str, url: &str| {
            json!({
                "title": title,
                "type": "link",
                "icon": icon,
                "url": url,
                "targetBlank": true,
            })
        };
        let page = if self.of_job {
            elsewhere(
                "Page of the job",
                "external link",
                "${pages}/jobs/${job:percentencode}",
            )
        } else {
            elsewhere("Pages", "external link", "${pages}/")
        };
        json!([
            dashboard("Training", "retri-training"),
            dashboard("Fleet", "retri-fleet"),
            dashboard("Incident", "retri-incident"),
            page,
            elsewhere("Runbook", "doc", "${runbook}"),
        ])
    }
}

/// The phases of a job, as numbers for timelines, with their colours.
#[must_use]
pub fn phase_mappings() -> Vec<Mapping> {
    use proto::phase::Phase;
    let colour = |phase: Phase| match phase {
        Phase::Training | Phase::Working | Phase::Done => GREEN,
        Phase::Failed => RED,
        Phase::Queued | Phase::Paused => "blue",
        Phase::Cancelled => "gray",
        _ => AMBER,
    };
    let phases = Phase::ALL.into_iter().zip(1..);
    phases
        .map(|(phase, number)| (number, phase.word(), colour(phase)))
        .collect()
}

/// The phase of the dashboard's job as its number in [`phase_mappings`].
#[must_use]
pub fn phase_number() -> String {
    let each = phase_mappings().into_iter().map(|(number, word, _)| {
        let series = select(
            &table::JOB_PHASE,
            &[(TRAINING_JOB, "=", "$job"), ("phase", "=", word)],
        );
        format!("{number} * {series}")
    });
    format!("max({})", each.collect::<Vec<_>>().join(" or "))
}
