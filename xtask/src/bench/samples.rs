//! Measured times, and what to say of them.

use std::fmt;
use std::time::Duration;

/// Times of one kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples {
    times: Vec<Duration>,
}

impl Samples {
    /// Adds one.
    pub(crate) fn push(&mut self, time: Duration) {
        self.times.push(time);
    }

    /// The time that so large a part of the samples does not exceed (nearest rank).
    pub(crate) fn quantile(&self, part: f64) -> Duration {
        let mut sorted = self.times.clone();
        sorted.sort_unstable();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank: 1 to a few thousand")]
        #[expect(clippy::cast_precision_loss, reason = "no bench takes 2^52 samples")]
        let rank = (part * sorted.len() as f64).ceil().max(1.0) as usize;
        sorted.get(rank - 1).copied().unwrap_or_default()
    }

    /// The median.
    pub(crate) fn median(&self) -> Duration {
        self.quantile(0.5)
    }

    /// The median of these against that of others.
    pub(crate) fn against(&self, other: &Samples) -> f64 {
        self.median().as_secs_f64() / other.median().as_secs_f64()
    }
}

impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (min, p50, p99) = (self.quantile(0.0), self.median(), self.quantile(0.99));
        write!(f, "min {}  p50 {}  p99 {}  (n={})", time(min), time(p50), time(p99), self.times.len())
    }
}

/// A time with three digits or so.
pub(crate) fn time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        _ if seconds < 0.001 => format!("{:.0} us", seconds * 1e6),
        _ if seconds < 0.1 => format!("{:.2} ms", seconds * 1e3),
        _ if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        _ => format!("{seconds:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples_by_nearest_rank() {
        let mut samples = Samples::default();
        for millis in (1..=100).rev() {
            samples.push(Duration::from_millis(millis));
        }
        assert_eq!(samples.quantile(0.0), Duration::from_millis(1));
        assert_eq!(samples.median(), Duration::from_millis(50));
        assert_eq!(samples.quantile(0.99), Duration::from_millis(99));
        assert_eq!(Samples::default().median(), Duration::ZERO);
    }

    #[test]
    fn times_are_told_in_the_unit_that_fits() {
        for (micros, text) in [(640, "640 us"), (1234, "1.23 ms"), (204_500, "204 ms"), (2_500_000, "2.50 s")] {
            assert_eq!(time(Duration::from_micros(micros)), text);
        }
    }
}
