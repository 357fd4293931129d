//! Lines: what is no request is told so, and costs nobody anything.

use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use pipewarden::ownership::node::protocol::{Ask, Code, LONGEST, Request, Tell};
use pipewarden_tests::node::Node;
use pipewarden_tests::node_client::Client;

const HELLO: &[u8] = b"{\"v\":1,\"id\":1,\"ask\":\"hello\",\"program\":\"test\"}\n";

#[test]
fn what_is_not_understood_is_answered_with_what_to_do() {
    let Some(node) = Node::shared("what_is_not_understood_is_answered_with_what_to_do") else { return };
    let mut client = Client::greeting(&node.socket());
    client.send(b"{\"v\":1,\"id\":77,\"ask\":\"teleport\"}\n", &[]).unwrap();
    let answer = client.answer(77);
    assert_eq!(answer.error().0, Code::Unknown);
    assert!(answer.error().1.contains("ask for hello, watch, unwatch, resolve and why"), "{answer:?}");
    assert!(matches!(client.ask(Ask::Why, &[]).tell, Tell::Why { .. }), "and it goes on");

    for (line, code) in [
        (&b"{\"v\":9,\"id\":5,\"ask\":\"why\"}\n"[..], (5, Code::Version)),
        (b"hello\n", (0, Code::Malformed)),
        (b"\n", (0, Code::Malformed)),
        (b"\xff\xfe\x00\n", (0, Code::Malformed)),
        (b"{\"v\":1,\"id\":6,\"ask\":\"unwatch\"}\n", (6, Code::Malformed)),
    ] {
        let mut client = Client::greeting(&node.socket());
        client.send(line, &[]).unwrap();
        assert_eq!(client.last_words(), [code], "{:?}", String::from_utf8_lossy(line));
    }
}

#[test]
fn who_does_not_say_hello_is_asked_to() {
    let Some(node) = Node::shared("who_does_not_say_hello_is_asked_to") else { return };
    let mut client = Client::mute(&node.socket());
    assert_eq!(client.ask(Ask::Why, &[]).error().0, Code::NoHello);
    let (read, _write) = std::io::pipe().unwrap();
    assert_eq!(client.ask(Ask::Watch, &[read.as_fd()]).error().0, Code::NoHello);
    assert!(matches!(client.ask(Ask::Hello { program: "x".into() }, &[]).tell, Tell::Hello { .. }));
}

#[test]
fn hello_tells_who_answers() {
    let Some(node) = Node::shared("hello_tells_who_answers") else { return };
    let mut client = Client::mute(&node.socket());
    let Tell::Hello { version, rung, boot } = client.ask(Ask::Hello { program: "x".into() }, &[]).tell else {
        panic!()
    };
    assert!(!version.is_empty() && rung.starts_with("bpf-"), "{version} {rung}");
    assert_eq!(boot, std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim());
}

#[test]
fn a_line_that_is_too_long_ends_the_connection() {
    let Some(node) = Node::shared("a_line_that_is_too_long_ends_the_connection") else { return };
    let mut client = Client::greeting(&node.socket());
    let long = vec![b' '; 2 * LONGEST];
    let mut sent = 0;
    while sent < long.len() {
        match client.send(&long[sent..], &[]) {
            Ok(number) => sent += number,
            Err(Errno::EPIPE | Errno::ECONNRESET) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(client.last_words(), [(0, Code::TooLong)]);

    // One that is just as long as it may be is a line.
    let mut client = Client::greeting(&node.socket());
    let mut line = Request::new(9, Ask::Why).line();
    line.pop();
    line.resize(LONGEST - 1, b' ');
    line.push(b'\n');
    let mut sent = 0;
    while sent < line.len() {
        sent += client.send(&line[sent..], &[]).unwrap();
    }
    assert!(matches!(client.answer(9).tell, Tell::Why { .. }));
}

#[test]
fn a_line_may_come_byte_by_byte_and_several_at_once() {
    let Some(node) = Node::shared("a_line_may_come_byte_by_byte_and_several_at_once") else { return };
    let mut client = Client::mute(&node.socket());
    for byte in HELLO {
        client.send(&[*byte], &[]).unwrap();
    }
    assert!(matches!(client.answer(1).tell, Tell::Hello { .. }));
    let many: Vec<u8> = (2..200).flat_map(|id| Request::new(id, Ask::Unwatch { watch: 1 }).line()).collect();
    client.send(&many, &[]).unwrap();
    for id in 2..200 {
        assert_eq!(client.answer(id).error().0, Code::NoWatch);
    }
}

#[test]
fn half_a_line_is_not_waited_for_for_good() {
    let Some(node) = Node::shared("half_a_line_is_not_waited_for_for_good") else { return };
    let (mut silent, mut half) = (Client::mute(&node.socket()), Client::greeting(&node.socket()));
    let mut idle = Client::greeting(&node.socket());
    let (read, _write) = std::io::pipe().unwrap();
    half.send(b"{\"v\":1,", &[read.as_fd()]).unwrap();
    assert_eq!(silent.last_words(), [(0, Code::Malformed)]);
    assert_eq!(half.last_words(), [(0, Code::Malformed)]);
    assert!(matches!(idle.ask(Ask::Why, &[]).tell, Tell::Why { .. }), "who owes nothing may stay");
}

#[test]
fn who_asks_and_takes_no_answer_is_not_listened_to_and_others_are() {
    let test = "who_asks_and_takes_no_answer_is_not_listened_to_and_others_are";
    let Some(node) = Node::start(test) else { return };
    let before = pipewarden_tests::supervise::Holdings::of(node.pid());
    let (read, _write) = std::io::pipe().unwrap();
    let mut slow = Client::greeting(&node.socket());
    slow.stream.set_nonblocking(true).unwrap();
    // Until the kernel takes no more of it, or it was enough.
    let mut asked = 0_u64;
    while asked < 20_000 {
        match slow.send(&Request::new(1000 + asked, Ask::Why).line(), &[]) {
            Ok(_) => asked += 1,
            Err(Errno::EAGAIN) => break,
            Err(error) => panic!("{error}"),
        }
    }
    let mut other = Client::greeting(&node.socket());
    for _ in 0..20 {
        let (holders, _) = other.holders(None, &[read.as_fd()]);
        assert!(holders.holders.len() <= 1000);
    }
    let now = pipewarden_tests::supervise::Holdings::of(node.pid());
    assert!(now.resident_kib < before.resident_kib + 64 * 1024, "{before:?} {now:?}");
    // What it asked is answered, if it listens after all.
    slow.stream.set_nonblocking(false).unwrap();
    assert!(matches!(slow.answer(1000).tell, Tell::Why { .. }));
}

#[test]
fn who_does_not_take_events_is_hung_up_on_and_others_are_told() {
    // A batch is less than the node keeps for one caller (256 KiB), and all of them are far more than that and what
    // the kernel keeps.
    const BATCH: usize = 500;
    const BATCHES: usize = 60;
    let test = "who_does_not_take_events_is_hung_up_on_and_others_are_told";
    let Some(node) = Node::start(test) else { return };
    let (read, write) = std::io::pipe().unwrap();
    let (mut slow, mut other) = (Client::greeting(&node.socket()), Client::greeting(&node.socket()));
    slow.watch(&read);
    let watch = other.watch(&read);
    let mut restless = Command::new("true");
    restless.stdin(Stdio::null()).stdout(write);
    // SAFETY: setpgid is a system call and nothing else.
    unsafe {
        restless.pre_exec(|| {
            for _ in 0..BATCH {
                libc::setpgid(0, 0);
            }
            Ok(())
        });
    }
    for _ in 0..BATCHES {
        restless.spawn().unwrap().wait().unwrap();
        // Whoever is answered has taken all that was told before.
        assert!(matches!(other.ask(Ask::Why, &[]).tell, Tell::Why { .. }), "who listens is served");
    }
    drop(restless);
    other.event(|tell| *tell == Tell::Eof { watch });
    // More than the kernel keeps for it and the node does: its end comes, or everything does.
    let mut told = 0;
    while let Some((message, _)) = slow.message() {
        told += 1;
        if matches!(message.tell, Tell::Eof { .. }) {
            break;
        }
    }
    assert!(told > 0);
}
