//! The command that resumes a session: `--resume-command TEMPLATE`.
//!
//! The template is split into words once, as a shell splits them, and the id is put into the words:
//! no shell reads it, so nothing that a program prints can become a command.

use std::ffi::OsString;

/// What stands for the session's id.
pub const PLACE: &str = "{session_id}";

/// A template, split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    words: Vec<String>,
}

/// Why a template is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A quote is not closed.
    #[error("a quote is not closed")]
    Quote,
    /// There is no command in it.
    #[error("it is empty; write the command, as in 'agent --resume {{session_id}}'")]
    Empty,
    /// The id has no place in it.
    #[error("it does not contain {{session_id}}; write it where the id goes, as in 'agent --resume {{session_id}}'")]
    NoPlace,
}

impl Template {
    /// Splits a template at blanks; quotes and backslashes mean what they mean to a shell.
    ///
    /// # Errors
    ///
    /// What is missing.
    pub fn new(text: &str) -> Result<Template, TemplateError> {
        let words = split(text).ok_or(TemplateError::Quote)?;
        if words.first().is_none_or(String::is_empty) {
            return Err(TemplateError::Empty);
        }
        if !words.iter().any(|word| word.contains(PLACE)) {
            return Err(TemplateError::NoPlace);
        }
        Ok(Template { words })
    }

    /// The command for a session.
    #[must_use]
    pub fn command(&self, session_id: &str) -> Vec<OsString> {
        self.words.iter().map(|word| OsString::from(word.replace(PLACE, session_id))).collect()
    }
}

/// Words as sh(1) splits them; nothing when a quote is not closed.
fn split(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match (quote, c) {
            (None, ' ' | '\t' | '\n') => words.extend(word.take()),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (Some(open), _) if c == open => quote = None,
            (None | Some('"'), '\\') => {
                let next = rest.next()?;
                let word = word.get_or_insert_default();
                // Inside double quotes a backslash is one, unless it is needed to say something.
                if quote.is_some() && !matches!(next, '"' | '\\' | '$' | '`') {
                    word.push(c);
                }
                word.push(next);
            }
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_are_split_as_a_shell_splits_them() {
        for (text, expected) in [
            ("a {session_id}", vec!["a", "7"]),
            (r#"a --resume="{session_id}" 'go on' "it's" b\ c"#, vec!["a", "--resume=7", "go on", "it's", "b c"]),
            (r#"a {session_id} "\"x\" \n" ''"#, vec!["a", "7", "\"x\" \\n", ""]),
            ("  a\t{session_id}\n", vec!["a", "7"]),
        ] {
            let command = Template::new(text).unwrap().command("7");
            assert_eq!(command, expected.into_iter().map(OsString::from).collect::<Vec<_>>(), "{text}");
        }
    }

    #[test]
    fn what_is_no_template_is_said() {
        assert_eq!(Template::new("a 'b {session_id}"), Err(TemplateError::Quote));
        assert_eq!(Template::new("a {session_id} \\"), Err(TemplateError::Quote));
        assert_eq!(Template::new(" "), Err(TemplateError::Empty));
        assert_eq!(Template::new("'' {session_id}"), Err(TemplateError::Empty));
        assert_eq!(Template::new("a --continue"), Err(TemplateError::NoPlace));
        assert!(TemplateError::NoPlace.to_string().contains("{session_id}"));
    }

    proptest! {
        /// Whatever an id contains, it stays inside its word.
        #[test]
        fn an_id_never_becomes_words(id in "\\PC{0,30}") {
            let command = Template::new("agent --resume={session_id} -- 'go on'").unwrap().command(&id);
            prop_assert_eq!(command.len(), 4);
            prop_assert_eq!(&command[1], &OsString::from(format!("--resume={id}")));
        }
    }
}
