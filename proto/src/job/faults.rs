//! What is wrong with a job.toml, field by field, as it is found.

/// Something wrong with one field.
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

    /// Notes a fault unless `good`.
    pub(crate) fn need(&mut self, good: bool, field: &str, message: impl FnOnce() -> String) {
        if !good {
            self.add(field, message());
        }
    }

    pub(crate) fn share(&mut self, field: &str, value: f64) {
        self.need((0.0..=1.0).contains(&value), field, || {
            format!("is {value}; a share lies between 0 and 1")
        });
    }

    pub(crate) fn positive(&mut self, field: &str, value: u64) {
        self.need(value > 0, field, || "is 0; it must be at least 1".into());
    }

    /// Larger networks than `most` are slips: they would fill the memory of every node before
    /// anything failed.
    pub(crate) fn count(&mut self, field: &str, value: u32, most: u32) {
        self.positive(field, value.into());
        self.need(value <= most, field, || {
            format!("is {value}; at most {most}")
        });
    }

    pub(crate) fn rate(&mut self, field: &str, value: f64) {
        let good = value.is_finite() && value >= 0.0;
        self.need(good, field, || {
            format!("is {value}; it must be a number of at least 0")
        });
    }
}
