//! Which rungs are tried: all of them, best first, unless the environment names one.

use std::env;

use super::rung::Rung;

/// The one rung to be tried, by its name.
pub const RUNG: &str = "PIPEWARDEN_BPF_RUNG";

/// A variable that names no rung.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{RUNG}={0}: it wants bpf-fentry, bpf-kprobe or bpf-tracepoint")]
pub struct NoSuchRung(String);

/// The rungs to try, best first; an empty variable is as unset.
///
/// # Errors
///
/// [`NoSuchRung`].
pub fn rungs() -> Result<Vec<Rung>, NoSuchRung> {
    of(env::var_os(RUNG).map(|value| value.to_string_lossy().into_owned()))
}

fn of(said: Option<String>) -> Result<Vec<Rung>, NoSuchRung> {
    let Some(name) = said.filter(|name| !name.is_empty()) else { return Ok(Rung::ALL.to_vec()) };
    let named: Vec<Rung> = Rung::ALL.into_iter().filter(|rung| rung.name() == name).collect();
    if named.is_empty() { Err(NoSuchRung(name)) } else { Ok(named) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_names_none_gets_the_best_that_there_is() {
        assert_eq!(of(None), Ok(Rung::ALL.to_vec()));
        assert_eq!(of(Some(String::new())), Ok(Rung::ALL.to_vec()));
    }

    #[test]
    fn who_names_one_gets_that_or_none() {
        for rung in Rung::ALL {
            assert_eq!(of(Some(rung.name().to_owned())), Ok(vec![rung]));
        }
    }

    #[test]
    fn a_name_that_is_none_is_told_with_those_that_are() {
        let error = of(Some("kprobe".to_owned())).unwrap_err().to_string();
        assert_eq!(error, "PIPEWARDEN_BPF_RUNG=kprobe: it wants bpf-fentry, bpf-kprobe or bpf-tracepoint");
    }
}
