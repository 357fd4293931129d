//! The rung that the environment names is the one that a run gets, or none.

use pipewarden::kernel::choice::RUNG;
use pipewarden::kernel::rung::Rung;
use pipewarden_tests::fixture::HOLDER;
use pipewarden_tests::run::Run;
use pipewarden_tests::skip::skipped;
use pipewarden_tests::stage::Stage;

use crate::no_live_map;

#[test]
fn the_rung_that_is_named_is_the_one_that_is_had() {
    const NAME: &str = "the_rung_that_is_named_is_the_one_that_is_had";
    if no_live_map(NAME) {
        return;
    }
    for rung in Rung::ALL {
        let stage = Stage::new();
        let run = Run::on(&stage).options(["--backend", "bpf"]).env(RUNG, rung.name());
        let ended = run.fixture("hold_setsid", ["--exit", "3"]).end();
        let said = ended.stderr.text();
        if ended.code() == 125 {
            assert!(said.contains("--backend bpf cannot be had here: "), "{said}");
            assert!(stage.present(HOLDER).is_none(), "nothing was started: {said}");
            skipped(NAME, &format!("it needs {rung} for this part"));
            continue;
        }
        assert_eq!(ended.code(), 3, "{said}");
        let report = ended.report();
        assert_eq!((report.backend.as_str(), report.rung.as_str()), ("bpf", rung.name()), "{said}");
    }
}

#[test]
fn a_rung_that_does_not_exist_is_refused() {
    let stage = Stage::new();
    let run = Run::on(&stage).report("text").options(["--backend", "bpf"]).env(RUNG, "kprobe");
    let ended = run.command(["true"]).end();
    let said = ended.stderr.text();
    assert_eq!((ended.code(), said.lines().count()), (125, 1), "{said}");
    assert!(said.contains("PIPEWARDEN_BPF_RUNG=kprobe: it wants bpf-fentry, bpf-kprobe or bpf-tracepoint"), "{said}");
}
