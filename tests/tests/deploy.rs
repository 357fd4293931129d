//! What `deploy/` says, against what the program does and against itself.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's own helpers fail the test")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use pipewarden::audit::Target;
use pipewarden::node::config::{Config, OnWithheld};
use pipewarden::node::privileges::Capability;
use pipewarden_tests::binaries::{UNDER_TEST, binary};
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::manifest::{Part, Resources, text};
use pipewarden_tests::skip::{Need, skip, skipped};

/// `node.toml` of the DaemonSet's ConfigMap.
fn node_toml(resources: &Resources) -> String {
    resources.kind("ConfigMap").at("data").entries()[0].1.text().to_owned()
}

fn pod<'a>(resources: &'a Resources, kind: &str) -> Part<'a> {
    resources.kind(kind).at("spec.template.spec")
}

fn container<'a>(resources: &'a Resources, kind: &str) -> Part<'a> {
    let containers = pod(resources, kind).at("containers").items();
    assert_eq!(containers.len(), 1, "one container");
    containers[0]
}

/// The folder of the machine that is mounted here, and whether it can be written to.
fn mounted<'a>(resources: &'a Resources, kind: &str, path: &Path) -> (&'a str, bool) {
    let mounts = container(resources, kind).at("volumeMounts").items();
    let mount = mounts.into_iter().find(|mount| path.starts_with(mount.at("mountPath").text()));
    let mount = mount.unwrap_or_else(|| panic!("nothing is mounted at {}", path.display()));
    let volume = pod(resources, kind).at("volumes").named(mount.at("name").text());
    let of_the_machine = volume.at("hostPath.path");
    (if of_the_machine.is_absent() { "" } else { of_the_machine.text() }, !mount.at("readOnly").is_true())
}

#[test]
fn the_daemonsets_configuration_is_right_and_fits_its_mounts() {
    let resources = Resources::of("daemonset.yaml");
    let config = Config::parse("node.toml".into(), node_toml(&resources)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node.toml");
    std::fs::write(&path, node_toml(&resources)).unwrap();
    let checked = Command::new(binary(UNDER_TEST)).args(["node", "--check", "--config"]).arg(&path).output().unwrap();
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");

    // It is read where it is mounted.
    let container = container(&resources, "DaemonSet");
    let args = container.at("args").texts();
    assert_eq!(&args[..2], ["node", "--config"]);
    assert_eq!(mounted(&resources, "DaemonSet", Path::new(args[2])), ("", false));
    let volume = pod(&resources, "DaemonSet").at("volumes").named("config");
    let map = resources.kind("ConfigMap");
    assert_eq!(volume.at("configMap.name"), map.at("metadata.name"));
    assert!(args[2].ends_with(map.at("data").entries()[0].0));

    // What it writes is the machine's, by the same name, and nothing else is.
    let Target::Path(log) = &config.audit.target else { panic!("{:?}", config.audit) };
    for path in [&config.socket.path, log, Path::new(pipewarden::kernel::lock::PATH)] {
        let folder = path.parent().unwrap();
        assert_eq!(mounted(&resources, "DaemonSet", path), (folder.to_str().unwrap(), true));
    }
    let cri = config.names.cri.as_ref().unwrap();
    assert_eq!(mounted(&resources, "DaemonSet", cri), (cri.parent().unwrap().to_str().unwrap(), false));
    assert!(text("Dockerfile").contains(" --features cri "), "the image asks nobody for names");
    let mounts = container.at("volumeMounts").items();
    assert_eq!(mounts.iter().filter(|mount| !mount.at("readOnly").is_true()).count(), 2);
    assert!(container.at("securityContext.readOnlyRootFilesystem").is_true());

    // Who observes only needs no other group than the socket's, and asks for it.
    let groups: Vec<i64> = pod(&resources, "DaemonSet")
        .at("securityContext.supplementalGroups")
        .items()
        .into_iter()
        .map(Part::number)
        .collect();
    assert_eq!(groups, [i64::from(config.socket.group.unwrap())]);
    assert!(
        config.policies.iter().all(|policy| policy.on_withheld == OnWithheld::Observe),
        "nobody is ended by default"
    );
}

/// What stands there as a comment is copied one day.
#[test]
fn the_policy_that_the_daemonset_shows_is_right() {
    let toml = node_toml(&Resources::of("daemonset.yaml"));
    let (_, shown) = toml.split_once("# [[policy]]\n").unwrap();
    let shown: String = shown.lines().map(|line| format!("{}\n", line.trim_start_matches("# "))).collect();
    let config = Config::parse("shown".into(), format!("[[policy]]\n{shown}")).unwrap();
    assert_eq!(config.policies.len(), 1);
    assert_eq!(config.policies[0].on_withheld, OnWithheld::End);
}

#[test]
fn probes_ask_where_the_node_listens() {
    let resources = Resources::of("daemonset.yaml");
    let config = Config::parse("node.toml".into(), node_toml(&resources)).unwrap();
    let listen = config.http.listen.unwrap();
    let container = container(&resources, "DaemonSet");
    let port = container.at("ports").named("http");
    assert_eq!(port.at("containerPort").number(), i64::from(listen.port()));
    // Loopback is the machine's only so.
    assert!(listen.ip().is_loopback() && pod(&resources, "DaemonSet").at("hostNetwork").is_true());
    for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz"), ("startupProbe", "/healthz")] {
        let asked = container.at(probe).at("httpGet");
        assert_eq!(asked.at("path").text(), path);
        assert_eq!(asked.at("host").text(), listen.ip().to_string());
        assert_eq!(asked.at("port"), port.at("name"));
    }
}

/// ... and no more of them: a list in the manifest, beside the kernel's check that wants it.
#[test]
fn the_daemonset_has_the_capabilities_that_the_node_is_written_for() {
    let resources = Resources::of("daemonset.yaml");
    let context = container(&resources, "DaemonSet").at("securityContext");
    assert_eq!(context.at("capabilities.drop").texts(), ["ALL"]);
    let added: BTreeSet<&str> = context.at("capabilities.add").texts().into_iter().collect();
    assert_eq!(added, BTreeSet::from(["BPF", "PERFMON", "SYS_PTRACE", "DAC_READ_SEARCH", "KILL"]));
    assert!(context.at("privileged").is_false() && context.at("allowPrivilegeEscalation").is_false());
    let text = text("daemonset.yaml");
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    for capability in added {
        let at = lines.iter().position(|line| *line == format!("- {capability}")).unwrap();
        let comment: Vec<&str> = lines[..at].iter().rev().take_while(|line| line.starts_with("# ")).copied().collect();
        assert!(comment.iter().any(|line| line.contains(".c")), "no file of the kernel is named for {capability}");
    }
}

/// With them alone a node attaches; what it keeps then is among them, and is what its work needs.
#[test]
fn the_daemonsets_capabilities_are_enough() {
    const TEST: &str = "the_daemonsets_capabilities_are_enough";
    let has_setpriv = Command::new("setpriv").arg("--version").stdout(Stdio::null()).status().is_ok();
    if skip(TEST, &[Need::Root]) {
        return;
    }
    if !has_setpriv {
        return skipped(TEST, "it needs setpriv");
    }
    let resources = Resources::of("daemonset.yaml");
    let added = container(&resources, "DaemonSet").at("securityContext.capabilities.add").texts();
    let bounding: String = added.iter().map(|name| format!(",+{}", name.to_lowercase())).collect();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let text = format!(
        "[socket]\npath = \"{}\"\n[http]\nlisten = \"off\"\n[audit]\npath = \"{}\"\n\
         [[policy]]\nmatch = {{ comm = \"nobody-is-called-this\" }}\non_withheld = \"end\"\n",
        at("node.sock").display(),
        at("audit.jsonl").display()
    );
    std::fs::write(at("node.toml"), text).unwrap();
    let mut command = Command::new("unshare");
    let script =
        "mount -t tmpfs none /run && exec setpriv --bounding-set \"$2\" --inh-caps -all \"$0\" node --config \"$1\"";
    command.args(["-m", "--propagation", "private", "sh", "-c", script]).arg(binary(UNDER_TEST));
    command.arg(at("node.toml")).arg(format!("-all{bounding}"));
    let mut node = command.stdin(Stdio::null()).stderr(std::fs::File::create(at("said")).unwrap()).spawn().unwrap();
    let said = || std::fs::read_to_string(at("said")).unwrap();
    let mut ended = false;
    let came = Deadline::patient().until(|| {
        ended = node.try_wait().unwrap().is_some();
        ended || said().contains("watching by ")
    });
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.id())).unwrap_or_default();
    let _ = node.kill();
    let _ = node.wait();
    assert!(came, "{}", said());
    if ended {
        // With all capabilities it would be the same.
        let all = Command::new(binary(UNDER_TEST)).args(["doctor", "--json"]).output().unwrap();
        let doctor: serde_json::Value = serde_json::from_slice(&all.stdout).unwrap();
        let is_bpf = |rung: &serde_json::Value| rung["name"].as_str().unwrap().starts_with("bpf-");
        let usable = doctor["rungs"].as_array().unwrap().iter().any(|rung| is_bpf(rung) && rung["usable"] == true);
        assert!(!usable, "{}", said());
        return skipped(TEST, &said());
    }
    let kept = status.lines().find_map(|line| line.strip_prefix("CapPrm:")).unwrap();
    let kept = u64::from_str_radix(kept.trim(), 16).unwrap();
    let bit = |name: &str| match name {
        "DAC_READ_SEARCH" => 1_u64 << Capability::DacReadSearch as u32,
        "KILL" => 1 << Capability::Kill as u32,
        "SYS_PTRACE" => 1 << Capability::SysPtrace as u32,
        "PERFMON" => 1 << Capability::Perfmon as u32,
        "BPF" => 1 << Capability::Bpf as u32,
        other => panic!("the node keeps no {other}"),
    };
    let listed = added.iter().fold(0, |set, name| set | bit(name));
    let needed = ["DAC_READ_SEARCH", "KILL", "SYS_PTRACE"].into_iter().fold(0, |set, name| set | bit(name));
    assert_eq!((kept & !listed, needed & !kept), (0, 0), "kept {kept:x}, listed {listed:x}");
}

/// The schemas do not see these.
#[test]
fn selectors_select_their_own_pods_and_quantities_are_quantities() {
    let resources = Resources::of("daemonset.yaml");
    let set = resources.kind("DaemonSet");
    let labels = set.at("spec.template.metadata.labels").entries();
    for (label, value) in set.at("spec.selector.matchLabels").entries() {
        assert!(labels.contains(&(label, value)), "{label}");
    }
    let namespace = resources.kind("Namespace").at("metadata.name");
    for kind in ["ServiceAccount", "ConfigMap", "DaemonSet"] {
        assert_eq!(resources.kind(kind).at("metadata.namespace"), namespace);
    }
    assert_eq!(
        pod(&resources, "DaemonSet").at("serviceAccountName"),
        resources.kind("ServiceAccount").at("metadata.name")
    );
    for (file, kind) in [("daemonset.yaml", "DaemonSet"), ("example-job.yaml", "Job")] {
        let resources = Resources::of(file);
        let of = |which: &str| container(&resources, kind).at(&format!("resources.{which}.memory")).text();
        assert!(bytes(of("requests")) <= bytes(of("limits")), "{file}");
        let pod = pod(&resources, kind);
        let volumes: BTreeSet<&str> =
            pod.at("volumes").items().into_iter().map(|volume| volume.at("name").text()).collect();
        let mounts = container(&resources, kind).at("volumeMounts").items();
        let mounted: BTreeSet<&str> = mounts.into_iter().map(|mount| mount.at("name").text()).collect();
        assert_eq!(volumes, mounted, "{file}");
    }
}

fn bytes(quantity: &str) -> u64 {
    quantity.strip_suffix("Mi").unwrap().parse::<u64>().unwrap() << 20
}

#[test]
fn images_and_paths_are_the_same_everywhere() {
    let (daemonset, job) = (Resources::of("daemonset.yaml"), Resources::of("example-job.yaml"));
    let image = container(&daemonset, "DaemonSet").at("image").text();
    let version = env!("CARGO_PKG_VERSION");
    assert!(image.ends_with(&format!("/pipewarden:{version}")), "{image} is not of {version}");
    let dockerfile = text("Dockerfile");
    assert!(dockerfile.contains(&format!("-t {image} .")), "deploy/Dockerfile is built as another image");
    let place = "/usr/bin/pipewarden";
    assert!(dockerfile.contains(&format!("ENTRYPOINT [\"{place}\"]")));
    assert!(text("example-job.yaml").contains(&format!("COPY --from={image} {place} {place}\n")));
    assert_eq!(container(&job, "Job").at("command").texts(), [place]);
}

/// The job, without a cluster: its command under `run` with its own options.
#[test]
fn the_example_job_ends_although_its_helper_does_not() {
    let job = Resources::of("example-job.yaml");
    let args = container(&job, "Job").at("args").texts();
    let output = Command::new(binary(UNDER_TEST)).args(&args).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"result: 42\n"[..]), "{said}");
    assert!(said.contains("\"outcome\":\"holders_ended\""), "{said}");
}

#[test]
fn the_example_job_has_no_privilege_and_the_nodes_socket() {
    let (daemonset, job) = (Resources::of("daemonset.yaml"), Resources::of("example-job.yaml"));
    let config = Config::parse("node.toml".into(), node_toml(&daemonset)).unwrap();
    let socket = &config.socket.path;
    assert_eq!(mounted(&job, "Job", socket), (mounted(&daemonset, "DaemonSet", socket).0, false));
    let pod = pod(&job, "Job");
    for machines in ["hostPID", "hostNetwork", "hostIPC"] {
        assert!(pod.at(machines).is_absent(), "{machines}");
    }
    let context = pod.at("securityContext");
    assert!(context.at("runAsNonRoot").is_true() && context.at("runAsUser").number() > 0);
    let groups: Vec<i64> = context.at("supplementalGroups").items().into_iter().map(Part::number).collect();
    assert_eq!((groups, config.socket.mode & 0o060), (vec![i64::from(config.socket.group.unwrap())], 0o060));
    let context = container(&job, "Job").at("securityContext");
    assert!(context.at("allowPrivilegeEscalation").is_false());
    assert_eq!(context.at("capabilities.drop").texts(), ["ALL"]);
    assert!(context.at("capabilities.add").is_absent());
}
