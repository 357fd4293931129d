//! How durations and signals are written, and what is said about those that cannot be read.

use std::time::Duration;

use nix::sys::signal::Signal;

/// `250ms`, `1m30s`, `1.5s`; a bare number is seconds.
///
/// # Errors
///
/// What would be right, in one line.
pub fn duration(text: &str) -> Result<Duration, String> {
    const RIGHT: &str = "use a duration such as 250ms, 1.5s, 1m30s or a number of seconds";
    let number = text.trim();
    if number.starts_with('-') {
        return Err(format!("a duration cannot be negative; {RIGHT}"));
    }
    if number.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && let Ok(seconds) = number.parse::<f64>()
    {
        return Duration::try_from_secs_f64(seconds).ok().filter(|time| *time <= LONGEST).ok_or_else(too_long);
    }
    let time = humantime::parse_duration(number).map_err(|error| match error {
        humantime::DurationError::NumberOverflow => too_long(),
        _ => RIGHT.to_owned(),
    })?;
    if time > LONGEST { Err(too_long()) } else { Ok(time) }
}

/// Sums of these stay far from what a clock can hold.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

fn too_long() -> String {
    "the duration is too long; the most is ten years (315360000)".to_owned()
}

/// A duration for which 0 means "off".
///
/// # Errors
///
/// As for [`duration`].
pub fn bound(text: &str) -> Result<Bound, String> {
    duration(text).map(|time| Bound((!time.is_zero()).then_some(time)))
}

/// A bound, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound(pub Option<Duration>);

/// `10/1m`: how many in how long a time; `off` is any number.
///
/// # Errors
///
/// What would be right, in one line.
pub fn rate(text: &str) -> Result<Option<(usize, Duration)>, String> {
    let right = || "use N/DURATION, such as \"10/10m\", or \"off\"".to_owned();
    if text == "off" {
        return Ok(None);
    }
    let (count, window) = text.split_once('/').ok_or_else(right)?;
    let count = count.trim().parse().map_err(|_| right())?;
    let window = duration(window).map_err(|_| right())?;
    if window.is_zero() { Err(right()) } else { Ok(Some((count, window))) }
}

/// `64MiB`, `10MB`, `4096`: a number of bytes.
///
/// # Errors
///
/// What would be right, in one line.
pub fn size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 8] = [
        ("", 1),
        ("B", 1),
        ("KB", 1000),
        ("KIB", 1 << 10),
        ("MB", 1_000_000),
        ("MIB", 1 << 20),
        ("GB", 1_000_000_000),
        ("GIB", 1 << 30),
    ];
    let right = || "use a size such as 64MiB, 100MB or a number of bytes".to_owned();
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_uppercase();
    let unit = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(right)?.1;
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(right)
}

/// `TERM`, `SIGTERM` or `15`.
///
/// # Errors
///
/// What would be right, in one line.
pub fn signal(text: &str) -> Result<Signal, String> {
    let number = text.parse::<i32>().ok().map(Signal::try_from);
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    number
        .unwrap_or_else(|| name.parse())
        .map_err(|_| "no such signal; use a name such as TERM, INT or KILL, or a number from 1 to 31".to_owned())
}

/// `N:M`: forward signal N as M; 0 for M forwards nothing. Names are numbers' equals.
///
/// # Errors
///
/// What would be right, in one line.
pub fn rewrite(text: &str) -> Result<(i32, i32), String> {
    let (from, to) = text.split_once(':').ok_or("use N:M, such as 15:3 or TERM:QUIT (M = 0 drops the signal)")?;
    let to = if to == "0" { 0 } else { number(to)? };
    Ok((number(from)?, to))
}

fn number(text: &str) -> Result<i32, String> {
    match text.parse::<i32>() {
        // Realtime signals have numbers only.
        Ok(number) if (1..=libc::SIGRTMAX()).contains(&number) => Ok(number),
        _ => signal(text).map(|signal| signal as i32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, millis) in [
            ("250ms", 250),
            ("1m30s", 90_000),
            ("1.5s", 1500),
            ("2", 2000),
            ("0.2", 200),
            ("0", 0),
            ("0s", 0),
            ("1h", 3_600_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in
            ["", "-1", "-1s", "abc", "5 parsecs", "1e400", "inf", "nan", "1ss", "99999999999999999999s", "1e300"]
        {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn signals_are_read_by_name_and_number() {
        for text in ["TERM", "SIGTERM", "term", "15"] {
            assert_eq!(signal(text), Ok(Signal::SIGTERM), "{text}");
        }
        for text in ["", "0", "99", "FOO", "SIG", "-9"] {
            assert!(signal(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates_and_sizes_are_read_as_people_write_them() {
        assert_eq!(rate("10/1m"), Ok(Some((10, Duration::from_secs(60)))));
        assert_eq!(rate("0/1s"), Ok(Some((0, Duration::from_secs(1)))));
        assert_eq!(rate("off"), Ok(None));
        for text in ["", "10", "10/", "/1m", "-1/1m", "10/0", "10/x"] {
            assert!(rate(text).is_err(), "{text}");
        }
        assert_eq!((size("0"), size("4096"), size("64MiB")), (Ok(0), Ok(4096), Ok(64 << 20)));
        assert_eq!((size("10 MB"), size("1gib"), size("7kb")), (Ok(10_000_000), Ok(1 << 30), Ok(7000)));
        for text in ["", "MiB", "-1", "1.5MiB", "1TiB", "99999999999GiB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rewriting_takes_names_numbers_and_zero() {
        assert_eq!(rewrite("15:3"), Ok((15, 3)));
        assert_eq!(rewrite("TERM:QUIT"), Ok((15, 3)));
        assert_eq!(rewrite("1:0"), Ok((1, 0)));
        for text in ["15", "15:", ":3", "0:3", "99:1", "15:3:4"] {
            assert!(rewrite(text).is_err(), "{text}");
        }
    }
}
