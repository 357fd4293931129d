//! What must stand in a line for a JSONPath to find something there.
//!
//! Parsing every line of a busy agent costs more than carrying it. Most queries name members and
//! compare with strings, and a line without those words cannot match: that is told by a search.

/// How a JSON string can spell an ASCII character other than as itself: a line with one of these in
/// it may contain any of our words, which are ASCII.
pub const ESCAPES: [&[u8]; 6] = [b"\\u002", b"\\u003", b"\\u004", b"\\u005", b"\\u006", b"\\u007"];

/// What all of them begin with.
pub const ESCAPE: &[u8] = b"\\u00";

/// Words that every matching line contains, or one of the [`ESCAPES`]; none where the query is too involved
/// for us to tell. Texts that something is compared with come first: they tell lines apart, where the
/// names of members are in most of them.
#[must_use]
pub fn literals(query: &str) -> (Vec<String>, Vec<String>) {
    let (mut texts, mut names) = (Vec::new(), Vec::new());
    walk(query, &mut texts, &mut names);
    for words in [&mut texts, &mut names] {
        words.retain(|word| !word.is_empty() && word.chars().all(is_spelt_one_way));
        words.sort();
        words.dedup();
    }
    (texts, names)
}

fn walk(query: &str, texts: &mut Vec<String>, names: &mut Vec<String>) {
    let Some(mut rest) = query.trim().strip_prefix('$') else { return };
    while let Some((segment, after)) = next_segment(rest) {
        match segment {
            Segment::Name(name) => names.push(name.to_owned()),
            Segment::Filter(condition) => compared(condition, texts, names),
            Segment::Anything => {}
        }
        rest = after;
    }
}

/// A text or a name as a line has it: the same word inside a longer text has other neighbours, because a
/// quote in a text is escaped.
#[must_use]
pub fn as_it_stands(word: &str) -> String {
    format!("\"{word}\"")
}

/// Whether a character has no short escape in JSON, as `/` and `"` have.
fn is_spelt_one_way(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ' ' | ':')
}

pub(super) enum Segment<'a> {
    /// A member of this name.
    Name(&'a str),
    /// Children that fulfil this.
    Filter(&'a str),
    /// Children, whatever they are called.
    Anything,
}

/// The next segment of a query, as long as it is one of the simple kinds.
pub(super) fn next_segment(text: &str) -> Option<(Segment<'_>, &str)> {
    if let Some(rest) = text.strip_prefix('.') {
        // A descendant of that name is a member of that name somewhere.
        let rest = rest.strip_prefix('.').filter(|name| !name.starts_with('[')).unwrap_or(rest);
        if let Some(after) = rest.strip_prefix('*') {
            return Some((Segment::Anything, after));
        }
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        return (end > 0).then(|| (Segment::Name(&rest[..end]), &rest[end..]));
    }
    let inside = bracketed(text)?;
    let after = &text[inside.len() + 2..];
    if let Some(condition) = inside.strip_prefix('?') {
        return Some((Segment::Filter(condition), after));
    }
    if let Some(name) = quoted(inside) {
        return Some((Segment::Name(name), after));
    }
    let simple = inside == "*" || inside.parse::<i64>().is_ok();
    simple.then_some((Segment::Anything, after))
}

/// What stands between the bracket that the text begins with and its partner.
fn bracketed(text: &str) -> Option<&str> {
    let mut depth = 0_usize;
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (_, '\\') => return None,
            (Some(open), _) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') if depth == 1 => return Some(&text[1..at]),
            (None, ']') => depth = depth.checked_sub(1)?,
            (None, _) if depth == 0 => return None,
            (None, _) => {}
        }
    }
    None
}

/// The words that a conjunction of comparisons needs.
fn compared(condition: &str, texts: &mut Vec<String>, names: &mut Vec<String>) {
    // With an "or", a "not", a function or anything in parentheses no single word is needed.
    if condition.contains(['|', '!', '(']) {
        return;
    }
    for part in condition.split("&&") {
        let Some((left, right)) = part.split_once("==") else { continue };
        let sides = [left.trim(), right.trim()];
        for (one, other) in [(sides[0], sides[1]), (sides[1], sides[0])] {
            // What is equal to something that there is, is there too.
            if let Some(text) = quoted(one) {
                texts.push(text.to_owned());
                names.extend(along(other));
            } else if one == "@" {
                names.extend(along(other));
            }
        }
    }
}

/// The members that a path leads along.
fn along(path: &str) -> Vec<String> {
    let mut names = Vec::new();
    let Some(mut rest) = path.strip_prefix(['$', '@']) else { return names };
    while let Some((segment, after)) = next_segment(rest) {
        match segment {
            Segment::Name(name) => names.push(name.to_owned()),
            Segment::Anything | Segment::Filter(_) => {}
        }
        rest = after;
    }
    names
}

/// A whole text that is one quoted string without escapes.
pub(super) fn quoted(text: &str) -> Option<&str> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let inside = text.get(1..text.len().checked_sub(1)?)?;
    (text.len() > 2 && text.ends_with(quote) && !inside.contains([quote, '\\'])).then_some(inside)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use serde_json_path::JsonPath;

    #[test]
    fn simple_queries_tell_what_they_need() {
        for (query, texts, names) in [
            ("$.session_id", vec![], vec!["session_id"]),
            ("$['session_id']", vec![], vec!["session_id"]),
            ("$[?$.type=='result' && @ == $.subtype]", vec!["result"], vec!["subtype", "type"]),
            ("$.message.content[?@.type=='tool_use'].id", vec!["tool_use"], vec!["content", "id", "message", "type"]),
            ("$[0][*].*.name", vec![], vec!["name"]),
            ("$.a.bc", vec![], vec!["a", "bc"]),
            ("$..session_id", vec![], vec!["session_id"]),
            ("$..*.name", vec![], vec!["name"]),
            ("$[?@.one == $.two]", vec![], vec![]),
            ("$[?@.path == 'a/b']", vec![], vec!["path"]),
        ] {
            let expected =
                (texts.into_iter().map(str::to_owned).collect(), names.into_iter().map(str::to_owned).collect());
            assert_eq!(literals(query), expected, "{query}");
        }
    }

    #[test]
    fn involved_queries_need_nothing_that_we_know() {
        for query in [
            "$",
            "$['one','two']",
            "$[?@.type=='one' || @.type=='two']",
            "$[?!(@.type=='one')]",
            "$[?@.type!='one']",
            "$[?match(@.type, 'one')]",
            r#"$['\u0041bc']"#,
            "$[1:2]",
        ] {
            assert_eq!(literals(query), (Vec::new(), Vec::new()), "{query}");
        }
    }

    fn words() -> impl Strategy<Value = String> {
        prop::sample::select(vec!["type", "result", "tool_use", "id", "message", "content", "x-y"])
            .prop_map(str::to_owned)
    }

    pub(in super::super) fn documents() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![words().prop_map(Value::from), any::<bool>().prop_map(Value::from), Just(Value::Null)];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((words(), inner), 0..5)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    pub(in super::super) fn queries() -> impl Strategy<Value = String> {
        let operand = prop_oneof![
            words().prop_map(|word| format!("'{word}'")),
            words().prop_map(|word| format!("@['{word}']")),
            words().prop_map(|word| format!("$['{word}']")),
            Just("@".to_owned()),
        ];
        let comparison = (operand.clone(), prop::sample::select(vec!["==", "!=", "<"]), operand)
            .prop_map(|(left, how, right)| format!("{left} {how} {right}"));
        let condition =
            prop::collection::vec((comparison, prop::sample::select(vec!["&&", "||"])), 1..4).prop_map(|parts| {
                let mut text = String::new();
                for (index, (part, joint)) in parts.iter().enumerate() {
                    if index > 0 {
                        text.push_str(joint);
                    }
                    text.push_str(part);
                }
                text
            });
        let segment = prop_oneof![
            words()
                .prop_filter("a name without a dash", |word| !word.contains('-'))
                .prop_map(|word| format!(".{word}")),
            words().prop_map(|word| format!("['{word}']")),
            (words(), words()).prop_map(|(one, two)| format!("['{one}','{two}']")),
            words().prop_filter("a name", |word| !word.contains('-')).prop_map(|word| format!("..{word}")),
            Just("[*]".to_owned()),
            Just(".*".to_owned()),
            Just("[0]".to_owned()),
            condition.prop_map(|condition| format!("[?{condition}]")),
        ];
        prop::collection::vec(segment, 0..4).prop_map(|segments| format!("${}", segments.concat()))
    }

    proptest! {
        /// What is skipped could not have matched: else a completion would be missed.
        #[test]
        fn a_line_that_matches_has_every_needed_word(document in documents(), query in queries()) {
            let path = JsonPath::parse(&query).unwrap();
            if !path.query(&document).is_empty() {
                let line = document.to_string();
                let (texts, names) = literals(&query);
                for word in texts.iter().chain(&names).map(|word| as_it_stands(word)) {
                    prop_assert!(line.contains(&word), "{query} matches {line} without {word}");
                }
            }
        }
    }

    #[test]
    fn the_escapes_that_hide_a_word_are_unicode_escapes() {
        let line = r#"{"\u0074ype":"r\u0065sult"}"#;
        let document: Value = serde_json::from_str(line).unwrap();
        assert_eq!(document, json!({"type": "result"}));
        assert!(!line.contains(&as_it_stands("type")) && !line.contains(&as_it_stands("result")));
        assert!(ESCAPES.iter().any(|escape| memchr::memmem::find(line.as_bytes(), escape).is_some()));
    }
}
