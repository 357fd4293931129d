//! A real Prometheus scrapes a node, in the format that it asks for.

#![allow(clippy::unwrap_used, reason = "a test's own helpers fail the test")]

use std::fs::{self, File};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::http::{Answer, ask};
use pipewarden_tests::node::Node;
use pipewarden_tests::packages::debian;
use pipewarden_tests::skip::skipped;
use serde_json::Value;

/// Debian's, at a port that nobody else has. It ends with this.
struct Prometheus {
    child: Child,
    folder: tempfile::TempDir,
}

impl Prometheus {
    fn scraping(node: SocketAddr) -> Result<Prometheus, &'static str> {
        let program = debian("prometheus", "usr/bin/prometheus").ok_or("it needs prometheus, and apt to get it")?;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let config = format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s }}\nscrape_configs:\n\
             - {{ job_name: node, static_configs: [{{ targets: [\"{node}\"] }}] }}\n"
        );
        fs::write(at("prometheus.yml"), config).unwrap();
        let mut command = Command::new(program);
        command
            .arg(format!("--config.file={}", at("prometheus.yml")))
            .arg(format!("--storage.tsdb.path={}", at("data")));
        command.arg("--web.listen-address=127.0.0.1:0").stdin(Stdio::null()).stdout(Stdio::null());
        let child =
            command.stderr(File::create(at("said")).unwrap()).spawn().map_err(|_| "prometheus does not run here")?;
        Ok(Prometheus { child, folder })
    }

    fn said(&self) -> String {
        fs::read_to_string(self.folder.path().join("said")).unwrap()
    }

    /// Where it answers, once it is ready.
    fn here(&mut self) -> SocketAddr {
        let mut ended = false;
        let ready = Deadline::patient().until(|| {
            ended = self.child.try_wait().unwrap().is_some();
            ended || self.said().contains("Server is ready to receive web requests")
        });
        let said = self.said();
        assert!(ready && !ended, "{said}");
        let listening = said.lines().find(|line| line.contains("msg=\"Listening on\"")).unwrap();
        listening.split_once("address=").unwrap().1.trim().parse().unwrap()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What it answers. It would keep the connection otherwise.
fn get(here: SocketAddr, path: &str) -> Answer {
    ask(here, "GET", path, &[("Connection", "close")])
}

/// What it has of a series: the labels and the newest value.
fn series(here: SocketAddr, query: &str) -> Vec<(Value, String)> {
    let answer = get(here, &format!("/api/v1/query?query={query}")).json();
    let samples = answer["data"]["result"].as_array().cloned().unwrap_or_default();
    samples.iter().map(|one| (one["metric"].clone(), one["value"][1].as_str().unwrap().to_owned())).collect()
}

#[test]
fn prometheus_takes_what_a_node_says() {
    const TEST: &str = "prometheus_takes_what_a_node_says";
    let Some(node) = Node::with_http(TEST, "", "") else { return };
    let mut prometheus = match Prometheus::scraping(node.http()) {
        Ok(prometheus) => prometheus,
        Err(why) => return skipped(TEST, why),
    };
    let here = prometheus.here();
    let up = || series(here, "up").first().is_some_and(|(_, value)| value == "1");
    let targets = || get(here, "/api/v1/targets").body;
    assert!(Deadline::patient().until(up), "{}", targets());
    let scraped = || !series(here, "pipewarden_build_info").is_empty();
    assert!(Deadline::patient().until(scraped), "{}", targets());
    let (build, _) = series(here, "pipewarden_build_info").remove(0);
    assert!(build["rung"].as_str().unwrap().starts_with("bpf-"), "{build}");
    for name in
        ["pipewarden_pipes", "pipewarden_acts_total", "pipewarden_name_questions_total", "pipewarden_map_entries"]
    {
        // Some are known only once the first look is over, which the first scrape may have come before.
        assert!(
            Deadline::patient().until(|| !series(here, &format!("count({name})")).is_empty()),
            "there is no {name}"
        );
    }
}
