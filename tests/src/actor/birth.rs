//! Births, other programs, groups.

use std::sync::atomic::Ordering;

use super::board::{self, decimal};
use super::op::{Kind, Op};
use super::sys::{self, Answer, Word};
use super::{STACK, Task, compat};

const SIGCHLD: Word = libc::SIGCHLD as Word;
const FILES: Word = libc::CLONE_FILES as Word;
const PARENT: Word = libc::CLONE_PARENT as Word;
/// A child that shares our memory until its exec, while we wait.
const VFORK: Word = (libc::CLONE_VM | libc::CLONE_VFORK) as Word | SIGCHLD;
/// A thread, but for its table.
const THREAD: Word =
    (libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_SIGHAND | libc::CLONE_THREAD | libc::CLONE_SYSVSEM) as Word;

/// Makes a task in the place that the operation names.
pub fn perform(task: Task, op: &Op) -> Answer {
    let [number, fd, target] = op.with;
    let Some(child) = Task::at(number) else { return -libc::EINVAL };
    match op.kind {
        Kind::Thread => thread(child, THREAD | FILES),
        Kind::ThreadOwn => thread(child, THREAD),
        Kind::VforkExec => vfork(task, VFORK, child, fd, target),
        Kind::VforkFilesExec => vfork(task, VFORK | FILES, child, fd, target),
        kind => match fork(kind) {
            0 => child.act(),
            pid => pid,
        },
    }
}

/// Makes a process with memory of its own. Returns twice.
fn fork(kind: Kind) -> Answer {
    let clone = |flags: Word| {
        // SAFETY: without CLONE_VM and a stack, clone(2) is a fork; nothing is locked in us, ever.
        sys::short(unsafe { sys::call(libc::SYS_clone, [flags | SIGCHLD, 0, 0, 0, 0, 0]) })
    };
    match kind {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Kind::Fork => sys::short(unsafe { sys::call(libc::SYS_fork, [0; 6]) }),
        // SAFETY: as above.
        Kind::CompatFork => unsafe { compat::call(compat::FORK, 0, 0, 0) },
        Kind::CloneFiles => clone(FILES),
        Kind::CloneParent => clone(PARENT),
        Kind::CloneFilesParent => clone(FILES | PARENT),
        Kind::Clone3 => clone3(0),
        Kind::Clone3Files => clone3(FILES),
        _ => clone(0),
    }
}

fn clone3(flags: Word) -> Answer {
    // struct clone_args, its first version: flags, pidfd, child_tid, parent_tid, exit_signal, stack,
    // stack_size, tls (clone(2)).
    let arguments: [u64; 8] = [flags as u64, 0, 0, 0, SIGCHLD as u64, 0, 0, 0];
    let size = size_of_val(&arguments);
    // SAFETY: as above, and the arguments live through the call.
    sys::short(unsafe { sys::call(libc::SYS_clone3, [arguments.as_ptr() as Word, size, 0, 0, 0, 0]) })
}

/// Forks for a moment: the child must end by itself. With `files` it shares the table.
pub fn fork_briefly(files: bool) -> Answer {
    fork(if files { Kind::CloneFiles } else { Kind::Fork })
}

/// A new stack. It is never given back: whoever uses it last cannot.
fn stack() -> Option<Word> {
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE) as Word;
    let protection = (libc::PROT_READ | libc::PROT_WRITE) as Word;
    // SAFETY: a new mapping somewhere free.
    let address = unsafe { sys::call(libc::SYS_mmap, [0, STACK, protection, flags, Word::MAX, 0]) };
    (address > 0).then(|| address as Word + STACK)
}

fn thread(child: Task, flags: Word) -> Answer {
    let Some(stack) = stack() else { return -libc::ENOMEM };
    // SAFETY: the stack is new, and its top is the end of a page.
    sys::short(unsafe { sys::clone_on(stack, flags, 0, act, child.number) })
}

extern "C" fn act(number: u32) -> ! {
    match Task::at(number) {
        Some(task) => task.act(),
        None => sys::exit(),
    }
}

/// Runs `body` as a thread of this task and waits until it has left its stack.
pub fn thread_briefly(task: Task, body: extern "C" fn(u32) -> !) -> Answer {
    let word = &task.place().thread;
    word.store(1, Ordering::Release);
    let flags = THREAD | FILES | libc::CLONE_CHILD_CLEARTID as Word;
    // SAFETY: nobody else uses this stack, and we stay until its user has left it.
    let tid = unsafe { sys::clone_on(task.short_stack(), flags, word.as_ptr() as Word, body, task.number) };
    while tid > 0 && word.load(Ordering::Acquire) != 0 {
        board::wait(word, 1);
    }
    sys::short(tid)
}

/// Runs `body`, which must execute another program or exit, in a child that shares our memory.
pub fn vfork_briefly(task: Task, body: extern "C" fn(u32) -> !) -> Answer {
    // SAFETY: nobody else uses this stack, and we are suspended until the child has left our memory.
    sys::short(unsafe { sys::clone_on(task.short_stack(), VFORK, 0, body, task.number) })
}

fn vfork(task: Task, flags: Word, child: Task, fd: u32, target: u32) -> Answer {
    for (word, value) in task.place().scratch.iter().zip([child.number, fd, target]) {
        word.store(value, Ordering::Relaxed);
    }
    // SAFETY: as above.
    sys::short(unsafe { sys::clone_on(task.short_stack(), flags, 0, execute_child, task.number) })
}

extern "C" fn execute_child(number: u32) -> ! {
    if let Some(task) = Task::at(number) {
        let [child, fd, target] =
            [0, 1, 2].map(|at: usize| task.place().scratch.get(at).map_or(0, |word| word.load(Ordering::Relaxed)));
        let _ = sys::numbers(libc::SYS_dup3, &[fd, target, 0]);
        let _ = exec(task, child);
    }
    sys::exit_group(127)
}

/// Becomes this program anew, as the task of that place; returns only an error.
pub fn exec(task: Task, number: u32) -> Answer {
    let path = task.board().path(b"board", None);
    let mut digits = [0u8; 11];
    for (place, byte) in digits.iter_mut().zip(decimal(number).into_iter().filter(|byte| *byte != 0)) {
        *place = byte;
    }
    execute(&[c"fd_actor".as_ptr(), c"task".as_ptr(), digits.as_ptr().cast(), path.as_ptr().cast(), std::ptr::null()])
}

/// Becomes this program anew, to exit at once; returns only an error.
pub fn exec_and_leave() -> Answer {
    execute(&[c"fd_actor".as_ptr(), c"leave".as_ptr(), std::ptr::null()])
}

fn execute(arguments: &[*const libc::c_char]) -> Answer {
    // Not /proc/self: the first thread may have ended, and with it the link.
    let path = c"/proc/thread-self/exe".as_ptr() as Word;
    let environment = [std::ptr::null::<libc::c_char>()];
    let a = [path, arguments.as_ptr() as Word, environment.as_ptr() as Word, 0, 0, 0];
    // SAFETY: callers give arguments that end by a null, of strings that end by a zero.
    sys::short(unsafe { sys::call(libc::SYS_execve, a) })
}

/// Whether children that end stay until somebody waits for them.
pub fn keep_zombies(keep: bool) -> Answer {
    let handler = if keep { libc::SIG_DFL } else { libc::SIG_IGN };
    // The kernel's struct sigaction: handler, flags, restorer, mask. Neither action runs code.
    let action: [u64; 4] = [handler as u64, 0, 0, 0];
    let a = [SIGCHLD, action.as_ptr() as Word, 0, 8, 0, 0];
    // SAFETY: the action lives through the call.
    sys::short(unsafe { sys::call(libc::SYS_rt_sigaction, a) })
}

/// Enters the process group that another process is in.
pub fn join_group(pid: u32) -> Answer {
    if pid == 0 {
        return -libc::ESRCH;
    }
    match sys::numbers(libc::SYS_getpgid, &[pid]) {
        group if group > 0 => sys::numbers(libc::SYS_setpgid, &[0, group as u32]),
        error => error,
    }
}
