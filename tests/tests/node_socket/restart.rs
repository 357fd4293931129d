//! A node that is killed and started again: who is connected notices, and finds the next one at the same place.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::process::{Command, Stdio};

use pipewarden_tests::binaries::{UNDER_TEST, binary};
use pipewarden_tests::node::Node;
use pipewarden_tests::node_client::Client;

#[test]
fn who_is_connected_to_a_node_that_dies_reads_an_end_and_finds_the_next_one() {
    let test = "who_is_connected_to_a_node_that_dies_reads_an_end_and_finds_the_next_one";
    let Some(mut node) = Node::start(test) else { return };
    let (read, _write) = std::io::pipe().unwrap();
    for _ in 0..3 {
        let mut client = Client::greeting(&node.socket());
        let watch = client.watch(&read);
        client.holders(Some(watch), &[]);
        node.kill();
        while client.message().is_some() {}
        assert!(node.socket().exists(), "nobody took it away");
        node.start_again();
    }
    let mut client = Client::greeting(&node.socket());
    let status = node.terminate();
    assert_eq!(status.code(), Some(0), "{}", node.said());
    while client.message().is_some() {}
    assert!(!node.socket().exists(), "who is told to end takes it away");
}

#[test]
fn the_sockets_file_has_the_mode_that_was_asked_for_and_no_other_beside_it() {
    let test = "the_sockets_file_has_the_mode_that_was_asked_for_and_no_other_beside_it";
    let Some(node) = Node::configured(test, "mode = \"0640\"\ngroup = \"65534\"\n", "") else { return };
    let data = fs::symlink_metadata(node.socket()).unwrap();
    assert!(data.file_type().is_socket());
    assert_eq!(data.permissions().mode() & 0o7777, 0o640);
    assert_eq!(std::os::unix::fs::MetadataExt::gid(&data), 65534);
    let beside = fs::read_dir(node.socket().parent().unwrap()).unwrap().flatten();
    let sockets = beside.filter(|entry| entry.file_type().unwrap().is_socket()).count();
    assert_eq!(sockets, 1);
}

#[test]
fn a_socket_that_cannot_be_is_one_line_that_names_the_key() {
    let test = "a_socket_that_cannot_be_is_one_line_that_names_the_key";
    let Some(node) = Node::start(test) else { return };
    // Under the node's own lock there is no second node; so it is another machine's, as it were.
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("node.toml");
    for (path, wrong) in [
        (folder.path().join("x".repeat(120)).join("y"), "too long for a socket"),
        (node.socket(), "another node listens here"),
        (config.clone(), "there is a file that is no socket"),
    ] {
        let text = format!(
            "[socket]\npath = \"{}\"\n[http]\nlisten = \"off\"\n[audit]\npath = \"{}\"\n",
            path.display(),
            folder.path().join("audit").display()
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new(binary(UNDER_TEST));
        command.args(["node", "--config"]).arg(&config).stdin(Stdio::null()).stdout(Stdio::null());
        pipewarden_tests::own_lock::instead_of_the_machines(&mut command, &folder.path().join("lock"));
        let output = command.stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(125), "{said}");
        let line = said.lines().find(|line| line.contains(wrong)).unwrap_or_else(|| panic!("{said}"));
        assert!(line.contains("[socket]") && line.starts_with("pipewarden: node: "), "{said}");
    }
}
