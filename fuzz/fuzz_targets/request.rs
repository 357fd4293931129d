//! Requests of strangers: those that are right, made of values, and those that are nearly right, made of right ones by
//! taking something away, putting something in its place or beside it. Bytes by chance would hardly ever be either.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use pipewarden::ownership::node::protocol::{Ask, Bad, Code, Request, VERSION};
use serde_json::{Map, Value, json};

#[derive(Arbitrary, Debug)]
enum Asked {
    Hello(String),
    Watch,
    Unwatch(u64),
    Resolve(Option<u64>),
    Why,
}

#[derive(Arbitrary, Debug)]
enum Other {
    Null,
    Bool(bool),
    Number(i64),
    Float(f64),
    Text(String),
    List(Vec<Other>),
    Object(Vec<(String, Other)>),
}

#[derive(Arbitrary, Debug)]
enum Change {
    /// The key of this number is gone.
    Without(u8),
    /// It has another value.
    Instead(u8, Other),
    /// There is another key.
    Beside(String, Other),
    /// The keys are there twice.
    Twice,
    /// In a list.
    Listed,
    /// The text is cut.
    Cut(u16),
    /// A byte of the text is another.
    Byte(u16, u8),
    /// Deep within.
    Nested(u8),
}

#[derive(Arbitrary, Debug)]
enum Input {
    Right { id: u64, asked: Asked },
    Changed { id: u64, asked: Asked, changes: Vec<Change> },
    Bytes(Vec<u8>),
}

fuzz_target!(|input: Input| match input {
    Input::Right { id, asked } => {
        let request = Request::new(id, ask(asked));
        let line = request.line();
        assert_eq!((line.iter().filter(|byte| **byte == b'\n').count(), line.last()), (1, Some(&b'\n')));
        match Request::parse(&line[..line.len() - 1]) {
            Ok(read) => assert_eq!(read, request),
            Err(bad) => assert_eq!((id, bad.code), (0, Code::Malformed)),
        }
    }
    Input::Changed { id, asked, changes } => {
        let line = Request::new(id, ask(asked)).line();
        look_at(&changed(&line[..line.len() - 1], &changes));
    }
    Input::Bytes(bytes) => look_at(&bytes),
});

/// What is read is what is written again; what is not read is answered by one line.
fn look_at(line: &[u8]) {
    match Request::parse(line) {
        Ok(request) => {
            assert!(request.v == VERSION && request.id != 0);
            let again = request.line();
            assert_eq!(Request::parse(&again[..again.len() - 1]).as_ref(), Ok(&request));
        }
        Err(Bad { message, .. }) => {
            assert!(message.lines().count() == 1 && message.len() < 1024, "{message}");
            assert!(!message.chars().any(char::is_control), "{message:?}");
        }
    }
}

fn ask(asked: Asked) -> Ask {
    match asked {
        Asked::Hello(program) => Ask::Hello { program },
        Asked::Watch => Ask::Watch,
        Asked::Unwatch(watch) => Ask::Unwatch { watch },
        Asked::Resolve(watch) => Ask::Resolve { watch },
        Asked::Why => Ask::Why,
    }
}

fn value(other: &Other) -> Value {
    match other {
        Other::Null => Value::Null,
        Other::Bool(bool) => json!(bool),
        Other::Number(number) => json!(number),
        Other::Float(number) => json!(number),
        Other::Text(text) => json!(text),
        Other::List(list) => list.iter().map(value).collect(),
        Other::Object(entries) => {
            entries.iter().map(|(key, other)| (key.clone(), value(other))).collect::<Map<_, _>>().into()
        }
    }
}

fn changed(line: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut object: Map<String, Value> = serde_json::from_slice(line).expect("a request is an object");
    let mut text: Option<Vec<u8>> = None;
    let write = |object: &Map<String, Value>| serde_json::to_vec(object).expect("an object has a form");
    for change in changes {
        let key = |number: &u8| object.keys().nth(usize::from(*number) % object.len().max(1)).cloned();
        match change {
            Change::Without(number) => {
                if let Some(key) = key(number) {
                    object.remove(&key);
                }
            }
            Change::Instead(number, other) => {
                if let Some(key) = key(number) {
                    object.insert(key, value(other));
                }
            }
            Change::Beside(key, other) => {
                object.insert(key.clone(), value(other));
            }
            Change::Twice => {
                let mut one = text.take().unwrap_or_else(|| write(&object));
                let other = write(&object);
                if one.pop() == Some(b'}') && other.len() > 1 {
                    one.push(b',');
                    one.extend_from_slice(&other[1..]);
                }
                text = Some(one);
            }
            Change::Listed => {
                let one = text.take().unwrap_or_else(|| write(&object));
                text = Some([b"[", &one[..], b"]"].concat());
            }
            Change::Cut(at) => {
                let mut one = text.take().unwrap_or_else(|| write(&object));
                one.truncate(usize::from(*at));
                text = Some(one);
            }
            Change::Byte(at, byte) => {
                let mut one = text.take().unwrap_or_else(|| write(&object));
                let length = one.len().max(1);
                if let Some(place) = one.get_mut(usize::from(*at) % length) {
                    *place = *byte;
                }
                text = Some(one);
            }
            Change::Nested(depth) => {
                let (open, shut) = (b"[".repeat(usize::from(*depth)), b"]".repeat(usize::from(*depth)));
                let mut one = text.take().unwrap_or_else(|| write(&object));
                if one.pop() == Some(b'}') {
                    one.extend_from_slice(b",\"more\":");
                    one.extend_from_slice(&[open, shut].concat());
                    one.push(b'}');
                }
                text = Some(one);
            }
        }
    }
    text.unwrap_or_else(|| write(&object))
}
