//! The claude CLI against a stand-in for its API, on a loopback that nobody else is on.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use pipewarden_tests::run::Run;
use pipewarden_tests::skip::{Need, skip, skipped};
use pipewarden_tests::stage::Stage;
use serde_json::Value;

use crate::{npm, script, unwanted};

/// One JSON object a line, which is what `--profile claude` reads.
pub(crate) const STREAM: [&str; 3] = ["--output-format", "stream-json", "--verbose"];

/// The CLI, as npm installs it.
pub(crate) struct Claude(PathBuf);

impl Claude {
    /// The CLI for a test, unless the test is not asked for or it cannot be had here: that is said.
    pub(crate) fn to_test(test: &str) -> Option<Claude> {
        if unwanted(test) || skip(test, &[Need::Root]) {
            return None;
        }
        let program = npm("claude-code", "@anthropic-ai/claude-code", "claude");
        if program.is_none() {
            skipped(test, "the claude CLI cannot be installed");
        }
        program.map(Claude)
    }

    /// Where it is.
    pub(crate) fn program(&self) -> &Path {
        &self.0
    }

    /// What it must find in its environment: a home of its own, and no wish for the internet.
    pub(crate) fn environment(stage: &Stage) -> [(&'static str, String); 4] {
        [
            ("HOME", stage.folder().display().to_string()),
            ("ANTHROPIC_API_KEY", "none".into()),
            ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1".into()),
            ("DISABLE_AUTOUPDATER", "1".into()),
        ]
    }

    /// A run that finds the stand-in as its API.
    pub(crate) fn answered<'a>(
        &self,
        run: Run<'a>,
        stage: &Stage,
        stand_in: impl IntoIterator<Item = &'a str>,
    ) -> Run<'a> {
        let run = run.wrapped_in(stands_in(stage)).wrapped_in(stand_in);
        Claude::environment(stage).into_iter().fold(run, |run, (name, value)| run.env(name, value))
    }
}

/// The words that a stand-in is started by. It keeps its book on the stage.
pub(crate) fn stands_in(stage: &Stage) -> Vec<OsString> {
    let words = ["unshare".into(), "--net".into(), "python3".into(), script("api_stand_in.py").into_os_string()];
    words.into_iter().chain(["--book".into(), stage.path("book").into_os_string()]).collect()
}

/// What the user had said by each request that reached the stand-in.
pub(crate) fn asked(stage: &Stage) -> Vec<Vec<String>> {
    let book = fs::read_to_string(stage.path("book")).unwrap_or_default();
    let turn = |line: &str| -> Vec<String> { serde_json::from_str(line).unwrap() };
    book.lines().map(turn).map(|said| said.into_iter().map(|text| text.trim().to_owned()).collect()).collect()
}

/// A message as `--input-format stream-json` takes it.
pub(crate) fn message(text: &str) -> String {
    serde_json::json!({"type": "user", "message": {"role": "user", "content": text}}).to_string()
}

/// The lines of an output, which all are JSON.
pub(crate) fn lines(output: &str) -> Vec<Value> {
    output.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}
