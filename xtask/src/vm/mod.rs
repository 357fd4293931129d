//! `cargo xtask vm`: the checks on every kernel that we know of, and on machines without something.

mod apt;
mod checks;
mod initramfs;
mod machine;
mod rows;
mod verdict;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use self::checks::{Built, HARNESSES, Harness, Programs};
use self::initramfs::Initramfs;
use self::machine::{Kernel, Qemu, Store};
use self::rows::{Place, ROWS, Row};
use self::verdict::{Outcome, Told};
use crate::command::output;
use crate::test::FORGIVEN;
use crate::workspace::target;

/// Run the checks on other kernels (in virtual machines), and here with something taken away.
///
/// Debian's kernels and qemu come from this machine's own mirrors, are unpacked below the build
/// folder, and kept there: nothing is installed. `--update` looks for newer ones.
#[derive(clap::Args)]
pub(crate) struct Vm {
    /// Rows to run; all of them if none is named.
    #[arg(value_name = "KERNEL", value_parser = ROWS.iter().map(|row| row.name).collect::<Vec<_>>())]
    rows: Vec<String>,
    /// Only these checks. Without it, those that a row has in an ordinary run.
    #[arg(long, value_name = "CHECK", value_parser = HARNESSES.iter().map(|harness| harness.name).collect::<Vec<_>>())]
    only: Vec<String>,
    /// All checks, and all tests of each, which takes hours. How many operations the oracle takes by chance is said by
    /// PIPEWARDEN_ORACLE_OPERATIONS.
    #[arg(long)]
    long: bool,
    /// Boot one kernel with a shell on this terminal instead; the programs are in /bin.
    #[arg(long)]
    shell: bool,
    /// Forget the kernels and qemu that were downloaded before.
    #[arg(long)]
    update: bool,
}

impl Vm {
    pub(crate) fn run(self) -> Result<()> {
        let folder = target().join("vm-cache");
        if self.update && folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        let rows: Vec<&Row> =
            ROWS.iter().filter(|row| self.rows.is_empty() || self.rows.iter().any(|name| name == row.name)).collect();
        let harnesses: Vec<&'static Harness> = HARNESSES
            .iter()
            .filter(|harness| self.only.is_empty() || self.only.iter().any(|name| name == harness.name))
            .collect();
        let operations = std::env::var(checks::OPERATIONS).ok();
        let mut steps = Steps::default();
        let built = steps.time("build", || checks::build(&harnesses))?;
        let mut store = Store::at(folder.clone())?;
        let mut kernels = BTreeMap::new();
        let qemu = steps.time("qemu", || store.qemu())?;
        let busybox = steps.time("busybox", || store.busybox())?;
        let bash = steps.time("bash", || store.bash())?;
        for row in &rows {
            if let Place::Machine { series, .. } = row.place
                && !kernels.contains_key(series)
            {
                kernels.insert(series, steps.time(&format!("kernel {series}"), || store.kernel(series))?);
            }
        }
        let content = Content {
            built: &built,
            busybox: &busybox,
            bash: &bash,
            harnesses: &harnesses,
            by_name: !self.only.is_empty(),
            long: self.long,
            operations: operations.as_deref(),
            shell: self.shell,
        };
        if self.shell {
            return shell(&qemu, &kernels, &rows, &content, &folder);
        }
        println!("{}", qemu.version()?);
        let all = Instant::now();
        let outcomes = run_all(&rows, &|row| {
            let run = || run_row(row, &qemu, &kernels, &content, &folder);
            // Who asks for proof is forgiven nothing.
            if content.is_ordinary() { or_once_more(run) } else { run() }
        });
        verdict::print(&outcomes);
        println!("{steps}all rows: {:.1} s", all.elapsed().as_secs_f64());
        let failed: Vec<&str> = outcomes.iter().filter(|outcome| outcome.failed()).map(|outcome| outcome.row).collect();
        ensure!(failed.is_empty(), "failed: {} (logs in {})", failed.join(", "), folder.display());
        Ok(())
    }
}

/// How long each step took.
#[derive(Default)]
struct Steps(Vec<(String, f64)>);

impl Steps {
    fn time<T>(&mut self, name: &str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        let started = Instant::now();
        let result = step().with_context(|| format!("{name} failed"))?;
        self.0.push((name.to_owned(), started.elapsed().as_secs_f64()));
        Ok(result)
    }
}

impl std::fmt::Display for Steps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|(name, seconds)| write!(f, "{name}: {seconds:.1} s; "))
    }
}

/// A row in which checks fail is run once more, as `cargo xtask test` does with tests, and for as few; what failed is
/// told.
fn or_once_more(run: impl Fn() -> Outcome) -> Outcome {
    let first = run();
    if first.broken.is_some() || !(1..=FORGIVEN).contains(&first.failures().count()) {
        return first;
    }
    let mut second = run();
    if second.failed() {
        return first;
    }
    second.seconds += first.seconds;
    for (check, said) in first.failures() {
        println!("FLAKY {}: {check}: failed, then passed; when it failed, it said:\n{said}\n", first.row);
    }
    second
}

/// Side by side, one for each processor; the outcomes in the table's order.
fn run_all(rows: &[&'static Row], run: &(dyn Fn(&'static Row) -> Outcome + Sync)) -> Vec<Outcome> {
    let waiting = Mutex::new(rows.iter().enumerate().rev().collect::<Vec<_>>());
    let done = Mutex::new(BTreeMap::new());
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    // Its own statement: the lock must not be held while the row runs.
                    let next = lock(&waiting).pop();
                    let Some((index, row)) = next else { break };
                    let outcome = run(row);
                    lock(&done).insert(index, outcome);
                }
            });
        }
    });
    std::mem::take(&mut *lock(&done)).into_values().collect()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What machines are made of.
struct Content<'a> {
    built: &'a Built,
    /// Their shell, and the programs that tests call by its mouth.
    busybox: &'a Path,
    bash: &'a Path,
    /// What was asked for.
    harnesses: &'a [&'static Harness],
    /// Whether they were named.
    by_name: bool,
    long: bool,
    /// What was said of the oracle, if anything was.
    operations: Option<&'a str>,
    /// For a person, instead of the checks.
    shell: bool,
}

impl Content<'_> {
    /// What is checked on a row.
    fn harnesses_of(&self, row: &Row) -> impl Iterator<Item = &'static Harness> {
        let reach = if self.long || self.by_name { row.most } else { row.reach };
        self.harnesses.iter().copied().filter(move |harness| harness.reach <= reach)
    }

    /// What the tests of a harness are told beside what all are.
    fn environment_of(&self, harness: &Harness) -> Vec<(&'static str, String)> {
        let said = |name: &str| self.operations.filter(|_| name == checks::OPERATIONS);
        harness.environment.iter().map(|(name, value)| (*name, said(name).unwrap_or(value).to_owned())).collect()
    }

    /// Whether nobody said what was to be run, or how much of it.
    fn is_ordinary(&self) -> bool {
        !self.by_name && !self.long && self.operations.is_none()
    }

    /// A machine that is not off by then hangs.
    fn time_limit(&self) -> Duration {
        let minutes = if self.long || self.operations.is_some() { 6 * 60 } else { 30 };
        Duration::from_secs(60 * minutes)
    }
}

fn run_row(
    row: &'static Row,
    qemu: &Qemu,
    kernels: &BTreeMap<&str, Kernel>,
    content: &Content<'_>,
    folder: &Path,
) -> Outcome {
    let started = Instant::now();
    let result = match &row.place {
        Place::Machine { series, words } => in_machine(row, qemu, &kernels[series], words, content, folder),
        Place::Here(wrapper) => here(row, *wrapper, content),
    };
    let seconds = started.elapsed().as_secs_f64();
    match result {
        Ok(told) => Outcome { row: row.name, seconds, told, broken: None },
        Err(error) => Outcome { row: row.name, seconds, told: Told::default(), broken: Some(format!("{error:#}")) },
    }
}

fn in_machine(
    row: &Row,
    qemu: &Qemu,
    kernel: &Kernel,
    words: &str,
    content: &Content<'_>,
    folder: &Path,
) -> Result<Told> {
    let path = folder.join(format!("{}.cpio", row.name));
    fs::write(&path, root_of(row, kernel, content)?)?;
    let log = folder.join(format!("{}.log", row.name));
    let said = qemu.run(kernel, &path, words, &log, content.time_limit())?;
    ensure!(said.contains("@@DONE"), "the machine ended before its checks did: see {}", log.display());
    let release = said.lines().find_map(|line| line.strip_prefix("@@KERNEL ")).context("no @@KERNEL")?;
    let mut told = Told { kernel: release.to_owned(), ..Told::default() };
    for harness in content.harnesses_of(row) {
        let part = between(&said, harness.name).with_context(|| format!("nothing from {}", harness.name))?;
        told.take(harness.name, part);
    }
    if told.verdicts.values().all(|verdict| !matches!(verdict, verdict::Verdict::Failed(_))) {
        // Kept where something failed.
        fs::remove_file(&log)?;
    }
    fs::remove_file(&path)?;
    Ok(told)
}

/// What stands between a harness's marks.
fn between<'a>(said: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = said.split_once(&format!("@@BEGIN {name}\n"))?;
    rest.split_once(&format!("@@END {name} ")).map(|(part, _)| part)
}

/// The root file system of a machine.
fn root_of(row: &Row, kernel: &Kernel, content: &Content<'_>) -> Result<Vec<u8>> {
    let built = content.built;
    let mut archive = Initramfs::default();
    for folder in ["dev", "proc", "sys", "tmp", "run", "bin", "etc"] {
        archive.folder(folder);
    }
    archive.device("dev/console", 5, 1);
    archive.file("bin/busybox", &fs::read(content.busybox)?);
    for applet in output(Command::new(content.busybox).arg("--list"))?.lines().filter(|applet| *applet != "busybox") {
        archive.link(&format!("bin/{applet}"), "busybox");
    }
    archive.file("bin/bash", &fs::read(content.bash)?);
    let needed = |name: &str| {
        content.shell
            || content.harnesses_of(row).any(|harness| match harness.programs {
                Programs::All => true,
                Programs::These(names) => names.contains(&name),
            })
    };
    for (name, path) in built.programs.iter().filter(|(name, _)| needed(name)) {
        archive.file(&format!("bin/{name}"), &fs::read(path)?);
    }
    let mut jobs = String::new();
    let mut paths: Vec<&PathBuf> = Vec::new();
    for harness in content.harnesses_of(row) {
        let path = built.harnesses.get(harness.name).context("a check that was not built")?;
        let known = paths.iter().position(|known| *known == path);
        let number = known.unwrap_or(paths.len());
        if known.is_none() {
            archive.file(&format!("bin/tests-{number}"), &fs::read(path)?);
            paths.push(path);
        }
        let environment = content.environment_of(harness);
        let words = environment.iter().map(|(name, value)| format!("{name}={value}"));
        let arguments = harness.arguments(content.long).into_iter().map(str::to_owned);
        let words: Vec<String> = words.chain([format!("/bin/tests-{number}")]).chain(arguments).collect();
        jobs += &format!("{} {}\n", harness.name, words.join(" "));
    }
    if content.shell {
        jobs = "shell /bin/sh\n".into();
    }
    archive.file("init", &fs::read(built.programs.get("vm_init").context("no vm_init")?)?);
    archive.file("kernel-config", &fs::read(&kernel.config)?);
    let environment: String = environment(row, Path::new("/bin"), Path::new("/kernel-config"))
        .iter()
        .map(|(name, value)| format!("{name}={value}\n"))
        .collect();
    archive.file("environment", environment.as_bytes());
    archive.file("jobs", jobs.as_bytes());
    Ok(archive.finish())
}

/// What tests are told: where the programs are, what this kernel was built with, what must be usable.
fn environment(row: &Row, programs: &Path, config: &Path) -> Vec<(&'static str, String)> {
    vec![
        ("PATH", "/bin:/usr/bin:/sbin:/usr/sbin".into()),
        ("RUST_BACKTRACE", "0".into()),
        ("PIPEWARDEN_TEST_BIN_DIR", programs.display().to_string()),
        ("PIPEWARDEN_TEST_KERNEL_CONFIG", config.display().to_string()),
        ("PIPEWARDEN_TEST_USABLE", row.usable.join(",")),
        ("PIPEWARDEN_TEST_UNUSABLE", row.unusable.join(",")),
    ]
}

fn here(row: &Row, wrapper: fn(&Path) -> Command, content: &Content<'_>) -> Result<Told> {
    let programs = checks::folder_of(content.built).context("no programs were built")?;
    let kernel = output(Command::new("uname").arg("-r"))?.trim().to_owned();
    let mut told = Told { kernel, ..Told::default() };
    for harness in content.harnesses_of(row) {
        let path = content.built.harnesses.get(harness.name).context("a check that was not built")?;
        let mut command = wrapper(path);
        command.args(harness.arguments(content.long)).stdin(Stdio::null());
        command.envs(content.environment_of(harness));
        command.envs(environment(row, programs, Path::new("/proc/config.gz")));
        let (mut reader, writer) = std::io::pipe()?;
        command.stdout(writer.try_clone()?).stderr(writer);
        let mut child = command.spawn().with_context(|| format!("cannot start {}", row.name))?;
        drop(command); // its copies of the pipe's write end
        let mut said = String::new();
        reader.read_to_string(&mut said)?;
        let status = child.wait()?;
        ensure!(told.take(harness.name, &said) > 0, "{} {status}: {}", harness.name, said.trim());
    }
    Ok(told)
}

fn shell(
    qemu: &Qemu,
    kernels: &BTreeMap<&str, Kernel>,
    rows: &[&Row],
    content: &Content<'_>,
    folder: &Path,
) -> Result<()> {
    let [row] = rows else { bail!("name the one kernel to boot, such as 6.12") };
    let Place::Machine { series, words } = &row.place else { bail!("{} is this machine: it has a shell", row.name) };
    let path = folder.join(format!("shell-{}.cpio", row.name));
    fs::write(&path, root_of(row, &kernels[series], content)?)?;
    qemu.shell(&kernels[series], &path, words)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::verdict::Verdict;
    use super::*;

    /// A row whose runs come to these, one after the other, in so many checks; how many runs there were, and whether
    /// it failed.
    fn of(checks: usize, runs: &[Verdict]) -> (usize, bool) {
        let number = Cell::new(0);
        let outcome = or_once_more(|| {
            let verdict = &runs[number.replace(number.get() + 1)];
            let verdicts = (0..checks).map(|check| (format!("check {check}"), verdict.clone())).collect();
            Outcome { row: "row", seconds: 1.0, told: Told { verdicts, ..Told::default() }, broken: None }
        });
        (number.get(), outcome.failed())
    }

    #[test]
    fn a_row_that_fails_is_run_once_more() {
        let failed = || Verdict::Failed("no".into());
        assert_eq!(of(1, &[Verdict::Ok]), (1, false));
        assert_eq!(of(1, &[failed(), Verdict::Ok]), (2, false));
        assert_eq!(of(1, &[failed(), failed()]), (2, true));
        assert_eq!(of(FORGIVEN + 1, &[failed(), Verdict::Ok]), (1, true), "so many are no accident");
    }
}
