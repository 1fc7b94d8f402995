//! Maps parameter names to components. Used by the parameters, the optimizer and the architectures.

use proto::spec::Component;

/// The components of a model by the prefixes of their parameters' full names.
#[derive(Debug, Clone, Copy)]
pub struct Prefixes(pub &'static [(&'static str, Component)]);

impl Prefixes {
    /// The component of a full parameter name or of a scope's prefix.
    ///
    /// # Panics
    /// If no prefix matches: the architecture's table does not cover its own network.
    #[must_use]
    pub fn component_of(&self, name: &str) -> Component {
        let entry = self.0.iter().find(|(prefix, _)| name.starts_with(prefix));
        let (_, component) = entry.expect("every network's prefix is in its architecture's table");
        *component
    }
}
