//! `cargo xtask image`: what `deploy/Dockerfile` makes, made and tried without a container engine.

mod dockerfile;
mod node;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use object::Endianness;
use object::elf::PT_INTERP;
use object::read::elf::{ElfFile64, ProgramHeader};

use self::dockerfile::Dockerfile;
use crate::command::{output, run, without_cargo};
use crate::workspace::{root, target, toolchain};

/// What the program may have at most.
const MOST_BYTES: u64 = 20_000_000;

/// Build the node's image as deploy/Dockerfile says, and start a node in it.
///
/// The image's files are below the build folder, in image/rootfs. Without root, or without a rung of bpf,
/// the start is skipped, and says so.
#[derive(clap::Args)]
pub(crate) struct Image {
    /// Only build it.
    #[arg(long)]
    build_only: bool,
}

impl Image {
    pub(crate) fn run(self) -> Result<()> {
        let path = root().join("deploy/Dockerfile");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let dockerfile = Dockerfile::read(&text).with_context(|| path.display().to_string())?;
        let built = build(&dockerfile)?;
        ensure_static(&built)?;
        let image = target().join("image");
        let rootfs = image.join("rootfs");
        lay_out(&dockerfile, &built, &rootfs)?;
        let size = fs::metadata(&built)?.len();
        ensure!(size < MOST_BYTES, "{} has {size} bytes, and {MOST_BYTES} are the most", built.display());
        println!("{}: one static program of {:.1} MB", rootfs.display(), bytes_as_mb(size));
        if self.build_only { Ok(()) } else { node::try_it(&rootfs, &dockerfile.entrypoint, &image) }
    }
}

/// What `RUN cargo build` says, with the toolchain of this workspace, which is the image's.
fn build(dockerfile: &Dockerfile) -> Result<PathBuf> {
    let toolchain = toolchain()?;
    let of_image = dockerfile.toolchain.as_str();
    ensure!(of_image == toolchain, "it builds with Rust {of_image}, and rust-toolchain.toml says {toolchain}");
    let targets = output(Command::new("rustup").args(["target", "list", "--installed", "--toolchain", &toolchain]))?;
    if !targets.lines().any(|line| line == dockerfile.target) {
        run(Command::new("rustup").args(["target", "add", &dockerfile.target, "--toolchain", &toolchain]))?;
    }
    let mut cargo = Command::new("cargo");
    without_cargo(&mut cargo).args(&dockerfile.cargo).env("CARGO_TARGET_DIR", target()).current_dir(root());
    run(cargo.arg("--quiet"))?;
    Ok(target().join(&dockerfile.program))
}

/// Whether the kernel can start it alone: it asks for no interpreter, and so for no library.
fn ensure_static(program: &Path) -> Result<()> {
    let bytes = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let file = ElfFile64::<Endianness>::parse(&*bytes)?;
    let asks = file.elf_program_headers().iter().any(|header| header.p_type(file.endian()) == PT_INTERP);
    ensure!(!asks, "{} is not static: it asks for an interpreter", program.display());
    Ok(())
}

/// The files of the last stage, and no others.
fn lay_out(dockerfile: &Dockerfile, built: &Path, rootfs: &Path) -> Result<()> {
    if rootfs.exists() {
        fs::remove_dir_all(rootfs).with_context(|| format!("cannot remove {}", rootfs.display()))?;
    }
    let place = rootfs.join(dockerfile.place.trim_start_matches('/'));
    fs::create_dir_all(place.parent().context("the program's place has no folder")?)?;
    fs::copy(built, &place)?;
    fs::set_permissions(&place, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "for people, to a tenth")]
fn bytes_as_mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
