//! What the policies say about the holder of a withheld pipe: pure, so that a replay decides as the node does.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::config::{Match, OnWithheld, Policy, Rate};
use super::identity::Place;
use super::names::Names;

/// A holder of a withheld pipe, as far as it is known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Subject<'a> {
    /// The program's name.
    pub comm: &'a str,
    /// The real user.
    pub uid: Option<u32>,
    /// The path of the cgroup.
    pub cgroup: Option<&'a str>,
    /// The container and pod.
    pub place: Option<&'a Place>,
    /// What they are called.
    pub names: Option<&'a Names>,
}

/// What is to be done about a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: it is observed.
    Observe,
    /// Nothing yet: its pipe is to be withheld until then.
    Wait(Duration),
    /// It is ended, which counts against the limits.
    End,
    /// It would be ended, and a limit is reached: it is observed instead.
    Limited(Limit),
}

/// Which limit was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `limit`.
    Policy,
    /// `pod_limit`.
    Pod,
}

impl Limit {
    /// The key of `node.toml`.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Limit::Policy => "limit",
            Limit::Pod => "pod_limit",
        }
    }
}

impl Match {
    /// Whether a holder matches every key that there is. What is not known of it matches none.
    #[must_use]
    pub fn matches(&self, subject: &Subject<'_>) -> bool {
        let container = subject.place.and_then(|place| place.container.as_ref()).map(|container| container.id.as_str());
        let pod = subject.place.and_then(|place| place.pod.as_ref()).map(|pod| pod.uid.as_str());
        let name = |of: fn(&Names) -> Option<&str>| subject.names.and_then(of).filter(|name| !name.is_empty());
        // A glob, and the texts of which one must match it.
        let globs = [
            (&self.namespace, [name(|names| Some(&names.namespace)), None]),
            (&self.pod, [pod, name(|names| Some(&names.pod))]),
            (&self.container, [container, name(|names| names.container.as_deref())]),
            (&self.image, [name(|names| names.image.as_deref()), None]),
            (&self.cgroup, [subject.cgroup, None]),
            (&self.comm, [Some(subject.comm), None]),
        ];
        let label = |name: &str| subject.names.and_then(|names| names.labels.get(name));
        self.uid.is_none_or(|uid| subject.uid == Some(uid))
            && globs.iter().all(|(glob, texts)| {
                glob.as_ref().is_none_or(|glob| texts.iter().flatten().any(|text| glob.matches(text)))
            })
            && self.labels.iter().all(|(name, glob)| label(name).is_some_and(|value| glob.matches(value)))
    }
}

/// The policies, and what they have done so far. All times are since the same moment, whichever it is.
#[derive(Clone, Debug)]
pub struct Policies {
    policies: Vec<Policy>,
    acts: HashMap<Budget, VecDeque<Duration>>,
}

/// What acts are counted by: the policy's name, and the pod or container.
type Budget = (String, Option<String>);

impl Policies {
    /// Policies that have done nothing yet.
    #[must_use]
    pub fn new(policies: Vec<Policy>) -> Policies {
        Policies { policies, acts: HashMap::new() }
    }

    /// Others from here on. What those of the same name have done counts on.
    pub fn replace(&mut self, policies: Vec<Policy>) {
        self.acts.retain(|(name, _), _| policies.iter().any(|policy| policy.name == *name));
        self.policies = policies;
    }

    /// The first policy that matches a holder.
    #[must_use]
    pub fn of(&self, subject: &Subject<'_>) -> Option<&Policy> {
        self.policies.iter().find(|policy| policy.about.matches(subject))
    }

    /// What is to be done about a holder of a pipe that is withheld since a moment. Who is kept is the
    /// caller's to ask before it asks this.
    pub fn decide(&mut self, subject: &Subject<'_>, since: Duration, now: Duration) -> Verdict {
        let Some(policy) = self.of(subject) else { return Verdict::Observe };
        if policy.on_withheld == OnWithheld::Observe {
            return Verdict::Observe;
        }
        let due = since.saturating_add(policy.grace);
        if now < due {
            return Verdict::Wait(due);
        }
        let (limit, pod_limit) = (policy.limit, policy.pod_limit);
        let (all, of_pod) = budgets(policy, subject);
        if !self.has_room(&all, limit, now) {
            return Verdict::Limited(Limit::Policy);
        }
        if let Some(budget) = &of_pod
            && !self.has_room(budget, pod_limit, now)
        {
            return Verdict::Limited(Limit::Pod);
        }
        for (budget, rate) in [(Some(all), limit), (of_pod, pod_limit)] {
            if let Some(budget) = budget.filter(|_| rate.is_some()) {
                self.acts.entry(budget).or_default().push_back(now);
            }
        }
        Verdict::End
    }

    /// What was decided last, of this holder, was not done: it does not count.
    pub fn not_done(&mut self, subject: &Subject<'_>) {
        let Some((all, of_pod)) = self.of(subject).map(|policy| budgets(policy, subject)) else { return };
        for budget in [Some(all), of_pod].into_iter().flatten() {
            if let Some(acts) = self.acts.get_mut(&budget) {
                acts.pop_back();
            }
        }
    }

    /// Whether one more act is within a rate. Forgets what is past.
    fn has_room(&mut self, budget: &Budget, rate: Rate, now: Duration) -> bool {
        let Some((most, window)) = rate else { return true };
        let Some(acts) = self.acts.get_mut(budget) else { return most > 0 };
        while acts.front().is_some_and(|act| now.saturating_sub(*act) >= window) {
            acts.pop_front();
        }
        let there = acts.len();
        if there == 0 {
            self.acts.remove(budget);
        }
        there < most
    }
}

/// What a policy's acts upon this holder are counted by: all together, and those of its pod or container.
fn budgets(policy: &Policy, subject: &Subject<'_>) -> (Budget, Option<Budget>) {
    let of_pod = subject.place.and_then(group_of).map(|group| (policy.name.clone(), Some(group)));
    ((policy.name.clone(), None), of_pod)
}

/// What `pod_limit` counts by.
fn group_of(place: &Place) -> Option<String> {
    let pod = place.pod.as_ref().map(|pod| pod.uid.clone());
    pod.or_else(|| place.container.as_ref().map(|container| container.id.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::config::Config;
    use proptest::prelude::*;

    fn policies(text: &str) -> Policies {
        Policies::new(Config::parse("node.toml".into(), text.into()).unwrap().policies)
    }

    fn place(pod: u32) -> Place {
        Place::of_path(&format!("/kubepods/pod{pod:08x}-4b6f-4a2e-9c3b-0123456789ab/{:064x}", pod + 1))
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_first_policy_that_matches_decides_and_without_one_nothing_is_done() {
        let mut policies = policies(
            "[[policy]]\nname = \"spare\"\nmatch = { comm = \"ssh-agent\" }\n\
             [[policy]]\nname = \"end\"\nmatch = { uid = 1000 }\non_withheld = \"end\"\ngrace = \"2s\"\n",
        );
        let agent = Subject { comm: "ssh-agent", uid: Some(1000), ..Subject::default() };
        let node = Subject { comm: "node", ..agent };
        let root = Subject { uid: Some(0), ..node };
        let nobody = Subject { uid: None, ..node };
        assert_eq!(policies.of(&agent).unwrap().name, "spare");
        assert_eq!(policies.decide(&agent, SECOND, SECOND * 60), Verdict::Observe);
        assert_eq!(policies.decide(&node, SECOND, SECOND), Verdict::Wait(SECOND * 3));
        assert_eq!(policies.decide(&node, SECOND, SECOND * 3), Verdict::End);
        for other in [root, nobody] {
            assert!(policies.of(&other).is_none());
            assert_eq!(policies.decide(&other, SECOND, SECOND * 60), Verdict::Observe);
        }
    }

    #[test]
    fn every_key_must_match_and_what_is_not_known_matches_nothing() {
        let place = place(7);
        let names = Names {
            namespace: "ci-1".into(),
            pod: "job-7".into(),
            labels: [("app".to_owned(), "agent".to_owned())].into(),
            container: Some("claude".into()),
            image: None,
        };
        let known = Subject {
            comm: "node",
            uid: Some(7),
            cgroup: Some("/kubepods/x"),
            place: Some(&place),
            names: Some(&names),
        };
        let unknown = Subject { comm: "node", ..Subject::default() };
        for (text, matches) in [
            ("pod = \"00000007-*\"", true),
            ("container = \"*8\"", true),
            ("cgroup = \"/kube*\"", true),
            ("uid = 7", true),
            ("uid = 8", false),
            ("uid = 7, pod = \"00000008-*\"", false),
            ("namespace = \"ci-*\"", true),
            ("namespace = \"ci\"", false),
            ("pod = \"job-*\"", true),
            ("container = \"claude\"", true),
            ("container = \"claude\", namespace = \"prod\"", false),
            ("image = \"*\"", false),
            ("labels = { app = \"a*\" }", true),
            ("labels = { app = \"a*\", tier = \"*\" }", false),
        ] {
            let policies = policies(&format!("[[policy]]\nmatch = {{ {text} }}"));
            assert_eq!(policies.of(&known).is_some(), matches, "{text}");
            assert!(policies.of(&unknown).is_none(), "{text}");
        }
        assert!(policies("[[policy]]").of(&unknown).is_some(), "no key at all matches everybody");
    }

    #[test]
    fn limits_hold_for_a_policy_and_for_each_pod_and_a_reload_does_not_refill_them() {
        let text = "[[policy]]\nname = \"a\"\nmatch = { cgroup = \"*\" }\non_withheld = \"end\"\ngrace = 0\nlimit = \"3/1m\"\npod_limit = \"2/1m\"\n";
        let mut policies = policies(text);
        let (one, two) = (place(1), place(2));
        let in_pod = |place| Subject { comm: "node", cgroup: Some("/"), place: Some(place), ..Subject::default() };
        let mut decide = |place, now| policies.decide(&in_pod(place), Duration::ZERO, now);
        assert_eq!(decide(&one, SECOND), Verdict::End);
        assert_eq!(decide(&one, SECOND * 2), Verdict::End);
        assert_eq!(decide(&one, SECOND * 3), Verdict::Limited(Limit::Pod));
        assert_eq!(decide(&two, SECOND * 4), Verdict::End);
        assert_eq!(decide(&two, SECOND * 5), Verdict::Limited(Limit::Policy));
        policies.replace(Config::parse("node.toml".into(), text.into()).unwrap().policies);
        assert_eq!(policies.decide(&in_pod(&two), Duration::ZERO, SECOND * 60), Verdict::Limited(Limit::Policy));
        let mut undone = policies.clone();
        undone.not_done(&in_pod(&two));
        assert_eq!(undone.decide(&in_pod(&two), Duration::ZERO, SECOND * 60), Verdict::End, "it was not done");
        assert_eq!(policies.decide(&in_pod(&two), Duration::ZERO, SECOND * 61), Verdict::End, "the first is past");
        assert_eq!((Limit::Policy.key(), Limit::Pod.key()), ("limit", "pod_limit"));
    }

    proptest! {
        #[test]
        fn in_no_minute_are_there_more_acts_than_the_limits_say(
            steps in proptest::collection::vec((0..20_000_u64, 0..4_u32), 1..200),
            limit in 0..6_usize,
            pod_limit in 0..4_usize,
        ) {
            let mut policies = policies(&format!(
                "[[policy]]\nmatch = {{ cgroup = \"*\" }}\non_withheld = \"end\"\ngrace = 0\nlimit = \"{limit}/1m\"\npod_limit = \"{pod_limit}/1m\"\n"
            ));
            let mut now = Duration::ZERO;
            let mut acts: Vec<(Duration, u32)> = Vec::new();
            for (pause, pod) in steps {
                now += Duration::from_millis(pause);
                let place = place(pod);
                let subject = Subject { comm: "x", cgroup: Some("/"), place: Some(&place), ..Subject::default() };
                let past = |act: &&(Duration, u32)| now.saturating_sub(act.0) < SECOND * 60;
                let all = acts.iter().filter(past).count();
                let here = acts.iter().filter(past).filter(|act| act.1 == pod).count();
                let expected = match (all < limit, here < pod_limit) {
                    (false, _) => Verdict::Limited(Limit::Policy),
                    (_, false) => Verdict::Limited(Limit::Pod),
                    _ => Verdict::End,
                };
                prop_assert_eq!(policies.decide(&subject, Duration::ZERO, now), expected);
                if expected == Verdict::End {
                    acts.push((now, pod));
                }
            }
        }
    }
}
