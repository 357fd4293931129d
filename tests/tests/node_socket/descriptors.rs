//! Descriptors: only a read end is taken, one at a time, and none is kept.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::fcntl::{OFlag, open};
use nix::poll::PollFlags;
use nix::sys::stat::Mode;
use pipewarden::ownership::node::protocol::{Ask, Code, Request, Tell};
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::kernel::descriptors;
use pipewarden_tests::node::Node;
use pipewarden_tests::node_client::{Answers, Client};

/// Waits until the node has as many descriptors as before.
fn comes_back_to(node: &Node, before: usize) {
    let came = Deadline::patient().until(|| descriptors(node.pid()) <= before);
    assert!(came, "{} descriptors, and {before} before", descriptors(node.pid()));
}

#[test]
fn what_is_no_read_end_proves_nothing() {
    let Some(node) = Node::shared("what_is_no_read_end_proves_nothing") else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
    let fifo = |flags| -> OwnedFd { open(&path, flags | OFlag::O_CLOEXEC, Mode::empty()).unwrap() };
    let (_read, write) = io::pipe().unwrap();
    let (socket, _other) = UnixStream::pair().unwrap();
    let all: [(OwnedFd, &str); 8] = [
        (write.into(), "the write end"),
        (fifo(OFlag::O_RDWR), "for writing too"),
        (fifo(OFlag::O_PATH), "O_PATH"),
        (File::create(folder.path().join("file")).unwrap().into(), "no pipe"),
        (File::open(folder.path()).unwrap().into(), "no pipe"),
        (File::open("/dev/null").unwrap().into(), "no pipe"),
        (socket.into(), "no pipe"),
        (nix::sys::eventfd::EventFd::new().unwrap().into(), "no pipe"),
    ];
    let mut client = Client::greeting(&node.socket());
    for (fd, why) in &all {
        for ask in [Ask::Watch, Ask::Resolve { watch: None }] {
            let answer = client.ask(ask, &[fd.as_fd()]);
            assert_eq!(answer.error().0, Code::Descriptor, "{why}");
            assert!(answer.error().1.contains(why), "{answer:?}");
        }
    }
    assert!(matches!(client.ask(Ask::Why, &[]).tell, Tell::Why { .. }), "and it goes on");
}

#[test]
fn possession_is_the_proof_and_numbers_are_none() {
    let Some(node) = Node::shared("possession_is_the_proof_and_numbers_are_none") else { return };
    let (read, _write) = io::pipe().unwrap();
    let (mut owner, mut stranger) = (Client::greeting(&node.socket()), Client::greeting(&node.socket()));
    let watch = owner.watch(&read);
    // A watch is a connection's own, and there is no other name for a pipe.
    for number in [watch, watch + 1, 0, u64::MAX] {
        assert_eq!(stranger.ask(Ask::Resolve { watch: Some(number) }, &[]).error().0, Code::NoWatch);
        assert_eq!(stranger.ask(Ask::Unwatch { watch: number }, &[]).error().0, Code::NoWatch);
    }
    assert_eq!(stranger.ask(Ask::Watch, &[]).error().0, Code::Descriptor);
    assert_eq!(stranger.ask(Ask::Resolve { watch: None }, &[]).error().0, Code::Descriptor);
    let ino = nix::sys::stat::fstat(&read).unwrap().st_ino;
    let forged = format!("{{\"v\":1,\"id\":900,\"ask\":\"resolve\",\"pipe\":{{\"ino\":{ino}}},\"fd\":0}}\n");
    stranger.send(forged.as_bytes(), &[]).unwrap();
    assert_eq!(stranger.answer(900).error().0, Code::Descriptor);
    assert!(!owner.holders(Some(watch), &[]).0.holders.is_empty());
}

#[test]
fn what_is_passed_is_closed_before_it_is_answered() {
    let Some(node) = Node::start("what_is_passed_is_closed_before_it_is_answered") else { return };
    let mut client = Client::greeting(&node.socket());
    client.ask(Ask::Why, &[]);
    let before = descriptors(node.pid());
    // A write end that the node kept would keep the end of file away.
    let (mut read, write) = io::pipe().unwrap();
    let _ = client.ask(Ask::Watch, &[write.as_fd()]).error();
    let node_has = pipewarden_tests::kernel::on_pipe(node.pid(), &read);
    assert!(node_has.is_empty(), "{node_has:?}");
    drop(write);
    // Another test's child may have it for a moment.
    assert!(Deadline::patient().wait(read.as_fd(), PollFlags::POLLIN));
    assert_eq!(read.read(&mut [0]).unwrap(), 0);
    // A read end that it kept would keep SIGPIPE away.
    let (read, mut write) = io::pipe().unwrap();
    let watch = client.watch(&read);
    let node_has = pipewarden_tests::kernel::on_pipe(node.pid(), &read);
    assert!(node_has.is_empty(), "{node_has:?}");
    drop(read);
    assert!(Deadline::patient().until(|| write.write(b"x").is_err()));
    client.event(|tell| *tell == Tell::Ended { watch } || matches!(tell, Tell::Eof { .. }));
    comes_back_to(&node, before);
}

#[test]
fn more_descriptors_than_one_are_refused_and_closed() {
    let Some(node) = Node::start("more_descriptors_than_one_are_refused_and_closed") else { return };
    let (read, _write) = io::pipe().unwrap();
    let mut client = Client::greeting(&node.socket());
    client.ask(Ask::Why, &[]);
    let before = descriptors(node.pid());
    for number in [2, 3, 100, 253] {
        let fds: Vec<BorrowedFd<'_>> = (0..number).map(|_| read.as_fd()).collect();
        assert_eq!(client.ask(Ask::Watch, &fds).error().0, Code::Descriptor, "{number}");
        assert_eq!(client.ask(Ask::Why, &fds).error().0, Code::Descriptor, "{number}");
    }
    assert_eq!(client.ask(Ask::Why, &[read.as_fd()]).error().0, Code::Descriptor, "where none is needed");
    comes_back_to(&node, before);
    // With half a line, and never the rest of it.
    let half = Client::greeting(&node.socket());
    half.send(b"{\"v\"", &[read.as_fd(), read.as_fd()]).unwrap();
    drop(half);
    comes_back_to(&node, before);
}

#[test]
fn floods_of_descriptors_are_taken_no_faster_than_they_are_closed() {
    let Some(node) = Node::start("floods_of_descriptors_are_taken_no_faster_than_they_are_closed") else { return };
    let (read, _write) = io::pipe().unwrap();
    let mut client = Client::greeting(&node.socket());
    client.ask(Ask::Why, &[]);
    let before = descriptors(node.pid());
    let floods: Vec<Client> = (0..8).map(|_| Client::greeting(&node.socket())).collect();
    let fds: Vec<BorrowedFd<'_>> = (0..253).map(|_| read.as_fd()).collect();
    for flood in &floods {
        flood.stream.set_nonblocking(true).unwrap();
        // As many as the kernel takes.
        for id in 1..50 {
            if flood.send(&Request::new(id, Ask::Watch).line(), &fds).is_err() {
                break;
            }
        }
    }
    for _ in 0..20 {
        assert!(matches!(client.ask(Ask::Why, &[]).tell, Tell::Why { .. }), "others are served");
        let now = descriptors(node.pid());
        assert!(now < before + 2048, "{now} descriptors, and {before} before");
    }
    drop(floods);
    comes_back_to(&node, before);
}

/// A descriptor whose close waits: a connection that lingers, with data that nobody takes.
fn lingering() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (other, _) = listener.accept().unwrap();
    let linger = libc::linger { l_onoff: 1, l_linger: 600 };
    nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &linger).unwrap();
    stream.set_nonblocking(true).unwrap();
    while (&stream).write(&[0; 65536]).is_ok() {}
    (stream.into(), other)
}

#[test]
fn a_close_that_waits_makes_nobody_else_wait() {
    let Some(node) = Node::start("a_close_that_waits_makes_nobody_else_wait") else { return };
    let mut hopeful = Client::greeting(&node.socket());
    let (read, _write) = io::pipe().unwrap();
    let watch = hopeful.watch(&read);
    let stuck: Vec<(Client, TcpStream)> = (0..12)
        .map(|_| {
            let (fd, other) = lingering();
            let client = Client::greeting(&node.socket());
            let line = Request::new(2, Ask::Watch).line();
            // With half a line the node keeps it, so that its close is the last one, which waits.
            client.send(&line[..5], &[fd.as_fd()]).unwrap();
            drop(fd);
            client.send(&line[5..], &[]).unwrap();
            (client, other)
        })
        .collect();
    // This user's own closes wait, and what needs none goes on.
    for _ in 0..20 {
        hopeful.holders(Some(watch), &[]);
    }
    // Another user's do not wait.
    let mut other = Answers::of_nobody(&node.socket());
    assert!(other.another()["holders"].as_array().unwrap().len() <= 1000);
    drop(other);
    // Where the other side is gone, there is nothing to wait for any more.
    let clients: Vec<Client> = stuck.into_iter().map(|(client, _)| client).collect();
    for mut client in clients {
        assert_eq!(client.answer(2).error().0, Code::Descriptor);
    }
}
