//! What a system call did to its caller's descriptor table.

use aya_ebpf::Global;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_probe_read_user;
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use core::ffi::c_void;
use core::mem::MaybeUninit;
use pipewarden_common::call::{self, COMPAT_SHIFT, NUMBERS};
use pipewarden_common::counter::{PULSES, UNSURE_TABLES};
use pipewarden_common::event::kind;

use crate::counters::count;
use crate::globals::{
    COMPAT_MASK, REGS_ARGUMENT, REGS_ARGUMENT_2, REGS_COMPAT_ARGUMENT, REGS_COMPAT_ARGUMENT_2, TASK_COMPAT,
};
use crate::task::Task;
use crate::walk::Way;
use crate::{lineage, live_map, read};

/// What each number means: see `pipewarden_common::call`.
#[map]
static CALLS: Array<u32> = Array::with_max_entries(NUMBERS, 0);

/// Whether a number means anything to us, for any caller. This much is asked for every system call of
/// the machine.
#[inline(always)]
pub fn meaning(number: u32) -> u32 {
    match CALLS.get_ptr(number) {
        // SAFETY: the element of an array map lives as long as the program.
        Some(meaning) => unsafe { *meaning },
        None => call::NONE,
    }
}

/// ioctl's return is only looked at for one command, whoever called: its caller need not be tracked for
/// the process that got the descriptor to be. That one's table is not known here.
///
/// And for another, by which user space finds out that it is looked at at all.
#[inline(never)]
pub fn ioctl_returned(command: u32, result: i64) {
    if command == call::SECCOMP_ADDFD && result >= 0 {
        count(UNSURE_TABLES);
    } else if command == call::PULSE {
        count(PULSES);
    }
}

/// A 32-bit caller's call returned, and what it did is not looked at.
#[inline(never)]
pub fn compat_returned() {
    if lineage::tracked((bpf_get_current_pid_tgid() >> 32) as u32) {
        count(UNSURE_TABLES);
    }
}

/// Whether a meaning is that of a native ioctl.
#[inline(always)]
pub fn is_ioctl(meaning: u32) -> bool {
    meaning & ((1 << COMPAT_SHIFT) - 1) == call::IOCTL
}

/// How a call was made.
struct Caller {
    regs: u64,
    compat: bool,
}

/// `fcntl`'s F_DUPFD and F_DUPFD_CLOEXEC (include/uapi/linux/fcntl.h).
const F_DUPFD: u32 = 0;
const F_DUPFD_CLOEXEC: u32 = 1030;

/// Takes what a system call of the current thread has done. `meaning` is its number's, `regs` the
/// address of its `pt_regs`. Whether anything was told.
///
/// Who is not tracked is asked here, where it costs no call: that is what the whole machine pays.
#[inline(always)]
pub fn returned<W: Way>(meaning: u32, regs: u64, result: i64) -> bool {
    lineage::tracked((bpf_get_current_pid_tgid() >> 32) as u32) && take::<W>(meaning, regs, result)
}

#[inline(never)]
fn take<W: Way>(meaning: u32, regs: u64, result: i64) -> bool {
    let task = Task::current();
    let compat = read::member::<u32>(task.0, &TASK_COMPAT) & COMPAT_MASK.load() as u32 != 0;
    let caller = Caller { regs, compat };
    // A 32-bit caller's result is one of 32 bits.
    let result = if compat { i64::from(result as i32) } else { result };
    let meaning = if compat { meaning >> COMPAT_SHIFT } else { meaning & ((1 << COMPAT_SHIFT) - 1) };
    match meaning {
        // Whatever close says, the slot is what it is.
        call::FIRST_ARGUMENT => {
            live_map::look(task.files(), caller.argument());
        }
        _ if result < 0 => {}
        call::RETURNED => {
            live_map::look(task.files(), result as u32);
        }
        call::FCNTL => {
            if matches!(caller.argument_2() as u32, F_DUPFD | F_DUPFD_CLOEXEC) {
                live_map::look(task.files(), result as u32);
            }
        }
        call::PAIR => {
            let files = task.files();
            match user::<u64>(caller.pointer()) {
                Some(pair) => {
                    live_map::look(files, pair as u32);
                    live_map::look(files, (pair >> 32) as u32);
                }
                None => W::look(files),
            }
        }
        call::TABLE => lineage::table_changed::<W>(task),
        call::MESSAGE => {
            if caller.got_control_data() {
                W::look(task.files());
            }
        }
        call::IOCTL => ioctl_returned(caller.argument_2() as u32, result),
        call::SETSID => return lineage::escape(kind::SETSID, 0),
        call::SETPGID => return lineage::group_set(caller.argument(), caller.argument_2() as u32),
        _ => {}
    }
    false
}

impl Caller {
    #[inline(always)]
    fn register(&self, native: &Global<u64>, compat: &Global<u64>) -> u64 {
        read::at(self.regs + if self.compat { compat.load() } else { native.load() })
    }

    /// The first argument, as an int.
    #[inline(always)]
    fn argument(&self) -> u32 {
        self.pointer() as u32
    }

    /// The first argument, as an address.
    #[inline(always)]
    fn pointer(&self) -> u64 {
        self.width(self.register(&REGS_ARGUMENT, &REGS_COMPAT_ARGUMENT))
    }

    /// The second argument.
    #[inline(always)]
    fn argument_2(&self) -> u64 {
        self.width(self.register(&REGS_ARGUMENT_2, &REGS_COMPAT_ARGUMENT_2))
    }

    #[inline(always)]
    fn width(&self, register: u64) -> u64 {
        if self.compat { register & 0xffff_ffff } else { register }
    }

    /// Whether a received message brought control data: `msg_controllen` of the `msghdr`, which the
    /// kernel has set to what there was.
    #[inline(always)]
    fn got_control_data(&self) -> bool {
        // struct user_msghdr of include/linux/socket.h, struct compat_msghdr of include/net/compat.h.
        const CONTROL_LENGTH: u64 = 40;
        const COMPAT_CONTROL_LENGTH: u64 = 20;
        let message = self.argument_2();
        if self.compat {
            user::<u32>(message + COMPAT_CONTROL_LENGTH) != Some(0)
        } else {
            user::<u64>(message + CONTROL_LENGTH) != Some(0)
        }
    }
}

/// Reads the caller's memory, if it can be read.
#[inline(always)]
fn user<T: Copy>(address: u64) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the place is as large as we say; the helper fills it whatever the address is, and `T` is
    // an integer.
    unsafe {
        let failed = bpf_probe_read_user(value.as_mut_ptr().cast(), size_of::<T>() as u32, address as *const c_void);
        if failed == 0 { Some(value.assume_init()) } else { None }
    }
}
