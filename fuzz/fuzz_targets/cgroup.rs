//! `/proc/PID/cgroup`: whatever a path says, what is read out of it is in it.
#![no_main]

use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use pipewarden::node::attribution::Attribution;
use pipewarden::node::identity::Place;

fuzz_target!(|text: &str| {
    let place = Place::of_file(text);
    for line in text.lines() {
        check(&Place::of_path(line), line);
    }
    check(&place, text);
    let (path, placed) =
        Attribution::default().place(1, Instant::now(), || Some(text.to_owned())).expect("it was read");
    assert_eq!(placed, place);
    assert!(path == "/" || text.contains(&path), "a path that nobody wrote: {path}");
    let _ = placed.is_missed(&path);
});

fn check(place: &Place, text: &str) {
    if let Some(container) = &place.container {
        assert_eq!(container.id.len(), 64);
        assert!(text.contains(&container.id));
    }
    if let Some(pod) = &place.pod {
        assert!([32, 36].contains(&pod.uid.len()), "{}", pod.uid);
        assert!(text.replace('_', "-").contains(&pod.uid));
    }
}
