//! Lines and descriptors out of a socket: however bytes come, the lines are the same; what is passed comes out once, in its
//! order, and never with a line before its own; and what is kept is bounded.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use pipewarden::ownership::node::frame::Lines;
use pipewarden::ownership::node::protocol::LONGEST;

#[derive(Arbitrary, Debug)]
struct Read {
    bytes: Vec<u8>,
    /// So many bytes more of what makes no line: long lines are not found letter by letter.
    more: u16,
    passed: u8,
}

fuzz_target!(|reads: Vec<Read>| {
    let mut lines = Lines::default();
    let (mut found, mut told) = (Vec::new(), Vec::new());
    let (mut whole, mut number, mut given_back) = (Vec::new(), 0_u32, 0);
    let mut too_long = false;
    'reads: for read in &reads {
        let mut bytes = read.bytes.clone();
        bytes.resize(bytes.len() + usize::from(read.more), b'x');
        let passed: Vec<u32> = (0..u32::from(read.passed)).map(|index| number + index).collect();
        number += u32::from(read.passed);
        let back = lines.push(&bytes, passed.clone());
        assert_eq!(back, if bytes.is_empty() { passed } else { Vec::new() });
        given_back += back.len();
        told.extend(back);
        whole.extend_from_slice(&bytes);
        loop {
            let has_line = lines.has_line();
            match lines.next_line() {
                Ok(Some(line)) => {
                    assert!(has_line, "a line that it says it has not");
                    assert!(line.bytes.len() < LONGEST && !line.bytes.contains(&b'\n'));
                    told.extend(line.passed);
                    found.push(line.bytes);
                }
                Ok(None) => break,
                Err(_) => {
                    too_long = true;
                    break 'reads;
                }
            }
        }
        assert!(lines.pending() < LONGEST, "{} bytes are kept", lines.pending());
    }
    let expected: Vec<&[u8]> = whole.split(|byte| *byte == b'\n').collect();
    assert!(found.iter().zip(&expected).all(|(found, expected)| found == expected), "another line than was sent");
    if !too_long {
        assert_eq!(found.len() + 1, expected.len());
        told.extend(lines.take_passed());
        let mut all = told.clone();
        all.sort_unstable();
        assert!(all.iter().copied().eq(0..number), "something was lost, or came twice");
        assert!(given_back > 0 || told.is_sorted(), "out of its order: {told:?}");
    }
});
