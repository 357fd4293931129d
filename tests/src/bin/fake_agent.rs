//! An agent by script. Its arguments are its steps:
//!
//! | step | what it does |
//! |---|---|
//! | `say:TEXT` | writes a line |
//! | `half:TEXT` | writes without the end of a line |
//! | `warn:TEXT` | writes a line to stderr |
//! | `at:ROLE` | announces itself |
//! | `line` | reads a line from stdin, and writes it |
//! | `input` | reads stdin to its end, writes it, and announces `eof` |
//! | `leave:ROLE` | leaves a process behind that holds stdout in a session of its own |
//! | `much:MEGABYTES` | has so much memory from here on |
//! | `work:MILLIS` | does something for so long, silently |
//! | `deaf` | ignores SIGTERM from here on |
//! | `hang` | stays |
//! | `exit:N` | exits |
//!
//! With `count:FILE` first, the steps are those after the n-th `try`, for its n-th start.

use std::io::Read as _;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use nix::unistd::setsid;
use pipewarden_tests::fixture::{Fixture, exit_after, fork, ignore, say, say_to, stay};

fn main() -> Result<()> {
    let fixture = Fixture::begin_silently()?;
    for step in &steps(fixture.arguments())? {
        take(&fixture, step).with_context(|| step.clone())?;
    }
    fixture.leave_the_scene()
}

fn steps(arguments: &[String]) -> Result<Vec<String>> {
    let Some(file) = arguments.first().and_then(|word| word.strip_prefix("count:")) else {
        return Ok(arguments.to_vec());
    };
    let starts = std::fs::read_to_string(file).unwrap_or_default().len();
    std::fs::write(file, "x".repeat(starts + 1))?;
    let of_this_try = arguments[1..].split(|word| word == "try").nth(starts + 1);
    Ok(of_this_try.context("more starts than the script has")?.to_vec())
}

fn take(fixture: &Fixture, step: &str) -> Result<()> {
    let (verb, rest) = step.split_once(':').unwrap_or((step, ""));
    match verb {
        "say" => say(format!("{rest}\n").as_bytes())?,
        "half" => say(rest.as_bytes())?,
        "warn" => say_to(&std::io::stderr(), format!("{rest}\n").as_bytes())?,
        "at" => fixture.announce(rest)?,
        "line" => say(&line()?)?,
        "input" => {
            let mut all = Vec::new();
            std::io::stdin().read_to_end(&mut all)?;
            say(&all)?;
            fixture.announce("eof")?;
        }
        "leave" => {
            fork(|| {
                setsid()?;
                fixture.announce(rest)?;
                exit_after(stay)
            })?;
            fixture.after(rest)?;
        }
        "much" => drop(Box::leak(vec![1_u8; rest.parse::<usize>()? << 20].into_boxed_slice())),
        "work" => std::thread::sleep(Duration::from_millis(rest.parse()?)), // its work, nobody's wait
        "deaf" => ignore(Signal::SIGTERM)?,
        "hang" => stay()?,
        "exit" => std::process::exit(rest.parse()?),
        _ => bail!("no such step"),
    }
    Ok(())
}

/// A line, byte by byte: what comes after it is for others.
fn line() -> Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut byte = [0];
    while nix::unistd::read(std::io::stdin(), &mut byte)? == 1 {
        line.push(byte[0]);
        if byte[0] == b'\n' {
            break;
        }
    }
    Ok(line)
}
