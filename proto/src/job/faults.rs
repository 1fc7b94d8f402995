//! Collects the errors of a job.toml, by field.

/// An error in one field.
pub(crate) struct Fault {
    pub(crate) field: String,
    pub(crate) message: String,
}

#[derive(Default)]
pub(crate) struct Faults(pub(crate) Vec<Fault>);

impl Faults {
    pub(crate) fn add(&mut self, field: &str, message: impl Into<String>) {
        self.0.push(Fault {
            field: field.to_owned(),
            message: message.into(),
        });
    }

    /// Adds a fault unless `valid`.
    pub(crate) fn need(&mut self, valid: bool, field: &str, message: impl FnOnce() -> String) {
        if !valid {
            self.add(field, message());
        }
    }

    pub(crate) fn fraction(&mut self, field: &str, value: f64) {
        self.need((0.0..=1.0).contains(&value), field, || {
            format!("is {value}; it must lie between 0 and 1")
        });
    }

    pub(crate) fn positive(&mut self, field: &str, value: u64) {
        self.need(value > 0, field, || "is 0; it must be at least 1".into());
    }

    /// Requires 1 to `max`. A larger network is assumed to be a mistake; it would exhaust the
    /// memory of a node before anything else failed.
    pub(crate) fn count(&mut self, field: &str, value: u32, max: u32) {
        self.positive(field, value.into());
        self.need(value <= max, field, || {
            format!("is {value}; it must be at most {max}")
        });
    }

    pub(crate) fn non_negative(&mut self, field: &str, value: f64) {
        let valid = value.is_finite() && value >= 0.0;
        self.need(valid, field, || {
            format!("is {value}; it must be a number of at least 0")
        });
    }
}
