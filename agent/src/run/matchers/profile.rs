//! Matchers for known agents, as data: `--profile NAME`.
//!
//! A file of the same name in a configuration folder goes before a built-in one.

use std::path::PathBuf;

use serde::Deserialize;

use super::{Matcher, MatcherError, Role};

/// The built-in profiles.
const BUILT_IN: [(&str, &str); 2] =
    [("claude", include_str!("profiles/claude.toml")), ("codex", include_str!("profiles/codex.toml"))];

/// Where the administrator's profiles are.
const SYSTEM: &str = "/etc/pipewarden/profiles";

/// A profile that was read.
#[derive(Debug)]
pub struct Profile {
    /// Its matchers.
    pub matchers: Vec<Matcher>,
    /// Whether they look at stderr too.
    pub stderr: bool,
    /// Its template for `--resume-command`.
    pub resume_command: Option<String>,
}

/// Why a profile cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The name could be a path.
    #[error("a profile's name has letters, digits, - and _ only")]
    Name,
    /// There is none of that name.
    #[error("no such profile; there are {known}, and yours would be {path}")]
    Unknown {
        /// The names of those that there are.
        known: String,
        /// Where one of that name would be looked for first.
        path: String,
    },
    /// It is there and cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What open(2) or read(2) said.
        error: std::io::Error,
    },
    /// It is no profile.
    #[error("{origin}: {what}")]
    Malformed {
        /// The file, or that it is a built-in one.
        origin: String,
        /// What the parser said.
        what: String,
    },
    /// A matcher in it is none.
    #[error("{origin}: {key} {text:?}: {error}")]
    Matcher {
        /// The file, or that it is a built-in one.
        origin: String,
        /// The key.
        key: &'static str,
        /// The matcher.
        text: String,
        /// What is wrong with it.
        error: MatcherError,
    },
}

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    stderr: bool,
    session_id: Vec<String>,
    side_effect: Vec<String>,
    tool_running: Vec<String>,
    tool_done: Vec<String>,
    done_when: Vec<Done>,
    resume_command: Option<String>,
}

/// A completion marker.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Done {
    /// A matcher, whose capture is the status.
    Captured(String),
    /// A matcher that stands for a status by itself.
    Fixed {
        #[serde(rename = "match")]
        text: String,
        status: String,
    },
}

impl Profile {
    /// Finds a profile by its name and reads it.
    ///
    /// # Errors
    ///
    /// As [`ProfileError`] says.
    pub fn load(name: &str) -> Result<Profile, ProfileError> {
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') {
            return Err(ProfileError::Name);
        }
        let places: Vec<PathBuf> = folders().into_iter().map(|folder| folder.join(format!("{name}.toml"))).collect();
        for path in &places {
            match std::fs::read_to_string(path) {
                Ok(text) => return read(&path.display().to_string(), &text),
                Err(error)
                    if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {}
                Err(error) => return Err(ProfileError::Read { path: path.clone(), error }),
            }
        }
        match BUILT_IN.iter().find(|(known, _)| *known == name) {
            Some((_, text)) => read(&format!("the built-in profile {name}"), text),
            None => Err(ProfileError::Unknown {
                known: BUILT_IN.map(|(name, _)| name).join(" and "),
                path: places.first().map(|path| path.display().to_string()).unwrap_or_default(),
            }),
        }
    }
}

/// Where profiles are looked for, the user's own first.
fn folders() -> Vec<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let own = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")));
    own.map(|folder| folder.join("pipewarden/profiles")).into_iter().chain([PathBuf::from(SYSTEM)]).collect()
}

fn read(origin: &str, text: &str) -> Result<Profile, ProfileError> {
    let file: File = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
        ProfileError::Malformed { origin: format!("{origin}, line {line}"), what: error.message().replace('\n', " ") }
    })?;
    let mut matchers = Vec::new();
    for (role, key, texts) in [
        (Role::SessionId, "session_id", file.session_id),
        (Role::SideEffect, "side_effect", file.side_effect),
        (Role::ToolRunning, "tool_running", file.tool_running),
        (Role::ToolDone, "tool_done", file.tool_done),
    ] {
        for text in texts {
            matchers.push(matcher(origin, role, key, &text)?);
        }
    }
    for done in file.done_when {
        let read = |text: &str| matcher(origin, Role::DoneWhen, "done_when", text);
        matchers.push(match done {
            Done::Captured(text) => read(&text)?,
            Done::Fixed { text, status } => read(&text)?.with_status(&status),
        });
    }
    Ok(Profile { matchers, stderr: file.stderr, resume_command: file.resume_command })
}

fn matcher(origin: &str, role: Role, key: &'static str, text: &str) -> Result<Matcher, ProfileError> {
    let wrong = |error| ProfileError::Matcher { origin: origin.to_owned(), key, text: text.to_owned(), error };
    Matcher::new(role, text).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_in_is_sound() {
        for (name, text) in BUILT_IN {
            let profile = read(name, text).unwrap();
            for role in [Role::SessionId, Role::SideEffect, Role::ToolRunning, Role::ToolDone, Role::DoneWhen] {
                assert!(profile.matchers.iter().any(|matcher| matcher.role() == role), "{name} lacks {role:?}");
            }
        }
    }

    #[test]
    fn a_name_is_no_path() {
        for name in ["", "../claude", "a/b", "a.b", "ä"] {
            assert!(matches!(Profile::load(name), Err(ProfileError::Name)), "{name}");
        }
    }

    #[test]
    fn errors_name_the_place() {
        let said = |text: &str| read("x.toml", text).unwrap_err().to_string();
        assert!(
            said("session_id = []\ntool = []\n").contains("x.toml, line 2"),
            "{}",
            said("session_id = []\ntool = []\n")
        );
        assert!(said("session_id = [\"$.a\"]").contains("session_id \"$.a\""), "{}", said("session_id = [\"$.a\"]"));
        for text in ["a = ", "session_id = 3", "session_id = ['json:$[']", "done_when = ['re:(']"] {
            assert_eq!(said(text).lines().count(), 1, "{text}: {}", said(text));
        }
    }
}
