//! The fields of `[data]`, `[model]` and `[train]` that only some architectures read. An
//! architecture takes the fields that it reads. A remaining field has no effect and is rejected,
//! unless it has its default value, because stored job texts have every field written out.

use super::config::{AutoencoderConfig, ImageEncoderConfig, TextEncoderConfig, UNetConfig};
use crate::job::Origin;
use crate::job::faults::Faults;
use crate::size;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use toml::{Table, Value};

/// All such fields with their default values.
const DEFAULTS: &str = r#"
[data]
task = "composition"
pairing = "b"
references = 0
reference_drop = 0.0
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

[model]
latents = "mean"
retrieval = { attend = "every-block", time = "target" }

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
edge_loss_weight = 0.0
kl_loss_weight = 1e-4
"#;

/// See the module's header.
pub(crate) struct Fields {
    /// The networks; None once taken.
    autoencoder: Option<AutoencoderConfig>,
    unet: Option<UNetConfig>,
    text_encoder: Option<TextEncoderConfig>,
    image_encoder: Option<ImageEncoderConfig>,
    defaults: BTreeMap<String, Value>,
    /// Fields of job.toml that were not taken yet.
    remaining: BTreeMap<String, Value>,
    origin: Origin,
}

/// The networks of a named size, with the overrides of job.toml.
pub(crate) struct Networks {
    pub(crate) autoencoder: AutoencoderConfig,
    pub(crate) unet: UNetConfig,
    pub(crate) text_encoder: TextEncoderConfig,
    pub(crate) image_encoder: ImageEncoderConfig,
}

impl Fields {
    /// `written` holds the tables of job.toml with the types of the raw job.
    pub(crate) fn new(written: &Table, networks: Networks, origin: Origin) -> Self {
        let defaults = leaves(&defaults());
        let mut remaining = leaves(written);
        remaining.retain(|field, _| defaults.contains_key(field));
        Self {
            autoencoder: Some(networks.autoencoder),
            unet: Some(networks.unet),
            text_encoder: Some(networks.text_encoder),
            image_encoder: Some(networks.image_encoder),
            defaults,
            remaining,
            origin,
        }
    }

    /// Takes a field; returns its default if job.toml does not set it.
    pub(super) fn read<T: DeserializeOwned>(&mut self, field: &str) -> T {
        let default = self.defaults.get(field).cloned();
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

    pub(super) fn image_encoder(&mut self) -> ImageEncoderConfig {
        self.image_encoder
            .take()
            .expect("an architecture has one image encoder")
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
        let of_a_size = [
            ("model.autoencoder", "all but clip", {
                let found = self.autoencoder;
                found.is_none_or(|it| sizes().any(|(_, autoencoder, _)| autoencoder == it))
            }),
            ("model.unet", "text-to-image and retrinet", {
                let found = self.unet;
                found.is_none_or(|it| sizes().any(|(unet, ..)| unet == it))
            }),
            ("model.text_encoder", "text-to-image, retrinet and clip", {
                let found = self.text_encoder;
                found.is_none_or(|it| sizes().any(|(.., text)| text == it))
            }),
            ("model.image_encoder", "clip", {
                let mut of_sizes = size::NAMES
                    .iter()
                    .filter_map(|name| size::image_encoder(name));
                self.image_encoder
                    .is_none_or(|it| of_sizes.any(|of_size| of_size == it))
            }),
        ];
        for (field, users, is_of_a_size) in of_a_size {
            faults.need(is_of_a_size, field, || {
                format!("is for {users}; {name} has no such component: leave the table out")
            });
        }
        let mut unused = self.remaining;
        unused.retain(|field, value| self.defaults.get(field) != Some(value));
        if unused
            .keys()
            .any(|field| field.starts_with("model.retrieval."))
        {
            unused.retain(|field, _| !field.starts_with("model.retrieval."));
            let message = format!("is for retrinet; {name} has no retrieval block: leave it out");
            faults.add("model.retrieval", message);
        }
        for (field, value) in &unused {
            reject(field, value, &why_unused(field), faults);
        }
    }
}

/// The networks of all named sizes.
fn sizes() -> impl Iterator<Item = (UNetConfig, AutoencoderConfig, TextEncoderConfig)> {
    size::NAMES.iter().filter_map(|name| size::named(name))
}

/// Rejects a field for a reason, unless it has its default value.
pub(super) fn reject_unless_default(field: &str, value: &Value, why: &str, faults: &mut Faults) {
    if leaves(&defaults()).get(field) != Some(value) {
        reject(field, value, why, faults);
    }
}

fn reject(field: &str, value: &Value, why: &str, faults: &mut Faults) {
    let message = format!("is {value}; it has no effect because {why}: leave it out");
    faults.add(field, message);
}

fn defaults() -> Table {
    DEFAULTS.parse().expect("the defaults are TOML")
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
