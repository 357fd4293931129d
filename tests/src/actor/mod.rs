//! An actor: a process that does to its descriptor table what it is told, one operation at a time.
//!
//! Its tasks (the first thread, further threads, processes that were born of it) each have a place on
//! the [`board`], memory that they share with the controller. A task waits there for an operation,
//! performs it by bare system calls, and answers. So the controller decides who does what before
//! whom, until it asks several tasks for a [`burst`] of random operations at once.
//!
//! Nothing here allocates, panics on purpose, or needs thread-local storage: a thread may fork while
//! another is anywhere, and threads of ours have no C library that knows of them.

#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "words of system calls have 64 bits")]

pub mod birth;
pub mod board;
pub mod burst;
pub mod chance;
pub mod compat;
pub mod op;
pub mod pass;
pub mod ring;
pub mod seccomp;
pub mod stage;
pub mod sys;
pub mod table;

use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use self::board::{Board, PLACES, Place, READY};
use self::op::{Kind, Op};
use self::sys::{Answer, Word};

static BOARD: AtomicPtr<Board> = AtomicPtr::new(std::ptr::null_mut());
static STACKS: AtomicUsize = AtomicUsize::new(0);
static LOW: AtomicUsize = AtomicUsize::new(0);

/// The stack of a thread or of a child that shares our memory.
const STACK: usize = 128 << 10;

/// A task: what it is on the board.
#[derive(Clone, Copy)]
pub struct Task {
    /// Its place.
    pub number: u32,
    board: &'static Board,
}

impl Task {
    /// The task of this place, in a process that is on the board.
    #[must_use]
    pub fn at(number: u32) -> Option<Task> {
        // SAFETY: `stage::attend` put a mapping there that is never unmapped, or nothing did.
        let board = unsafe { BOARD.load(Ordering::Acquire).as_ref()? };
        ((number as usize) < PLACES).then_some(Task { number, board })
    }

    /// What all see.
    #[must_use]
    pub fn board(&self) -> &'static Board {
        self.board
    }

    /// Its place.
    #[must_use]
    pub fn place(&self) -> &'static Place {
        &self.board.places[self.number as usize % PLACES]
    }

    /// Another's.
    #[must_use]
    pub fn peer(&self, number: u32) -> &'static Place {
        &self.board.places[number as usize % PLACES]
    }

    /// The top of a stack for one short-lived child or thread of this task.
    #[must_use]
    pub fn short_stack(&self) -> Word {
        STACKS.load(Ordering::Acquire) + (self.number as usize + 1) * STACK
    }

    /// Takes its place, and performs what it is told until it ends.
    pub fn act(self) -> ! {
        self.introduce();
        let place = self.place();
        place.state.store(READY, Ordering::Release);
        board::wake(&place.state);
        loop {
            let done = place.done.load(Ordering::Relaxed);
            while place.asked.load(Ordering::Acquire) == done {
                board::wait(&place.asked, done);
            }
            let result = place.op(self.number).map_or(-libc::EINVAL, |op| perform(self, &op));
            place.answer(result);
        }
    }

    /// Writes down who is here: by /proc, which tells it in the numbers of who mounted it.
    pub fn introduce(&self) {
        let mut text = [0u8; 64];
        let path = c"/proc/thread-self";
        let arguments = [path.as_ptr() as Word, text.as_mut_ptr() as Word, text.len() - 1, 0, 0, 0];
        // SAFETY: the path ends by a zero, and the text has that many bytes.
        unsafe { sys::call(libc::SYS_readlinkat, at_cwd(arguments)) };
        let mut numbers = [0u32; 2];
        for (number, word) in numbers.iter_mut().zip(text.split(|byte| *byte == b'/').step_by(2)) {
            *number = word.iter().take_while(|b| b.is_ascii_digit()).fold(0, |n, b| n * 10 + u32::from(b - b'0'));
        }
        let place = self.place();
        place.pid.store(numbers[0], Ordering::Relaxed);
        place.tid.store(numbers[1], Ordering::Relaxed);
        place.own_pid.store(sys::numbers(libc::SYS_getpid, &[]) as u32, Ordering::Relaxed);
    }
}

/// The arguments of an `...at` call that begins with a path: relative to nothing.
fn at_cwd(a: [Word; 6]) -> [Word; 6] {
    [libc::AT_FDCWD as isize as Word, a[0], a[1], a[2], a[3], a[4]]
}

/// Performs one operation; births answer with the child's pid, as the parent knows it.
pub fn perform(task: Task, op: &Op) -> Answer {
    let [a, b, c] = op.with;
    match op.kind {
        Kind::Check => 0,
        Kind::Burst => burst::run(task, a, b),
        Kind::Storm => burst::storm(task, a, b),
        Kind::Pipe
        | Kind::Pipe2
        | Kind::Null
        | Kind::Dup
        | Kind::Dup2
        | Kind::DupMany
        | Kind::Limit
        | Kind::Dup3
        | Kind::DupFd
        | Kind::DupFdCloexec
        | Kind::SetCloexec
        | Kind::Close
        | Kind::CloseRange
        | Kind::Unshare => table::perform(op),
        Kind::FifoRead | Kind::FifoWrite | Kind::FifoBoth | Kind::FifoPath | Kind::BlockWrite | Kind::Unblock => {
            table::open_fifo(task, op)
        }
        Kind::ProcRead | Kind::ProcWrite | Kind::ProcBoth | Kind::ProcPath => table::open_through_proc(task, op),
        Kind::Fork
        | Kind::Clone
        | Kind::CloneFiles
        | Kind::CloneParent
        | Kind::CloneFilesParent
        | Kind::Clone3
        | Kind::Clone3Files
        | Kind::CompatFork
        | Kind::VforkExec
        | Kind::VforkFilesExec
        | Kind::Thread
        | Kind::ThreadOwn => birth::perform(task, op),
        Kind::Exec => birth::exec(task, task.number),
        Kind::Exit => sys::exit(),
        Kind::ExitGroup => sys::exit_group(0),
        Kind::Kill => match task.peer(a).own_pid.load(Ordering::Relaxed) {
            0 | 1 => -libc::ESRCH, // free, or the keeper: never
            pid => sys::numbers(libc::SYS_kill, &[pid, libc::SIGKILL as u32]),
        },
        Kind::Zombies => birth::keep_zombies(a != 0),
        Kind::Setsid => sys::numbers(libc::SYS_setsid, &[]),
        Kind::Setpgid => sys::numbers(libc::SYS_setpgid, &[0, 0]),
        Kind::JoinGroup => birth::join_group(task.peer(a).own_pid.load(Ordering::Relaxed)),
        Kind::Mailbox => pass::open_mailbox(task, a),
        Kind::Send => pass::send(task, a, &[b]),
        Kind::SendTwo => pass::send(task, a, &[b, c]),
        Kind::Receive => pass::receive(a, b != 0),
        Kind::ReceiveMany => pass::receive_many(a, b != 0),
        Kind::GetFd => pass::get_fd(task.peer(a).own_pid.load(Ordering::Relaxed), b),
        Kind::UringOpen
        | Kind::UringClose
        | Kind::UringPipe
        | Kind::UringInstall
        | Kind::UringReceive
        | Kind::UringRegister => ring::perform(task, op),
        Kind::AddFd => seccomp::add_fd(a, b, c),
        Kind::CompatDup
        | Kind::CompatDup2
        | Kind::CompatDupFd
        | Kind::CompatPipe
        | Kind::CompatClose
        | Kind::CompatCloseRange
        | Kind::CompatOpen => compat::perform(task, op),
    }
}
