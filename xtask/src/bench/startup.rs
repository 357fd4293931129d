//! What it costs to run a command that does nothing.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::plan::{Plan, command, is_installed};
use super::samples::{Samples, time};
use super::table::Table;
use crate::process::{pipe, read_some};

/// A way to run `true`: what it is called, how it is made, and whether its stdout is a pipe.
type Way<'a> = (&'static str, Box<dyn Fn() -> Command + 'a>, bool);

/// Measures, and says what came of it.
pub(crate) fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    println!("\nstartup: from the start of `true` under a supervisor to the supervisor's exit");
    let nothing = vec!["true".to_owned()];
    let plain = |line: &[&str]| command(&line.iter().map(|&word| word.to_owned()).collect::<Vec<_>>());
    let mut ways: Vec<Way<'_>> = vec![
        ("timeout 5 true", Box::new(|| plain(&["timeout", "5", "true"])), false),
        ("run -- true", Box::new(|| plan.pipewarden(&[], &nothing)), false),
        ("timeout 5 true | reader", Box::new(|| plain(&["timeout", "5", "true"])), true),
        ("run -- true | reader", Box::new(|| plan.pipewarden(&[], &nothing)), true),
        ("true", Box::new(|| plain(&["true"])), false),
    ];
    if is_installed("tini") {
        // Not as pid 1, it would otherwise warn that it cannot reap.
        ways.push(("tini -s true", Box::new(|| plain(&["tini", "-s", "true"])), false));
    } else {
        println!("SKIPPED the comparison with tini: it is not installed");
    }
    let mut samples: Vec<Samples> = ways.iter().map(|_| Samples::default()).collect();
    for round in 0..plan.samples(500) {
        // Nobody always comes first.
        for turn in 0..ways.len() {
            let index = (round + turn) % ways.len();
            let (_, make, piped) = &ways[index];
            samples[index].push(once(make(), *piped)?);
        }
    }
    for ((name, ..), samples) in ways.iter().zip(&samples) {
        println!("  {name:24}  {samples}");
    }
    for (ours, theirs) in [(1, 0), (3, 2)] {
        let ratio = samples[ours].against(&samples[theirs]);
        let (a, b) = (time(samples[ours].median()), time(samples[theirs].median()));
        let what = format!("`{}` against `{}`", ways[ours].0, ways[theirs].0);
        table.promise(what, format!("{ratio:.2}x ({a} / {b})"), "1.3x".to_owned(), ratio <= 1.3);
    }
    for index in 4..ways.len() {
        table.aside(format!("`{}` for comparison", ways[index].0), time(samples[index].median()));
    }
    Ok(())
}

fn once(mut program: Command, piped: bool) -> Result<Duration> {
    let pipe = if piped { Some(pipe()?) } else { None };
    program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let source = pipe.map(|(source, write)| {
        program.stdout(write);
        source
    });
    let started = Instant::now();
    let mut child = program.spawn().with_context(|| format!("cannot start {:?}", program.get_program()))?;
    drop(program); // and with it our copy of the write end
    if let Some(source) = source {
        ensure!(read_some(&source)?.is_empty(), "`true` wrote something");
    }
    let status = child.wait()?;
    let took = started.elapsed();
    ensure!(status.success(), "`true` failed: {status}");
    Ok(took)
}
