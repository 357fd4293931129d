//! Whose requests are answered: pure.
//!
//! Where there is a token, who shows it. Without one the node listens on this machine alone, and a request must
//! name this machine too: a web page whose own name is made to resolve to 127.0.0.1 gets a browser to connect
//! here, but the browser still says that page's name.

use std::fs;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// What a request must show. Comparing takes as long whatever is compared with it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Vec<u8>);

/// The shortest token: what can be guessed protects nothing.
const SHORTEST: usize = 16;
/// The longest that is read.
const LONGEST: usize = 4096;

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    /// Reads a file: its text without white space around it.
    ///
    /// # Errors
    ///
    /// One line that names the key and the file.
    pub fn read(path: &Path) -> Result<Token, String> {
        let failed = |what: &dyn std::fmt::Display| format!("[http] token_file {}: {what}", path.display());
        let mut text = Vec::new();
        let read = |text: &mut Vec<u8>| -> io::Result<usize> {
            fs::File::open(path)?.take(LONGEST as u64 + 1).read_to_end(text)
        };
        read(&mut text).map_err(|error| failed(&format_args!("{error}; name a file that can be read")))?;
        let token = text.trim_ascii();
        if token.len() < SHORTEST || text.len() > LONGEST || !token.iter().all(u8::is_ascii_graphic) {
            let wants = format!("it wants one word of {SHORTEST} to {LONGEST} visible characters");
            return Err(failed(&format_args!("{wants}, such as `openssl rand -hex 32` gives")));
        }
        Ok(Token(token.to_vec()))
    }

    /// Whether these bytes are the token. How long it takes tells its length at most.
    #[must_use]
    pub fn is(&self, shown: &[u8]) -> bool {
        let differ = self.0.len() != shown.len();
        let bits = self.0.iter().zip(shown.iter().chain(std::iter::repeat(&0))).fold(0, |bits, (a, b)| bits | (a ^ b));
        !differ && std::hint::black_box(bits) == 0
    }
}

/// Why a request is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It shows no token, or another.
    Token,
    /// It names another host than this machine.
    Host,
}

/// Whether a request is let in. `host` and `authorization` are its headers.
///
/// # Errors
///
/// Why it is not.
pub fn admit(
    token: Option<&Token>,
    here: SocketAddr,
    host: Option<&[u8]>,
    authorization: Option<&[u8]>,
) -> Result<(), Refused> {
    match token {
        Some(token) => match authorization.and_then(bearer) {
            Some(shown) if token.is(shown) => Ok(()),
            _ => Err(Refused::Token),
        },
        // Only HTTP/1.0 has no Host, which no browser speaks.
        None => match host.is_none_or(|host| is_this_machine(host, here)) {
            true => Ok(()),
            false => Err(Refused::Host),
        },
    }
}

/// What follows `Bearer`.
fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, shown) = authorization.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| shown.trim_ascii())
}

fn is_this_machine(host: &[u8], here: SocketAddr) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    let name = match host.rsplit_once(':') {
        // The last colon of an IPv6 address without a port is within its brackets.
        Some((name, port)) if !port.contains(']') => {
            if port.parse::<u16>().is_err() {
                return false;
            }
            name
        }
        _ => host,
    };
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback() || address == here.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_names_another_host_is_refused() {
        let here = SocketAddr::from(([127, 0, 0, 1], 9477));
        let admit = |host: &str| super::admit(None, here, Some(host.as_bytes()), None);
        for host in ["localhost", "LocalHost:1", "127.0.0.1:9477", "127.0.0.2", "[::1]:80", "[::1]"] {
            assert_eq!(admit(host), Ok(()), "{host}");
        }
        for host in
            ["evil.example", "evil.example:9477", "127.0.0.1.evil.example", "10.0.0.1", "", "localhost:", "[::1"]
        {
            assert_eq!(admit(host), Err(Refused::Host), "{host}");
        }
        assert_eq!(super::admit(None, here, Some(b"\xff"), None), Err(Refused::Host));
        assert_eq!(super::admit(None, here, None, None), Ok(()), "HTTP/1.0");
    }

    #[test]
    fn who_shows_the_token_is_let_in_and_nobody_else() {
        let token = Token(b"0123456789abcdef".to_vec());
        let here = SocketAddr::from(([10, 0, 0, 7], 9477));
        let admit =
            |shown: Option<&str>| super::admit(Some(&token), here, Some(b"x.example"), shown.map(str::as_bytes));
        assert_eq!(admit(Some("Bearer 0123456789abcdef")), Ok(()));
        assert_eq!(admit(Some("bearer  0123456789abcdef ")), Ok(()));
        for shown in [
            None,
            Some(""),
            Some("Bearer"),
            Some("Bearer "),
            Some("Basic 0123456789abcdef"),
            Some("Bearer 0123456789abcdeF"),
            Some("Bearer 0123456789abcde"),
            Some("Bearer 0123456789abcdef0"),
        ] {
            assert_eq!(admit(shown), Err(Refused::Token), "{shown:?}");
        }
    }

    #[test]
    fn a_token_that_protects_nothing_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let read = |text: &[u8]| {
            fs::write(&path, text).unwrap();
            Token::read(&path)
        };
        assert!(read(b"0123456789abcdef\n").unwrap().is(b"0123456789abcdef"));
        for text in [&b""[..], b"\n", b"short", b"two words are not one word", &[b'a'; 5000], b"\xff123456789abcdefg"] {
            assert!(read(text).unwrap_err().contains("[http] token_file"), "{text:?}");
        }
        fs::remove_file(&path).unwrap();
        assert!(Token::read(&path).unwrap_err().contains("No such file"));
    }
}
