//! Reading a tree without giving up at the first error.

use std::{cell::RefCell, fmt};

use super::yaml::Node;

/// One step from a value to one inside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    Key(String),
    Index(usize),
}

/// Where a value is in the document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Path(Vec<Segment>);

impl Path {
    pub(super) fn key(&self, key: &str) -> Self {
        self.with(Segment::Key(key.into()))
    }

    pub(super) fn index(&self, index: usize) -> Self {
        self.with(Segment::Index(index))
    }

    pub(super) fn segments(&self) -> &[Segment] {
        &self.0
    }

    fn with(&self, segment: Segment) -> Self {
        let mut segments = self.0.clone();
        segments.push(segment);
        Self(segments)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Index(index) => write!(f, "[{index}]")?,
                Segment::Key(key) if position == 0 => f.write_str(key)?,
                Segment::Key(key) => write!(f, ".{key}")?,
            }
        }
        Ok(())
    }
}

/// An error whose place in the text isn't known yet.
#[derive(Debug)]
pub(super) struct Located {
    pub(super) path: Path,
    /// The key is wrong, not its value.
    pub(super) at_key: bool,
    pub(super) message: String,
}

/// All errors so far.
#[derive(Debug, Default)]
pub(super) struct Errors(RefCell<Vec<Located>>);

impl Errors {
    pub(super) fn add(&self, path: Path, message: impl Into<String>) {
        self.0.borrow_mut().push(Located {
            path,
            at_key: false,
            message: message.into(),
        });
    }

    fn add_at_key(&self, path: Path, message: String) {
        self.0.borrow_mut().push(Located {
            path,
            at_key: true,
            message,
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    pub(super) fn into_inner(self) -> Vec<Located> {
        self.0.into_inner()
    }
}

/// A value together with its place.
#[derive(Clone)]
pub(super) struct At<'a> {
    pub(super) node: &'a Node,
    pub(super) path: Path,
    pub(super) errors: &'a Errors,
}

impl<'a> At<'a> {
    pub(super) fn error(&self, message: impl Into<String>) {
        self.errors.add(self.path.clone(), message);
    }

    /// What `read` makes of the value; its error says what is allowed.
    pub(super) fn read<T>(&self, read: impl FnOnce(&Node) -> Result<T, String>) -> Option<T> {
        read(self.node)
            .map_err(|allowed| self.error(format!("found {}; {allowed}", shown(self.node))))
            .ok()
    }

    /// The elements of a list.
    pub(super) fn items(&self) -> Vec<At<'a>> {
        let Node::List(items) = self.node else {
            self.error(format!("found {}; allowed: a list", shown(self.node)));
            return Vec::new();
        };
        items
            .iter()
            .enumerate()
            .map(|(index, node)| At {
                node,
                path: self.path.index(index),
                errors: self.errors,
            })
            .collect()
    }

    /// The entries of a mapping with free keys.
    pub(super) fn entries(&self) -> Vec<(&'a str, At<'a>)> {
        let Node::Map(entries) = self.node else {
            self.error(format!("found {}; allowed: a mapping", shown(self.node)));
            return Vec::new();
        };
        entries
            .iter()
            .map(|(key, node)| {
                (
                    key.as_str(),
                    At {
                        node,
                        path: self.path.key(key),
                        errors: self.errors,
                    },
                )
            })
            .collect()
    }

    /// The fields of a mapping. Keys that are neither `known` nor in `later`
    /// (known to the design, but not to this version) are reported.
    pub(super) fn fields(&self, known: &[&str], later: &[&str]) -> Option<Fields<'a>> {
        if !matches!(self.node, Node::Map(_)) {
            self.error(format!(
                "found {}; allowed: a mapping with the keys {}",
                shown(self.node),
                known.join(", ")
            ));
            return None;
        }
        let entries = self.entries();
        for (key, value) in &entries {
            if known.contains(key) {
                continue;
            }
            let message = if later.contains(key) {
                format!("`{key}` is not supported by this version yet; remove it")
            } else {
                match nearest(key, known) {
                    Some(near) => format!("unknown key `{key}`; did you mean `{near}`?"),
                    None => format!("unknown key `{key}`; allowed: {}", known.join(", ")),
                }
            };
            self.errors.add_at_key(value.path.clone(), message);
        }
        Some(Fields {
            at: self.clone(),
            entries,
        })
    }
}

/// The fields of a mapping.
pub(super) struct Fields<'a> {
    at: At<'a>,
    entries: Vec<(&'a str, At<'a>)>,
}

impl<'a> Fields<'a> {
    /// An error of the mapping as a whole.
    pub(super) fn error(&self, message: impl Into<String>) {
        self.at.error(message);
    }

    pub(super) fn get(&self, key: &str) -> Option<&At<'a>> {
        self.entries
            .iter()
            .find(|(name, _)| *name == key)
            .map(|(_, value)| value)
    }

    /// The field, whose absence is an error.
    pub(super) fn required(&self, key: &str) -> Option<&At<'a>> {
        let field = self.get(key);
        if field.is_none() {
            self.at.error(format!("`{key}` is missing"));
        }
        field
    }

    /// What `read` makes of the field, or `default` when it isn't there.
    pub(super) fn or<T>(
        &self,
        key: &str,
        default: T,
        read: impl FnOnce(&Node) -> Result<T, String>,
    ) -> T {
        self.get(key)
            .and_then(|at| at.read(read))
            .unwrap_or(default)
    }

    /// What `read` makes of the field, if it is there.
    pub(super) fn optional<T>(
        &self,
        key: &str,
        read: impl FnOnce(&Node) -> Result<T, String>,
    ) -> Option<T> {
        self.get(key).and_then(|at| at.read(read))
    }
}

/// The name that was probably meant.
pub(super) fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    // One slip, and one more for every four letters.
    let most = 1 + name.chars().count() / 4;
    known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(name, known), *known))
        .filter(|(slips, _)| *slips <= most)
        .min()
        .map(|(_, known)| known)
}

/// A value as it is quoted in messages.
pub(super) fn shown(node: &Node) -> String {
    match node {
        Node::Null => "nothing".into(),
        Node::Bool(b) => format!("`{b}`"),
        Node::Integer(i) => format!("`{i}`"),
        Node::Float(x) => format!("`{x}`"),
        Node::Text(text) => {
            let cut: String = text.chars().take(60).flat_map(char::escape_debug).collect();
            format!(
                "\"{cut}\"{}",
                if text.chars().nth(60).is_some() {
                    "…"
                } else {
                    ""
                }
            )
        }
        Node::List(_) => "a list".into(),
        Node::Map(_) => "a mapping".into(),
        Node::Other(what) => (*what).into(),
    }
}
