//! `cargo xtask build-ebpf`: the eBPF object, the same bytes on every machine.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use object::{Object, ObjectSection};
use sha2::{Digest, Sha256};

use crate::command::{output, run, without_cargo};
use crate::workspace::{root, target, toolchain};

/// The last bpf-linker that finds the LLVM inside the pinned rustc by itself; since 0.11 it wants an
/// LLVM of the system's, newer than that one.
const LINKER_VERSION: &str = "0.10.4";

/// Architectures that the object is for, in the words of aya's `bpf_target_arch`.
const ARCHITECTURES: [&str; 2] = ["x86_64", "aarch64"];

/// Build the eBPF object that `agent/bpf/` holds, from rustup alone.
#[derive(clap::Args)]
pub(crate) struct BuildEbpf {
    /// Write nothing; fail unless the committed object is what the sources give, byte for byte.
    #[arg(long, conflicts_with = "debug")]
    check: bool,
    /// Build the variant with log lines (aya-log) instead: agent/bpf/pipewarden-debug.o, not committed.
    #[arg(long)]
    debug: bool,
}

impl BuildEbpf {
    pub(crate) fn run(self) -> Result<()> {
        let tools = Tools::prepare()?;
        let started = Instant::now();
        let object = one_object(&tools, self.debug)?;
        println!("built for {} in {:.1?}", ARCHITECTURES.join(" and "), started.elapsed());

        let name = if self.debug { "pipewarden-debug.o" } else { "pipewarden.o" };
        let path = root().join("agent/bpf").join(name);
        let hash = hash(&object);
        if self.check {
            let committed = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            ensure!(
                committed == object,
                "agent/bpf/{name} is not what the sources give ({} committed, {hash} built): run `cargo xtask build-ebpf` and commit it",
                self::hash(&committed),
            );
            println!("agent/bpf/{name} is fresh: sha256 {hash}");
        } else {
            fs::create_dir_all(path.parent().unwrap_or(root()))?;
            fs::write(&path, &object).with_context(|| format!("cannot write {}", path.display()))?;
            println!("agent/bpf/{name}: {} bytes, sha256 {hash}", object.len());
        }
        Ok(())
    }
}

/// What a build needs, found or fetched.
struct Tools {
    toolchain: String,
    sysroot: PathBuf,
    cargo_home: PathBuf,
    linker: PathBuf,
}

impl Tools {
    fn prepare() -> Result<Self> {
        let toolchain = toolchain()?;
        let sysroot = output(rustup_proxy("rustc", &toolchain).args(["--print", "sysroot"]))?;
        let sysroot = PathBuf::from(sysroot.trim());
        // The target has no precompiled core: it is built along, from its source.
        if !sysroot.join("lib/rustlib/src/rust/library/core").exists() {
            run(Command::new("rustup").args(["component", "add", "rust-src", "--toolchain", &toolchain]))?;
        }
        let folder = target().join(format!("tools/bpf-linker-{LINKER_VERSION}-rust-{toolchain}"));
        let linker = folder.join("bin/bpf-linker");
        if !linker.exists() {
            run(rustup_proxy("cargo", &toolchain)
                .args(["install", "bpf-linker", "--locked", "--version", LINKER_VERSION, "--root"])
                .arg(&folder))?;
        }
        Ok(Self { toolchain, sysroot, cargo_home: cargo_home()?, linker })
    }
}

/// One object serves both architectures: bytecode has none, and what differs (registers, numbers of
/// system calls) comes at load time. That is proved here each time: both are built, and everything
/// that reaches the kernel must be the same. Only the names of source files in the line information differ.
fn one_object(tools: &Tools, debug: bool) -> Result<Vec<u8>> {
    let mut first: Option<Vec<u8>> = None;
    for architecture in ARCHITECTURES {
        let object = build(tools, architecture, debug)?;
        ensure_anonymous(tools, &object)?;
        match &first {
            None => first = Some(object),
            Some(first) => ensure_same_programs(first, &object)
                .with_context(|| format!("the programs for {architecture} are not those for {}", ARCHITECTURES[0]))?,
        }
    }
    first.context("no architecture to build for")
}

fn build(tools: &Tools, architecture: &str, debug: bool) -> Result<Vec<u8>> {
    let workspace = root().join("agent-ebpf");
    // Unpacked before the build, so that the registry's folder is there to be mapped away.
    run(rustup_proxy("cargo", &tools.toolchain).args(["fetch", "--locked", "--quiet"]).current_dir(&workspace))?;

    let variant = if debug { "debug" } else { "plain" };
    let folder = target().join("ebpf").join(format!("{architecture}-{variant}"));
    let mut cargo = rustup_proxy("cargo", &tools.toolchain);
    cargo
        .args(["build", "--release", "--locked", "--quiet", "-Zbuild-std=core", "--target=bpfel-unknown-none"])
        .args(if debug { &["--features=log"][..] } else { &[] })
        .current_dir(&workspace)
        // Stable rustc, its unstable doors open: core has to be built, and there is no target with it.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", &folder)
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &tools.linker)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(tools, architecture)?.join("\x1f"));
    run(&mut cargo)?;

    let built = folder.join("bpfel-unknown-none/release/pipewarden");
    strip(tools, &built, debug)
}

fn flags(tools: &Tools, architecture: &str) -> Result<Vec<String>> {
    let mut flags =
        vec![format!("--cfg=bpf_target_arch=\"{architecture}\""), "-Cdebuginfo=2".into(), "-Clink-arg=--btf".into()];
    // Of two prefixes that fit, rustc takes the later one: the narrower must come after the wider.
    for (folder, name) in machine_folders(tools)? {
        flags.push(format!("--remap-path-prefix={}={name}", folder.display()));
    }
    Ok(flags)
}

/// Folders whose place is this machine's business, from wide to narrow, and what to call them.
fn machine_folders(tools: &Tools) -> Result<Vec<(PathBuf, &'static str)>> {
    let mut folders = vec![(tools.cargo_home.clone(), "/cargo"), (tools.sysroot.clone(), "/rust")];
    folders.push((root().to_owned(), "/pipewarden"));
    // The registry's folder is named after where it was fetched from: a mirror has another name.
    let registry = tools.cargo_home.join("registry/src");
    for entry in fs::read_dir(&registry).with_context(|| format!("cannot list {}", registry.display()))? {
        folders.push((entry?.path(), "/registry"));
    }
    let canonical: Vec<_> =
        folders.iter().filter_map(|(path, name)| Some((path.canonicalize().ok()?, *name))).collect();
    folders.extend(canonical);
    Ok(folders)
}

/// Takes the DWARF away (five sixths of the file). BTF stays, for the maps' types and the global functions'
/// arguments; what it says of source lines, for the verifier's log, stays in the variant for debugging: it is as much
/// again as the programs, and whoever loads them keeps it in memory with each of them.
fn strip(tools: &Tools, built: &Path, debug: bool) -> Result<Vec<u8>> {
    let bytes = fs::read(built)?;
    let host = output(rustup_proxy("rustc", &tools.toolchain).arg("-vV"))?;
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names no host")?;
    let stripped = built.with_extension("stripped");
    run(Command::new(tools.sysroot.join("lib/rustlib").join(host).join("bin/rust-objcopy"))
        .arg("--strip-debug")
        .args(new_names(&bytes)?)
        .args(if debug { Vec::new() } else { new_btf_ext(&bytes, &built.with_extension("btf-ext"))? })
        .args([built, &stripped])
        .env("LD_LIBRARY_PATH", tools.sysroot.join("lib")))?;
    fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))
}

/// Options that take the line information out of `.BTF.ext`; what is left goes through that file.
fn new_btf_ext(object: &[u8], through: &Path) -> Result<Vec<String>> {
    const SECTION: &str = ".BTF.ext";
    let file = object::File::parse(object)?;
    let section = file.section_by_name(SECTION).context("the object has no .BTF.ext")?;
    fs::write(through, without_lines(section.data()?).context("the object's .BTF.ext is not what it should be")?)?;
    // Its relocations are for linkers; loaders know what its numbers mean.
    Ok(vec![format!("--update-section={SECTION}={}", through.display()), format!("--remove-section=.rel{SECTION}")])
}

/// A `.BTF.ext` without its line information, as if there had been none (Documentation/bpf/btf.rst of the kernel: a
/// header, and the parts to whose places it points). `None` if it is no such section.
fn without_lines(section: &[u8]) -> Option<Vec<u8>> {
    // struct btf_ext_header: magic, version, flags, hdr_len, then pairs of offset and length.
    const FUNCTIONS: usize = 8;
    const LINES: usize = 16;
    const RELOCATIONS: usize = 24;
    let word = |at: usize| Some(u32::from_le_bytes(section.get(at..at + 4)?.try_into().ok()?) as usize);
    let header = word(4)?;
    let part = |pair: usize| {
        let (start, length) = (header + word(pair)?, word(pair + 4)?);
        section.get(start..start + length)
    };
    let mut without = section.get(..header)?.to_vec();
    for pair in [FUNCTIONS, LINES, RELOCATIONS].into_iter().filter(|pair| pair + 8 <= header) {
        let kept = if pair == LINES { &[] } else { part(pair)? };
        for (word, at) in [without.len() - header, kept.len()].into_iter().zip([pair, pair + 4]) {
            without.get_mut(at..at + 4)?.copy_from_slice(&u32::try_from(word).ok()?.to_le_bytes());
        }
        without.extend_from_slice(kept);
    }
    Some(without)
}

/// Options that take out of symbols' names what cargo makes of the place of the sources: the crate's
/// disambiguator, `Cs` with a number to the base of 62 and an underscore (v0 of rustc's mangling).
fn new_names(object: &[u8]) -> Result<Vec<String>> {
    use object::ObjectSymbol;
    let file = object::File::parse(object)?;
    let mut options = Vec::new();
    for symbol in file.symbols() {
        let name = symbol.name()?;
        if let Some(plain) = without_disambiguator(name) {
            options.push(format!("--redefine-sym={name}={plain}"));
        }
    }
    Ok(options)
}

/// A mangled name as it would be in a crate without a disambiguator; `None` if it has none.
fn without_disambiguator(name: &str) -> Option<String> {
    let (before, after) = name.strip_prefix("_R")?.split_once("Cs")?;
    let (_, rest) = after.split_once('_')?;
    Some(format!("_R{before}C{rest}"))
}

/// Fails if a folder of this machine is named anywhere in the object.
fn ensure_anonymous(tools: &Tools, object: &[u8]) -> Result<()> {
    let mut folders = machine_folders(tools)?;
    folders.extend(env::home_dir().map(|home| (home, "home")));
    for (folder, _) in folders {
        let needle = folder.as_os_str().as_encoded_bytes();
        if needle.len() > 1 && object.windows(needle.len()).any(|window| window == needle) {
            bail!("the object names {}, a folder of this machine", folder.display());
        }
    }
    Ok(())
}

/// Compares what is loaded into a kernel: instructions, their relocations, data, maps.
fn ensure_same_programs(a: &[u8], b: &[u8]) -> Result<()> {
    let (a, b) = (loaded(a)?, loaded(b)?);
    ensure!(a.len() == b.len(), "{} sections against {}", a.len(), b.len());
    for (a, b) in a.iter().zip(&b) {
        ensure!(a == b, "section {} differs", a.0);
    }
    Ok(())
}

/// A section's name, its bytes, and for each of its relocations the place and the symbol's name.
type Loaded = (String, Vec<u8>, Vec<(u64, String)>);

fn loaded(bytes: &[u8]) -> Result<Vec<Loaded>> {
    use object::ObjectSymbol;
    let file = object::File::parse(bytes)?;
    let mut sections = Vec::new();
    for section in file.sections() {
        let object::SectionFlags::Elf { sh_flags } = section.flags() else { bail!("not an ELF file") };
        if sh_flags & u64::from(object::elf::SHF_ALLOC) == 0 {
            continue;
        }
        let mut relocations = Vec::new();
        for (place, relocation) in section.relocations() {
            let object::RelocationTarget::Symbol(index) = relocation.target() else {
                bail!("a relocation without a symbol")
            };
            relocations.push((place, file.symbol_by_index(index)?.name()?.to_owned()));
        }
        sections.push((section.name()?.to_owned(), section.data()?.to_vec(), relocations));
    }
    Ok(sections)
}

fn cargo_home() -> Result<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(env::home_dir()?.join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set")
}

/// `cargo` or `rustc` of the pinned toolchain, as a person would call it.
fn rustup_proxy(name: &str, toolchain: &str) -> Command {
    let mut command = Command::new("rustup");
    without_cargo(&mut command).args(["run", toolchain, name]);
    command
}

fn hash(bytes: &[u8]) -> String {
    use std::fmt::Write;
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}

#[cfg(test)]
mod tests {
    use super::{without_disambiguator, without_lines};

    #[test]
    fn a_name_does_not_tell_where_its_crate_is() {
        let names =
            ["_RNvNtCsc18kavnk8x7_10pipewarden4walk9each_slot", "_RNvNtCscltk82krMw5_10pipewarden4walk9each_slot"];
        for name in names {
            assert_eq!(without_disambiguator(name).as_deref(), Some("_RNvNtC10pipewarden4walk9each_slot"));
        }
        assert_eq!(without_disambiguator("each_slot"), None);
    }

    #[test]
    fn what_is_left_of_a_section_is_its_functions_and_relocations() {
        let section = |parts: [&[u8]; 3]| {
            let mut section = vec![0x9f, 0xeb, 1, 0];
            let mut words = vec![32];
            let mut offset = 0;
            for part in parts {
                words.extend([offset, part.len()]);
                offset += part.len();
            }
            section.extend(words.into_iter().flat_map(|word| u32::try_from(word).unwrap().to_le_bytes()));
            section.extend(parts.concat());
            section
        };
        let whole = section([b"functions", b"lines and lines", b"relocations"]);
        assert_eq!(without_lines(&whole), Some(section([b"functions", b"", b"relocations"])));
        assert_eq!(without_lines(&whole[..whole.len() - 1]), None, "cut short");
        assert_eq!(without_lines(&[]), None);
    }
}
