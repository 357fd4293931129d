//! Which container and which pod a process is in, by the path of its cgroup.
//!
//! Every runtime writes the container's id into the path, and a kubelet the pod's uid and QoS class; how
//! depends on the cgroup driver and on who nests what in what. What is looked for is what all have in
//! common: a component of the path that is an id, or ends in one, and one that names the pod. The last id
//! counts: a container within a container (kind: the kubelet itself is in one) is the inner one.

/// Who runs a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Runtime {
    /// containerd.
    Containerd,
    /// CRI-O.
    Crio,
    /// Podman.
    Podman,
    /// Docker, also behind cri-dockerd.
    Docker,
    /// The path does not tell (the cgroupfs driver writes the bare id).
    Unknown,
}

impl Runtime {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Runtime::Containerd => "containerd",
            Runtime::Crio => "cri-o",
            Runtime::Podman => "podman",
            Runtime::Docker => "docker",
            Runtime::Unknown => "unknown",
        }
    }
}

/// A pod's quality of service class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Qos {
    /// Its requests are its limits.
    Guaranteed,
    /// It has requests.
    Burstable,
    /// It has none.
    BestEffort,
}

/// A container.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Container {
    /// Its id, as the runtime has it: 64 hexadecimal digits.
    pub id: String,
    /// Who runs it.
    pub runtime: Runtime,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pod {
    /// Its uid, as the API server writes it; a static pod's is 32 hexadecimal digits.
    pub uid: String,
    /// Its class.
    pub qos: Qos,
}

/// Where a process is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Place {
    /// The container.
    pub container: Option<Container>,
    /// The pod.
    pub pod: Option<Pod>,
}

impl Place {
    /// Reads the path of a cgroup.
    #[must_use]
    pub fn of_path(path: &str) -> Place {
        let mut place = Place::default();
        for component in path.split('/').filter(|component| !component.is_empty()) {
            // A systemd path that was taken for a name has colons between its parts.
            if let Some(uid) = component.split(':').find_map(pod_uid) {
                // What is within a pod begins anew: the containers so far are around it.
                place = Place { container: None, pod: Some(Pod { uid, qos: Qos::Guaranteed }) };
            }
            if let Some(container) = container(component) {
                place.container = Some(container);
            }
        }
        if let Some(pod) = &mut place.pod {
            pod.qos = qos(path);
        }
        if let Some(container) = &mut place.container
            && container.runtime == Runtime::Unknown
        {
            container.runtime = by_parents(path, &container.id);
        }
        place
    }

    /// Reads `/proc/PID/cgroup`: of all hierarchies the one whose path tells most. On a hybrid machine
    /// that is one of v1's, since v2's may be empty there.
    #[must_use]
    pub fn of_file(text: &str) -> Place {
        let paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
        let places = paths.map(Place::of_path);
        places
            .max_by_key(|place| {
                let runtime = place.container.as_ref().is_some_and(|container| container.runtime != Runtime::Unknown);
                (place.container.is_some(), place.pod.is_some(), runtime)
            })
            .unwrap_or_default()
    }

    /// Whether the path is a container's, though it does not say which: then its form is one that is not
    /// known here. The monitor beside a container (conmon) is in none.
    #[must_use]
    pub fn is_missed(&self, path: &str) -> bool {
        const MARKS: [&str; 6] = ["kubepods", "docker-", "libpod-", "crio-", "cri-containerd-", "nerdctl-"];
        let marked = |component: &str| MARKS.iter().any(|mark| component.starts_with(mark)) || component == "docker";
        self.container.is_none() && !path.contains("conmon") && path.split('/').any(marked)
    }
}

/// Hexadecimal digits of a container's id.
const ID: usize = 64;

fn is_id(text: &str) -> bool {
    text.len() == ID && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A component that is a container's: `ID`, `PREFIX-ID.scope` (the systemd driver), `ID` behind colons
/// (a systemd path that a cgroupfs driver took for a name), or podman's `libpod-ID`.
fn container(component: &str) -> Option<Container> {
    let component = component.strip_suffix(".scope").unwrap_or(component);
    let (prefix, id) = component.rsplit_once(['-', ':']).unwrap_or(("", component));
    if !is_id(id) {
        return None;
    }
    // conmon is the monitor beside a container, and has its id.
    let runtime = match prefix.rsplit(':').next().unwrap_or(prefix) {
        "cri-containerd" | "nerdctl" => Runtime::Containerd,
        "crio" => Runtime::Crio,
        "libpod" => Runtime::Podman,
        "docker" => Runtime::Docker,
        "" => Runtime::Unknown,
        _ => return None,
    };
    Some(Container { id: id.to_owned(), runtime })
}

/// Who runs a container whose component is only its id, by the component above.
fn by_parents(path: &str, id: &str) -> Runtime {
    let above = path.rsplit_once(id).map_or("", |(above, _)| above.trim_end_matches('/'));
    match above.rsplit('/').next().unwrap_or("") {
        "docker" => Runtime::Docker,
        "libpod_parent" => Runtime::Podman,
        "k8s.io" | "moby" | "default" if above.contains("containerd") => Runtime::Containerd,
        _ => Runtime::Unknown,
    }
}

/// The pod of a component: `podUID` (the cgroupfs driver), `kubepods-burstable-podUID.slice` (systemd's,
/// which writes _ for - in the uid).
fn pod_uid(component: &str) -> Option<String> {
    let name = component.strip_suffix(".slice").unwrap_or(component);
    let uid = match name.rsplit_once("-pod") {
        Some((before, uid)) if before.contains("kubepods") => uid,
        _ => name.strip_prefix("pod")?,
    };
    let uid = uid.replace('_', "-");
    let digits = uid.bytes().filter(u8::is_ascii_hexdigit).count();
    let dashes: Vec<usize> = uid.bytes().enumerate().filter(|(_, byte)| *byte == b'-').map(|(at, _)| at).collect();
    let is_uuid = uid.len() == 36 && digits == 32 && dashes == [8, 13, 18, 23];
    // The kubelet's own hash names a static pod.
    let is_hash = uid.len() == 32 && digits == 32;
    (is_uuid || is_hash).then_some(uid)
}

fn qos(path: &str) -> Qos {
    let has = |name: &str| {
        let words = || path.split(['/', '-', '.']);
        words().any(|word| word == name)
    };
    match (has("besteffort"), has("burstable")) {
        (true, _) => Qos::BestEffort,
        (_, true) => Qos::Burstable,
        _ => Qos::Guaranteed,
    }
}

#[cfg(test)]
mod tests;
