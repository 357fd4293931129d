//! A node that is started in the image's files, as a container runtime would start it: a root of its own that
//! cannot be written to, and the mounts of `deploy/daemonset.yaml`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::output;
use crate::process::{finish, wait_for};
use crate::workspace::root;

/// Until it says that it watches: on a busy machine its programs take a while to be verified.
const PATIENCE: Duration = Duration::from_secs(120);
/// From SIGTERM to its exit.
const END: Duration = Duration::from_secs(30);

/// `$1` is where the root comes to be, `$2` what is in it, `$3` the configuration, `$4` where the log goes; then the
/// command. All mounts are this process's alone.
const BEGIN: &str = r#"
root=$1; rootfs=$2; config=$3; log=$4; shift 4
mount -t tmpfs -o size=64m none "$root"
cp -R "$rootfs/." "$root"
mkdir -p "$root/dev" "$root/proc" "$root/sys" "$root/etc/pipewarden" "$root/run/pipewarden" "$root/var/log/pipewarden"
cp "$config" "$root/etc/pipewarden/node.toml"
mount --rbind /dev "$root/dev"
mount --rbind /proc "$root/proc"
mount --rbind /sys "$root/sys"
mount -t tmpfs none "$root/run/pipewarden"
mount --bind "$log" "$root/var/log/pipewarden"
mount -o remount,ro "$root"
exec chroot "$root" "$@"
"#;

/// Asks it for its version, has it check the DaemonSet's configuration, and starts a node with that.
pub(super) fn try_it(rootfs: &Path, entrypoint: &[String], image: &Path) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED the start of a node in the image: it needs root");
        return Ok(());
    }
    let config = image.join("node.toml");
    fs::write(&config, configuration()?)?;
    for folder in ["started", "log"] {
        let folder = image.join(folder);
        let _ = fs::remove_dir_all(&folder); // the log of the time before
        fs::create_dir_all(folder)?;
    }
    let inside = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec", BEGIN, "sh"]);
        command.args([&image.join("started"), rootfs, &config, &image.join("log")]).args(entrypoint).args(arguments);
        command.stdin(Stdio::null());
        command
    };
    let version = output(&mut inside(&["--version"]))?;
    let checked = output(&mut inside(&["node", "--check", "--config", "/etc/pipewarden/node.toml"]))?;
    println!("in it: {}; node.toml of the DaemonSet: {}", version.trim(), checked.trim());

    let mut node = inside(&["node", "--config", "/etc/pipewarden/node.toml"]);
    let mut node = node.stderr(Stdio::piped()).spawn().context("cannot start unshare")?;
    let said = until_it_watches(&mut node);
    // Our own child, and not waited for: its pid is still its own.
    kill(Pid::from_raw(i32::try_from(node.id())?), Signal::SIGTERM)?;
    let status = finish(&mut node, END)?;
    match said? {
        Said::Watches(line) => {
            ensure!(status.success(), "the node in the image ended with {status} when it was told to end");
            println!("in it: {line}; ended by SIGTERM");
        }
        Said::NoRung(line) => {
            let outside =
                output(Command::new(rootfs.join(entrypoint[0].trim_start_matches('/'))).args(["doctor", "--json"]))?;
            ensure!(!has_rung(&outside)?, "a rung of bpf works here, and not in the image: {line}");
            println!("SKIPPED the start of a node in the image: {line}");
        }
    }
    Ok(())
}

enum Said {
    Watches(String),
    NoRung(String),
}

/// Whether what doctor says has a rung of bpf that is usable.
fn has_rung(doctor: &str) -> Result<bool> {
    let said: serde_json::Value = serde_json::from_str(doctor).context("doctor --json is no JSON")?;
    let rungs = said["rungs"].as_array().context("doctor names no rungs")?;
    let is_bpf = |rung: &serde_json::Value| rung["name"].as_str().is_some_and(|name| name.starts_with("bpf-"));
    Ok(rungs.iter().any(|rung| is_bpf(rung) && rung["usable"] == true))
}

/// Reads what it says until it watches, or is no more.
fn until_it_watches(node: &mut Child) -> Result<Said> {
    let deadline = Instant::now() + PATIENCE;
    let mut lines = BufReader::new(node.stderr.take().context("its stderr is not ours")?);
    let mut all = String::new();
    loop {
        if lines.buffer().is_empty() && !wait_for(&[lines.get_ref().as_fd()], deadline)?[0] {
            bail!("the node in the image does not watch after {PATIENCE:?}: {all}");
        }
        let mut line = String::new();
        if lines.read_line(&mut line)? == 0 {
            bail!("the node in the image ended before it watched: {all}");
        }
        let line = line.trim().trim_start_matches("pipewarden: ").to_owned();
        if line.contains("watching by ") {
            // What it says later must not meet a broken pipe.
            std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
            return Ok(Said::Watches(line));
        }
        if line.ends_with("see pipewarden doctor") {
            return Ok(Said::NoRung(line));
        }
        all.push_str(&line);
        all.push('\n');
    }
}

/// The DaemonSet's `node.toml`, at any port: the usual one may be another's here.
fn configuration() -> Result<String> {
    let path = root().join("deploy/daemonset.yaml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let (_, block) = text.split_once("  node.toml: |\n").context("deploy/daemonset.yaml has no node.toml")?;
    let lines = block.lines().take_while(|line| line.is_empty() || line.starts_with("    "));
    let toml: String = lines.map(|line| format!("{}\n", line.trim_start_matches("    "))).collect();
    ensure!(toml.contains("listen = \"127.0.0.1:9477\"\n"), "node.toml of the DaemonSet listens elsewhere");
    Ok(toml.replace("listen = \"127.0.0.1:9477\"\n", "listen = \"127.0.0.1:0\"\n"))
}
