//! `cargo xtask bench`: what the README says of `run`, measured against other programs.
//!
//! Everything that is compared runs interleaved, A B A B, in one go, so that what the machine does
//! besides hits both alike: ratios carry further than times.

pub(crate) mod actor;

mod crowd;
mod eof;
mod machine;
mod map;
mod memory;
mod node;
mod plan;
mod samples;
mod scan;
mod startup;
mod table;
mod throughput;

use anyhow::Result;
use clap::ValueEnum;

use plan::Plan;
use table::Table;

/// Measure what the README says of `run`, against other programs, in one go.
#[derive(clap::Args)]
pub(crate) struct Bench {
    /// What to measure; everything unless told
    #[arg(value_enum)]
    what: Vec<What>,
    /// A tenth of the samples: shows that the bench works, not how fast anything is
    #[arg(long)]
    quick: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// From the command's exit to its reader's end-of-file, with a holder in another session
    Eof,
    /// Starting and ending a command that does nothing
    Startup,
    /// Bytes per second through the pump
    Throughput,
    /// Resident memory of the supervisor
    Memory,
    /// Finding a pipe's holders through /proc
    Proc,
    /// The live map: how soon, how fast, and at what cost
    Map,
    /// A node: memory, and whether it keeps up
    Node,
}

impl Bench {
    pub(crate) fn run(self) -> Result<()> {
        let everything = What::value_variants();
        let what = if self.what.is_empty() { everything } else { &self.what };
        let plan = Plan::new(self.quick)?;
        println!("{}", machine::description()?);
        // Only now: later on it is our own crowds that are counted.
        println!("{}", machine::load()?);
        let mut table = Table::default();
        for what in what {
            match what {
                What::Eof => eof::measure(&plan, &mut table)?,
                What::Startup => startup::measure(&plan, &mut table)?,
                What::Throughput => throughput::measure(&plan, &mut table)?,
                What::Memory => memory::measure(&plan, &mut table)?,
                What::Proc => scan::measure(&plan, &mut table)?,
                What::Map => map::measure(&plan, &mut table)?,
                What::Node => node::measure(&plan, &mut table)?,
            }
        }
        println!("\n{table}");
        if self.quick {
            println!("quick: too few samples to conclude anything from");
        }
        Ok(())
    }
}
