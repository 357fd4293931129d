//! `cargo xtask VERB`: the project's own chores, a file per verb.
#![allow(clippy::print_stdout, reason = "a chore's results are for the person who runs it")]

mod bench;
mod build_ebpf;
mod busy;
mod command;
mod demo;
mod fuzz;
mod image;
mod manifests;
mod process;
mod test;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// The project's own chores.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Verb {
    /// Show a command whose reader hangs, and the same command under `pipewarden run`.
    Demo(demo::Demo),
    /// Build and run every test of the workspace.
    Test(test::Test),
    /// Measure what the README says of `run`, against other programs, in one go.
    Bench(bench::Bench),
    BuildEbpf(build_ebpf::BuildEbpf),
    Fuzz(fuzz::Fuzz),
    Image(image::Image),
    Manifests(manifests::Manifests),
    Vm(vm::Vm),
    /// What a bench runs; started by `bench` itself.
    #[command(hide = true)]
    BenchActor(bench::actor::Actor),
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    match Verb::parse() {
        Verb::Demo(verb) => verb.run(),
        Verb::Test(verb) => verb.run(),
        Verb::Bench(verb) => verb.run(),
        Verb::BuildEbpf(verb) => verb.run(),
        Verb::Fuzz(verb) => verb.run(),
        Verb::Image(verb) => verb.run(),
        Verb::Manifests(verb) => verb.run(),
        Verb::Vm(verb) => verb.run(),
        Verb::BenchActor(verb) => verb.run(),
    }
}
