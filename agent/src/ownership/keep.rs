//! `--keep GLOB`: who is never ended.

use globset::{Glob, GlobSet, GlobSetBuilder};

use crate::process::describe;

/// A set of globs over a process's name, its program's file or its command line.
#[derive(Clone, Debug, Default)]
pub struct Keep {
    globs: GlobSet,
    any: bool,
}

impl Keep {
    /// Compiles the globs; `*` also crosses slashes.
    ///
    /// # Errors
    ///
    /// The first glob that does not parse.
    pub fn new<S: AsRef<str>>(globs: &[S]) -> Result<Keep, globset::Error> {
        let mut set = GlobSetBuilder::new();
        for glob in globs {
            set.add(Glob::new(glob.as_ref())?);
        }
        Ok(Keep { globs: set.build()?, any: !globs.is_empty() })
    }

    /// Whether nobody can match.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.any
    }

    /// Whether a process matches by its name, its program's path or its (unredacted) command line,
    /// as they are now.
    #[must_use]
    pub fn matches(&self, pid: i32, comm: &str) -> bool {
        self.any
            && (self.globs.is_match(comm)
                || describe::exe(pid).is_some_and(|exe| self.globs.is_match(exe))
                || describe::raw_command_line(pid).is_some_and(|line| self.globs.is_match(line)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_kept_by_its_name_its_program_or_its_command_line() {
        let us = describe::describe(nix::unistd::getpid().as_raw()).unwrap();
        let exe = us.exe.clone().unwrap();
        for glob in [us.comm.clone(), exe.clone(), format!("*{}*", &exe[exe.len() - 8..])] {
            assert!(Keep::new(&[&glob]).unwrap().matches(us.pid, &us.comm), "{glob}");
        }
        assert!(!Keep::new(&["postgres"]).unwrap().matches(us.pid, &us.comm));
        assert!(!Keep::default().matches(us.pid, &us.comm));
    }

    #[test]
    fn a_glob_that_does_not_parse_is_an_error() {
        assert!(Keep::new(&["[a"]).is_err());
    }
}
