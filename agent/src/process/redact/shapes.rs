//! Secrets that are known by what they look like, wherever they stand.

use std::ops::Range;

/// How well-known tokens begin, and how many characters must follow at least.
const TOKENS: [(&str, usize); 27] = [
    ("ghp_", 16),
    ("gho_", 16),
    ("ghu_", 16),
    ("ghs_", 16),
    ("ghr_", 16),
    ("github_pat_", 16),
    ("glpat-", 16),
    ("sk-ant-", 8),
    ("sk-", 16),
    ("sk_live_", 8),
    ("sk_test_", 8),
    ("rk_live_", 8),
    ("xoxa-", 8),
    ("xoxb-", 8),
    ("xoxp-", 8),
    ("xoxr-", 8),
    ("xoxs-", 8),
    ("xapp-", 8),
    ("AKIA", 16),
    ("ASIA", 16),
    ("npm_", 30),
    ("pypi-", 30),
    ("hf_", 20),
    ("AIza", 30),
    ("ya29.", 20),
    ("dop_v1_", 20),
    ("dckr_pat_", 16),
];

/// The shortest credential that is believed behind a bare `Bearer`.
const BEARER_LENGTH: usize = 8;

/// Finds them all.
pub(super) fn find(text: &str, secrets: &mut Vec<Range<usize>>) {
    tokens(text, secrets);
    bearers(text, secrets);
    logins(text, secrets);
    private_keys(text, secrets);
}

fn tokens(text: &str, secrets: &mut Vec<Range<usize>>) {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let begins = at == 0 || !bytes[at - 1].is_ascii_alphanumeric();
        match begins.then(|| token_length(&bytes[at..])).flatten() {
            Some(length) => {
                secrets.push(at..at + length);
                at += length;
            }
            None => at += 1,
        }
    }
}

/// The length of the token that a text begins with.
fn token_length(bytes: &[u8]) -> Option<usize> {
    // Dots are the seams of a web token; elsewhere they end a sentence.
    let run = |dots: bool| bytes.iter().take_while(|byte| in_token(**byte) || (dots && **byte == b'.')).count();
    if bytes.starts_with(b"eyJ") {
        let length = run(true);
        return (length >= 20 && bytes[..length].contains(&b'.')).then_some(length);
    }
    let (prefix, least) = TOKENS.iter().find(|(prefix, _)| bytes.starts_with(prefix.as_bytes()))?;
    let length = run(prefix.contains('.'));
    let tail = bytes.get(prefix.len()..length)?;
    // A name of several words (`sk-learn-and-friends`) has no digit; a random token has.
    (tail.len() >= *least && tail.iter().any(u8::is_ascii_digit)).then_some(length)
}

fn in_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

/// `Bearer X`, `Basic X` without a header's name before it.
fn bearers(text: &str, secrets: &mut Vec<Range<usize>>) {
    for scheme in ["Bearer ", "bearer ", "Basic "] {
        for (at, _) in text.match_indices(scheme) {
            let start = at + scheme.len();
            let credential = |byte: &&u8| in_token(**byte) || b".~+/=".contains(byte);
            let length = text.as_bytes()[start..].iter().take_while(credential).count();
            if length >= BEARER_LENGTH {
                secrets.push(start..start + length);
            }
        }
    }
}

/// `scheme://user:password@host`, `https://token@host`, and `user:password@tcp(host)`.
fn logins(text: &str, secrets: &mut Vec<Range<usize>>) {
    for (at, _) in text.match_indices("://") {
        let start = at + 3;
        let rest = &text[start..];
        let rest = &rest[..rest.find(|c: char| c.is_whitespace() || "\"'`<>".contains(c)).unwrap_or(rest.len())];
        let scheme = &text[..at];
        secrets.extend(
            login_length(rest, scheme.ends_with("http") || scheme.ends_with("https"))
                .map(|secret| start + secret.start..start + secret.end),
        );
    }
    for driver in ["@tcp(", "@unix("] {
        for (at, _) in text.match_indices(driver) {
            let start = text[..at].rfind(char::is_whitespace).map_or(0, |blank| blank + 1);
            secrets.extend(text[start..at].find(':').map(|colon| start + colon + 1..at));
        }
    }
}

/// Where the secret is in what follows `scheme://`.
fn login_length(rest: &str, web: bool) -> Option<Range<usize>> {
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    let at = match authority.rfind('@') {
        Some(at) => at,
        // A password may have a slash in it that nobody escaped; a port has only digits.
        None => {
            let (_, port) = authority.split_once(':')?;
            (!port.bytes().all(|byte| byte.is_ascii_digit())).then_some(())?;
            rest.rfind('@')?
        }
    };
    match rest[..at].find(':') {
        Some(colon) => Some(colon + 1..at),
        None => web.then_some(0..at), // a user alone: with ssh a name, on the web a token
    }
}

fn private_keys(text: &str, secrets: &mut Vec<Range<usize>>) {
    for (at, _) in text.match_indices("-----BEGIN ") {
        const HEAD: &str = "PRIVATE KEY-----";
        let Some(head) = text[at..].find(HEAD) else { return };
        let start = at + head + HEAD.len();
        let end = text[start..].find("-----END").map_or(text.len(), |length| start + length);
        secrets.push(start..end);
    }
}
