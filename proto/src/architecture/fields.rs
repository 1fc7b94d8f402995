//! The fields of `[data]`, `[model]` and `[train]` that only some architectures read. An
//! architecture takes the fields that it reads. A remaining field has no effect and is rejected,
//! unless it has its default value, because stored job texts have every field written out.

use super::config::{AutoencoderConfig, TextEncoderConfig, UNetConfig};
use crate::job::Origin;
use crate::job::faults::Faults;
use crate::size;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::sync::LazyLock;
use toml::{Table, Value};

/// All such fields by their dotted names, with their default values. Read once: a coordinator that
/// starts reads a hundred thousand jobs.
static DEFAULTS: LazyLock<BTreeMap<String, Value>> = LazyLock::new(|| {
    let table: Table = DEFAULTS_TOML.parse().expect("the defaults are TOML");
    leaves(&table)
});

const DEFAULTS_TOML: &str = r#"
[data]
task = "composition"
pairing = "b"
references = 0
reference_drop = 0.0
joint_drop = 0.0
transform = { crop = [0.8, 1.0], flip = 0.5, target_scale = 0.8 }
prompt_drop = 0.5
looks_drop = 0.0
prompt_order = "as-written"
face_probability = 0.5
face_enlargement = 1.33
figure_threshold = 0.5
clothes = { cut_off = 0.5, cut_off_minimum = 0.3, background = 0.5 }
reference_scale = 0.8
multitask_reconstruction = 0.5
image_view = "crop"
subjects = ["1girl", "1boy"]
object_keep = 0.9
augment = true

[model]
latents = "mean"
variant = "kandinsky-2.2"
retrieval = { attend = "every-block", time = "target" }

[model.image_encoder]
width = 0
layers = 0
heads = 0
mlp_width = 0
projection = 0
side = 0
patch = 0
activation = ""

[model.prior]
width = 0
layers = 0
heads = 0
text_projection = false

[model.noise]
kind = "scaled-linear"
steps = 1000
beta_start = 0.00085
beta_end = 0.012
prediction = "epsilon"

[train]
face_loss_weight = 1.0
target_mask_threshold = 0.5
loss_weighting = "epsilon"
mask_loss = 0.5
localization = 0.001
edge_loss_weight = 0.0
kl_loss_weight = 1e-4
"#;

/// See the module's header.
pub(crate) struct Fields {
    /// The networks; None once taken.
    autoencoder: Option<AutoencoderConfig>,
    unet: Option<UNetConfig>,
    text_encoder: Option<TextEncoderConfig>,
    /// Fields of job.toml that were not taken yet.
    remaining: BTreeMap<String, Value>,
    origin: Origin,
    /// The value of `model.size`.
    size: String,
    /// The value of `data.resolution`.
    resolution: u32,
}

impl Fields {
    /// `written` holds the tables of job.toml with the types of the raw job. The networks are those
    /// of the named size with the overrides of job.toml.
    pub(crate) fn new(
        written: &Table,
        (unet, autoencoder, text): (UNetConfig, AutoencoderConfig, TextEncoderConfig),
        origin: Origin,
        size: &str,
    ) -> Self {
        let mut remaining = leaves(written);
        let resolution = remaining.get("data.resolution").and_then(Value::as_integer);
        remaining.retain(|field, _| DEFAULTS.contains_key(field));
        Self {
            autoencoder: Some(autoencoder),
            unet: Some(unet),
            text_encoder: Some(text),
            remaining,
            origin,
            size: size.to_owned(),
            resolution: resolution.and_then(|it| it.try_into().ok()).unwrap_or(0),
        }
    }

    /// The name of the job's size; that of the default for a job that is stored, whose tables have
    /// every field.
    pub(super) fn size(&self) -> &str {
        &self.size
    }

    /// The side of the job's images in pixels.
    pub(super) fn resolution(&self) -> u32 {
        self.resolution
    }

    /// Takes a field; returns its default if job.toml does not set it.
    pub(super) fn read<T: DeserializeOwned>(&mut self, field: &str) -> T {
        let default = DEFAULTS.get(field).cloned();
        let value = self.remaining.remove(field).or(default);
        let value = value.expect("every field that is read has a default");
        value
            .try_into()
            .expect("the raw table has checked the type")
    }

    /// Whether job.toml sets a field that was not taken yet.
    pub(super) fn has(&self, field: &str) -> bool {
        self.remaining.contains_key(field)
    }

    /// Whether the job was stored, perhaps by an older release. A field that it does not set then
    /// means what that release did.
    pub(super) fn is_stored(&self) -> bool {
        self.origin == Origin::Stored
    }

    /// Takes a field if job.toml sets it. For fields whose default depends on the architecture.
    pub(super) fn written<T: DeserializeOwned>(&mut self, field: &str) -> Option<T> {
        let value = self.remaining.remove(field)?;
        Some(
            value
                .try_into()
                .expect("the raw table has checked the type"),
        )
    }

    pub(super) fn autoencoder(&mut self) -> AutoencoderConfig {
        self.autoencoder
            .take()
            .expect("an architecture has one autoencoder")
    }

    /// Makes the autoencoder Kandinsky's of the same size, unless job.toml changes the size's.
    pub(super) fn use_movq(&mut self) {
        let of_size = size::named(&self.size).map(|it| it.1);
        if self.autoencoder == of_size {
            self.autoencoder = Some(size::movq(&self.size));
        }
    }

    pub(super) fn unet(&mut self) -> UNetConfig {
        self.unet.take().expect("an architecture has one U-Net")
    }

    pub(super) fn text_encoder(&mut self) -> TextEncoderConfig {
        self.text_encoder
            .take()
            .expect("an architecture has one text encoder")
    }

    /// Accepts a field that is read elsewhere, with the rest of its section.
    pub(super) fn allow(&mut self, field: &str) {
        self.remaining.remove(field);
    }

    /// Rejects the remaining fields. `why_unused` explains why a field has no effect.
    pub(crate) fn reject_unused(
        self,
        name: &str,
        why_unused: impl Fn(&str) -> String,
        faults: &mut Faults,
    ) {
        let sizes: Vec<_> = size::ALL
            .iter()
            .filter_map(|name| size::named(name))
            .collect();
        let unet = self
            .unet
            .is_none_or(|unet| sizes.iter().any(|it| it.0 == unet));
        let text = self
            .text_encoder
            .is_none_or(|text| sizes.iter().any(|it| it.2 == text));
        let autoencoder = self
            .autoencoder
            .is_none_or(|it| sizes.iter().any(|of_size| of_size.1 == it));
        for (field, is_of_a_size) in [
            ("model.unet", unet),
            ("model.text_encoder", text),
            ("model.autoencoder", autoencoder),
        ] {
            faults.need(is_of_a_size, field, || {
                format!("is for other architectures; {name} has no such component: leave it out")
            });
        }
        let mut unused = self.remaining;
        unused.retain(|field, value| DEFAULTS.get(field) != Some(value));
        if unused
            .keys()
            .any(|field| field.starts_with("model.retrieval."))
        {
            unused.retain(|field, _| !field.starts_with("model.retrieval."));
            let message = format!("is for retrinet; {name} has no retrieval block: leave it out");
            faults.add("model.retrieval", message);
        }
        if unused
            .keys()
            .any(|field| field.starts_with("model.image_encoder."))
        {
            unused.retain(|field, _| !field.starts_with("model.image_encoder."));
            let message = format!(
                "is for architectures with image embeddings; {name} has no image encoder: \
                leave it out"
            );
            faults.add("model.image_encoder", message);
        }
        if unused.keys().any(|field| field.starts_with("model.prior.")) {
            unused.retain(|field, _| !field.starts_with("model.prior."));
            let message = format!("is for Kandinsky; {name} has no prior: leave it out");
            faults.add("model.prior", message);
        }
        for (field, value) in &unused {
            reject(field, value, &why_unused(field), faults);
        }
    }
}

/// Rejects a field for a reason, unless it has its default value.
pub(super) fn reject_unless_default(field: &str, value: &Value, why: &str, faults: &mut Faults) {
    if DEFAULTS.get(field) != Some(value) {
        reject(field, value, why, faults);
    }
}

fn reject(field: &str, value: &Value, why: &str, faults: &mut Faults) {
    let message = format!("is {value}; it has no effect because {why}: leave it out");
    faults.add(field, message);
}

/// All values by their dotted names.
fn leaves(table: &Table) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    for (name, value) in table {
        match value {
            Value::Table(inner) => {
                let inner = leaves(inner).into_iter();
                found.extend(inner.map(|(rest, value)| (format!("{name}.{rest}"), value)));
            }
            value => {
                found.insert(name.clone(), value.clone());
            }
        }
    }
    found
}

/// Collects fields by their dotted names, to write them as TOML.
#[derive(Default)]
pub(crate) struct Written(Table);

impl Written {
    pub(crate) fn put(&mut self, field: &str, value: impl serde::Serialize) {
        let value = Value::try_from(value).expect("plain tables, numbers and strings are TOML");
        let mut parts: Vec<&str> = field.split('.').collect();
        let name = parts.pop().unwrap_or_default();
        let mut table = &mut self.0;
        for part in parts {
            let inner = table
                .entry(part)
                .or_insert_with(|| Value::Table(Table::new()));
            table = inner
                .as_table_mut()
                .expect("no field is a table and a value");
        }
        table.insert(name.to_owned(), value);
    }

    /// The tables that hold them.
    pub(crate) fn into_table(self) -> Table {
        self.0
    }
}
