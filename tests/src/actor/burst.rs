//! Many random operations at once, by several tasks that do not wait for each other.

use std::sync::atomic::Ordering;

use super::board::{PLACES, READY};
use super::chance::Chance;
use super::op::{Arg, Kind, Op};
use super::sys::{self, Answer};
use super::{Task, birth, perform, table};

/// A short-lived child or thread comes once in so many operations.
const BRIEFLY: u32 = 24;
/// What ends a task on the board is left out so many times of so many.
const MORTAL: u32 = 40;

/// Tries so many operations, and counts in its place those that it performed, and that succeeded.
pub fn run(task: Task, seed: u32, count: u32) -> Answer {
    each(
        task,
        seed,
        count,
        |chance| {
            if chance.one_in(BRIEFLY) { Some(briefly(task, chance)) } else { one(task, chance) }
        },
    )
}

/// So many operations on the table alone.
pub fn storm(task: Task, seed: u32, count: u32) -> Answer {
    each(task, seed, count, |chance| Some(on_table(task, chance)))
}

/// What the operations answer, or nothing where there was none to be performed. A task may end in any of
/// them: what it counted until then is on the board.
fn each(task: Task, seed: u32, count: u32, perform: impl Fn(&mut Chance) -> Option<Answer>) -> Answer {
    let mut chance = Chance::new(u64::from(seed) << 8 | u64::from(task.number));
    let place = task.place();
    for _ in 0..count {
        if let Some(result) = perform(&mut chance) {
            place.performed.fetch_add(1, Ordering::Relaxed);
            place.succeeded.fetch_add(u32::from(result >= 0), Ordering::Relaxed);
        }
    }
    0
}

/// Nothing that waits for another task: that one may have ended.
fn is_allowed(kind: Kind) -> bool {
    !matches!(kind, Kind::AddFd | Kind::BlockWrite | Kind::Unblock)
}

fn one(task: Task, chance: &mut Chance) -> Option<Answer> {
    let mut kind = chance.kind(is_allowed);
    while kind.ends() && !chance.one_in(MORTAL) {
        kind = chance.kind(is_allowed);
    }
    let mut op = Op { task: task.number, kind, with: [0; 3] };
    for (value, meaning) in op.with.iter_mut().zip(kind.arguments()) {
        *value = match meaning {
            Arg::Child => next_birth(task)?,
            Arg::Peer => somebody(task, chance),
            meaning => chance.argument(*meaning),
        };
    }
    let left_out = task.board().left_out.load(Ordering::Relaxed);
    if op.hole().is_some_and(|hole| hole.bit() & left_out != 0) {
        return None;
    }
    if kind == Kind::Mailbox {
        // By chance alone, nearly nothing would ever be passed.
        perform(task, &op);
        let [number, ..] = op.with;
        let send = Op { kind: Kind::Send, with: [number, 3 + chance.below(5), 0], ..op };
        perform(task, &send);
        op = Op { kind: Kind::Receive, with: [number, chance.below(2), 0], ..op };
    }
    Some(perform(task, &op))
}

/// The next of the places that are this task's to fill.
fn next_birth(task: Task) -> Option<u32> {
    let place = task.place();
    let next = place.births_from.load(Ordering::Relaxed);
    (next < place.births_to.load(Ordering::Relaxed)).then(|| {
        place.births_from.store(next + 1, Ordering::Relaxed);
        next
    })
}

fn somebody(task: Task, chance: &mut Chance) -> u32 {
    let number = chance.below(u32::try_from(PLACES).unwrap_or(1));
    if task.peer(number).state.load(Ordering::Acquire) == READY { number } else { task.number }
}

/// A process or a thread that does a little and is gone again.
fn briefly(task: Task, chance: &mut Chance) -> Answer {
    task.place().scratch[0].store(chance.below(u32::MAX), Ordering::Relaxed);
    match chance.below(8) {
        0 => birth::thread_briefly(task, little_thread),
        1 => birth::vfork_briefly(task, little_program),
        kind => match birth::fork_briefly(kind > 5) {
            0 => {
                a_little(task);
                sys::exit_group(0)
            }
            pid if pid > 0 => {
                let arguments = [pid as usize, 0, libc::__WALL as u32 as usize, 0, 0, 0];
                // SAFETY: no address is among the arguments that are not null.
                unsafe { sys::call(libc::SYS_wait4, arguments) };
                pid
            }
            error => error,
        },
    }
}

extern "C" fn little_thread(number: u32) -> ! {
    if let Some(task) = Task::at(number) {
        a_little(task);
    }
    sys::exit()
}

extern "C" fn little_program(number: u32) -> ! {
    if let Some(task) = Task::at(number) {
        a_little(task);
    }
    let _ = birth::exec_and_leave();
    sys::exit_group(127)
}

/// A few operations of one table.
fn a_little(task: Task) {
    let mut chance = Chance::new(u64::from(task.place().scratch[0].load(Ordering::Relaxed)));
    for _ in 0..chance.below(6) {
        let _ = on_table(task, &mut chance);
    }
}

fn on_table(task: Task, chance: &mut Chance) -> Answer {
    let kind = chance.kind(is_fast);
    let mut op = Op { task: task.number, kind, with: [0; 3] };
    for (value, meaning) in op.with.iter_mut().zip(kind.arguments()) {
        *value = chance.argument(*meaning);
    }
    table::perform(&op)
}

fn is_fast(kind: Kind) -> bool {
    use Kind::{Close, CloseRange, Dup, Dup2, Dup3, DupFd, Pipe, Unshare};
    matches!(kind, Pipe | Dup | Dup2 | Dup3 | DupFd | Close | CloseRange | Unshare)
}
