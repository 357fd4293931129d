//! What chance gives, the same for the same seed.

use super::op::{Arg, Kind};

/// A small generator of numbers (xorshift64*): good enough to choose by, and without any state but this.
#[derive(Clone, Debug)]
pub struct Chance(u64);

/// Descriptor numbers at the edges of what the kernel allocates for a table.
const EDGES: [u32; 12] = [31, 32, 62, 63, 64, 65, 127, 128, 255, 256, 257, 1000];
/// Tables of these take a while to copy.
const FAR: [u32; 4] = [4095, 4096, 5000, 19_999];

impl Chance {
    /// From a seed.
    #[must_use]
    pub fn new(seed: u64) -> Chance {
        // splitmix64's step, so that near seeds are far apart, and none is 0.
        let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Chance((mixed ^ (mixed >> 31)) | 1)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below this, which is not 0.
    pub fn below(&mut self, end: u32) -> u32 {
        u32::try_from((self.number() >> 33) % u64::from(end.max(1))).unwrap_or(0)
    }

    /// True once in so many times.
    pub fn one_in(&mut self, times: u32) -> bool {
        self.below(times) == 0
    }

    /// A kind, by its weight among those that are allowed.
    pub fn kind(&mut self, allowed: impl Fn(Kind) -> bool) -> Kind {
        let total: u32 = Kind::ALL.iter().filter(|kind| allowed(**kind)).map(|kind| kind.weight()).sum();
        let mut left = self.below(total);
        for kind in Kind::ALL.iter().filter(|kind| allowed(**kind)) {
            if left < kind.weight() {
                return *kind;
            }
            left -= kind.weight();
        }
        Kind::Pipe
    }

    /// An argument of this meaning; those that depend on who is there are the caller's to choose.
    pub fn argument(&mut self, meaning: Arg) -> u32 {
        match meaning {
            Arg::Fd => match self.below(40) {
                0 => self.edge(),
                1 | 2 => 40 + self.below(12),
                _ => self.below(20),
            },
            Arg::Target => match self.below(10) {
                0 | 1 => self.edge(),
                _ => self.below(28),
            },
            Arg::Last => match self.below(4) {
                0 => u32::MAX,
                _ => self.below(300),
            },
            Arg::Fifo => self.below(4),
            Arg::Blocking => 4 + self.below(2),
            Arg::Mailbox | Arg::Way | Arg::Ring => self.below(3),
            // The polling thread takes a moment to come and to go.
            Arg::How => [0, 0, 0, 1, 1, 2][self.below(6) as usize % 6],
            Arg::RangeFlags => [0, 0, 2, 4, 6][self.below(5) as usize % 5],
            Arg::PipeFlags => self.below(4),
            Arg::Bit => self.below(2),
            Arg::Number => self.below(u32::MAX),
            Arg::Child | Arg::Peer => 0,
        }
    }

    fn edge(&mut self) -> u32 {
        match self.below(12) {
            0 => FAR[self.below(4) as usize % 4],
            _ => EDGES[self.below(12) as usize % 12],
        }
    }
}
