//! `pipewarden doctor` says what is: compared with what the kernel, its configuration and the one who
//! made this machine say, none of it asked through pipewarden's code.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on says so by panicking"
)]

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::FromRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};
use std::sync::OnceLock;

use pipewarden_tests::binaries::{UNDER_TEST, binary};
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::fixture::GATE;
use pipewarden_tests::log::Log;
use pipewarden_tests::run::Run;
use pipewarden_tests::skip::skipped;
use pipewarden_tests::stage::Stage;
use serde_json::Value;

/// What this machine was made to be: rungs that must be usable, and rungs that must not.
const USABLE: &str = "PIPEWARDEN_TEST_USABLE";
const UNUSABLE: &str = "PIPEWARDEN_TEST_UNUSABLE";
/// The running kernel's configuration, plain or as the kernel gives it.
const CONFIG: &str = "PIPEWARDEN_TEST_KERNEL_CONFIG";

struct Report(Value);

impl Report {
    fn of(output: &Output) -> Report {
        assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        let text = std::str::from_utf8(&output.stdout).unwrap();
        assert_eq!(text.trim_end().lines().count(), 1, "one JSON object on one line");
        Report(serde_json::from_str(text).unwrap())
    }

    /// One examination for all tests that take the machine as it is.
    fn here() -> &'static Report {
        static HERE: OnceLock<Report> = OnceLock::new();
        HERE.get_or_init(Report::afresh)
    }

    fn afresh() -> Report {
        Report::of(&doctor(&["--json"]).output().unwrap())
    }

    fn rungs(&self) -> BTreeMap<String, bool> {
        let rungs = self.0["rungs"].as_array().unwrap();
        rungs.iter().map(|rung| (text(&rung["name"]), rung["usable"].as_bool().unwrap())).collect()
    }

    fn rung(&self, name: &str) -> &Value {
        let rungs = self.0["rungs"].as_array().unwrap();
        rungs.iter().find(|rung| rung["name"] == name).unwrap_or_else(|| panic!("no rung {name}"))
    }

    fn has(&self, feature: &str) -> bool {
        let features = self.0["features"].as_array().unwrap();
        let found = features.iter().find(|found| found["name"] == feature);
        found.unwrap_or_else(|| panic!("no feature {feature}"))["available"].as_bool().unwrap()
    }
}

fn doctor(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary(UNDER_TEST));
    command.arg("doctor").args(arguments);
    command
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

fn list(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(text).collect()
}

/// The kernel's version as numbers.
fn version() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

fn in_initial_pid_namespace() -> bool {
    fs::read_link("/proc/self/ns/pid").unwrap().to_str() == Some("pid:[4026531836]")
}

/// What the kernel was built with, if we may know.
fn configuration() -> Option<String> {
    let path = std::env::var(CONFIG).unwrap_or_else(|_| "/proc/config.gz".into());
    if path.ends_with(".gz") {
        let output = Command::new("zcat").arg(&path).output().ok()?;
        return output.status.success().then(|| String::from_utf8(output.stdout).unwrap());
    }
    fs::read_to_string(path).ok()
}

#[test]
fn the_report_has_the_promised_shape() {
    let report = Report::here();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(report.0["kernel"], release.trim());
    let names: Vec<String> = report.0["rungs"].as_array().unwrap().iter().map(|rung| text(&rung["name"])).collect();
    assert_eq!(names, ["bpf-fentry", "bpf-kprobe", "bpf-tracepoint", "connector", "proc", "node"]);
    for rung in report.0["rungs"].as_array().unwrap() {
        assert!(!text(&rung["reason"]).is_empty(), "{rung}");
        assert!(!text(&rung["reason"]).contains('\n'), "one line: {rung}");
    }
}

/// What a run of a command that stays says it used, at first or (with `later`) for good.
fn picked_by_run(later: bool) -> String {
    let stage = Stage::new();
    let log = Log::on(&stage);
    stage.hold(GATE);
    let run = Run::on(&stage).options(["--backend", "auto"]).options(log.options());
    let run = run.fixture("just_exit", ["--gate"]).start();
    let what = if later { "word about the live map" } else { "word about the connector" };
    let _ = log.wait(what, |record| {
        let event = record["event"].as_str().unwrap_or_default();
        let detail = &record["detail"];
        let of_the_map = text_of(&detail["backend"]) == "bpf" || text_of(&detail["from"]).starts_with("bpf");
        event.starts_with("tracker.") && (!later || of_the_map)
    });
    stage.release(GATE);
    let report = run.end().report();
    if report.rung == report.backend { report.rung } else { format!("{}+{}", report.backend, report.rung) }
}

#[test]
fn what_it_says_that_run_picks_is_what_run_reports() {
    // Between the two, somebody else may begin or cease to listen.
    let mut said = (Value::Null, String::new());
    let agree = Deadline::patient().until(|| {
        let report = Report::afresh();
        said = (report.0["auto"].clone(), picked_by_run(false));
        for rung in report.0["rungs"].as_array().unwrap() {
            let used =
                text(&said.0).split('+').any(|part| rung["name"] == part) || rung["name"] == report.0["auto_later"];
            assert_eq!(rung["used_by_run"], used, "{rung}");
        }
        said.0 == said.1
    });
    assert!(agree, "{said:?}");
}

#[test]
fn what_it_says_that_run_changes_to_is_what_run_reports() {
    let test = "what_it_says_that_run_changes_to_is_what_run_reports";
    // Between the two, somebody else may begin or cease to carry the machine's tracker.
    let mut said = (Value::Null, String::new());
    let agree = Deadline::patient().until(|| {
        let report = Report::afresh();
        if report.0["rungs"]
            .as_array()
            .unwrap()
            .iter()
            .all(|rung| rung["usable"] == false || !text(&rung["name"]).starts_with("bpf-"))
        {
            skipped(test, "no rung of bpf works here");
            return true;
        }
        if report.0["auto_later"].is_null() {
            return false; // another test's run carries it
        }
        said = (report.0["auto_later"].clone(), picked_by_run(true));
        said.0 == said.1.trim_start_matches("bpf+")
    });
    assert!(agree, "{said:?}");
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[test]
fn rungs_are_usable_as_this_machine_was_made() {
    let (Ok(usable), Ok(unusable)) = (std::env::var(USABLE), std::env::var(UNUSABLE)) else {
        return skipped("rungs_are_usable_as_this_machine_was_made", "it needs a machine of the matrix");
    };
    let report = Report::here();
    let rungs = report.rungs();
    let names = |list: &str| list.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    for (name, expected) in names(&usable)
        .into_iter()
        .map(|name| (name, true))
        .chain(names(&unusable).into_iter().map(|name| (name, false)))
    {
        assert_eq!(rungs.get(&name), Some(&expected), "{}", report.rung(&name));
    }
}

#[test]
fn security_modules_and_lockdown_are_what_the_kernel_says() {
    let report = Report::here();
    let Ok(modules) = fs::read_to_string("/sys/kernel/security/lsm") else {
        return skipped("security_modules_and_lockdown_are_what_the_kernel_says", "it needs securityfs mounted");
    };
    assert_eq!(list(&report.0["lsm"]), modules.trim().split(',').collect::<Vec<_>>());
    let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_else(|_| "[none]".into());
    assert!(lockdown.contains(&format!("[{}]", text(&report.0["lockdown"]))), "{lockdown}");
    let asked = fs::read_to_string("/proc/cmdline").unwrap();
    if asked.contains("lockdown=confidentiality") {
        assert_eq!(report.0["lockdown"], "confidentiality");
        let rung = report.rung("bpf-tracepoint");
        assert!(text(&rung["reason"]).contains("lockdown=confidentiality"), "{rung}");
        assert!(!list(&rung["verifier"]).is_empty(), "the verifier's last lines: {rung}");
        assert!(report.has("snapshot"), "iterators read nothing by address");
        assert!(text(&report.0["advice"]["why"]).contains("lockdown=confidentiality"));
    }
}

#[test]
fn capabilities_are_those_that_the_kernel_gives_us() {
    // capget(2), two halves of (effective, permitted, inheritable).
    let header = [0x2008_0522_u32, 0];
    let mut sets = [0_u32; 6];
    // SAFETY: header and data are as large as this version says, and alive for the call.
    let asked = unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) };
    assert_eq!(asked, 0);
    let effective = u64::from(sets[0]) | u64::from(sets[3]) << 32;
    let report = Report::here();
    let said = list(&report.0["capabilities"]["effective"]);
    assert_eq!(said.len(), effective.count_ones() as usize, "{said:?} for {effective:x}");
    for (number, name) in [(39, "CAP_BPF"), (38, "CAP_PERFMON"), (12, "CAP_NET_ADMIN"), (24, "CAP_SYS_RESOURCE")] {
        assert_eq!(said.iter().any(|said| said == name), effective >> number & 1 == 1, "{name} in {effective:x}");
    }
}

#[test]
fn what_the_kernel_was_not_built_with_is_not_usable() {
    let Some(config) = configuration() else {
        return skipped("what_the_kernel_was_not_built_with_is_not_usable", "it needs the kernel's configuration");
    };
    let built_in = |name: &str| config.lines().any(|line| line == format!("{name}=y"));
    let report = Report::here();
    let rungs = report.rungs();
    for (option, rung) in [
        ("CONFIG_KPROBES", "bpf-kprobe"),
        ("CONFIG_BPF_EVENTS", "bpf-tracepoint"),
        ("CONFIG_DEBUG_INFO_BTF", "bpf-fentry"),
        ("CONFIG_PROC_EVENTS", "connector"),
        ("CONFIG_PROC_CHILDREN", "proc"),
    ] {
        assert!(built_in(option) || !rungs[rung], "{option}: {}", report.rung(rung));
    }
    if !built_in("CONFIG_KPROBES") && rungs["bpf-tracepoint"] {
        assert!(text(&report.rung("bpf-kprobe")["reason"]).contains("CONFIG_KPROBES"));
    }
    assert_eq!(report.has("proc_children"), built_in("CONFIG_PROC_CHILDREN"));
    assert_eq!(report.has("kcmp"), built_in("CONFIG_KCMP") || built_in("CONFIG_CHECKPOINT_RESTORE"));
    assert_eq!(report.0["btf"]["present"], fs::metadata("/sys/kernel/btf/vmlinux").is_ok());
}

#[test]
fn features_came_with_the_kernels_that_brought_them() {
    let report = Report::here();
    for (feature, since) in [("scm_fds", (5, 6)), ("so_peerpidfd", (6, 5)), ("pidfd_signal_process_group", (6, 9))] {
        assert_eq!(report.has(feature), version() >= since, "{feature} on {:?}", version());
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let cgroup2 = mounts.lines().any(|line| line.split(' ').nth(2) == Some("cgroup2"));
    if cgroup2 && nix::unistd::geteuid().is_root() {
        assert_eq!(report.has("cgroup_kill"), version() >= (5, 14));
    }
    // Where the connector works at all, it works for everybody since 6.6.
    let everybody = report.rungs()["connector"] && version() >= (6, 6);
    assert_eq!(report.has("unprivileged_connector"), everybody, "{}", report.0["features"]);
}

/// A command of bpf(2), without a library.
fn bpf<const WORDS: usize>(command: libc::c_long, attribute: &mut [u32; WORDS]) -> nix::Result<i64> {
    // SAFETY: the attribute is alive for the call and as large as we say.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attribute.as_mut_ptr(), size_of_val(attribute)) };
    nix::errno::Errno::result(result)
}

/// The kernel's programs with the names of ours, by id. Numbers from include/uapi/linux/bpf.h.
fn our_programs() -> nix::Result<Vec<u32>> {
    const PROG_GET_NEXT_ID: libc::c_long = 11;
    const PROG_GET_FD_BY_ID: libc::c_long = 13;
    const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
    const NAME: usize = 64; // struct bpf_prog_info
    let mut ours = Vec::new();
    let mut next = [0_u32; 4]; // start_id, next_id, open_flags
    loop {
        match bpf(PROG_GET_NEXT_ID, &mut next) {
            Ok(_) => {}
            Err(nix::errno::Errno::ENOENT) => return Ok(ours),
            Err(error) => return Err(error),
        }
        next[0] = next[1];
        let Ok(fd) = bpf(PROG_GET_FD_BY_ID, &mut [next[0], 0, 0, 0]) else { continue }; // gone meanwhile
        let fd = i32::try_from(fd).unwrap();
        // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
        let _closed = unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) };
        let mut info = [0_u8; 128];
        let address = info.as_mut_ptr().expose_provenance() as u64;
        let mut attribute = [fd.cast_unsigned(), 128, address as u32, (address >> 32) as u32];
        bpf(OBJ_GET_INFO_BY_FD, &mut attribute)?;
        let name: Vec<u8> = info[NAME..NAME + 16].iter().copied().take_while(|byte| *byte != 0).collect();
        let name = String::from_utf8_lossy(&name).into_owned();
        if ["raw_", "fexit_setsid", "fexit_setpgid", "kretprobe_set", "kprobe_setpgid", "iter_task"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
        {
            ours.push(next[0]);
        }
    }
}

fn connector_listeners() -> usize {
    let table = fs::read_to_string("/proc/net/netlink").unwrap();
    table.lines().filter(|line| line.split_whitespace().nth(1) == Some("11")).count()
}

#[test]
fn nothing_stays_attached_or_mounted_or_made() {
    let Ok(before) = our_programs() else {
        return skipped("nothing_stays_attached_or_mounted_or_made", "it needs to list the kernel's BPF programs");
    };
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let listeners = connector_listeners();
    let _ = Report::afresh();
    // The kernel frees programs some time after they are let go.
    let gone = Deadline::patient().until(|| our_programs().is_ok_and(|now| now.iter().all(|id| before.contains(id))));
    assert!(gone, "programs before: {before:?}, and now: {:?}", our_programs());
    assert!(Deadline::patient().until(|| connector_listeners() <= listeners), "somebody still listens");
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), mounts);
    if let Ok(probes) = fs::read_to_string("/sys/kernel/tracing/kprobe_events") {
        assert_eq!(probes, "");
    }
}

#[test]
fn without_the_capabilities_no_rung_of_bpf_is_usable_and_the_reason_names_them() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("without_the_capabilities_no_rung_of_bpf_is_usable_and_the_reason_names_them", "it needs root");
    }
    let mut command = doctor(&["--json"]);
    // SAFETY: only prctl(2), with integers, between fork and exec.
    unsafe {
        command.pre_exec(|| {
            for capability in [21, 38, 39] {
                libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
            }
            Ok(())
        })
    };
    let report = Report::of(&command.output().unwrap());
    for name in ["bpf-fentry", "bpf-kprobe", "bpf-tracepoint"] {
        assert_eq!(report.rung(name)["usable"], false);
    }
    if fs::metadata("/sys/kernel/btf/vmlinux").is_ok() {
        assert!(
            text(&report.rung("bpf-tracepoint")["reason"]).contains("CAP_BPF"),
            "{}",
            report.rung("bpf-tracepoint")
        );
    }
    assert_eq!(report.0["advice"]["command"], Value::Null, "no setcap helps where the bounding set lacks them");
    assert_eq!(report.rung("proc")["usable"], true);
}

#[test]
fn a_user_is_told_the_one_command_that_helps() {
    if !nix::unistd::geteuid().is_root() || !in_initial_pid_namespace() {
        return skipped("a_user_is_told_the_one_command_that_helps", "it needs root and the machine's pid namespace");
    }
    let bounding = fs::read_to_string("/proc/self/status").unwrap();
    let bounding = bounding.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap();
    let bounding = u64::from_str_radix(bounding.trim(), 16).unwrap();
    let report = Report::of(&doctor(&["--json"]).uid(65534).gid(65534).output().unwrap());
    assert_eq!(report.0["capabilities"]["effective"], Value::Array(vec![]));
    let command = report.0["advice"]["command"].as_str();
    // No capability helps where the kernel keeps its types or its memory from everybody.
    let hopeless = report.0["lockdown"] == "confidentiality" || report.0["btf"]["present"] == false;
    if bounding >> 38 & 3 == 3 && !hopeless {
        let command = command.unwrap();
        assert!(command.starts_with("sudo setcap cap_bpf,cap_perfmon"), "{command}");
        assert!(command.ends_with(binary(UNDER_TEST).to_str().unwrap()), "{command}");
    } else {
        assert_eq!(command, None);
    }
    assert_eq!(report.rungs()["connector"], report.has("unprivileged_connector"));
}

/// The file capabilities that setcap(8) would write for `cap_bpf,...+ep`: struct vfs_cap_data.
fn file_capabilities(names: &str) -> [u8; 20] {
    const VERSION_2_EFFECTIVE: u32 = 0x0200_0001;
    let bits = names.split(',').fold(0_u64, |bits, name| {
        bits | match name {
            "cap_bpf" => 1 << 39,
            "cap_perfmon" => 1 << 38,
            "cap_sys_resource" => 1 << 24,
            other => panic!("{other} is advised"),
        }
    });
    let words = [VERSION_2_EFFECTIVE, bits as u32, 0, (bits >> 32) as u32, 0];
    words.map(u32::to_le_bytes).concat().try_into().unwrap()
}

#[test]
fn the_one_command_helps() {
    let name = "the_one_command_helps";
    if !nix::unistd::geteuid().is_root() || !in_initial_pid_namespace() {
        return skipped(name, "it needs root and the machine's pid namespace");
    }
    let told = Report::of(&doctor(&["--json"]).uid(65534).gid(65534).output().unwrap());
    let Some(command) = told.0["advice"]["command"].as_str() else {
        return skipped(name, "no command helps here");
    };
    // A copy does: the file under test stays as it is.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = folder.path().join("pipewarden");
    pipewarden_tests::run::copied(&binary(UNDER_TEST), &copy);
    let names = command.split(' ').nth(2).unwrap().strip_suffix("+ep").unwrap();
    let value = file_capabilities(names);
    let path = std::ffi::CString::new(copy.to_str().unwrap()).unwrap();
    let attribute = c"security.capability";
    // SAFETY: two C strings and a buffer, alive for the call and as large as we say.
    let set = unsafe { libc::setxattr(path.as_ptr(), attribute.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    let output = Command::new(&copy).args(["doctor", "--json"]).uid(65534).gid(65534).output().unwrap();
    let best = |report: &Report| {
        let rungs = report.rungs();
        ["bpf-fentry", "bpf-kprobe", "bpf-tracepoint"].into_iter().find(|rung| rungs[*rung])
    };
    assert_eq!(best(&told), None, "before");
    // Not every rung: on 5.10 and 6.1 a kprobe takes CAP_SYS_ADMIN. But the best is the same.
    assert_eq!(best(&Report::of(&output)), best(Report::here()), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_person_reads_the_same() {
    let output = doctor(&[]).output().unwrap();
    let page = String::from_utf8(output.stdout).unwrap();
    let report = Report::here();
    for (name, usable) in report.rungs() {
        let line = page.lines().find(|line| line.trim_start().starts_with(&name)).unwrap();
        assert!(line.contains(if usable { "yes: " } else { "no:  " }), "{line}");
    }
    assert!(page.contains(&text(&report.0["kernel"])));
    assert!(page.contains(&text(&report.0["advice"]["why"])));
}
