//! An interactive bash on a terminal, played twice: with pipewarden in front of every command that
//! the user starts as `./w COMMAND`, and without. Nobody may be able to tell the screens apart.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::binaries::{UNDER_TEST, binary};
use crate::deadline::Deadline;
use crate::kernel;
use crate::run::copied;
use crate::stage::Stage;
use crate::terminal::{Guest, Screen, Terminal};

/// When the screen has settled after a step.
#[derive(Clone, Copy, Debug)]
pub enum Settled {
    /// The row with the cursor reads so, up to the cursor.
    At(&'static str),
    /// The screen shows this somewhere.
    Shows(&'static str),
    /// The screen shows this, and the pager waits for a key: one that comes while it still gets ready
    /// to wait would be answered after the next.
    Pages(&'static str),
    /// The row with the cursor reads so, and all of the job is stopped: who only is about to stop
    /// could still take the next key from the shell.
    Suspended(&'static str),
}
pub use Settled::{At, Pages, Shows, Suspended};

/// What the user does, and then waits for.
pub type Step = (Do, Settled);

/// What the user does.
#[derive(Clone, Copy, Debug)]
pub enum Do {
    /// Presses keys.
    Press(&'static str),
    /// Changes the size of the window to so many rows and columns.
    Resize(u16, u16),
}
pub use Do::{Press, Resize};

/// An interactive bash.
#[derive(Debug)]
pub struct Session<'a> {
    /// Where it sits.
    pub terminal: Terminal,
    /// The shell.
    pub shell: Guest,
    stage: &'a Stage,
}

impl<'a> Session<'a> {
    /// Starts one in the stage's folder. `./w` is pipewarden with these options, or nothing.
    ///
    /// # Panics
    ///
    /// When bash shows no prompt.
    #[must_use]
    pub fn start(stage: &'a Stage, options: Option<&[&str]>) -> Session<'a> {
        let wrapper = stage.path("w");
        let run = options.map(|options| format!("{} run {} -- ", binary(UNDER_TEST).display(), options.join(" ")));
        // exec: the shell's job is pipewarden itself, as if its name had been typed.
        let text = stage.path("w.text");
        std::fs::write(&text, format!("#!/bin/sh\nexec {}\"$@\"\n", run.unwrap_or_default())).unwrap();
        std::fs::set_permissions(&text, std::fs::Permissions::from_mode(0o755)).unwrap();
        copied(&text, &wrapper);
        std::fs::remove_file(text).unwrap();
        let terminal = Terminal::new();
        let mut command = Command::new("bash");
        command.args(["--noprofile", "--norc", "-i"]).current_dir(stage.folder()).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap()).envs([
            ("PS1", "\\#$ "),
            ("TERM", "xterm"),
            ("LC_ALL", "C"),
            ("BASH_SILENCE_DEPRECATION_WARNING", "1"),
        ]);
        // Nobody's history is touched, and lines are typed as they are read.
        command.env("HISTFILE", "/dev/null");
        stage.announced(&mut command);
        let shell = terminal.start(&mut command);
        let session = Session { terminal, shell, stage };
        session.settles(At("1$ "));
        session.step((Press("ulimit -c 0; bind 'set enable-bracketed-paste off'; clear\r"), At("2$ ")));
        session
    }

    /// Does something, and waits until the screen has settled; what it shows then.
    ///
    /// # Panics
    ///
    /// When it does not settle.
    #[must_use = "the screen is what is to be checked"]
    pub fn see(&self, step: Step) -> String {
        self.step(step);
        self.redacted(&self.terminal.screen())
    }

    /// Does something, and waits until the screen has settled.
    ///
    /// # Panics
    ///
    /// When it does not settle.
    pub fn step(&self, (what, settled): Step) {
        self.act(what);
        self.settles(settled);
    }

    fn act(&self, what: Do) {
        match what {
            Press(keys) => self.terminal.press(keys),
            Resize(rows, columns) => self.terminal.resize(rows, columns),
        }
    }

    fn settles(&self, settled: Settled) {
        if let Err(screen) = self.terminal.until(|screen| settled.is(screen)) {
            panic!("no {settled:?} on the screen:\n{screen}");
        }
        self.rests(settled);
    }

    /// What the screen does not show of having settled.
    fn rests(&self, settled: Settled) {
        let shell = self.shell.process.pid;
        let others = || kernel::session(shell).into_iter().filter(|pid| *pid != shell);
        let rests = || match settled {
            Pages(_) => others().any(|pid| kernel::reads_keys(pid, "less")),
            // The witness that tells signals to us from those to our group is stopped by none of them.
            Suspended(_) => others().all(|pid| {
                kernel::stat(pid, 3).is_none_or(|state| state == "T") || kernel::name(pid) == "pipewarden-mate"
            }),
            At(_) | Shows(_) => true,
        };
        assert!(Deadline::patient().until(rests), "{settled:?} does not come:\n{}", self.terminal.screen());
    }

    /// Without what differs between any two sessions: process ids and the folder's name.
    fn redacted(&self, screen: &str) -> String {
        let folder = self.stage.folder().to_str().unwrap();
        let lines: Vec<String> = screen
            .lines()
            .map(|line| match line.strip_prefix("[1] ") {
                Some(pid) if pid.bytes().all(|byte| byte.is_ascii_digit()) => "[1] PID".to_owned(),
                _ => line.replace(folder, "FOLDER"),
            })
            .collect();
        lines.join("\n")
    }
}

impl Settled {
    fn is(self, screen: &Screen<'_>) -> bool {
        match self {
            At(text) | Suspended(text) => screen.before_the_cursor() == text,
            Shows(text) | Pages(text) => screen.text().contains(text),
        }
    }
}

/// Plays a session with these options and without us, and compares what the user sees after every
/// step. Returns the screens.
///
/// # Panics
///
/// When they differ.
pub fn same_without_us(options: &[&str], prepare: impl Fn(&Stage), steps: &[Step]) -> Vec<String> {
    let bare_stage = Stage::new();
    prepare(&bare_stage);
    let bare = Session::start(&bare_stage, None);
    let expected: Vec<String> = steps.iter().map(|step| bare.see(*step)).collect();
    let stage = Stage::new();
    prepare(&stage);
    let session = Session::start(&stage, Some(options));
    for ((what, settled), expected) in steps.iter().zip(&expected) {
        session.act(*what);
        let same = session.terminal.until(|screen| session.redacted(&screen.text()) == *expected && settled.is(screen));
        if let Err(screen) = same {
            let screen = session.redacted(&screen);
            panic!("after {what:?} with pipewarden:\n{screen}\n--- without:\n{expected}");
        }
        session.rests(*settled);
    }
    expected
}

/// Overwrites the recordings instead of comparing with them.
const RECORD: &str = "PIPEWARDEN_RECORD";

/// Compares a session with its recording in `docs/sessions`: what was done, and the screen after it.
///
/// # Panics
///
/// When they differ.
pub fn is_as_recorded(name: &str, steps: &[Step], screens: &[String]) {
    let mut text = String::new();
    for ((what, _), screen) in steps.iter().zip(screens) {
        let _ = match what {
            Press(keys) => writeln!(text, "=== the user presses {keys:?}"),
            Resize(rows, columns) => writeln!(text, "=== the user resizes the window to {columns}x{rows}"),
        };
        let _ = writeln!(text, "{screen}");
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/sessions/").to_owned() + name;
    if std::env::var_os(RECORD).is_some() {
        std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/sessions")).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let recorded = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, recorded, "not as in {path}; {RECORD}=1 records it anew");
}
