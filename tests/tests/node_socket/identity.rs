//! Who asks: answers are in the pid namespace of the process that connected, for as long as it is the same.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, socket};
use pipewarden::ownership::node::protocol::{Ask, Code};
use pipewarden_tests::binaries::binary;
use pipewarden_tests::deadline::Deadline;
use pipewarden_tests::node::Node;
use pipewarden_tests::node_client::{Answers, Client, for_everybody};
use serde_json::{Value, json};

use super::answers::{Shell, comes_to};

#[test]
fn another_user_is_told_of_his_pipes_too() {
    let Some(node) = Node::shared("another_user_is_told_of_his_pipes_too") else { return };
    let mut other = Answers::of_nobody(&node.socket());
    let came = Deadline::patient().until(|| {
        let answer = other.another();
        answer["holders"] == json!([answer["us"]]) && answer["pidfds"] == answer["holders"]
    });
    assert!(came, "{:?}", other.another());
}

#[test]
fn in_a_pid_namespace_pids_are_its_own_and_others_are_only_counted() {
    let Some(node) = Node::shared("in_a_pid_namespace_pids_are_its_own_and_others_are_only_counted") else { return };
    let (read, write) = std::io::pipe().unwrap();
    // Outside of it two hold the pipe: a shell, and unshare, which waits for what is inside.
    let shell = Shell::holding(write.try_clone().unwrap());
    let mut command = Command::new("unshare");
    let line = "sleep 120 >&5 5>&- & exec \"$0\" \"$1\" 6 5>&-";
    command.args(["-pf", "--mount-proc", "--propagation", "private", "--kill-child", "sh", "-c", line]);
    command.arg(binary("ask_node")).arg(node.socket());
    let mut inside = Answers::started(command, &[(5, write.into()), (6, read.try_clone().unwrap().into())]);
    let mut last = Value::Null;
    let came = Deadline::patient().until(|| {
        last = inside.another();
        last["elsewhere"] == 2 && last["holders"].as_array().is_some_and(|holders| holders.len() == 1)
    });
    assert!(came, "{last}");
    let pid = last["holders"][0].as_i64().unwrap();
    assert!(pid > 1 && pid < 10, "{last}");
    assert_eq!(last["pidfds"], last["holders"], "the pidfd is of that process");
    assert_eq!(last["us"], 1);

    // Who sees everybody is told of everybody.
    let mut client = Client::greeting(&node.socket());
    let watch = client.watch(&read);
    let came = Deadline::patient().until(|| {
        let (holders, _) = client.holders(Some(watch), &[]);
        holders.holders.len() == 3 && holders.elsewhere == 0
    });
    assert!(came, "{:?}", client.holders(Some(watch), &[]));
    drop(inside);
    let _ = comes_to(&mut client, watch, &[shell.pid()]);
    shell.end();
}

#[test]
fn a_sibling_namespace_is_not_told_of() {
    let Some(node) = Node::shared("a_sibling_namespace_is_not_told_of") else { return };
    let (read, write) = std::io::pipe().unwrap();
    let unshare = |line: &str| {
        let mut command = Command::new("unshare");
        command.args(["-pf", "--mount-proc", "--propagation", "private", "--kill-child", "sh", "-c", line]);
        command.arg(binary("ask_node")).arg(node.socket());
        command
    };
    let fd = |pipe: &std::io::PipeReader| -> OwnedFd { pipe.try_clone().unwrap().into() };
    // One holds it, and the other asks; both have the same pids inside.
    let mut holds = Answers::started(unshare("exec \"$0\" \"$1\" 6"), &[(5, write.into()), (6, fd(&read))]);
    let mut asks = Answers::started(unshare("exec \"$0\" \"$1\" 6"), &[(6, fd(&read))]);
    let mut last = Value::Null;
    let came = Deadline::patient().until(|| {
        last = asks.another();
        last["elsewhere"] == 2
    });
    assert!(came, "{last}");
    assert_eq!((&last["holders"], &last["us"]), (&json!([]), &json!(1)));
    let own = holds.another();
    assert_eq!((&own["holders"], &own["us"]), (&json!([1]), &json!(1)), "{own}");
}

#[test]
fn a_connection_ends_with_the_program_that_made_it() {
    let Some(node) = Node::shared("a_connection_ends_with_the_program_that_made_it") else { return };
    let folder = tempfile::tempdir().unwrap();
    // The same program once more, and with root's rights where the file system lets it.
    let ask = for_everybody("ask_node", folder.path(), "0755");
    let with_rights = for_everybody("ask_node", folder.path(), "4755");
    for next in [&ask, &with_rights] {
        let mut command = Command::new(&ask);
        command.arg(node.socket()).arg("then").arg(next).arg("over").uid(65534).gid(65534);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        assert_eq!(said["errors"], json!([[0, "peer"]]), "{said}");
    }
}

#[test]
fn a_connection_whose_process_is_gone_is_nobodys() {
    let Some(node) = Node::shared("a_connection_whose_process_is_gone_is_nobodys") else { return };
    // Somebody else connects our socket, and ends.
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).unwrap();
    let address = UnixAddr::new(&node.socket()).unwrap();
    let number = fd.as_raw_fd();
    let mut command = Command::new("true");
    command.stdin(Stdio::null()).stdout(Stdio::null());
    // SAFETY: connect is a system call and nothing else; the address was made before the fork.
    unsafe {
        command.pre_exec(move || Ok(nix::sys::socket::connect(number, &address)?));
    }
    assert!(command.status().unwrap().success());
    let mut client = Client::over(UnixStream::from(fd));
    let words = client.request_and_listen(Ask::Hello { program: "x".into() });
    assert!(words.iter().all(|(_, code)| *code == Code::Peer) && words.len() <= 1, "{words:?}");
    // A process that stays is still let in.
    let mut client = Client::greeting(&node.socket());
    assert_eq!(client.ask(Ask::Unwatch { watch: 1 }, &[]).error().0, Code::NoWatch);
}
