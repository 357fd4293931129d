//! A terminal with somebody at it: keys go in, a screen comes out.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::stat::Mode;

use crate::deadline::Deadline;
use crate::process::Process;

/// Rows and columns of a new terminal.
const SIZE: (u16, u16) = (24, 80);

/// A pseudoterminal whose output is drawn as a terminal emulator draws it.
#[derive(Debug)]
pub struct Terminal {
    master: Option<OwnedFd>,
    slave: OwnedFd,
    glass: Arc<Glass>,
    stop: Option<OwnedFd>,
    painter: Option<JoinHandle<()>>,
}

/// The title of the window.
#[derive(Default)]
struct Title {
    title: String,
}

impl vt100::Callbacks for Title {
    fn set_window_title(&mut self, _: &mut vt100::Screen, title: &[u8]) {
        self.title = String::from_utf8_lossy(title).into_owned();
    }
}

struct Glass {
    parser: Mutex<vt100::Parser<Title>>,
    painted: Condvar,
}

impl std::fmt::Debug for Glass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.parser.lock().unwrap().screen().contents())
    }
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

impl Terminal {
    /// An empty one, of 24 rows and 80 columns.
    #[must_use]
    pub fn new() -> Terminal {
        // No other program may have it, not even by being forked in this moment: who holds the master
        // keeps the terminal from hanging up.
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master = posix_openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let slave = nix::fcntl::open(ptsname_r(&master).unwrap().as_str(), flags, Mode::empty()).unwrap();
        let master = master.as_fd().try_clone_to_owned().unwrap();
        set_size(&master, SIZE);
        let parser = vt100::Parser::new_with_callbacks(SIZE.0, SIZE.1, 0, Title::default());
        let glass = Arc::new(Glass { parser: Mutex::new(parser), painted: Condvar::new() });
        let (stopped, stop) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let painter = std::thread::spawn({
            let (glass, master) = (Arc::clone(&glass), master.try_clone().unwrap());
            move || paint(&master, &stopped, &glass)
        });
        Terminal { master: Some(master), slave, glass, stop: Some(stop), painter: Some(painter) }
    }

    /// The side that programs have.
    #[must_use]
    pub fn stream(&self) -> Stdio {
        self.slave.try_clone().unwrap().into()
    }

    /// The same, as a descriptor.
    #[must_use]
    pub fn descriptor(&self) -> OwnedFd {
        self.slave.try_clone().unwrap()
    }

    /// Waits until everything that was written is drawn.
    pub fn settle(&mut self) {
        const MARK: &str = "\x1b]0;drawn\x07"; // sets the window's title, which takes no place on the screen
        nix::unistd::write(&self.slave, MARK.as_bytes()).unwrap();
        let drawn = self.until(|screen| screen.0.callbacks().title == "drawn");
        assert!(drawn.is_ok(), "the terminal does not draw");
    }

    /// Starts a program in a session of its own, whose terminal this is, with all three streams on it.
    #[must_use]
    pub fn start(&self, command: &mut Command) -> Guest {
        command.stdin(self.stream()).stdout(self.stream()).stderr(self.stream());
        // SAFETY: setsid(2) and ioctl(2) are async-signal-safe and take no lock.
        unsafe { command.pre_exec(take_terminal) };
        let child = command.spawn().unwrap();
        let process = Process::open(child.id().try_into().unwrap()).unwrap();
        Guest { process, child }
    }

    /// Presses keys: `\x03` is ctrl-C, `\x1a` ctrl-Z, `\x1c` ctrl-\, `\x04` ctrl-D, `\r` enter.
    pub fn press(&self, keys: &str) {
        let mut master = std::fs::File::from(self.master.as_ref().unwrap().try_clone().unwrap());
        master.write_all(keys.as_bytes()).unwrap();
    }

    /// What the screen shows: a line per row, without blanks at the ends.
    #[must_use]
    pub fn screen(&self) -> String {
        contents(&self.glass.parser.lock().unwrap())
    }

    /// Waits until the screen is as the test wants it; what it shows then, or in the end.
    ///
    /// # Errors
    ///
    /// The screen at the deadline.
    pub fn until(&self, wanted: impl Fn(&Screen<'_>) -> bool) -> Result<String, String> {
        let deadline = Deadline::patient();
        let mut parser = self.glass.parser.lock().unwrap();
        loop {
            if wanted(&Screen(&parser)) {
                return Ok(contents(&parser));
            }
            if deadline.left().is_zero() {
                return Err(contents(&parser));
            }
            parser = self.glass.painted.wait_timeout(parser, deadline.left()).unwrap().0;
        }
    }

    /// Waits until the screen shows this text.
    ///
    /// # Panics
    ///
    /// When it does not in time.
    pub fn shows(&self, text: &str) {
        if let Err(screen) = self.until(|screen| screen.text().contains(text)) {
            panic!("the screen does not show `{text}` but:\n{screen}");
        }
    }

    /// The user changes the size of the window.
    pub fn resize(&self, rows: u16, columns: u16) {
        set_size(self.master.as_ref().unwrap(), (rows, columns));
        self.glass.parser.lock().unwrap().screen_mut().set_size(rows, columns);
    }

    /// The user closes the window.
    pub fn hang_up(&mut self) {
        self.stop.take();
        if let Some(painter) = self.painter.take() {
            painter.join().unwrap();
        }
        self.master.take();
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.hang_up();
    }
}

fn set_size(master: &OwnedFd, (rows, columns): (u16, u16)) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads a winsize, which is alive for the call.
    nix::errno::Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).unwrap();
}

/// A moment of the screen.
#[derive(Clone, Copy)]
pub struct Screen<'a>(&'a vt100::Parser<Title>);

impl Screen<'_> {
    /// A line per row, without blanks at the ends.
    #[must_use]
    pub fn text(&self) -> String {
        contents(self.0)
    }

    /// The row with the cursor, up to the cursor.
    #[must_use]
    pub fn before_the_cursor(&self) -> String {
        let screen = self.0.screen();
        let (row, column) = screen.cursor_position();
        screen.contents_between(row, 0, row, column)
    }
}

fn contents(parser: &vt100::Parser<Title>) -> String {
    let rows = parser.screen().rows(0, u16::MAX);
    let lines: Vec<String> = rows.map(|row| row.trim_end().to_owned()).collect();
    let mut text = lines.join("\n");
    text.truncate(text.trim_end().len());
    text
}

fn paint(master: &OwnedFd, stopped: &OwnedFd, glass: &Glass) {
    let mut buffer = [0; 4096];
    loop {
        let mut watched =
            [PollFd::new(stopped.as_fd(), PollFlags::POLLIN), PollFd::new(master.as_fd(), PollFlags::POLLIN)];
        if poll(&mut watched, PollTimeout::NONE).is_err() {
            continue; // interrupted
        }
        if watched[0].any() == Some(true) {
            return;
        }
        let Ok(count) = nix::unistd::read(master, &mut buffer) else { return };
        glass.parser.lock().unwrap().process(&buffer[..count]);
        glass.painted.notify_all();
    }
}

/// Starts a session whose controlling terminal is descriptor 0.
fn take_terminal() -> std::io::Result<()> {
    nix::unistd::setsid()?;
    // SAFETY: TIOCSCTTY takes an integer.
    nix::errno::Errno::result(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) })?;
    Ok(())
}

/// A program that was started on a terminal. When it is dropped before its end, it is killed.
#[derive(Debug)]
pub struct Guest {
    /// The program.
    pub process: Process,
    child: Child,
}

impl Guest {
    /// Waits for its end; its status as a shell tells it.
    ///
    /// # Panics
    ///
    /// When it does not end in time.
    #[must_use]
    pub fn end(mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        assert!(self.process.dies(Deadline::patient()), "it does not end");
        let status = self.child.wait().unwrap();
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
