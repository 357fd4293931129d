//! Offsets in the running kernel's structures, out of its own BTF.
//!
//! A small reader of one format: it walks the type section once (7 ms, the file's 6 MB and an index
//! of 0.5 MB while it lives) where general readers build a model of every type (85 ms, 42 MB).
//! The format: Documentation/bpf/btf.rst of the kernel.

use std::collections::HashMap;
use std::fs;
use std::io;

/// Where the kernel shows the types of its core image.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Why an offset could not be read.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The file is not there (a kernel without `CONFIG_DEBUG_INFO_BTF`), or not for us.
    #[error("cannot read {VMLINUX} (CONFIG_DEBUG_INFO_BTF): {0}")]
    Read(#[from] io::Error),
    /// It is no BTF that we know.
    #[error("{VMLINUX} is malformed at byte {at}: {what}")]
    Malformed {
        /// Where.
        at: usize,
        /// What was expected.
        what: &'static str,
    },
    /// This kernel has no such structure or member.
    #[error("this kernel has no {0}")]
    Missing(String),
}

const MAGIC: u16 = 0xeb9f;
/// A type's own header: name, info, size or type.
const TYPE_SIZE: usize = 12;
/// A member of a structure: name, type, offset.
const MEMBER_SIZE: usize = 12;

/// The kinds that we follow (include/uapi/linux/btf.h).
mod kind {
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const FORWARD: u32 = 7;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNCTION: u32 = 12;
    pub(super) const TYPE_TAG: u32 = 18;
}

/// What a program can be attached to, as the kernel's types name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name<'a> {
    /// A function.
    Function(&'a str),
    /// A type of its own name: `btf_trace_NAME` is a tracepoint.
    Typedef(&'a str),
}

impl Name<'_> {
    fn kind(self) -> u32 {
        match self {
            Name::Function(_) => kind::FUNCTION,
            Name::Typedef(_) => kind::TYPEDEF,
        }
    }

    fn text(&self) -> &str {
        match self {
            Name::Function(name) | Name::Typedef(name) => name,
        }
    }
}

/// The kernel's types, indexed.
pub struct Btf {
    bytes: Vec<u8>,
    strings: usize,
    /// Where each type begins, by its number.
    types: Vec<usize>,
    /// The first structure of each name.
    structures: HashMap<Vec<u8>, u32>,
}

impl Btf {
    /// Reads the running kernel's.
    ///
    /// # Errors
    ///
    /// [`BtfError::Read`] and [`BtfError::Malformed`].
    pub fn of_the_kernel() -> Result<Self, BtfError> {
        Self::parse(fs::read(VMLINUX)?)
    }

    /// Indexes a BTF file in this machine's byte order.
    ///
    /// # Errors
    ///
    /// [`BtfError::Malformed`].
    pub fn parse(bytes: Vec<u8>) -> Result<Self, BtfError> {
        let mut btf = Btf { bytes, strings: 0, types: vec![0], structures: HashMap::new() };
        if btf.u32(0)? & 0xffff != u32::from(MAGIC) {
            return Err(BtfError::Malformed { at: 0, what: "the magic number 0xeb9f" });
        }
        let header = btf.size(4)?;
        let (start, length) = (header + btf.size(8)?, btf.size(12)?);
        btf.strings = header + btf.size(16)?;

        let mut at = start;
        while at < start + length {
            let (kind, members) = (btf.kind(at)?, btf.members(at)?);
            if kind == kind::STRUCT {
                let number = u32::try_from(btf.types.len()).unwrap_or(u32::MAX);
                let name = btf.string(btf.u32(at)?)?.to_vec();
                btf.structures.entry(name).or_insert(number);
            }
            btf.types.push(at);
            at += TYPE_SIZE + trailer(kind, members, at)?;
        }
        Ok(btf)
    }

    /// The offset in bytes of `structure.member.member`. Members of anonymous structures and unions
    /// are found as in C.
    ///
    /// # Errors
    ///
    /// [`BtfError::Missing`] with the path, or [`BtfError::Malformed`].
    pub fn offset(&self, path: &str) -> Result<u64, BtfError> {
        let missing = || BtfError::Missing(path.to_owned());
        let mut names = path.split('.');
        let structure = names.next().unwrap_or_default();
        let mut at = *self.structures.get(structure.as_bytes()).ok_or_else(missing)?;
        let mut bits = 0;
        for name in names {
            let (offset, member) = self.member(at, name.as_bytes())?.ok_or_else(missing)?;
            bits += u64::from(offset);
            at = member;
        }
        Ok(bits / 8)
    }

    /// A BTF that has nothing but these names, each by the number that it has in the kernel: all that a
    /// loader of programs needs to know of what they attach to. Names that the kernel does not have are
    /// left out.
    ///
    /// 2 MB while it lives, where the kernel's own takes 20 when it is read by the loader's library.
    ///
    /// # Errors
    ///
    /// [`BtfError::Malformed`].
    pub fn names_only(&self, wanted: &[Name<'_>]) -> Result<Vec<u8>, BtfError> {
        const FILLER: [u32; 3] = [0, kind::FORWARD << 24, 0];
        let mut strings = vec![0_u8];
        let mut types: Vec<u32> = Vec::new();
        let mut last = 0;
        for (number, at) in self.types.iter().enumerate().skip(1) {
            let kind = self.kind(*at)?;
            if !matches!(kind, kind::FUNCTION | kind::TYPEDEF) {
                continue;
            }
            let name = self.string(self.u32(*at)?)?;
            if !wanted.iter().any(|wanted| wanted.kind() == kind && wanted.text().as_bytes() == name) {
                continue;
            }
            types.extend(FILLER.iter().cycle().take((number - last - 1) * FILLER.len()));
            types.extend([u32::try_from(strings.len()).unwrap_or(0), kind << 24, 0]);
            strings.extend(name);
            strings.push(0);
            last = number;
        }
        let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        let (types_length, strings_length) = (length(types.len() * 4), length(strings.len()));
        // magic, version 1, flags 0; header's length; types; strings behind them.
        let header = [u32::from(MAGIC) | 1 << 16, 24, 0, types_length, types_length, strings_length];
        let words = header.iter().chain(&types).flat_map(|word| word.to_ne_bytes());
        Ok(words.chain(strings).collect())
    }

    /// A member by name: its offset in bits, and its type.
    fn member(&self, number: u32, wanted: &[u8]) -> Result<Option<(u32, u32)>, BtfError> {
        let at = self.resolved(number)?;
        if !matches!(self.kind(at)?, kind::STRUCT | kind::UNION) {
            return Ok(None);
        }
        // With this flag the upper byte of an offset is a bit field's width.
        let bit_fields = self.u32(at + 4)? >> 31 == 1;
        for index in 0..self.members(at)? {
            let member = at + TYPE_SIZE + index * MEMBER_SIZE;
            let (name, kind, offset) = (self.u32(member)?, self.u32(member + 4)?, self.u32(member + 8)?);
            let offset = if bit_fields { offset & 0x00ff_ffff } else { offset };
            let name = self.string(name)?;
            if name == wanted {
                return Ok(Some((offset, kind)));
            }
            if name.is_empty()
                && let Some((inner, kind)) = self.member(kind, wanted)?
            {
                return Ok(Some((offset + inner, kind)));
            }
        }
        Ok(None)
    }

    /// Where the type begins that a type means once typedefs and qualifiers are taken off.
    fn resolved(&self, mut number: u32) -> Result<usize, BtfError> {
        const QUALIFIERS: [u32; 5] = [kind::TYPEDEF, kind::VOLATILE, kind::CONST, kind::RESTRICT, kind::TYPE_TAG];
        // No type is qualified as often as there are types: a longer chain is a loop.
        for _ in 0..self.types.len() {
            let at = *self.types.get(number as usize).ok_or(BtfError::Malformed { at: 0, what: "a type's number" })?;
            if !QUALIFIERS.contains(&self.kind(at)?) {
                return Ok(at);
            }
            number = self.u32(at + 8)?;
        }
        Err(BtfError::Malformed { at: 0, what: "an end of a chain of types" })
    }

    fn kind(&self, at: usize) -> Result<u32, BtfError> {
        Ok(self.u32(at + 4)? >> 24 & 0x1f)
    }

    fn members(&self, at: usize) -> Result<usize, BtfError> {
        Ok(self.size(at + 4)? & 0xffff)
    }

    fn size(&self, at: usize) -> Result<usize, BtfError> {
        self.u32(at).map(|number| number as usize)
    }

    fn u32(&self, at: usize) -> Result<u32, BtfError> {
        let bytes = self.bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_ne_bytes).ok_or(BtfError::Malformed { at, what: "more bytes" })
    }

    fn string(&self, offset: u32) -> Result<&[u8], BtfError> {
        let at = self.strings + offset as usize;
        let rest = self.bytes.get(at..).unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == 0).ok_or(BtfError::Malformed { at, what: "a string" })?;
        Ok(&rest[..end])
    }
}

/// How many bytes follow a type's header.
fn trailer(kind: u32, members: usize, at: usize) -> Result<usize, BtfError> {
    Ok(match kind {
        1 | 14 | 17 => 4,                // int, variable, declaration tag
        3 => 12,                         // array
        4 | 5 | 15 | 19 => 12 * members, // structure, union, data section, 64-bit enum
        6 | 13 => 8 * members,           // enum, function prototype
        2 | 7..=12 | 16 | 18 => 0,       // pointer, forward, typedef, qualifiers, function, float, type tag
        _ => return Err(BtfError::Malformed { at, what: "a kind of type that this version knows" }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// struct outer { int a; struct { const struct inner b; }; }; struct inner { int x; int y; };
    fn sample() -> Vec<u8> {
        let strings = b"\0outer\0a\0inner\0b\0x\0y\0";
        let structure = |members: u32| kind::STRUCT << 24 | members;
        let types: Vec<u32> = [
            [0, 1 << 24, 4, 32].as_slice(),             // 1: int
            &[9, structure(2), 8, 17, 1, 0, 19, 1, 32], // 2: inner { x, y }
            &[0, kind::CONST << 24, 2],                 // 3: const inner
            &[0, structure(1), 8, 15, 3, 0],            // 4: { b }
            &[1, structure(2), 12, 7, 1, 0, 0, 4, 32],  // 5: outer { a, {4} }
        ]
        .concat();
        let length = u32::try_from(types.len() * 4).unwrap();
        let header = [u32::from(MAGIC) | 1 << 16, 24, 0, length, length, u32::try_from(strings.len()).unwrap()];
        let words = header.iter().chain(&types).flat_map(|word| word.to_ne_bytes());
        words.chain(strings.iter().copied()).collect()
    }

    #[test]
    fn a_path_leads_through_anonymous_structures_and_qualifiers() {
        let btf = Btf::parse(sample()).unwrap();
        assert_eq!(btf.offset("inner.y").unwrap(), 4);
        assert_eq!(btf.offset("outer.b").unwrap(), 4);
        assert_eq!(btf.offset("outer.b.y").unwrap(), 8);
    }

    #[test]
    fn what_is_missing_is_named() {
        let btf = Btf::parse(sample()).unwrap();
        assert!(matches!(btf.offset("outer.z"), Err(BtfError::Missing(path)) if path == "outer.z"));
        assert!(matches!(btf.offset("nobody.x"), Err(BtfError::Missing(_))));
    }

    #[test]
    fn a_cut_or_broken_file_is_an_error_at_any_length() {
        let whole = sample();
        for length in 0..whole.len() {
            let cut = Btf::parse(whole[..length].to_vec());
            assert!(cut.and_then(|btf| btf.offset("outer.b.y")).is_err(), "{length} bytes of {}", whole.len());
        }
        let mut unknown = whole;
        unknown[24 + 7] = 0x1e; // the first type's kind
        assert!(matches!(Btf::parse(unknown), Err(BtfError::Malformed { .. })));
    }
}
