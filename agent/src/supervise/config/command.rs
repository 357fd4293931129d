//! One command's table.

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::{Gid, Group, Uid, getgrouplist};
use regex::bytes::Regex;

use super::{Account, Address, Command, Ending, Launch, Output, Policy, Ready, Restart, Stdin};
use crate::config::{ConfigError, Table, Value};
use crate::ownership::keep::Keep;
use crate::run::options::{OnForeign, OnHolder, OnOpaque, Reap, User};
use crate::value;

type Read<T> = Result<T, ConfigError>;

/// Reads `[command.NAME]`.
pub fn read(entry: &Value<'_>) -> Read<Command> {
    let name = entry.name();
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
        return Err(entry.wrong("this is no name; use up to 64 letters, digits, _, . and -"));
    }
    let mut table = entry.table("[command.NAME] with keys below it")?;
    let policy = policy(&mut table)?;
    let launch = launch(&mut table, policy.restart)?;
    let after = table.take("after").map_or(Ok(Vec::new()), |value| value.texts())?;
    let essential = table.take("essential").map_or(Ok(false), |value| value.flag())?;
    table.done()?;
    Ok(Command { name: name.to_owned(), launch, policy, after, essential })
}

fn policy(table: &mut Table<'_>) -> Read<Policy> {
    let words = [("never", Restart::Never), ("on-failure", Restart::OnFailure), ("always", Restart::Always)];
    let restart = table.take("restart").map_or(Ok(Restart::OnFailure), |value| value.one_of(&words))?;
    let backoff = time(table, "backoff", Duration::from_millis(500))?;
    let most = table.take("backoff_max");
    let backoff_max = most.as_ref().map_or(Ok(backoff.max(Duration::from_secs(30))), Value::duration)?;
    if let Some(value) = most.filter(|_| backoff_max < backoff) {
        return Err(value.wrong("this is less than backoff; make it at least as long"));
    }
    let backoff_reset = time(table, "backoff_reset", Duration::from_secs(60))?;
    let limit = table.take("restart_limit");
    let limit = limit.map_or(Ok(Some((10, Duration::from_secs(600)))), |value| value.parsed(value::rate))?;
    Ok(Policy { restart, backoff, backoff_max, backoff_reset, limit })
}

fn launch(table: &mut Table<'_>, restart: Restart) -> Read<Launch> {
    let run = table.need("run", "[\"PROGRAM\", \"ARGUMENT\"]")?;
    let words = run.texts()?;
    if words.first().is_none_or(String::is_empty) {
        return Err(run.wrong("there is no program in it; use [\"PROGRAM\", \"ARGUMENT\"]"));
    }
    if words.iter().any(|word| word.contains('\0')) {
        return Err(run.wrong("a NUL byte is in it, which no program can be given; take it out"));
    }
    let stdout = table.take("stdout").map_or(Ok(Output::Prefix), |value| output(&value))?;
    let stderr = table.take("stderr").map_or(Ok(Output::Prefix), |value| output(&value))?;
    let ready_value = table.take("ready");
    let ready = ready_value.as_ref().map_or(Ok(Ready::Started), ready)?;
    if let (Some(value), Ready::Line(_)) = (ready_value, &ready)
        && stdout == Output::Null
        && stderr == Output::Null
    {
        return Err(value.wrong("both streams go to \"null\", where no line is seen; send one elsewhere"));
    }
    let never = matches!(ready, Ready::Started | Ready::Finished);
    let patience = (!never).then_some(Duration::from_secs(60));
    Ok(Launch {
        run: words,
        env: table.take("env").map_or(Ok(Vec::new()), |value| environment(&value))?,
        clear_env: table.take("clear_env").map_or(Ok(false), |value| value.flag())?,
        cwd: table.take("cwd").map(|value| value.text().map(PathBuf::from)).transpose()?,
        user: table.take("user").map(|value| account(&value)).transpose()?,
        stdin: table.take("stdin").map_or(Ok(Stdin::Null), |value| stdin(&value))?,
        stdout,
        stderr,
        ready,
        ready_timeout: table.take("ready_timeout").map_or(Ok(patience), |value| value.bound())?,
        ending: ending(table, restart)?,
    })
}

fn environment(value: &Value<'_>) -> Read<Vec<(String, String)>> {
    let mut variables = Vec::new();
    for entry in value.table("{ NAME = \"value\" }")?.into_entries() {
        let (name, text) = (entry.name(), entry.text()?);
        if name.is_empty() || name.contains(['=', '\0']) || text.contains('\0') {
            return Err(entry.wrong("this is no variable; its name has no =, and neither part a NUL byte"));
        }
        variables.push((name.to_owned(), text.to_owned()));
    }
    Ok(variables)
}

fn stdin(value: &Value<'_>) -> Read<Stdin> {
    let text = value.text()?;
    match (text, text.strip_prefix("fifo:")) {
        ("null", _) => Ok(Stdin::Null),
        ("inherit", _) => Ok(Stdin::Inherit),
        (_, Some(path)) if !path.is_empty() => Ok(Stdin::Fifo(path.into())),
        _ => Err(value.wrong(&format!("\"{}\" is no input; use null, inherit or fifo:PATH", text.escape_debug()))),
    }
}

fn output(value: &Value<'_>) -> Read<Output> {
    let text = value.text()?;
    match (text, text.strip_prefix("file:")) {
        ("prefix", _) => Ok(Output::Prefix),
        ("inherit", _) => Ok(Output::Inherit),
        ("null", _) => Ok(Output::Null),
        (_, Some(path)) if !path.is_empty() => Ok(Output::File(path.into())),
        _ => {
            let text = text.escape_debug();
            Err(value.wrong(&format!("\"{text}\" is no output; use prefix, inherit, null or file:PATH")))
        }
    }
}

fn ready(value: &Value<'_>) -> Read<Ready> {
    const RIGHT: &str = "\"started\", \"finished\", { line = \"re:REGEX\" }, { file = \"PATH\" }, \
                         { socket = \"PATH or IP:PORT\" } or { delay = \"2s\" }";
    if let Some(text) = value.as_text() {
        return match text {
            "started" => Ok(Ready::Started),
            "finished" => Ok(Ready::Finished),
            _ => Err(value.wrong(&format!("\"{}\" is no readiness; use {RIGHT}", text.escape_debug()))),
        };
    }
    let mut table = value.table(RIGHT)?;
    let line = table.take("line").map(|value| value.parsed(line).map(Ready::Line)).transpose()?;
    let file = table.take("file").map(|value| value.text().map(|path| Ready::File(path.into()))).transpose()?;
    let socket = table.take("socket").map(|value| value.parsed(address).map(Ready::Socket)).transpose()?;
    let delay = table.take("delay").map(|value| value.duration().map(Ready::Delay)).transpose()?;
    table.done()?;
    let mut given = [line, file, socket, delay].into_iter().flatten();
    match (given.next(), given.next()) {
        (Some(ready), None) => Ok(ready),
        _ => Err(value.wrong(&format!("one way to be ready is wanted; use {RIGHT}"))),
    }
}

fn line(text: &str) -> Result<Regex, String> {
    let Some(pattern) = text.strip_prefix("re:") else { return Err("use re:REGEX".to_owned()) };
    Regex::new(pattern).map_err(|error| {
        let text = error.to_string();
        let last = text.lines().last().unwrap_or_default();
        format!("this is no regular expression: {}", last.trim_start_matches("error: "))
    })
}

fn address(text: &str) -> Result<Address, String> {
    match text.parse() {
        Ok(port) => Ok(Address::Port(port)),
        Err(_) if text.contains('/') => Ok(Address::Path(text.into())),
        Err(_) => Err("use an address and port, such as 127.0.0.1:8080, or the path of a unix socket".to_owned()),
    }
}

/// `NAME`, `NAME:GROUP`, or numbers.
fn account(value: &Value<'_>) -> Read<Account> {
    let text = value.text()?;
    let wrong = |what: &str| value.wrong(&format!("\"{}\": {what}", text.escape_debug()));
    let (name, group) = text.split_once(':').map_or((text, None), |(name, group)| (name, Some(group)));
    let by_number = name.parse::<u32>().ok();
    let entry = match by_number {
        Some(uid) => nix::unistd::User::from_uid(Uid::from_raw(uid)),
        None => nix::unistd::User::from_name(name),
    };
    let entry = entry.map_err(|error| wrong(&format!("the user cannot be looked up: {error}")))?;
    let uid = match (&entry, by_number) {
        (Some(entry), _) => entry.uid.as_raw(),
        (None, Some(uid)) => uid,
        (None, None) => return Err(wrong("there is no such user; use a name of /etc/passwd or a number")),
    };
    let gid = match group {
        None => entry.as_ref().map_or(uid, |entry| entry.gid.as_raw()),
        Some(group) => match (group.parse::<u32>(), Group::from_name(group)) {
            (Ok(gid), _) => gid,
            (_, Ok(Some(entry))) => entry.gid.as_raw(),
            _ => return Err(wrong("there is no such group; use a name of /etc/group or a number")),
        },
    };
    let us = nix::unistd::geteuid();
    if !us.is_root() && us.as_raw() != uid {
        return Err(wrong("only root can start a command as another user; leave this out, or run as root"));
    }
    let c_name = entry.as_ref().and_then(|entry| std::ffi::CString::new(entry.name.clone()).ok());
    let groups = c_name.and_then(|name| getgrouplist(&name, Gid::from_raw(gid)).ok());
    let groups = groups.map_or(vec![gid], |groups| groups.into_iter().map(Gid::as_raw).collect());
    Ok(Account { user: User { uid, gid, groups }, login: entry.map(|entry| (entry.name, entry.dir)) })
}

fn time(table: &mut Table<'_>, key: &'static str, default: Duration) -> Read<Duration> {
    table.take(key).map_or(Ok(default), |value| value.duration())
}

fn ending(table: &mut Table<'_>, restart: Restart) -> Read<Ending> {
    let what = [
        ("end", OnHolder::End),
        ("report", OnHolder::Report),
        ("close", OnHolder::Close),
        ("wait", OnHolder::Wait),
        ("drain", OnHolder::Drain),
    ];
    let opaque = [("report", OnOpaque::Report), ("end", OnOpaque::End)];
    // What comes again must not meet what an earlier one left behind.
    let auto = if restart == Restart::Never { Reap::Auto } else { Reap::All };
    let reap = [("auto", auto), ("holders", Reap::Holders), ("all", Reap::All)];
    let delivery = Some(Duration::from_secs(5));
    Ok(Ending {
        signal: table.take("signal").map_or(Ok(Signal::SIGTERM), |value| value.parsed(value::signal))?,
        kill_after: time(table, "kill_after", Duration::from_secs(5))?,
        timeout: table.take("timeout").map_or(Ok(None), |value| value.bound())?,
        idle_timeout: table.take("idle_timeout").map_or(Ok(None), |value| value.bound())?,
        holder_grace: time(table, "holder_grace", Duration::from_millis(200))?,
        max_drain: time(table, "max_drain", Duration::from_secs(5))?,
        max_deliver: table.take("max_deliver").map_or(Ok(delivery), |value| value.bound())?,
        on_holder: table.take("on_holder").map_or(Ok(OnHolder::End), |value| value.one_of(&what))?,
        on_foreign: table
            .take("on_foreign")
            .map_or(Ok(OnForeign::Auto), |value| value.one_of(&what).map(OnForeign::As))?,
        on_opaque: table.take("on_opaque").map_or(Ok(OnOpaque::Report), |value| value.one_of(&opaque))?,
        reap: table.take("reap").map_or(Ok(auto), |value| value.one_of(&reap))?,
        keep: table.take("keep").map_or(Ok(Vec::new()), |value| globs(&value))?,
    })
}

fn globs(value: &Value<'_>) -> Read<Vec<String>> {
    let globs = value.texts()?;
    Keep::new(&globs).map_err(|error| value.wrong(&format!("{error}; use a glob such as \"*postgres*\"")))?;
    Ok(globs)
}
