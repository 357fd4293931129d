use super::*;
use crate::audit::detail::Reseeded;
use crate::audit::record::Record;
use crate::audit::verify::Verifier;
use std::fs::File;
use std::io::Read;
use std::time::Instant;

/// What ends a test that would otherwise hang; nothing is expected to take a part of it.
const DEADLINE: Duration = Duration::from_secs(60);

fn event(missed: u64) -> Event {
    Event::TrackerReseeded { detail: Reseeded { rung: "connector".into(), why: "test".into(), missed } }
}

fn finished() -> Finished {
    Finished::new(None, 0, 1)
}

/// A FIFO that is full and that nobody reads: the first write to it blocks. What fills it is one
/// line, and it can be read from the file that comes back.
fn hanging() -> (tempfile::TempDir, Target, File) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let fifo = File::options().read(true).write(true).open(&path).unwrap();
    let size = nix::fcntl::fcntl(&fifo, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    let mut filling = vec![b'-'; usize::try_from(size).unwrap()];
    *filling.last_mut().unwrap() = b'\n';
    nix::unistd::write(&fifo, &filling).unwrap();
    (folder, Target::Path(path), fifo)
}

/// Reads up to and with the line of `run.finished`.
fn read_to_the_end(mut fifo: File) -> Vec<u8> {
    let mut all = Vec::new();
    let mut part = [0; 65536];
    while !(all.ends_with(b"\n") && all.windows(14).any(|w| w == b"\"run.finished\"")) {
        let n = fifo.read(&mut part).unwrap();
        all.extend_from_slice(&part[..n]);
    }
    all
}

fn records(log: &[u8]) -> Vec<Record> {
    log.split(|b| *b == b'\n')
        .filter(|line| line.starts_with(b"{"))
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

#[test]
fn a_run_is_one_chain_that_its_last_record_closes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let log = Log::open(&Target::Path(path.clone()), RunId::new()).unwrap();
    for n in 0..5 {
        let receipt = log.record(event(n));
        assert_eq!(receipt.wait(DEADLINE), Delivery::Written);
        let so_far = std::fs::read(&path).unwrap();
        assert_eq!(records(&so_far).len() as u64, n + 1, "written means written");
    }
    let closing = log.finish(finished(), DEADLINE);
    let account = Account { records: 6, dropped: 0, lost: 0, late: 0 };
    assert_eq!(closing, Closing { delivery: Delivery::Written, account });
    let bytes = std::fs::read(&path).unwrap();
    let all = records(&bytes);
    let Event::RunFinished { detail } = &all[5].body.event else { panic!("{:?}", all[5]) };
    assert_eq!(detail.log, account);
    assert!(all.windows(2).all(|pair| pair[0].body.time <= pair[1].body.time));
    let mut verifier = Verifier::default();
    verifier.read("log", &bytes[..]).unwrap();
    let verdict = verifier.verdict();
    assert_eq!((verdict.intact, verdict.runs.closed, verdict.records), (true, 1, 6), "{verdict:?}");
}

#[test]
fn no_log_takes_no_thread_and_keeps_nobody_waiting() {
    let log = Log::disabled(RunId::new());
    assert!(!log.is_on());
    assert_eq!(log.record(event(0)).wait(DEADLINE), Delivery::Off);
    assert_eq!(log.finish(finished(), DEADLINE).delivery, Delivery::Off);
}

#[test]
fn an_act_before_its_record_is_marked_late_and_only_the_first_one_waits() {
    let (_folder, target, fifo) = hanging();
    let log = Log::open(&target, RunId::new()).unwrap();
    let _ = log.record(event(0));
    let act = log.record(event(1));
    assert_eq!(act.wait(ACT_WAIT), Delivery::Late);
    let begun = Instant::now();
    assert_eq!(log.record(event(2)).wait(DEADLINE), Delivery::Late);
    assert!(begun.elapsed() < DEADLINE, "the target is known to hang: nobody waits for it again");
    let patient = log.record(event(3));

    let reader = std::thread::spawn(move || read_to_the_end(fifo));
    let closing = log.finish(finished(), DEADLINE);
    assert_eq!(patient.wait(DEADLINE), Delivery::Written);
    assert_eq!(act.wait(DEADLINE), Delivery::Written, "late is not lost");
    assert_eq!((closing.delivery, closing.account.late), (Delivery::Written, 2));
    let late: Vec<bool> = records(&reader.join().unwrap()).iter().map(|record| record.body.late).collect();
    assert_eq!(late, [false, true, true, false, false]);
}

#[test]
fn a_full_queue_drops_records_counts_them_and_still_takes_the_end() {
    let (_folder, target, fifo) = hanging();
    let log = Log::open(&target, RunId::new()).unwrap();
    let receipts: Vec<Receipt> = (0..2 * QUEUE as u64).map(|n| log.record(event(n))).collect();
    let dropped = receipts.iter().filter(|receipt| receipt.wait(Duration::ZERO) == Delivery::Lost).count();
    assert!((QUEUE - 1..=QUEUE).contains(&dropped), "one may be with the writer, the rest is queued: {dropped}");

    let closing = log.finish(finished(), Duration::ZERO);
    assert_eq!((closing.delivery, closing.account.dropped), (Delivery::Late, dropped as u64));
    let bytes = read_to_the_end(fifo);
    assert_eq!(records(&bytes).len(), 2 * QUEUE - dropped + 1);
    let mut verifier = Verifier::default();
    verifier.read("log", &bytes[..]).unwrap();
    let verdict = verifier.verdict();
    assert_eq!((verdict.intact, verdict.runs.closed), (true, 1), "{verdict:?}");
    let told = verdict.oddities.first.last().unwrap();
    assert!(told.text.contains(&format!("{dropped} records were dropped")), "{told:?}");
}

#[test]
fn an_ending_does_not_wait_for_a_log_that_hangs() {
    let (_folder, target, _fifo) = hanging();
    let log = Log::open(&target, RunId::new()).unwrap();
    let _ = log.record(event(0));
    assert_eq!(log.finish(finished(), Duration::from_millis(20)).delivery, Delivery::Late);
}

#[test]
fn the_writer_takes_no_signal_that_is_meant_for_the_supervisor() {
    let folder = tempfile::tempdir().unwrap();
    let before = SigSet::thread_get_mask().unwrap();
    let log = Log::open(&Target::Path(folder.path().join("log")), RunId::new()).unwrap();
    assert_eq!(log.record(event(0)).wait(DEADLINE), Delivery::Written);
    assert_eq!(SigSet::thread_get_mask().unwrap(), before, "ours is as it was");
    let masks: Vec<u64> = std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).ok())
        .filter(|status| status.starts_with("Name:\taudit\n"))
        .map(|status| {
            let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
            u64::from_str_radix(mask.trim(), 16).unwrap()
        })
        .collect();
    let bit = |signal: i32| 1u64 << (signal - 1);
    let wanted = bit(libc::SIGTERM) | bit(libc::SIGINT) | bit(libc::SIGCHLD) | bit(libc::SIGPIPE);
    assert!(!masks.is_empty() && masks.iter().all(|mask| mask & wanted == wanted), "{masks:x?}");
}
