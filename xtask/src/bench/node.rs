//! A node: what it takes on a machine with thousands of processes, and whether it keeps up.

use std::ffi::CString;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::memory::status_kb;
use super::plan::Plan;
use super::table::Table;
use crate::process::Forked;

/// What it may take with [`PROCESSES`] processes that hold [`DESCRIPTORS`] descriptors on pipes.
const BUDGET_KB: u64 = 40 * 1024;
const PROCESSES: usize = 5000;
const DESCRIPTORS: usize = 100_000;
/// Programs a second that it is to keep up with.
const PROGRAMS: u64 = 10_000;

/// Measures, and says what came of it.
pub(crate) fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    println!("\nnode: the tracker of a whole machine");
    let folder = Folder::new()?;
    let program = folder.program()?;
    let seconds = Duration::from_secs(if plan.is_quick() { 1 } else { 5 });
    let alone = storm(&program, seconds)?;
    let mut node = match Node::start(plan, &folder.0) {
        Ok(node) => node,
        Err(error) => {
            println!("SKIPPED the node: {error:#}");
            return Ok(());
        }
    };
    aside(table, "a node from its start to watching", format!("{:.0} ms", node.took.as_secs_f64() * 1e3));

    let (lost, cpu) = (node.sum("pipewarden_events_lost_total")?, node.cpu()?);
    let watched = storm(&program, seconds)?;
    let share = (node.cpu()? - cpu).as_secs_f64() / seconds.as_secs_f64() * 100.0;
    let lost = node.sum("pipewarden_events_lost_total")? - lost;
    let measured = format!("{watched} ({alone} without it), {lost:.0} events lost, {share:.0} % of a core");
    println!("  programs started and ended a second: {measured}");
    let met = lost == 0.0 && watched >= PROGRAMS;
    table.promise("programs a second that a node keeps up with", measured, format!("{PROGRAMS}, none lost"), met);

    let crowd = crowd(if plan.is_quick() { PROCESSES / 10 } else { PROCESSES })?;
    let descriptors = crowd.len() * DESCRIPTORS / PROCESSES;
    node.wait_for(descriptors)?;
    let (began, cpu) = (Instant::now(), node.cpu()?);
    std::thread::sleep(seconds);
    let idle = (node.cpu()? - cpu).as_secs_f64() / began.elapsed().as_secs_f64() * 100.0;
    let (now, peak) = (status_kb(node.child.id(), "VmRSS")?, status_kb(node.child.id(), "VmHWM")?);
    let what = format!("a node's memory, {} processes with {descriptors} descriptors on pipes", crowd.len());
    println!("  {what}: {now} kB (peak {peak} kB); {idle:.1} % of a core");
    table.promise(what, format!("{now} kB"), format!("{BUDGET_KB} kB"), now <= BUDGET_KB);
    aside(table, "its share of a core then, with nothing to do", format!("{idle:.1} %"));
    node.end()
}

fn aside(table: &mut Table, what: &str, measured: String) {
    println!("  {what}: {measured}");
    table.aside(what, measured);
}

/// Idle processes, which all hold what this one does: as many descriptors on pipes as belong to them.
fn crowd(size: usize) -> Result<Forked> {
    let pipes = (0..DESCRIPTORS / PROCESSES / 2).map(|_| crate::process::pipe()).collect::<Result<Vec<_>>>()?;
    let mut crowd = Forked::default();
    for _ in 0..size {
        // SAFETY: pause(2) takes nothing.
        crowd.fork(|| while unsafe { libc::pause() } != 0 {})?;
    }
    drop(pipes);
    Ok(crowd)
}

/// How many programs a second are started and waited for, by as many threads as there are cores.
fn storm(program: &Path, time: Duration) -> Result<u64> {
    let program = CString::new(program.as_os_str().as_bytes())?;
    let (over, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let began = Instant::now();
    std::thread::scope(|scope| -> Result<()> {
        let work = || -> Result<()> {
            while !over.load(Ordering::Relaxed) {
                start_and_wait(&program)?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        let threads: Vec<_> = (0..std::thread::available_parallelism()?.get()).map(|_| scope.spawn(work)).collect();
        std::thread::sleep(time);
        over.store(true, Ordering::Relaxed);
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| bail!("a thread panicked")))
    })?;
    let seconds = began.elapsed().as_millis().max(1);
    Ok(u64::try_from(u128::from(count.into_inner()) * 1000 / seconds)?)
}

fn start_and_wait(program: &CString) -> Result<()> {
    let mut pid = 0;
    let arguments = [program.as_ptr().cast_mut(), std::ptr::null_mut()];
    let environment = [std::ptr::null_mut()];
    // SAFETY: C strings that live, and lists of them that end with a null pointer; no attributes.
    let error = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            program.as_ptr(),
            std::ptr::null(),
            std::ptr::null(),
            arguments.as_ptr(),
            environment.as_ptr(),
        )
    };
    ensure!(error == 0, "cannot start it: {}", std::io::Error::from_raw_os_error(error));
    let mut status = 0;
    // SAFETY: waits for the child just made; the status is ours.
    ensure!(unsafe { libc::waitpid(pid, &raw mut status, 0) } == pid, "it cannot be waited for");
    Ok(())
}

/// A folder of its own, which goes with the bench.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Folder> {
        let folder = std::env::temp_dir().join(format!("pipewarden-bench-node-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        Ok(Folder(folder))
    }

    /// The smallest program that ends: starting it costs what the kernel takes, and no more.
    fn program(&self) -> Result<PathBuf> {
        if cfg!(not(target_arch = "x86_64")) {
            return Ok("/bin/true".into());
        }
        let mut elf = Vec::from(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0");
        elf.extend((0x40_0078_u64).to_le_bytes()); // the entry, behind the two headers
        elf.extend((64_u64).to_le_bytes()); // where the program header is
        elf.extend([0; 12]); // no sections, no flags
        elf.extend([64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]); // sizes, and one program header
        elf.extend([1, 0, 0, 0, 5, 0, 0, 0]); // to be loaded, and run
        for word in [0, 0x40_0000, 0x40_0000, 0x81, 0x81, 0x1000_u64] {
            elf.extend(word.to_le_bytes());
        }
        elf.extend(b"\xb8\x3c\0\0\0\x31\xff\x0f\x05"); // _exit(0)
        let path = self.0.join("end");
        fs::write(&path, elf)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A node with a lock of its own.
struct Node {
    child: Child,
    http: String,
    took: Duration,
}

impl Node {
    fn start(plan: &Plan, folder: &Path) -> Result<Node> {
        let config = folder.join("node.toml");
        let at = |name: &str| folder.join(name).display().to_string();
        let (socket, audit) = (at("node.sock"), at("audit.jsonl"));
        let text =
            format!("[socket]\npath = \"{socket}\"\n[http]\nlisten = \"127.0.0.1:0\"\n[audit]\npath = \"{audit}\"\n");
        fs::write(&config, text)?;
        let script = "mount -t tmpfs none /run && exec \"$0\" node --config \"$1\"";
        let mut command = Command::new("unshare");
        command.args(["-m", "--propagation", "private", "sh", "-c", script]).arg(plan.program()).arg(&config);
        let began = Instant::now();
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let said = BufReader::new(child.stderr.take().context("it has no stderr")?);
        let (mut took, mut last) = (None, String::new());
        for line in said.lines() {
            last = line?;
            if last.contains("watching by") {
                took = Some(began.elapsed());
            }
            if let (Some(took), Some((_, http))) = (took, last.split_once("node: http://")) {
                let http = http.trim_end_matches("/metrics").to_owned();
                return Ok(Node { child, http, took });
            }
        }
        child.wait()?;
        bail!("{last}")
    }

    /// The sum of the samples whose names begin so.
    fn sum(&self, beginning: &str) -> Result<f64> {
        let mut stream = TcpStream::connect(&self.http)?;
        write!(stream, "GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let samples = text.lines().filter(|line| line.starts_with(beginning));
        Ok(samples.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum())
    }

    /// Until it knows of so many descriptors.
    fn wait_for(&self, descriptors: usize) -> Result<()> {
        let descriptors = f64::from(u32::try_from(descriptors)?);
        let until = Instant::now() + Duration::from_secs(60);
        while self.sum("pipewarden_map_entries{map=\"descriptors\"}")? < descriptors {
            ensure!(Instant::now() < until, "it does not see them");
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// The processor time that it took so far.
    fn cpu(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat.rsplit_once(") ").context("no stat")?.1.split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(Duration::from_millis(ticks * 10)) // USER_HZ is 100
    }

    fn end(&mut self) -> Result<()> {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(self.child.id())?), nix::sys::signal::SIGTERM)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
