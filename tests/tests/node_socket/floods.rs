//! Floods: whoever makes one harms himself.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use pipewarden::ownership::node::protocol::{Ask, Code, Request, Tell};
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::node::Node;
use pipewarden_tests::node_client::{Answers, Client};
use pipewarden_tests::supervise::Holdings;

#[test]
fn ten_thousand_connections_of_one_user_leave_room_for_another() {
    let test = "ten_thousand_connections_of_one_user_leave_room_for_another";
    let Some(node) = Node::start(test) else { return };
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    let wave = usize::try_from(hard / 4).unwrap().min(2500);
    drop(Client::greeting(&node.socket()));
    let before = Holdings::of(node.pid());
    let mut made = 0;
    while made < 10_000 {
        let mut clients: Vec<Client> = (0..wave).map(|_| Client::mute(&node.socket())).collect();
        made += clients.len();
        for client in &clients {
            let _ = client.send(&Request::new(1, Ask::Hello { program: "flood".into() }).line(), &[]);
        }
        // Each is answered: let in or turned away.
        let (mut let_in, mut refused) = (0, 0);
        for client in &mut clients {
            match client.message().map(|(message, _)| message.tell) {
                Some(Tell::Hello { .. }) => let_in += 1,
                Some(Tell::Error { code: Code::Busy, .. }) => refused += 1,
                other => panic!("{other:?}"),
            }
        }
        assert!(let_in <= 1024 && let_in + refused == wave, "{let_in} let in, {refused} refused");
        assert_eq!(refused > 0, wave > 1024, "{let_in} let in, {refused} refused");
        let now = Holdings::of(node.pid());
        assert!(now.fds < before.fds + 3 * 1024, "{before:?} {now:?}");
        let mut other = Answers::of_nobody(&node.socket());
        assert!(other.another()["holders"].is_array(), "another user is served");
        drop(other);
        drop(clients);
        let gone = Deadline::patient().until(|| Holdings::of(node.pid()).fds <= before.fds);
        assert!(gone, "{before:?} {:?}", Holdings::of(node.pid()));
    }
    let now = Holdings::of(node.pid());
    assert!(now.resident_kib < before.resident_kib + 64 * 1024, "{before:?} {now:?}");
    assert_eq!((now.threads, now.children), (before.threads, before.children));
}

#[test]
fn who_asks_without_end_leaves_time_for_others() {
    let Some(node) = Node::start("who_asks_without_end_leaves_time_for_others") else { return };
    let over = Arc::new(AtomicBool::new(false));
    let floods: Vec<_> = (0..4)
        .map(|number| {
            let (over, socket) = (Arc::clone(&over), node.socket());
            std::thread::spawn(move || {
                let client = Client::greeting(&socket);
                let reader = client.stream.try_clone().unwrap();
                let taker = std::thread::spawn(move || std::io::copy(&mut &reader, &mut std::io::sink()));
                let line = match number {
                    0 => Request::new(5, Ask::Why).line(),
                    1 => b"{\"v\":1,\"id\":6,\"ask\":\"teleport\"}\n".to_vec(),
                    2 => Request::new(5, Ask::Unwatch { watch: 9 }).line(),
                    _ => Request::new(5, Ask::Resolve { watch: None }).line(),
                };
                while !over.load(Ordering::Relaxed) {
                    match client.send(&line, &[]) {
                        Ok(_) | Err(Errno::EINTR) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
                let _ = client.stream.shutdown(std::net::Shutdown::Both);
                let _ = taker.join().unwrap(); // the end may come as an error
            })
        })
        .collect();
    let mut other = Answers::of_nobody(&node.socket());
    for _ in 0..20 {
        assert!(other.another()["holders"].is_array());
    }
    over.store(true, Ordering::Relaxed);
    for flood in floods {
        flood.join().unwrap();
    }
}

#[test]
fn who_comes_and_goes_leaves_nothing() {
    let Some(node) = Node::start("who_comes_and_goes_leaves_nothing") else { return };
    let (read, _write) = std::io::pipe().unwrap();
    let come_and_go = || {
        let mut client = Client::greeting(&node.socket());
        client.watch(&read);
        client.request(Ask::Resolve { watch: Some(1) }, &[]);
    };
    for _ in 0..10 {
        come_and_go();
    }
    let settled = |before: Option<Holdings>| {
        let mut last = Holdings::of(node.pid());
        let _ = Deadline::patient().until(|| {
            last = Holdings::of(node.pid());
            before.is_none_or(|before| last.fds <= before.fds)
        });
        last
    };
    drop(UnixStream::connect(node.socket()).unwrap());
    let mut client = Client::greeting(&node.socket());
    client.ask(Ask::Why, &[]);
    drop(client);
    let before = settled(None);
    for _ in 0..50 {
        come_and_go();
        for _ in 0..20 {
            drop(Client::greeting(&node.socket()));
        }
    }
    let after = settled(Some(before));
    assert!(after.fds <= before.fds && after.threads == before.threads, "{before:?} {after:?}");
    assert!(after.resident_kib < before.resident_kib + 32 * 1024, "{before:?} {after:?}");
}
