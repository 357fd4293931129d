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
    REGS_PARAMETER: "pt_regs: the function's first parameter",
    REGS_RETURN: "pt_regs: the return value",
}

/// The number of setsid(2) on this architecture.
#[unsafe(no_mangle)]
pub static NR_SETSID: Global<u64> = Global::new(0);
/// The number of setpgid(2) on this architecture.
#[unsafe(no_mangle)]
pub static NR_SETPGID: Global<u64> = Global::new(0);
/// Whether every process is told about, or only those in `LINEAGE`.
#[unsafe(no_mangle)]
pub static TRACK_ALL: Global<u64> = Global::new(0);
