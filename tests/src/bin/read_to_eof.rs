//! Reads stdin until EOF, as `cat` does, and exits: whoever waits for it waits for the writers.
//! `read_to_eof [epoll]`: with `epoll`, a second thread waits in epoll, as event loops do, and the first
//! one waits for that thread.

use std::io::Read;

use anyhow::Result;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use pipewarden_tests::fixture::{Fixture, live_no_longer};

fn main() -> Result<()> {
    let fixture = Fixture::begin_silently()?;
    live_no_longer()?;
    fixture.announce(fixture.role())?;
    if fixture.says("epoll") {
        std::thread::spawn(by_epoll).join().unwrap_or(Ok(()))?;
    } else {
        std::io::stdin().read_to_end(&mut Vec::new())?;
    }
    fixture.leave_the_scene()
}

fn by_epoll() -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(std::io::stdin(), EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    loop {
        match epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::NONE) {
            Ok(_) if std::io::stdin().read(&mut [0; 4096])? == 0 => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
