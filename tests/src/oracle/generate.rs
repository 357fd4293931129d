//! Scripts by chance. Who is there to perform an operation is looked up as it goes; what was performed
//! is written down, and can be performed again without any chance.

use super::play::{Failure, Play, Tally};
use super::troupe::Troupe;
use super::view::View;
use crate::actor::chance::Chance;
use crate::actor::op::{Arg, Kind, Op};

/// How many tasks there may be before births make way for ends.
const MANY: usize = 9;

/// What a script is like; chosen by chance as well.
#[derive(Clone, Copy, Debug)]
struct Shape {
    /// Single operations.
    length: u32,
    /// A comparison once in so many of them.
    checks: u32,
    /// A burst once in so many of them; 0 for none.
    bursts: u32,
    /// Operations of a burst, by each task.
    burst: u32,
}

impl Shape {
    /// Short steps and no races: a difference is seen soon after what made it, and each time.
    const CALM: Shape = Shape { length: 150, checks: 3, bursts: 0, burst: 0 };

    fn by(chance: &mut Chance) -> Shape {
        let length = 40 + chance.below(160);
        match chance.below(4) {
            0 => Shape { length, ..Shape::CALM },
            1 => Shape { length, checks: 20, bursts: 0, burst: 0 },
            2 => Shape { length, checks: 25, bursts: 25, burst: 60 },
            _ => Shape { length: length / 2, checks: 25, bursts: 12, burst: 400 },
        }
    }
}

/// Plays one script by chance.
///
/// # Errors
///
/// When a comparison shows a difference.
pub fn play_by_chance(seed: u64, view: &mut dyn View) -> Result<Tally, Failure> {
    let mut chance = Chance::new(seed);
    let shape = Shape::by(&mut chance);
    play_one(shape, chance, view)
}

/// The same without races: it goes the same way each time.
///
/// # Errors
///
/// As above.
pub fn play_calmly(seed: u64, view: &mut dyn View) -> Result<Tally, Failure> {
    play_one(Shape::CALM, Chance::new(seed), view)
}

fn play_one(shape: Shape, mut chance: Chance, view: &mut dyn View) -> Result<Tally, Failure> {
    let mut play = Play::new(view);
    for _ in 0..shape.length {
        if shape.bursts != 0 && chance.one_in(shape.bursts) {
            let count = 1 + chance.below(2 * shape.burst);
            let with = [chance.below(u32::MAX), count, 1 + chance.below(6)];
            play.step(Op { task: 0, kind: Kind::Burst, with })?;
            play.step(Op::CHECK)?;
        }
        let Some(op) = next(&mut chance, &play.troupe) else { break };
        for op in [op].into_iter().chain(passages(&op, &mut chance, &play.troupe)) {
            if op.hole().is_some_and(|hole| play.holes().contains(&hole)) {
                continue;
            }
            play.step(op)?;
            if chance.one_in(shape.checks) {
                play.step(Op::CHECK)?;
            }
        }
    }
    play.end()
}

/// An operation of one of the tasks that are there; none when nobody is.
fn next(chance: &mut Chance, troupe: &Troupe) -> Option<Op> {
    let idle = troupe.idle();
    let present = troupe.present();
    let free = troupe.free();
    let task = pick(chance, &idle)?;
    let crowded = present.len() > MANY;
    let last = idle.len() < 2;
    let mut kind = chance.kind(|_| true);
    // Somebody stays, and a crowd is thinned out.
    while (last && (kind.ends() && kind != Kind::Exec || kind == Kind::BlockWrite))
        || (crowded && kind.births())
        || (!crowded && kind.ends() && chance.one_in(2))
    {
        kind = chance.kind(|_| true);
    }
    let mut op = Op { task, kind, with: [0; 3] };
    for (value, meaning) in op.with.iter_mut().zip(kind.arguments()) {
        *value = match meaning {
            Arg::Child => *free.first()?,
            Arg::Peer => pick(chance, &present)?,
            meaning => chance.argument(*meaning),
        };
    }
    Some(op)
}

/// A new mailbox is used: by chance alone, nearly nothing would ever be passed.
fn passages(op: &Op, chance: &mut Chance, troupe: &Troupe) -> Vec<Op> {
    if op.kind != Kind::Mailbox {
        return Vec::new();
    }
    let number = op.with[0];
    let mut passages = Vec::new();
    for _ in 0..chance.below(4) {
        let Some(sender) = pick(chance, &troupe.idle()) else { break };
        let kind = [Kind::Send, Kind::Send, Kind::SendTwo][chance.below(3) as usize];
        passages.push(Op { task: sender, kind, with: [number, 3 + chance.below(5), 3 + chance.below(5)] });
    }
    for _ in 0..chance.below(3) {
        let kind = [Kind::Receive, Kind::ReceiveMany, Kind::UringReceive][chance.below(3) as usize];
        passages.push(Op { task: op.task, kind, with: [number, chance.below(2), 0] });
    }
    // What Send has no argument for is 0.
    for op in &mut passages {
        op.with.iter_mut().skip(op.kind.arguments().len()).for_each(|value| *value = 0);
    }
    passages
}

fn pick(chance: &mut Chance, from: &[u32]) -> Option<u32> {
    let at = chance.below(u32::try_from(from.len()).ok()?);
    from.get(usize::try_from(at).ok()?).copied()
}
