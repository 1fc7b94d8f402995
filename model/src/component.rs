//! Which component a parameter belongs to. A leaf: parameters, the optimizer and the architectures
//! all ask it.

use proto::spec::Component;

/// The components of a model by the beginnings of their parameters' full names.
#[derive(Debug, Clone, Copy)]
pub struct Prefixes(pub &'static [(&'static str, Component)]);

impl Prefixes {
    /// The component that a full parameter name, or a scope's prefix, belongs to.
    ///
    /// # Panics
    /// No prefix fits: the architecture's table does not cover its own network.
    #[must_use]
    pub fn component_of(&self, name: &str) -> Component {
        let found = self.0.iter().find(|(prefix, _)| name.starts_with(prefix));
        let (_, component) = found.expect("every network's prefix is in its architecture's table");
        *component
    }
}
