//! Which names (of flags, variables, headers, JSON keys) announce a secret.

/// What a name smells of, in lower case and without separators.
const STEMS: [&str; 13] = [
    "password",
    "passwd",
    "passphrase",
    "passcode",
    "secret",
    "token",
    "apikey",
    "accesskey",
    "privatekey",
    "authorization",
    "bearer",
    "cookie",
    "credential",
];

/// What a name smells of as a word of its own: within a longer word they mean nothing (`compass`).
const WORDS: [&str; 4] = ["pass", "sshpass", "authkey", "auth"];

/// A name that ends so is about a secret and holds none.
const ABOUT: [&str; 19] = [
    "file", "path", "dir", "stdin", "fd", "type", "name", "ttl", "url", "uri", "endpoint", "length", "limit", "count",
    "budget", "lifetime", "size", "jar", "policy",
];

/// A flag that begins so takes no value.
const SWITCHES: [&str; 6] = ["no", "without", "skip", "disable", "ask", "show"];

/// With one of these, `tokens` are what a language model counts.
const COUNTED: [&str; 16] = [
    "max",
    "min",
    "num",
    "n",
    "total",
    "input",
    "output",
    "prompt",
    "completion",
    "thinking",
    "context",
    "per",
    "reasoning",
    "new",
    "cached",
    "budget",
];

/// Names that announce a secret even where no dash and no equals sign says that a value follows
/// (`config set password X`).
const CERTAIN: [&str; 6] = ["password", "secretkey", "secretaccesskey", "apikey", "authtoken", "accesstoken"];

/// Whether a byte can be part of a name.
pub(super) fn in_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.')
}

/// Whether all of a text can be a name.
pub(super) fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(in_name)
}

/// Whether the value of this name is likely a secret.
pub(super) fn smells(name: &str) -> bool {
    let words = words(name);
    let has = |list: &[&str]| words.iter().any(|word| list.contains(&word.as_str()));
    if words.last().is_some_and(|last| ABOUT.contains(&last.as_str()))
        || words.first().is_some_and(|first| SWITCHES.contains(&first.as_str()))
        || (has(&["tokens"]) && has(&COUNTED))
    {
        return false;
    }
    // `MYSQL_PWD` is a password, `PWD` a folder.
    if has(&WORDS) || (words.len() > 1 && has(&["pwd"])) {
        return true;
    }
    let joined = words.concat().replace("tokeniz", "").replace("tokenis", "");
    STEMS.iter().any(|stem| joined.contains(stem))
}

/// Whether the name can hardly mean anything but a secret.
pub(super) fn reeks(name: &str) -> bool {
    let joined = words(name).concat();
    CERTAIN.iter().any(|certain| joined.ends_with(certain))
}

/// The words of `--api-key`, `API_KEY`, `apiKey`, in lower case.
fn words(name: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut after_lower = false;
    for c in name.chars() {
        if !c.is_ascii_alphanumeric() || (after_lower && c.is_ascii_uppercase()) {
            words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
        }
        if c.is_ascii_alphanumeric() {
            word.push(c.to_ascii_lowercase());
        }
        after_lower = c.is_ascii_lowercase();
    }
    words.extend((!word.is_empty()).then_some(word));
    words
}
