//! The manifests of `deploy/`, as data.

use std::fs;
use std::ops::Index;
use std::path::{Path, PathBuf};

use yaml_rust2::{Yaml, YamlLoader};

/// A file of `deploy/`.
#[must_use]
pub fn deploy(name: &str) -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap().join("deploy").join(name)
}

/// The text of a file of `deploy/`.
#[must_use]
pub fn text(name: &str) -> String {
    let path = deploy(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A resource, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part<'a>(&'a Yaml);

/// All resources of a file.
#[derive(Debug)]
pub struct Resources(Vec<Yaml>);

impl Resources {
    /// Reads a file of `deploy/`.
    #[must_use]
    pub fn of(name: &str) -> Resources {
        Resources(YamlLoader::load_from_str(&text(name)).unwrap())
    }

    /// The only one of a kind.
    #[must_use]
    pub fn kind(&self, kind: &str) -> Part<'_> {
        let mut found = self.0.iter().filter(|resource| resource["kind"].as_str() == Some(kind));
        let one = found.next().unwrap_or_else(|| panic!("there is no {kind}"));
        assert!(found.next().is_none(), "there is more than one {kind}");
        Part(one)
    }
}

impl<'a> Part<'a> {
    /// What is below a key, or further down: `spec.template`.
    #[must_use]
    pub fn at(self, path: &str) -> Part<'a> {
        Part(path.split('.').fold(self.0, |part, key| part.index(key)))
    }

    /// Whether there is nothing here.
    #[must_use]
    pub fn is_absent(self) -> bool {
        self.0.is_badvalue()
    }

    /// Its text.
    #[must_use]
    pub fn text(self) -> &'a str {
        self.0.as_str().unwrap_or_else(|| panic!("{:?} is no text", self.0))
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> i64 {
        self.0.as_i64().unwrap_or_else(|| panic!("{:?} is no number", self.0))
    }

    /// Whether it is `true`.
    #[must_use]
    pub fn is_true(self) -> bool {
        self.0.as_bool() == Some(true)
    }

    /// Whether it is `false`.
    #[must_use]
    pub fn is_false(self) -> bool {
        self.0.as_bool() == Some(false)
    }

    /// Its items.
    #[must_use]
    pub fn items(self) -> Vec<Part<'a>> {
        self.0.as_vec().unwrap_or_else(|| panic!("{:?} is no list", self.0)).iter().map(Part).collect()
    }

    /// Its items' texts.
    #[must_use]
    pub fn texts(self) -> Vec<&'a str> {
        self.items().into_iter().map(Part::text).collect()
    }

    /// Its keys, and what they have.
    #[must_use]
    pub fn entries(self) -> Vec<(&'a str, Part<'a>)> {
        let entries = self.0.as_hash().unwrap_or_else(|| panic!("{:?} has no keys", self.0));
        entries.iter().map(|(key, value)| (key.as_str().unwrap(), Part(value))).collect()
    }

    /// The item of this name.
    #[must_use]
    pub fn named(self, name: &str) -> Part<'a> {
        let is = |item: &Part<'_>| item.at("name").text() == name;
        self.items().into_iter().find(is).unwrap_or_else(|| panic!("nothing is named {name}"))
    }
}
