//! `node.toml`: what is wrong is one line that names the file; what is right can be decided with.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use pipewarden::node::config::{Config, OnWithheld};
use pipewarden::node::identity::Place;
use pipewarden::node::policy::{Policies, Subject, Verdict};

fuzz_target!(|text: &str| {
    let config = match Config::parse("node.toml".to_owned(), text.to_owned()) {
        Ok(config) => config,
        Err(error) => {
            let said = error.to_string();
            assert!(said.starts_with("node.toml:"), "{said}");
            assert_eq!(said.lines().count(), 1, "{said}");
            return;
        }
    };
    let ends = |policy: &pipewarden::node::config::Policy| policy.on_withheld == OnWithheld::End;
    for policy in config.policies.iter().filter(|policy| ends(policy)) {
        assert!(!policy.about.is_empty(), "a policy that ends everybody");
    }
    let nobody_is_ended = !config.policies.iter().any(ends);
    let mut policies = Policies::new(config.policies);
    let place = Place::of_path("/kubepods/pod1c5e8d9d-4b6f-4a2e-9c3b-0123456789ab");
    let subject = Subject { comm: "node", uid: Some(0), cgroup: Some("/kubepods"), place: Some(&place), names: None };
    for now in [0, 1, 60, u64::MAX / 4] {
        let verdict = policies.decide(&subject, Duration::ZERO, Duration::from_secs(now));
        assert!(!(nobody_is_ended && verdict == Verdict::End));
    }
});
