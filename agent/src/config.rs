//! Configuration files: TOML with its lines. Whatever is wrong is said with the file, the line and the key.

use std::path::Path;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use crate::value;

/// One line that says where, what is wrong and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {text}")]
pub struct ConfigError {
    /// The file, as it was named.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The key, and what is wrong with it.
    pub text: String,
}

/// A file's text, under its name.
pub struct Source {
    name: String,
    text: String,
}

impl Source {
    /// A text, and the name of where it comes from.
    #[must_use]
    pub fn new(name: String, text: String) -> Source {
        Source { name, text }
    }

    /// Reads a file.
    ///
    /// # Errors
    ///
    /// Why it cannot be read, and which document says what would be in it.
    pub fn load(path: &Path, document: &str) -> Result<Source, ConfigError> {
        let name = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(Source::new(name, text)),
            Err(error) => {
                let text = format!("it cannot be read: {error}; name a TOML file (see {document})");
                Err(ConfigError { file: name, line: 1, text })
            }
        }
    }

    /// An error about a line.
    #[must_use]
    pub fn wrong(&self, line: usize, text: String) -> ConfigError {
        ConfigError { file: self.name.clone(), line, text }
    }

    /// Parses the text and reads it.
    ///
    /// # Errors
    ///
    /// What is no TOML, and what `read` says.
    pub fn read<T>(&self, read: impl FnOnce(Table<'_>) -> Result<T, ConfigError>) -> Result<T, ConfigError> {
        let parsed = DeTable::parse(&self.text).map_err(|error| {
            let line = self.line_at(error.span().map_or(0, |span| span.start));
            self.wrong(line, format!("this is no TOML: {}", error.message().replace('\n', "; ")))
        })?;
        read(Table::new(self, String::new(), 1, parsed.get_ref()))
    }

    fn line_at(&self, offset: usize) -> usize {
        self.text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
    }
}

/// A table that is being read: who takes every key that it may have finds those that it may not.
pub struct Table<'a> {
    source: &'a Source,
    key: String,
    line: usize,
    entries: Vec<(Value<'a>, bool)>,
    known: Vec<&'static str>,
}

impl<'a> Table<'a> {
    fn new(source: &'a Source, key: String, line: usize, table: &'a DeTable<'a>) -> Table<'a> {
        let entries = table.iter().map(|(name, value)| {
            let short: &str = name.get_ref();
            let full = if key.is_empty() { short.to_owned() } else { format!("{key}.{short}") };
            let line = source.line_at(name.span().start);
            (Value { source, key: full, name: short, line, value: value.get_ref() }, false)
        });
        let mut entries: Vec<_> = entries.collect();
        entries.sort_by_key(|(value, _)| value.line);
        Table { source, key, line, entries, known: Vec::new() }
    }

    /// The value of a key, if it is there.
    pub fn take(&mut self, key: &'static str) -> Option<Value<'a>> {
        self.known.push(key);
        let entry = self.entries.iter_mut().find(|(value, _)| value.name == key)?;
        entry.1 = true;
        Some(entry.0.clone())
    }

    /// The value of a key that must be there.
    ///
    /// # Errors
    ///
    /// That it is not.
    pub fn need(&mut self, key: &'static str, such_as: &str) -> Result<Value<'a>, ConfigError> {
        self.take(key).ok_or_else(|| {
            self.source.wrong(self.line, format!("{}: {key} is missing; write {key} = {such_as}", self.key))
        })
    }

    /// The line that it begins in.
    #[must_use]
    pub fn line(&self) -> usize {
        self.line
    }

    /// An error about the table as a whole.
    #[must_use]
    pub fn wrong(&self, text: &str) -> ConfigError {
        self.source.wrong(self.line, format!("{}: {text}", self.key))
    }

    /// All entries, whatever their names, in the order of the file.
    #[must_use]
    pub fn into_entries(self) -> Vec<Value<'a>> {
        self.entries.into_iter().map(|(value, _)| value).collect()
    }

    /// No key is left.
    ///
    /// # Errors
    ///
    /// The first that is.
    pub fn done(self) -> Result<(), ConfigError> {
        let Some((unknown, _)) = self.entries.iter().find(|(_, taken)| !taken) else { return Ok(()) };
        let nearest = self.known.iter().map(|known| (distance(known, unknown.name), *known)).min();
        let right = match nearest {
            Some((0..=2, name)) => format!("did you mean {name}?"),
            _ => format!("the keys here are {}", self.known.join(", ")),
        };
        Err(unknown.wrong(&format!("there is no such key; {right}")))
    }
}

/// A value under its key.
#[derive(Clone)]
pub struct Value<'a> {
    source: &'a Source,
    key: String,
    name: &'a str,
    line: usize,
    value: &'a DeValue<'a>,
}

impl<'a> Value<'a> {
    /// The last part of its key.
    #[must_use]
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// The line of its key.
    #[must_use]
    pub fn line(&self) -> usize {
        self.line
    }

    /// An error about this key.
    #[must_use]
    pub fn wrong(&self, text: &str) -> ConfigError {
        self.source.wrong(self.line, format!("{}: {text}", self.key))
    }

    fn no(&self, wanted: &str) -> ConfigError {
        self.wrong(&format!("this is {}; use {wanted}", kind(self.value)))
    }

    /// A text.
    ///
    /// # Errors
    ///
    /// When it is none.
    pub fn text(&self) -> Result<&'a str, ConfigError> {
        self.value.as_str().ok_or_else(|| self.no("a text in quotes"))
    }

    /// The text, if it is one: where other types have a meaning too.
    #[must_use]
    pub fn as_text(&self) -> Option<&'a str> {
        self.value.as_str()
    }

    /// A list of texts.
    ///
    /// # Errors
    ///
    /// When it is none.
    pub fn texts(&self) -> Result<Vec<String>, ConfigError> {
        let wanted = "a list of texts, such as [\"a\", \"b\"]";
        let list = self.value.as_array().ok_or_else(|| self.no(wanted))?;
        list.iter()
            .map(|item| {
                let line = self.source.line_at(item.span().start);
                item.get_ref().as_str().map(str::to_owned).ok_or_else(|| {
                    let kind = kind(item.get_ref());
                    self.source.wrong(line, format!("{}: {kind} is in the list; use {wanted}", self.key))
                })
            })
            .collect()
    }

    /// `true` or `false`.
    ///
    /// # Errors
    ///
    /// When it is neither.
    pub fn flag(&self) -> Result<bool, ConfigError> {
        self.value.as_bool().ok_or_else(|| self.no("true or false"))
    }

    /// A table.
    ///
    /// # Errors
    ///
    /// When it is none.
    pub fn table(&self, such_as: &str) -> Result<Table<'a>, ConfigError> {
        let table = self.value.as_table().ok_or_else(|| self.no(such_as))?;
        Ok(Table::new(self.source, self.key.clone(), self.line, table))
    }

    /// A list of tables: `[[KEY]]`.
    ///
    /// # Errors
    ///
    /// When it is none.
    pub fn tables(&self, such_as: &str) -> Result<Vec<Table<'a>>, ConfigError> {
        let list = self.value.as_array().ok_or_else(|| self.no(such_as))?;
        list.iter()
            .map(|item| {
                let line = self.source.line_at(item.span().start);
                let table = item.get_ref().as_table().ok_or_else(|| {
                    let kind = kind(item.get_ref());
                    self.source.wrong(line, format!("{}: {kind} is in the list; use {such_as}", self.key))
                })?;
                Ok(Table::new(self.source, self.key.clone(), line, table))
            })
            .collect()
    }

    /// A text, or a number as it is written, that something else is made of.
    ///
    /// # Errors
    ///
    /// When it is neither, and what `parse` says.
    pub fn parsed<T>(&self, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<T, ConfigError> {
        let text = match self.value {
            DeValue::String(text) => text.as_ref(),
            DeValue::Integer(number) => number.as_str(),
            DeValue::Float(number) => number.as_str(),
            _ => return Err(self.no("a text in quotes")),
        };
        parse(text).map_err(|right| self.wrong(&format!("\"{}\": {right}", text.escape_debug())))
    }

    /// One of these words.
    ///
    /// # Errors
    ///
    /// When it is none of them.
    pub fn one_of<T: Copy>(&self, words: &[(&str, T)]) -> Result<T, ConfigError> {
        let text = self.text()?;
        words.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning).ok_or_else(|| {
            let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.wrong(&format!("\"{}\" is none of {}", text.escape_debug(), words.join(", ")))
        })
    }

    /// A duration: `"250ms"`, `"1m30s"`, or a number of seconds.
    ///
    /// # Errors
    ///
    /// When it is none.
    pub fn duration(&self) -> Result<Duration, ConfigError> {
        self.parsed(value::duration)
    }

    /// A duration for which 0 and `"off"` mean that there is no bound.
    ///
    /// # Errors
    ///
    /// When it is none.
    pub fn bound(&self) -> Result<Option<Duration>, ConfigError> {
        self.parsed(|text| if text == "off" { Ok(None) } else { value::bound(text).map(|bound| bound.0) })
    }
}

/// What a value is, with its article.
fn kind(value: &DeValue<'_>) -> String {
    let kind = value.type_str();
    let article = if kind.starts_with(['a', 'i']) { "an" } else { "a" };
    format!("{article} {kind}")
}

/// Levenshtein's distance: how many letters lie between what was written and what was meant.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.chars().count()]
}
