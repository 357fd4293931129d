//! A list of operations, as text and back.

use std::fmt;
use std::str::FromStr;

use crate::actor::op::Op;

/// Operations in their order. Every script is compared with the kernel once more at its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script(pub Vec<Op>);

impl Script {
    /// From text: operations separated by semicolons or line ends.
    ///
    /// # Panics
    ///
    /// When it cannot be read.
    #[must_use]
    pub fn new(text: &str) -> Script {
        text.parse().unwrap_or_else(|error: String| panic!("{error}"))
    }

    /// Whether it goes another way each time.
    #[must_use]
    pub fn has_races(&self) -> bool {
        self.0.iter().any(|op| op.kind.is_burst())
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, op) in self.0.iter().enumerate() {
            write!(f, "{}{op}", if at > 0 { "; " } else { "" })?;
        }
        Ok(())
    }
}

impl FromStr for Script {
    type Err = String;

    fn from_str(text: &str) -> Result<Script, String> {
        let parts = text.split([';', '\n']).map(str::trim).filter(|part| !part.is_empty());
        parts.map(str::parse).collect::<Result<_, _>>().map(Script)
    }
}
