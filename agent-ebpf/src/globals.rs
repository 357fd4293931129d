//! Read-only globals, set by user space before the load and frozen: to the verifier they are constants.

use aya_ebpf::Global;

macro_rules! globals {
    ($($name:ident: $path:literal,)*) => {
        $(
            #[doc = concat!("Offset of `", $path, "`.")]
            #[unsafe(no_mangle)]
            pub static $name: Global<u64> = Global::new(0);
        )*
    };
}
pipewarden_common::kernel_offsets!(globals);

globals! {
    REGS_NR: "pt_regs: the system call's number",
    REGS_ARGUMENT: "pt_regs: the system call's first argument",
    REGS_ARGUMENT_2: "pt_regs: the system call's second argument",
    REGS_COMPAT_ARGUMENT: "pt_regs: a 32-bit caller's first argument",
    REGS_COMPAT_ARGUMENT_2: "pt_regs: a 32-bit caller's second argument",
    REGS_PARAMETER: "pt_regs: the function's first parameter",
    REGS_RETURN: "pt_regs: the return value",
    TASK_COMPAT: "task_struct: the word that marks a 32-bit caller",
}

/// The bits of that word which mark one.
#[unsafe(no_mangle)]
pub static COMPAT_MASK: Global<u64> = Global::new(0);
/// Whether every process is tracked, or only those in `PROCESSES`.
#[unsafe(no_mangle)]
pub static TRACK_ALL: Global<u64> = Global::new(0);
