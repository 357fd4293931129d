//! How much room a run's live map has: what serves nearly all of them, unless the environment says else.

use std::env::{self, VarError};

use super::object::Sizes;

/// Processes, and as many descriptor tables: up to [`MOST`].
pub const PROCESSES: &str = "PIPEWARDEN_MAP_PROCESSES";
/// Descriptors on pipes: up to [`MOST`].
pub const DESCRIPTORS: &str = "PIPEWARDEN_MAP_DESCRIPTORS";
/// Bytes of events that nobody has read yet: a power of two from 4096 (a page) to 64 MiB.
pub const EVENT_BYTES: &str = "PIPEWARDEN_MAP_EVENT_BYTES";

/// Some 500 MB of the kernel's memory.
pub const MOST: u32 = 1 << 22;

/// A variable that says something else than how much.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}={value}: it wants {wants}")]
pub struct BadRoom {
    name: &'static str,
    value: String,
    wants: &'static str,
}

/// The room for a run, by the variables above; empty ones are as unset.
///
/// # Errors
///
/// [`BadRoom`].
pub fn of_a_run() -> Result<Sizes, BadRoom> {
    said(|name| match env::var(name) {
        Ok(value) => Some(value),
        Err(VarError::NotPresent) => None,
        Err(VarError::NotUnicode(value)) => Some(value.to_string_lossy().into_owned()),
    })
}

fn said(variable: impl Fn(&'static str) -> Option<String>) -> Result<Sizes, BadRoom> {
    let number = |name, usual, wants, fits: fn(u32) -> bool| match variable(name).filter(|value| !value.is_empty()) {
        None => Ok(usual),
        Some(value) => value.parse().ok().filter(|number| fits(*number)).ok_or(BadRoom { name, value, wants }),
    };
    let entries = "a number from 1 to 4194304";
    let some = |number: u32| (1..=MOST).contains(&number);
    let mut sizes = Sizes::RUN;
    sizes.processes = number(PROCESSES, sizes.processes, entries, some)?;
    sizes.slots = number(DESCRIPTORS, sizes.slots, entries, some)?;
    // Any of them may be on a watched pipe, few are.
    sizes.holders = sizes.slots.min(sizes.holders.max(sizes.slots / 8));
    sizes.event_bytes = number(EVENT_BYTES, sizes.event_bytes, "a power of two from 4096 to 67108864", |bytes| {
        bytes.is_power_of_two() && (4096..=64 << 20).contains(&bytes)
    })?;
    Ok(sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_says_is_a_runs() {
        assert_eq!(said(|_| None), Ok(Sizes::RUN));
        assert_eq!(said(|_| Some(String::new())), Ok(Sizes::RUN));
    }

    #[test]
    fn what_is_said_is_taken() {
        let sizes = said(|name| (name == DESCRIPTORS).then(|| "1000000".into())).unwrap();
        assert_eq!((sizes.slots, sizes.holders, sizes.processes), (1_000_000, 125_000, Sizes::RUN.processes));
        let sizes = said(|name| (name == DESCRIPTORS).then(|| "16".into())).unwrap();
        assert_eq!((sizes.slots, sizes.holders), (16, 16));
    }

    #[test]
    fn what_is_no_number_is_named_with_what_would_be() {
        for (variable, value) in [(PROCESSES, "many"), (DESCRIPTORS, "0"), (EVENT_BYTES, "5000"), (EVENT_BYTES, "-1")] {
            let error = said(|name| (name == variable).then(|| value.into())).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{variable}={value}: it wants a ")), "{error}");
        }
    }
}
