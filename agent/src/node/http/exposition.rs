//! Metrics in two dialects: OpenMetrics, and the text that Prometheus read before it, for who asks for nothing.
//!
//! They differ in three things: the older one has no units and no end mark, a counter's family has the name of
//! its samples, and what is no type there is a gauge.

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

/// The media types.
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// As above.
pub const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The metrics for who accepts this, and the media type.
#[must_use]
pub fn expose(registry: &Registry, accept: Option<&[u8]>) -> (String, &'static str) {
    let mut text = String::new();
    let _ = encode(&mut text, registry); // a String takes everything
    let asked = accept.is_some_and(|accept| {
        accept.windows(b"application/openmetrics-text".len()).any(|part| part == b"application/openmetrics-text")
    });
    if asked { (text, OPEN_METRICS) } else { (older(&text), TEXT) }
}

fn older(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let lines: Vec<&str> = text.lines().collect();
    let is_counter =
        |name: &str| lines.iter().any(|line| line.strip_prefix("# TYPE ") == Some(&format!("{name} counter")));
    for line in &lines {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("UNIT" | "EOF"), _, _) => continue,
            (Some("#"), Some(what @ ("HELP" | "TYPE")), Some(name), Some(rest)) if is_counter(name) => {
                result += &format!("# {what} {name}_total {rest}");
            }
            _ => result += line,
        }
        result.push('\n');
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;

    #[test]
    fn each_asks_for_its_dialect() {
        let mut registry = Registry::default();
        registry.register("pipes_seen", "Pipes", Counter::<u64>::default());
        registry.register("pipes", "Pipes now", Gauge::<i64>::default());
        let (text, kind) = expose(&registry, Some(b"application/openmetrics-text;version=1.0.0,*/*"));
        assert!(
            text.contains("# TYPE pipes_seen counter\npipes_seen_total 0\n") && text.ends_with("# EOF\n"),
            "{text}"
        );
        assert_eq!(kind, OPEN_METRICS);
        let (text, kind) = expose(&registry, Some(b"*/*"));
        let wanted = "# HELP pipes_seen_total Pipes.\n# TYPE pipes_seen_total counter\npipes_seen_total 0\n\
                      # HELP pipes Pipes now.\n# TYPE pipes gauge\npipes 0\n";
        assert_eq!((text.as_str(), kind), (wanted, TEXT));
    }
}
