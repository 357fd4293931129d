//! What a query needs of a line. The rest of the line is read over: it must be JSON, and takes no memory.
//!
//! To build the whole of every line costs ten times what it takes to read over it, and most queries look
//! at a few members. Where a query is too involved for us to tell, it needs everything.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::needed::{Segment, next_segment, quoted};

/// What is needed of one value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// All of it: it is captured, or compared.
    all: bool,
    /// Of members of these names, this.
    named: Vec<(String, Needs)>,
    /// Of every member and element, this.
    each: Option<Box<Needs>>,
}

/// What has to stand at a place for a query to find anything at all: `$.type == 'result'`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    names: Vec<String>,
    text: String,
}

impl Condition {
    /// Whether it holds in a line.
    #[must_use]
    pub fn holds(&self, line: &Value) -> bool {
        let place = self.names.iter().try_fold(line, |value, name| value.get(name));
        place.and_then(Value::as_str) == Some(&self.text)
    }
}

/// What a query needs, and the conditions that a line must fulfil.
#[must_use]
pub fn of(query: &str) -> (Needs, Vec<Condition>) {
    let mut reader = Reader { root: Needs::default(), conditions: Vec::new() };
    let path = query.trim().strip_prefix('$').map_or_else(Needs::all, |path| reader.path(path));
    reader.root.add(path);
    (reader.root, reader.conditions)
}

/// The members that a query leads along, if it is nothing but `$.one.after['the other']`.
#[must_use]
pub fn members(query: &str) -> Option<Vec<String>> {
    let Operand::Of { steps, .. } = operand(query.trim()).filter(|_| query.trim().starts_with('$'))? else {
        return None;
    };
    names(&steps).filter(|names| !names.is_empty())
}

impl Needs {
    fn all() -> Needs {
        Needs { all: true, ..Needs::default() }
    }

    fn of_member(name: &str, needs: Needs) -> Needs {
        Needs { named: vec![(name.to_owned(), needs)], ..Needs::default() }
    }

    fn of_each(needs: Needs) -> Needs {
        Needs { each: Some(Box::new(needs)), ..Needs::default() }
    }

    /// What is needed to look whether a condition holds.
    #[must_use]
    pub fn of_condition(condition: &Condition) -> Needs {
        condition.names.iter().rev().fold(Needs::all(), |needs, name| Needs::of_member(name, needs))
    }

    /// Whether everything is needed.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.all
    }

    /// Both: what this needs, and what the other does.
    pub fn add(&mut self, other: Needs) {
        self.all |= other.all;
        for (name, needs) in other.named {
            match self.named.iter_mut().find(|(known, _)| *known == name) {
                Some((_, known)) => known.add(needs),
                None => self.named.push((name, needs)),
            }
        }
        match (&mut self.each, other.each) {
            (Some(known), Some(needs)) => known.add(*needs),
            (None, each) => self.each = each,
            (Some(_), None) => {}
        }
    }

    /// What is needed of every member is needed of those that have a name here too. To be called once
    /// nothing is added any more.
    #[must_use]
    pub fn settled(mut self) -> Needs {
        let each = self.each.take();
        for (_, needs) in &mut self.named {
            if let Some(each) = &each {
                needs.add((**each).clone());
            }
            *needs = std::mem::take(needs).settled();
        }
        self.each = each.map(|each| Box::new(each.settled()));
        self
    }

    /// Reads what is needed of a line; nothing if it is no JSON.
    #[must_use]
    pub fn read(&self, line: &[u8]) -> Option<Value> {
        // What is read over is not looked at so closely.
        let line = std::str::from_utf8(line).ok()?;
        let mut reader = serde_json::Deserializer::from_str(line);
        let value = self.deserialize(&mut reader).ok()?;
        reader.end().ok()?;
        Some(value.unwrap_or_default())
    }

    fn of_a_member(&self, name: &str) -> Option<&Needs> {
        let named = self.named.iter().find(|(known, _)| known == name).map(|(_, needs)| needs);
        named.or(self.each.as_deref())
    }
}

/// A value, unless nothing of it could be found: then it does not matter that it is there.
impl<'de> DeserializeSeed<'de> for &Needs {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Option<Value>, D::Error> {
        if self.all {
            return serde::Deserialize::deserialize(reader).map(Some);
        }
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &Needs {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<Value>, A::Error> {
        let mut members = Map::new();
        while let Some((name, needs)) = map.next_key_seed(Name(self))? {
            match needs {
                Some(needs) => {
                    let value = map.next_value_seed(needs)?;
                    // Of two members of one name the last one counts.
                    match value {
                        Some(value) => drop(members.insert(name.into_owned(), value)),
                        None => drop(members.remove(name.as_ref())),
                    }
                }
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Some(Value::Object(members)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Option<Value>, A::Error> {
        let mut values = Vec::new();
        match &self.each {
            // An element keeps its place, whatever is in it.
            Some(needs) => {
                while let Some(value) = elements.next_element_seed(&**needs)? {
                    values.push(value.unwrap_or_default());
                }
            }
            None => while elements.next_element::<IgnoredAny>()?.is_some() {},
        }
        Ok(Some(Value::Array(values)))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_str<E>(self, _: &str) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Option<Value>, E> {
        Ok(None)
    }
}

/// A member's name, and what is needed of the member.
struct Name<'n>(&'n Needs);

impl<'de, 'n> DeserializeSeed<'de> for Name<'n> {
    type Value = (std::borrow::Cow<'de, str>, Option<&'n Needs>);

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_str(self)
    }
}

impl<'de, 'n> Visitor<'de> for Name<'n> {
    type Value = (std::borrow::Cow<'de, str>, Option<&'n Needs>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member's name")
    }

    fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
        Ok((name.into(), self.0.of_a_member(name)))
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok((name.to_owned().into(), self.0.of_a_member(name)))
    }
}

/// Reads a query. Conditions may look at the whole line from anywhere, so its needs grow meanwhile.
struct Reader {
    root: Needs,
    conditions: Vec<Condition>,
}

impl Reader {
    /// What a value needs for this path to be walked from there.
    fn path(&mut self, path: &str) -> Needs {
        if path.is_empty() {
            return Needs::all();
        }
        match step(path) {
            Some((Segment::Name(name), rest)) => Needs::of_member(name, self.path(rest)),
            Some((Segment::Anything, rest)) => Needs::of_each(self.path(rest)),
            Some((Segment::Filter(condition), rest)) => {
                let mut child = self.path(rest);
                match self.filter(condition) {
                    Some(needs) => child.add(needs),
                    None => self.root.add(Needs::all()),
                }
                Needs::of_each(child)
            }
            None => Needs::all(),
        }
    }

    /// What a filter looks at in the value that it is asked of; nothing where we cannot tell.
    fn filter(&mut self, condition: &str) -> Option<Needs> {
        if condition.contains('(') {
            return None;
        }
        let mut needs = Needs::default();
        let all_must_hold = !condition.contains("||");
        for part in condition.split("&&").flat_map(|part| part.split("||")) {
            let part = part.trim();
            let Some((left, sign, right)) = comparison(part) else {
                let existing = part.strip_prefix('!').unwrap_or(part).trim();
                self.note(operand(existing)?, &mut needs);
                continue;
            };
            let (left, right) = (operand(left)?, operand(right)?);
            if all_must_hold && sign == "==" {
                self.conditions.extend(condition_of(&left, &right));
            }
            self.note(left, &mut needs);
            self.note(right, &mut needs);
        }
        Some(needs)
    }

    fn note(&mut self, operand: Operand<'_>, of_the_child: &mut Needs) {
        match operand {
            Operand::Literal(_) => {}
            Operand::Of { line: true, steps } => self.root.add(along(&steps)),
            Operand::Of { line: false, steps } => of_the_child.add(along(&steps)),
        }
    }
}

/// One side of a comparison.
enum Operand<'a> {
    /// What it says, if it is a string.
    Literal(Option<&'a str>),
    /// A place in the whole line, or in the value that the filter is asked of.
    Of { line: bool, steps: Vec<Step<'a>> },
}

enum Step<'a> {
    Member(&'a str),
    Each,
}

fn along(steps: &[Step<'_>]) -> Needs {
    steps.iter().rev().fold(Needs::all(), |needs, step| match step {
        Step::Member(name) => Needs::of_member(name, needs),
        Step::Each => Needs::of_each(needs),
    })
}

/// `$.type == 'result'`, either way round.
fn condition_of(left: &Operand<'_>, right: &Operand<'_>) -> Option<Condition> {
    let ((Operand::Of { line: true, steps }, Operand::Literal(Some(text)))
    | (Operand::Literal(Some(text)), Operand::Of { line: true, steps })) = (left, right)
    else {
        return None;
    };
    Some(Condition { names: names(steps)?, text: (*text).to_owned() })
}

fn names(steps: &[Step<'_>]) -> Option<Vec<String>> {
    let name = |step: &Step<'_>| match step {
        Step::Member(name) => Some((*name).to_owned()),
        Step::Each => None,
    };
    steps.iter().map(name).collect()
}

fn comparison(text: &str) -> Option<(&str, &'static str, &str)> {
    // The longer ones first where they begin at the same place.
    let signs = ["==", "!=", "<=", ">=", "<", ">"];
    let (at, sign) = signs.iter().filter_map(|sign| Some((text.find(sign)?, *sign))).min_by_key(|(at, _)| *at)?;
    Some((text[..at].trim(), sign, text[at + sign.len()..].trim()))
}

/// Nothing where it is neither a plain literal nor a plain path.
fn operand(text: &str) -> Option<Operand<'_>> {
    let (line, mut rest) = match text.chars().next()? {
        '$' => (true, &text[1..]),
        '@' => (false, &text[1..]),
        _ => {
            let string = quoted(text);
            let other = || matches!(text, "true" | "false" | "null" | "''" | "\"\"") || text.parse::<f64>().is_ok();
            return (string.is_some() || other()).then_some(Operand::Literal(string));
        }
    };
    let mut steps = Vec::new();
    while !rest.is_empty() {
        let (segment, after) = step(rest)?;
        steps.push(match segment {
            Segment::Name(name) => Step::Member(name),
            Segment::Anything => Step::Each,
            Segment::Filter(_) => return None,
        });
        rest = after;
    }
    Some(Operand::Of { line, steps })
}

/// The next segment, where it leads to children alone and we have read all of it.
fn step(path: &str) -> Option<(Segment<'_>, &str)> {
    let (segment, rest) = next_segment(path)?;
    let whole = rest.is_empty() || rest.starts_with(['.', '[']);
    (whole && !path.starts_with("..")).then_some((segment, rest))
}

#[cfg(test)]
mod tests {
    use super::super::needed::tests::{documents, queries};
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use serde_json_path::JsonPath;

    fn read(query: &str, line: &Value) -> Value {
        of(query).0.settled().read(line.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn what_is_not_asked_for_is_not_kept() {
        let line = json!({"type": "assistant", "message": {"content": [{"type": "tool_use", "id": "a", "input": {}}, 7]},
            "session_id": "s"});
        let query = "$.message.content[?$.type == 'assistant' && @.type == 'tool_use'].id";
        let kept = json!({"type": "assistant", "message": {"content": [{"type": "tool_use", "id": "a"}, null]}});
        assert_eq!(read(query, &line), kept);
        assert_eq!(read("$.session_id", &line), json!({"session_id": "s"}));
        assert_eq!(read("$.*.content", &line)["message"], line["message"]);
    }

    #[test]
    fn involved_queries_need_everything() {
        for query in [
            "$",
            "$..id",
            "$['a','b']",
            "$[?length(@.a) > 1]",
            "$[?(@.a)]",
            "$.größe",
            "$[?@.a == 'x\\'y']",
            "$ .a",
            "x",
        ] {
            assert!(of(query).0.is_all(), "{query}");
        }
    }

    #[test]
    fn a_plain_path_is_known() {
        assert_eq!(members("$.a['b c'].d"), Some(vec!["a".into(), "b c".into(), "d".into()]));
        for query in ["$", "$.*", "$.a[0]", "$..a", "$[?@.a]", "@.a", "$['a','b']"] {
            assert_eq!(members(query), None, "{query}");
        }
    }

    #[test]
    fn what_must_hold_is_known() {
        let conditions = |query: &str| of(query).1.len();
        assert_eq!(conditions("$[?$.type == 'result' && @ == $.subtype]"), 1);
        assert_eq!(conditions("$.a[?'x' == $.b.c && $.d == 'y']"), 2);
        for query in
            ["$[?$.a == 'x' || $.b == 'y']", "$[?$.a != 'x']", "$[?@.a == 'x']", "$[?$.a == 1]", "$[?$.a[0] == 'x']"]
        {
            assert_eq!(conditions(query), 0, "{query}");
        }
    }

    #[test]
    fn what_is_no_json_is_none() {
        let needs = of("$.a").0.settled();
        for line in ["", "a", "{\"a\":1", "{\"a\":1}x", "{\"a\":1,}", "{\"b\":[1,}", "{\"b\":tru}"] {
            assert_eq!(needs.read(line.as_bytes()), None, "{line}");
        }
        assert_eq!(needs.read(b"{\"b\":\"\xff\"}"), None);
        assert_eq!(needs.read(b" {\"a\":1,\"a\":[2]} "), Some(json!({"a": [2]})), "the last one counts");
        assert_eq!(needs.read(b"7"), Some(Value::Null));
    }

    proptest! {
        /// Several queries share what was read: each finds what it finds in the whole line.
        #[test]
        fn a_query_finds_the_same_in_what_it_needs(
            document in documents(),
            several in prop::collection::vec(queries(), 1..4),
        ) {
            let mut needs = Needs::default();
            for query in &several {
                needs.add(of(query).0);
            }
            let kept = needs.settled().read(document.to_string().as_bytes()).unwrap();
            for query in &several {
                let path = JsonPath::parse(query).unwrap();
                prop_assert_eq!(path.query(&kept).all(), path.query(&document).all(), "{} of {}", query, document);
                if let Some(members) = members(query) {
                    let node = members.iter().try_fold(&document, |value, name| value.as_object()?.get(name));
                    prop_assert_eq!(path.query(&document).first(), node, "{} of {}", query, document);
                }
                let holds = of(query).1.iter().all(|condition| condition.holds(&kept));
                prop_assert!(holds || path.query(&document).is_empty(), "{} of {}", query, document);
            }
        }
    }
}
