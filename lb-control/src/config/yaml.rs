//! The only file that knows the YAML library.
//!
//! The library gives positions for its own errors alone. So a tree without
//! positions is read first, and the place of a field that turns out to be
//! wrong is found by reading the text again with a visitor that fails at that
//! field: the library then says where it was.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_yaml::Value;

use super::reader::{Path, Segment};

/// A YAML value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    /// In the file's order; keys are unique.
    Map(Vec<(String, Node)>),
    /// Something YAML has and a configuration hasn't: a tag, a key that is a
    /// list. Holds a description.
    Other(&'static str),
}

/// The text isn't YAML, or not one document of it.
pub(super) struct SyntaxError {
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) message: String,
}

/// Reads one document.
pub(super) fn parse(text: &str) -> Result<Node, SyntaxError> {
    match serde_yaml::from_str::<Value>(text) {
        Ok(value) => Ok(node(value)),
        Err(error) => {
            let (line, column) = location(&error);
            Err(SyntaxError {
                line,
                column,
                message: message_without_location(&error),
            })
        }
    }
}

/// Line and column of a field, from 1, or of its key; where the field doesn't
/// exist, of the innermost thing around it that does.
pub(super) fn position(text: &str, path: &Path, at_key: bool) -> (usize, usize) {
    let mut segments = path.segments();
    loop {
        let seed = Seek {
            rest: segments,
            at_key,
        };
        if let Err(error) = seed.deserialize(serde_yaml::Deserializer::from_str(text))
            && error.to_string().contains(FOUND)
        {
            return location(&error);
        }
        match segments.split_last() {
            Some((_, shorter)) => segments = shorter,
            None => return (1, 1),
        }
    }
}

fn location(error: &serde_yaml::Error) -> (usize, usize) {
    error
        .location()
        .map_or((1, 1), |place| (place.line(), place.column()))
}

/// The library ends its messages with the place, which is printed in front.
fn message_without_location(error: &serde_yaml::Error) -> String {
    let message = error.to_string();
    let place = error
        .location()
        .map(|p| format!(" at line {} column {}", p.line(), p.column()));
    let bare = place.and_then(|place| message.strip_suffix(&place).map(str::to_owned));
    format!("not valid YAML: {}", bare.unwrap_or(message))
}

fn node(value: Value) -> Node {
    match value {
        Value::Null => Node::Null,
        Value::Bool(b) => Node::Bool(b),
        Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => Node::Integer(i.into()),
            (_, Some(u)) => Node::Integer(u.into()),
            _ => Node::Float(n.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(s) => Node::Text(s),
        Value::Sequence(items) => Node::List(items.into_iter().map(node).collect()),
        Value::Mapping(entries) => {
            let mut map = Vec::with_capacity(entries.len());
            for (key, value) in entries {
                let key = match key {
                    Value::String(s) => s,
                    Value::Number(n) => n.to_string(),
                    Value::Bool(b) => b.to_string(),
                    _ => return Node::Other("a mapping with a key that is not text"),
                };
                map.push((key, node(value)));
            }
            Node::Map(map)
        }
        Value::Tagged(_) => Node::Other("a value with a tag"),
    }
}

/// The message of the error that stands for "here it is".
const FOUND: &str = "\u{1}found\u{1}";

/// Follows a path and fails where it ends.
#[derive(Clone, Copy)]
struct Seek<'a> {
    rest: &'a [Segment],
    at_key: bool,
}

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Seek<'_> {
    fn scalar<E: de::Error>(self) -> Result<(), E> {
        if self.rest.is_empty() {
            Err(E::custom(FOUND))
        } else {
            Ok(())
        }
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<(), E> {
        self.scalar()
    }
    fn visit_i64<E: de::Error>(self, _: i64) -> Result<(), E> {
        self.scalar()
    }
    fn visit_u64<E: de::Error>(self, _: u64) -> Result<(), E> {
        self.scalar()
    }
    fn visit_f64<E: de::Error>(self, _: f64) -> Result<(), E> {
        self.scalar()
    }
    fn visit_str<E: de::Error>(self, _: &str) -> Result<(), E> {
        self.scalar()
    }
    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        self.scalar()
    }
    fn visit_none<E: de::Error>(self) -> Result<(), E> {
        self.scalar()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Some((first, rest)) = self.rest.split_first() else {
            return Err(de::Error::custom(FOUND));
        };
        let mut index = 0;
        loop {
            let more = match first {
                Segment::Index(wanted) if *wanted == index => {
                    items.next_element_seed(Seek { rest, ..self })?.is_some()
                }
                _ => items.next_element::<IgnoredAny>()?.is_some(),
            };
            if !more {
                return Ok(());
            }
            index += 1;
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let Some((first, rest)) = self.rest.split_first() else {
            return Err(de::Error::custom(FOUND));
        };
        let Segment::Key(wanted) = first else {
            while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(());
        };
        let fail = self.at_key && rest.is_empty();
        while let Some(is_it) = entries.next_key_seed(SeekKey { wanted, fail })? {
            if is_it {
                entries.next_value_seed(Seek { rest, ..self })?;
            } else {
                entries.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// Says whether a key is the wanted one, or fails there.
struct SeekKey<'a> {
    wanted: &'a str,
    fail: bool,
}

impl SeekKey<'_> {
    fn compare<E: de::Error>(self, key: &str) -> Result<bool, E> {
        match key == self.wanted {
            true if self.fail => Err(E::custom(FOUND)),
            is_it => Ok(is_it),
        }
    }
}

impl<'de> DeserializeSeed<'de> for SeekKey<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for SeekKey<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }
    fn visit_str<E: de::Error>(self, key: &str) -> Result<bool, E> {
        self.compare(key)
    }
    fn visit_u64<E: de::Error>(self, key: u64) -> Result<bool, E> {
        self.compare(&key.to_string())
    }
    fn visit_i64<E: de::Error>(self, key: i64) -> Result<bool, E> {
        self.compare(&key.to_string())
    }
    fn visit_f64<E: de::Error>(self, key: f64) -> Result<bool, E> {
        self.compare(&key.to_string())
    }
    fn visit_bool<E: de::Error>(self, key: bool) -> Result<bool, E> {
        self.compare(&key.to_string())
    }
    fn visit_unit<E: de::Error>(self) -> Result<bool, E> {
        Ok(false)
    }
}
