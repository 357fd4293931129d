use super::*;
use proptest::prelude::*;

const A: &str = "4c01db0b339c11d9eff93d7d1f1b8b7c2f6a4d2ecbaf9bc2c0e6a3b5d7f90123";
const B: &str = "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100";
const POD: &str = "1c5e8d9d-4b6f-4a2e-9c3b-0123456789ab";
const STATIC: &str = "0f2b9a1c3d4e5f60718293a4b5c6d7e8";

/// A path with the names in it put in: `{a}`, `{b}`, `{pod}`, `{p_o_d}` and `{static}`.
fn path(text: &str) -> String {
    text.replace("{a}", A)
        .replace("{b}", B)
        .replace("{pod}", POD)
        .replace("{p_o_d}", &POD.replace('-', "_"))
        .replace("{static}", STATIC)
}

fn place(container: Option<(&str, Runtime)>, pod: Option<(&str, Qos)>) -> Place {
    Place {
        container: container.map(|(id, runtime)| Container { id: id.to_owned(), runtime }),
        pod: pod.map(|(uid, qos)| Pod { uid: uid.to_owned(), qos }),
    }
}

#[test]
fn a_path_tells_the_container_and_the_pod_whoever_wrote_it() {
    use Qos::{BestEffort, Burstable, Guaranteed};
    use Runtime::{Containerd, Crio, Docker, Podman, Unknown};
    for (text, container, pod) in [
        // kubelet, systemd driver
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{p_o_d}.slice/cri-containerd-{a}.scope",
            Some((A, Containerd)),
            Some((POD, Burstable)),
        ),
        (
            "/kubepods.slice/kubepods-pod{p_o_d}.slice/cri-containerd-{a}.scope",
            Some((A, Containerd)),
            Some((POD, Guaranteed)),
        ),
        (
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{p_o_d}.slice/crio-{a}.scope",
            Some((A, Crio)),
            Some((POD, BestEffort)),
        ),
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{p_o_d}.slice/crio-{a}.scope/container",
            Some((A, Crio)),
            Some((POD, Burstable)),
        ),
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{static}.slice/cri-containerd-{a}.scope",
            Some((A, Containerd)),
            Some((STATIC, Burstable)),
        ),
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{p_o_d}.slice/docker-{a}.scope",
            Some((A, Docker)),
            Some((POD, Burstable)),
        ),
        // kubelet, cgroupfs driver: the id alone, and nobody says whose
        ("/kubepods/burstable/pod{pod}/{a}", Some((A, Unknown)), Some((POD, Burstable))),
        ("/kubepods/besteffort/pod{pod}/{a}", Some((A, Unknown)), Some((POD, BestEffort))),
        ("/kubepods/pod{pod}/{a}", Some((A, Unknown)), Some((POD, Guaranteed))),
        ("/kubepods/burstable/pod{static}/{a}/init.scope", Some((A, Unknown)), Some((STATIC, Burstable))),
        ("/kubepods/burstable/pod{pod}/crio-{a}", Some((A, Crio)), Some((POD, Burstable))),
        // a systemd path that a runtime with the cgroupfs driver took for a name
        (
            "/system.slice/containerd.service/kubepods-burstable-pod{p_o_d}.slice:cri-containerd:{a}",
            Some((A, Containerd)),
            Some((POD, Burstable)),
        ),
        ("/kubepods-besteffort-pod{p_o_d}.slice:cri-containerd:{a}", Some((A, Containerd)), Some((POD, BestEffort))),
        // docker and podman by themselves
        ("/docker/{a}", Some((A, Docker)), None),
        ("/system.slice/docker-{a}.scope", Some((A, Docker)), None),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/docker-{a}.scope", Some((A, Docker)), None),
        ("/our-own-parent/{a}", Some((A, Unknown)), None),
        ("/machine.slice/libpod-{a}.scope", Some((A, Podman)), None),
        ("/machine.slice/libpod-{a}.scope/container", Some((A, Podman)), None),
        ("/machine.slice/machine-libpod_pod_{b}.slice/libpod-{a}.scope/container", Some((A, Podman)), None),
        ("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{a}.scope", Some((A, Podman)), None),
        ("/libpod_parent/libpod-{a}", Some((A, Podman)), None),
        ("/system.slice/nerdctl-{a}.scope", Some((A, Containerd)), None),
        // kind: a kubelet in a container
        ("/docker/{b}/kubelet/kubepods/burstable/pod{pod}/{a}", Some((A, Unknown)), Some((POD, Burstable))),
        (
            "/system.slice/docker-{b}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{p_o_d}.slice/cri-containerd-{a}.scope",
            Some((A, Containerd)),
            Some((POD, BestEffort)),
        ),
        ("/system.slice/docker-{b}.scope/kubelet.slice/kubelet.service", Some((B, Docker)), None),
        // docker in a pod
        ("/kubepods/burstable/pod{pod}/{b}/docker/{a}", Some((A, Docker)), Some((POD, Burstable))),
        // from inside a cgroup namespace
        ("/", None, None),
        ("/../cri-containerd-{a}.scope", Some((A, Containerd)), None),
        ("/../../pod{pod}/{a}", Some((A, Unknown)), Some((POD, Guaranteed))),
        // no container
        ("/init.scope", None, None),
        ("/system.slice/containerd.service", None, None),
        ("/system.slice/docker.service", None, None),
        ("/user.slice/user-1000.slice/session-3.scope", None, None),
        ("/machine.slice/libpod-conmon-{a}.scope", None, None),
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{p_o_d}.slice/crio-conmon-{a}.scope",
            None,
            Some((POD, Burstable)),
        ),
        ("/podman/{a}x", None, None),
        ("/pods/pod-of-peas/podcast", None, None),
    ] {
        let text = path(text);
        let found = Place::of_path(&text);
        assert_eq!(found, place(container, pod), "{text}");
        assert!(!found.is_missed(&text), "{text}");
    }
}

#[test]
fn of_several_hierarchies_the_one_that_tells_most_is_believed() {
    let v1 = "12:pids:/kubepods/burstable/pod{pod}/{a}\n11:cpu,cpuacct:/kubepods/burstable/pod{pod}/{a}\n1:name=systemd:/kubepods/burstable/pod{pod}/{a}\n";
    let hybrid = format!("{v1}0::/system.slice/containerd.service\n");
    let expected = place(Some((A, Runtime::Unknown)), Some((POD, Qos::Burstable)));
    assert_eq!(Place::of_file(&path(v1)), expected);
    assert_eq!(Place::of_file(&path(&hybrid)), expected);
    let v2 = "0::/system.slice/docker-{a}.scope\n";
    assert_eq!(Place::of_file(&path(v2)), place(Some((A, Runtime::Docker)), None));
    // A named hierarchy says only the id; another one also whose it is.
    let two = "1:name=elogind:/{a}\n0::/docker/{a}\n";
    assert_eq!(Place::of_file(&path(two)), place(Some((A, Runtime::Docker)), None));
    for nothing in ["", "0::/\n", "no cgroup file at all", "1:a"] {
        assert_eq!(Place::of_file(nothing), Place::default(), "{nothing:?}");
    }
}

#[test]
fn a_container_of_a_form_that_is_not_known_is_a_miss() {
    for text in ["/kubepods/burstable/pod{pod}/short-id", "/docker/web", "/system.slice/docker-web.scope"] {
        let text = path(text);
        assert!(Place::of_path(&text).is_missed(&text), "{text}");
    }
}

proptest! {
    #[test]
    fn no_path_is_too_strange(text in "(/|-|:|\\.|pod|kubepods|docker|crio|libpod|[0-9a-f]{64}|.){0,24}") {
        let place = Place::of_path(&text);
        let _ = (Place::of_file(&text), place.is_missed(&text));
        if let Some(container) = &place.container {
            prop_assert!(text.contains(&container.id));
        }
    }

    #[test]
    fn nor_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let _ = Place::of_file(&String::from_utf8_lossy(&bytes));
    }
}
