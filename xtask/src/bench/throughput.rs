//! Bytes per second from a command to its reader.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::plan::{Plan, command};
use super::samples::Samples;
use super::table::Table;
use crate::process::{pipe, read_some};

const ROUNDS: usize = 9;

/// A way from a writer to its reader.
enum Way<'a> {
    Direct(&'a [String]),
    Cat(&'a [String]),
    Pipewarden(&'a [&'a str], &'a [String]),
}

/// What is looked for: in every tenth line, at the first and the last of many, and in every line.
const MATCHED: [(&str, &[&str], bool); 3] = [
    ("an agent's session, `--profile claude`", &["--profile", "claude"], false),
    ("a marker in every line", &["--done-when", "re:assistant", "--done-grace", "1h"], false),
    ("a tool call in every line, `--profile claude`", &["--profile", "claude"], true),
];

/// Measures, and says what came of it.
pub(crate) fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    println!("\nthroughput: a writer, whatever stands in between, a reader that discards");
    let large = if plan.samples(10) < 10 { 200_000_000_u64 } else { 2_000_000_000 };
    let small = if plan.samples(10) < 10 { 100_000_u64 } else { 1_000_000 };
    for (bytes, chunk, what) in [
        (large, 64 * 1024, format!("{} MB in writes of 64 KiB", large / 1_000_000)),
        (small * 64, 64, format!("{small} writes of 64 bytes")),
    ] {
        compare(plan, bytes, chunk, &what, table)?;
    }
    for (chunk, how, bytes) in [(64 * 1024, "in writes of 64 KiB", large / 4), (0, "a write for each line", large / 8)]
    {
        for (what, options, tools) in MATCHED {
            let what = format!("{what}, {how}");
            look(plan, &what, options, &lines(plan, bytes, chunk, tools), bytes, table)?;
        }
    }
    Ok(())
}

/// A writer of an agent's lines.
fn lines(plan: &Plan, bytes: u64, chunk: usize, tools: bool) -> Vec<String> {
    let mut part = vec!["write-lines".to_owned(), bytes.to_string(), chunk.to_string()];
    part.extend(tools.then(|| "--tools".to_owned()));
    plan.actor(&part.iter().map(String::as_str).collect::<Vec<_>>())
}

/// With matchers and without.
fn look(plan: &Plan, what: &str, options: &[&str], writer: &[String], bytes: u64, table: &mut Table) -> Result<()> {
    let ways = [Way::Pipewarden(&[], writer), Way::Pipewarden(options, writer)];
    let mut samples = [Samples::default(), Samples::default()];
    for round in 0..ROUNDS {
        for turn in 0..ways.len() {
            let index = (round + turn) % ways.len();
            samples[index].push(once(plan, &ways[index], bytes)?);
        }
    }
    println!("  {what}");
    for (name, samples) in ["without matchers", "with matchers"].iter().zip(&samples) {
        println!("    {name:24}  {:>9}  {samples}", rate(bytes, samples));
    }
    let [without, with] = &samples;
    let ratio = without.against(with);
    let measured = format!("{ratio:.2}x ({} / {})", rate(bytes, with), rate(bytes, without));
    table.promise(format!("{what}: speed against no matchers"), measured, "0.33x".to_owned(), ratio >= 1.0 / 3.0);
    Ok(())
}

fn compare(plan: &Plan, bytes: u64, chunk: usize, what: &str, table: &mut Table) -> Result<()> {
    let writer = plan.actor(&["write", &bytes.to_string(), &chunk.to_string()]);
    let ways = [Way::Cat(&writer), Way::Pipewarden(&[], &writer), Way::Direct(&writer)];
    let names = ["writer | cat | reader", "run -- writer | reader", "writer | reader"];
    let mut samples = [Samples::default(), Samples::default(), Samples::default()];
    for round in 0..ROUNDS {
        for turn in 0..ways.len() {
            let index = (round + turn) % ways.len();
            samples[index].push(once(plan, &ways[index], bytes)?);
        }
    }
    println!("  {what}");
    for (name, samples) in names.iter().zip(&samples) {
        println!("    {name:24}  {:>9}  {samples}", rate(bytes, samples));
    }
    let [cat, ours, direct] = &samples;
    let ratio = cat.against(ours);
    let measured = format!("{ratio:.2}x ({} / {})", rate(bytes, ours), rate(bytes, cat));
    table.promise(format!("{what}: speed against `cat` in our place"), measured, "1x".to_owned(), ratio >= 1.0);
    let (ratio, rate) = (direct.against(ours), rate(bytes, direct));
    table.aside(format!("{what}: speed against nothing in between"), format!("{ratio:.2}x ({rate})"));
    Ok(())
}

fn rate(bytes: u64, samples: &Samples) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a rate to three digits")]
    let megabytes = bytes as f64 / 1e6 / samples.median().as_secs_f64();
    format!("{megabytes:.0} MB/s")
}

fn once(plan: &Plan, way: &Way<'_>, expected: u64) -> Result<Duration> {
    let (source, write) = pipe()?;
    let started = Instant::now();
    let mut children = match way {
        Way::Direct(writer) => vec![start(command(writer).stdout(write))?],
        Way::Pipewarden(options, writer) => vec![start(plan.pipewarden(options, writer).stdout(write))?],
        Way::Cat(writer) => {
            let (cat_reads, cat_is_written) = pipe()?;
            let writer = start(command(writer).stdout(cat_is_written))?;
            vec![writer, start(Command::new("cat").stdin(cat_reads).stdout(write))?]
        }
    };
    let mut read = 0_u64;
    loop {
        let bytes = read_some(&source)?.len();
        if bytes == 0 {
            break;
        }
        read += u64::try_from(bytes)?;
    }
    let took = started.elapsed();
    for child in &mut children {
        let status = child.wait()?;
        ensure!(status.success(), "a part of the pipeline failed: {status}");
    }
    ensure!(read == expected, "{read} bytes arrived instead of {expected}");
    Ok(took)
}

fn start(program: &mut Command) -> Result<std::process::Child> {
    // Our copies of the pipe's ends go with the `Command`, which the caller drops.
    let child = program.stderr(Stdio::null()).spawn();
    child.with_context(|| format!("cannot start {:?}", program.get_program()))
}
