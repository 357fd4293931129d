//! `pipewarden audit schema` describes the records that are written, all of them and no others.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's own helpers fail the test")]

use std::collections::BTreeSet;
use std::process::Command;

use pipewarden::audit::chain::Chain;
use pipewarden::audit::detail::{
    Attached, Degraded, Eof, Escape, Exited, FifoUse, Finished, Idle, Reseeded, Restart, Retried, Started, Withheld,
};
use pipewarden::audit::evidence::{Decision, Evidence, HoldSeen, PipeSeen, Reason, RunSeen, Verified};
use pipewarden::audit::record::{Act, OnFifo, Time};
use pipewarden::audit::{Event, Hash, RunId};
use pipewarden::pipe::{Action, End, EndedFor, ExitStatus, Outcome, Pipe, PipeId, PipeKind, Relation, Stream};
use pipewarden::process::describe::{Description, describe};
use pipewarden::process::table::{Hold, Via};
use pipewarden_tests::binaries::{UNDER_TEST, binary};
use serde_json::Value;

fn schema() -> Value {
    let output = Command::new(binary(UNDER_TEST)).args(["audit", "schema"]).output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

fn us() -> Description {
    describe(i32::try_from(std::process::id()).unwrap()).unwrap()
}

fn pipe() -> Pipe {
    Pipe { id: PipeId { dev: 14, ino: 4711 }, kind: PipeKind::Pipe }
}

fn hold() -> Hold {
    Hold { pipe: pipe().id, end: End::Write, tid: us().pid, fds: vec![1, 2], via: Via::Descriptor }
}

fn act(action: Action, reason: Reason) -> Box<Act> {
    let mut evidence = Evidence::new(Relation::Lineage, true);
    evidence.source = Some("proc+connector".into());
    evidence.holds = vec![HoldSeen::from(&hold())];
    evidence.verified = Some(Verified {
        start_ticks: Some(us().start_ticks),
        same_process: true,
        writes: Some(true),
        in_lineage: Some(true),
        pidfd: true,
    });
    evidence.run = Some(RunSeen { since_exit_us: Some(200_000), quiet_us: Some(200_000), ..RunSeen::default() });
    let mut decision = Decision::new(action, reason);
    decision.signal = Some("TERM".into());
    Box::new(Act {
        process: us(),
        pipe: Some(PipeSeen::held(pipe(), Some(Stream::Stdout), &hold())),
        decision,
        evidence,
    })
}

fn on_fifo(end: End) -> Box<OnFifo> {
    let pipe = Pipe { kind: PipeKind::Fifo, ..pipe() };
    let detail = FifoUse {
        path: "/run/in".into(),
        end,
        writers: Some(1),
        why: None,
        since_start_us: Some(1_250_000),
        quiet_us: Some(900),
    };
    Box::new(OnFifo { process: None, pipe: PipeSeen::new(pipe, None), detail })
}

/// One of each.
fn events() -> Vec<Event> {
    let command = ["sh".to_owned(), "-c".to_owned(), "true".to_owned()];
    let seen = PipeSeen::new(pipe(), Some(Stream::Stdout));
    vec![
        Event::RunStarted { detail: Box::new(Started::new(&command, [("timeout".to_owned(), "5s".to_owned())])) },
        Event::RunOutputIdle {
            decision: Box::new(Decision::new(Action::Term, Reason::Idle)),
            detail: Idle { attempt: 1, quiet_us: 1, limit_us: 1 },
        },
        Event::RunRetried {
            detail: Box::new(Retried {
                attempt: 2,
                ended_for: EndedFor::Idle,
                backoff_us: 0,
                start: Restart::Resumed,
                command: "sh".into(),
            }),
        },
        Event::RunExited {
            process: Some(Box::new(us())),
            detail: Exited {
                attempt: 1,
                exit_status: ExitStatus::Signal(15),
                ended_for: EndedFor::Exit,
                elapsed_us: u64::MAX,
            },
        },
        Event::PipeEscape {
            process: Box::new(us()),
            pipe: None,
            evidence: Box::new(Evidence::new(Relation::Lineage, true)),
            detail: Escape { home_pgid: 1, pgid: 2, sid: 2, noticed_after_us: Some(20) },
        },
        Event::PipeWithheld {
            pipe: seen.clone(),
            detail: Withheld { since_exit_us: 1, lineage: 1, foreign: 0, opaque: 0, suspect: 0 },
        },
        Event::PipeEof {
            pipe: seen,
            detail: Eof { stream: Stream::Stdout, bytes: 7, since_exit_us: Some(1), by_itself: true },
        },
        Event::HolderSignalled(act(Action::Term, Reason::Stale)),
        Event::HolderEnded(act(Action::Term, Reason::Exited)),
        Event::HolderSpared(act(Action::Refused, Reason::PidReused)),
        Event::FifoOpened(on_fifo(End::Write)),
        Event::FifoClosed(on_fifo(End::Both)),
        Event::TrackerAttached {
            detail: Attached { backend: "proc".into(), rung: "connector".into(), took_us: Some(1) },
        },
        Event::TrackerDegraded {
            detail: Degraded { from: "connector".into(), to: "proc".into(), why: "ENOBUFS".into() },
        },
        Event::TrackerReseeded { detail: Reseeded { rung: "connector".into(), why: "gap".into(), missed: 3 } },
        Event::RunFinished { detail: Box::new(Finished::new(Some(Outcome::HoldersEnded), 3, 1)) },
    ]
}

/// Their lines, as they are written.
fn lines() -> Vec<Value> {
    let mut chain = Chain::new(RunId::new(), "host".into());
    events()
        .into_iter()
        .map(|event| {
            let (line, hash) = chain.seal(Time::now(), event, chain.records() == 7).unwrap();
            chain.advance(hash);
            serde_json::from_slice(&line).unwrap()
        })
        .collect()
}

#[test]
fn every_event_has_a_record_that_the_schema_accepts() {
    let schema = schema();
    let described: BTreeSet<&str> = schema["oneOf"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["properties"]["event"]["const"].as_str().unwrap())
        .collect();
    let lines = lines();
    let written: BTreeSet<&str> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!(described, written, "an event without an example here");
    for line in &lines {
        accepts(&schema, &schema, line).unwrap_or_else(|why| panic!("{why}\n{line:#}"));
    }
}

#[test]
fn the_schema_refuses_a_record_that_lacks_something_or_has_it_wrong() {
    let schema = schema();
    let envelope = ["schema", "run", "seq", "time", "host", "event", "prev", "hash"];
    for line in lines() {
        let event = line["event"].as_str().unwrap().to_owned();
        let own = match event.split('.').next().unwrap() {
            "holder" => vec!["process", "decision", "evidence"],
            "fifo" => vec!["pipe", "detail"],
            _ => vec!["detail"],
        };
        for field in envelope.into_iter().chain(own) {
            let mut without = line.clone();
            without.as_object_mut().unwrap().remove(field).unwrap();
            assert!(accepts(&schema, &schema, &without).is_err(), "{event} without {field}");
            let mut wrong = line.clone();
            wrong[field] = serde_json::json!([true]);
            assert!(accepts(&schema, &schema, &wrong).is_err(), "{event} with another {field}");
        }
    }
}

#[test]
fn every_field_is_described() {
    fn undescribed(at: &str, schema: &Value, found: &mut Vec<String>) {
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            if property["description"].is_null() && name != "event" {
                found.push(format!("{at}.{name}"));
            }
        }
        for one in schema["oneOf"].as_array().into_iter().flatten() {
            undescribed(at, one, found);
        }
    }
    let schema = schema();
    let mut found = Vec::new();
    undescribed("record", &schema, &mut found);
    for (name, definition) in schema["$defs"].as_object().unwrap() {
        // A variant of an enum of values is its own name; the description stands beside it.
        if definition["oneOf"].is_null() {
            undescribed(name, definition, &mut found);
        }
    }
    assert_eq!(found, Vec::<String>::new());
}

/// A validator for the part of JSON Schema 2020-12 that our schema is written in; a keyword that it
/// does not know fails the test, so that nothing passes because it was not looked at.
fn accepts(root: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    let Some(schema) = schema.as_object() else { return Ok(()) };
    let no = |why: String| Err(format!("{why}: {value}"));
    for (keyword, rule) in schema {
        let each = |schemas: &Value| {
            schemas.as_array().unwrap().iter().filter(|one| accepts(root, one, value).is_ok()).count()
        };
        match keyword.as_str() {
            "$schema" | "$defs" | "title" | "description" | "default" => {}
            "$ref" => {
                let path = rule.as_str().unwrap().strip_prefix('#').unwrap();
                accepts(root, root.pointer(path).unwrap(), value)?;
            }
            "type" => {
                let types = rule.as_array().map_or_else(|| vec![rule], |types| types.iter().collect());
                if !types.iter().any(|one| is_of_type(value, one.as_str().unwrap())) {
                    return no(format!("not of type {rule}"));
                }
            }
            "const" if rule != value => return no(format!("not {rule}")),
            "enum" if !rule.as_array().unwrap().contains(value) => return no(format!("not in {rule}")),
            "const" | "enum" => {}
            "anyOf" if each(rule) == 0 => return no("none of several".into()),
            "oneOf" if each(rule) != 1 => return no(format!("{} of several", each(rule))),
            "anyOf" | "oneOf" => {}
            "required" => {
                for name in rule.as_array().unwrap() {
                    if value.get(name.as_str().unwrap()).is_none() {
                        return no(format!("lacks {name}"));
                    }
                }
            }
            "properties" => {
                for (name, schema) in rule.as_object().unwrap() {
                    value.get(name).map_or(Ok(()), |value| accepts(root, schema, value))?;
                }
            }
            "additionalProperties" => {
                for (name, one) in value.as_object().into_iter().flatten() {
                    if schema.get("properties").and_then(|known| known.get(name)).is_none() {
                        if rule == &Value::Bool(false) {
                            return no(format!("has {name} too"));
                        }
                        accepts(root, rule, one)?;
                    }
                }
            }
            "items" => {
                for one in value.as_array().into_iter().flatten() {
                    accepts(root, rule, one)?;
                }
            }
            "minimum" if value.as_f64() < rule.as_f64() => return no(format!("below {rule}")),
            "maximum" if value.as_f64() > rule.as_f64() => return no(format!("above {rule}")),
            "minimum" | "maximum" => {}
            "pattern" if rule == "^[0-9a-f]{64}$" => {
                let hash = value.as_str().map(str::parse::<Hash>);
                if !matches!(hash, Some(Ok(_))) {
                    return no("no hash".into());
                }
            }
            "format" => {
                let text = value.as_str().unwrap_or_default();
                let fits = match rule.as_str().unwrap() {
                    "uuid" => text.parse::<RunId>().is_ok(),
                    "date-time" => Time::try_from(text.to_owned()).is_ok(),
                    "uint64" | "uint32" | "uint8" | "int32" => value.is_number() || value.is_null(),
                    other => panic!("the format {other} is not known here"),
                };
                if !fits {
                    return no(format!("not of format {rule}"));
                }
            }
            other => panic!("the keyword {other} is not known here"),
        }
    }
    Ok(())
}

fn is_of_type(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("the type {other} is not known here"),
    }
}
