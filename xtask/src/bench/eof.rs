//! From the command's exit to end-of-file downstream.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::actor::{now, told};
use super::crowd::{Crowd, SIZES};
use super::plan::{Plan, command};
use super::samples::{Samples, time};
use super::table::Table;
use crate::process::{finish, pipe, read_some};

const AT_ONCE: [&str; 4] = ["--holder-grace", "0", "-s", "KILL"];
const ROUNDS: usize = 4;
/// Those that a run can have of its own; what is measured first is what `auto` takes.
const BACKENDS: [&str; 3] = ["proc", "connector", "bpf"];

/// Measures, and says what came of it.
pub(crate) fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    println!("\neof: the command leaves a helper in another session that holds stdout, writes the time, exits");
    let holder = plan.actor(&["leave-holder"]);
    let namespace: Vec<String> = ["unshare", "-pf", "--kill-child"].map(str::to_owned).to_vec();
    let in_namespace: Vec<String> = namespace.iter().chain(&holder).cloned().collect();
    // Whether it may be used here at all is found out by using it.
    let comparable = once(command(&in_namespace)).is_ok();
    if !comparable {
        println!("SKIPPED the comparison with `unshare -pf --kill-child`: it needs root");
    }
    let mut ours = SIZES.map(|_| Samples::default());
    let mut theirs = SIZES.map(|_| Samples::default());
    let mut defaults = Samples::default();
    for _ in 0..ROUNDS {
        let mut crowd = Crowd::default();
        for (index, size) in SIZES.into_iter().enumerate() {
            crowd.grow_to(size)?;
            for _ in 0..plan.samples(400) / ROUNDS {
                ours[index].push(once(plan.pipewarden(&AT_ONCE, &holder))?);
                if comparable {
                    theirs[index].push(once(command(&in_namespace))?);
                }
            }
        }
        drop(crowd);
        for _ in 0..plan.samples(100) / ROUNDS {
            defaults.push(once(plan.pipewarden(&[], &holder))?);
        }
    }
    for (index, size) in SIZES.into_iter().enumerate() {
        println!("  run --holder-grace 0 -s KILL,   {size:4} others  {}", ours[index]);
        if comparable {
            println!("  unshare -pf --kill-child,       {size:4} others  {}", theirs[index]);
        }
    }
    println!("  run (defaults: 200 ms, TERM)                  {defaults}");
    judge(&ours, comparable.then_some(&theirs), &defaults, table);
    by_backend(plan, &holder, table)
}

/// Whether it matters on any backend how many others there are.
fn by_backend(plan: &Plan, holder: &[String], table: &mut Table) -> Result<()> {
    let run = |backend| plan.pipewarden(&[&AT_ONCE[..], &["--backend", backend]].concat(), holder);
    let [few, .., many] = SIZES;
    let mut measured = Vec::new();
    for backend in BACKENDS {
        match once(run(backend)) {
            Ok(_) => measured.push((backend, [Samples::default(), Samples::default()])),
            Err(error) => println!("SKIPPED --backend {backend}: {error:#}"),
        }
    }
    for _ in 0..ROUNDS {
        let mut crowd = Crowd::default();
        for (index, size) in [few, many].into_iter().enumerate() {
            crowd.grow_to(size)?;
            for _ in 0..plan.samples(200) / ROUNDS {
                for (backend, samples) in &mut measured {
                    samples[index].push(once(run(backend))?);
                }
            }
        }
    }
    for (backend, samples) in &measured {
        for (size, samples) in [few, many].into_iter().zip(samples) {
            println!("  run --backend {backend:10}        {size:4} others  {samples}");
        }
        let [few_others, many_others] = samples;
        let growth = many_others.against(few_others);
        let (p50, p99) = (many_others.median(), many_others.quantile(0.99));
        table.promise(
            format!("exit to EOF, --backend {backend}, {many} against {few} idle processes"),
            format!("{growth:.2}x; p50 {}, p99 {} among {many}", time(p50), time(p99)),
            "1.2x".to_owned(),
            growth <= 1.2,
        );
    }
    Ok(())
}

fn judge(ours: &[Samples; 3], theirs: Option<&[Samples; 3]>, defaults: &Samples, table: &mut Table) {
    for (index, size) in SIZES.into_iter().enumerate() {
        let (p50, p99) = (ours[index].median(), ours[index].quantile(0.99));
        table.promise(
            format!("exit to EOF, grace 0 and KILL, {size} idle processes"),
            format!("p50 {}, p99 {}", time(p50), time(p99)),
            "p50 2 ms, p99 5 ms".to_owned(),
            p50 <= Duration::from_millis(2) && p99 <= Duration::from_millis(5),
        );
        if let Some(theirs) = theirs {
            let (p50, p99) = (theirs[index].median(), theirs[index].quantile(0.99));
            let what = format!("the same by `unshare -pf --kill-child`, {size} idle processes");
            table.aside(what, format!("p50 {}, p99 {}", time(p50), time(p99)));
        }
    }
    let growth = ours[2].against(&ours[0]);
    table.promise(
        format!("exit to EOF, {} against {} idle processes", SIZES[2], SIZES[0]),
        format!("{growth:.2}x"),
        "1.2x".to_owned(),
        growth <= 1.2,
    );
    let p99 = defaults.quantile(0.99);
    table.promise(
        "exit to EOF, defaults",
        format!("p50 {}, p99 {}", time(defaults.median()), time(p99)),
        "200 ms + 5 ms".to_owned(),
        p99 <= Duration::from_millis(205),
    );
}

/// Runs it once: from the moment before the command's exit to its reader's end-of-file.
fn once(mut program: Command) -> Result<Duration> {
    let (source, write) = pipe()?;
    program.stdin(Stdio::null()).stdout(write).stderr(Stdio::null());
    let mut child = program.spawn().with_context(|| format!("cannot start {:?}", program.get_program()))?;
    drop(program);
    let mut output = Vec::new();
    let eof = loop {
        match read_some(&source)? {
            bytes if bytes.is_empty() => break now()?,
            bytes => output.extend(bytes),
        }
    };
    let status = finish(&mut child, Duration::from_secs(10))?;
    ensure!(status.success(), "the command failed: {status}");
    Ok(eof.saturating_sub(told(&output)?))
}
