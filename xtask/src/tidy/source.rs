//! A Rust file as its tokens: no comments, no inside of literals, and nothing
//! that is only compiled for tests.

use std::str::FromStr as _;

use anyhow::{Result, anyhow};
use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// A path such as `crate::model::Pool`, resolved out of groups: `use
/// a::{b, c::d}` are the paths `a::b` and `a::c::d`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// Line of its last segment, counted from 1.
    pub line: usize,
    /// At least one.
    pub segments: Vec<String>,
}

/// What the rules need to know of a file.
#[derive(Debug, Default)]
pub struct Source {
    /// Every path, also within macros, in no particular order.
    pub paths: Vec<Path>,
    /// Lines of items that are only compiled for tests.
    pub test_lines: usize,
}

impl Source {
    /// Splits `text` into tokens. Fails when it is no Rust.
    pub fn parse(text: &str) -> Result<Self> {
        // A shebang line is no token.
        let text = if text.starts_with("#!/") {
            text.split_once('\n').map_or("", |(_, rest)| rest)
        } else {
            text
        };
        let tokens = TokenStream::from_str(text)
            .map_err(|error| anyhow!("line {}: {error}", error.span().start().line))?;
        let mut source = Self::default();
        source.read(tokens, &[]);
        Ok(source)
    }

    /// Reads the tokens of one group, whose paths continue `prefix`.
    fn read(&mut self, tokens: TokenStream, prefix: &[String]) {
        let tokens: Vec<_> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            if is_test_attribute(&tokens[at..]) {
                let end = end_of_item(&tokens, at + 2);
                let last = &tokens[end.min(tokens.len()) - 1];
                self.test_lines += last.span().end().line + 1 - tokens[at].span().start().line;
                at = end;
                continue;
            }
            match &tokens[at] {
                TokenTree::Ident(_) => at = self.read_path(&tokens, at, prefix),
                TokenTree::Group(group) => {
                    self.read(group.stream(), &[]);
                    at += 1;
                }
                _ => at += 1,
            }
        }
    }

    /// Reads the path that starts with the identifier at `at`; the position
    /// after it.
    fn read_path(&mut self, tokens: &[TokenTree], mut at: usize, prefix: &[String]) -> usize {
        let mut segments = prefix.to_vec();
        let mut line = 0;
        while let Some(TokenTree::Ident(ident)) = tokens.get(at) {
            segments.push(ident.to_string());
            line = ident.span().start().line;
            at += 1;
            if !is_punct(tokens.get(at), ':') || !is_punct(tokens.get(at + 1), ':') {
                break;
            }
            at += 2;
            if let Some(TokenTree::Group(group)) = tokens.get(at)
                && group.delimiter() == Delimiter::Brace
            {
                self.read_group(group, &segments);
                return at + 1;
            }
        }
        self.paths.push(Path { line, segments });
        at
    }

    /// The branches of `prefix::{..}`.
    fn read_group(&mut self, group: &Group, prefix: &[String]) {
        let mut branch = TokenStream::new();
        for token in group.stream() {
            if is_punct(Some(&token), ',') {
                self.read(std::mem::take(&mut branch), prefix);
            } else {
                branch.extend([token]);
            }
        }
        self.read(branch, prefix);
    }
}

fn is_punct(token: Option<&TokenTree>, character: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == character)
}

/// `#[cfg(test)]`, `#[test]`, and `#[tokio::test]` alike.
fn is_test_attribute(tokens: &[TokenTree]) -> bool {
    let [first, TokenTree::Group(group), ..] = tokens else {
        return false;
    };
    if !is_punct(Some(first), '#') || group.delimiter() != Delimiter::Bracket {
        return false;
    }
    let text: String = group
        .stream()
        .into_iter()
        .map(|token| token.to_string())
        .collect();
    matches!(text.as_str(), "cfg(test)" | "test") || text.ends_with("::test")
}

/// Position after the item that starts at `at`: after its block or semicolon.
fn end_of_item(tokens: &[TokenTree], mut at: usize) -> usize {
    while let Some(token) = tokens.get(at) {
        at += 1;
        let ends = match token {
            TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
            // `use a::{b};` goes on after its braces, but only to the semicolon.
            other => is_punct(Some(other), ';'),
        };
        if ends {
            return if is_punct(tokens.get(at), ';') {
                at + 1
            } else {
                at
            };
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(text: &str) -> Vec<String> {
        Source::parse(text)
            .unwrap()
            .paths
            .iter()
            .map(|path| path.segments.join("::"))
            .collect()
    }

    #[test]
    fn nested_groups_are_resolved() {
        assert_eq!(
            paths("use a::{b, c::{d, e as f}};")[1..4],
            ["a::b", "a::c::d", "a::c::e"]
        );
    }

    #[test]
    fn a_group_after_several_segments_keeps_them() {
        assert!(paths("use crate::x::{self, y};").contains(&"crate::x::y".to_owned()));
    }

    #[test]
    fn paths_in_expressions_and_macros_are_found() {
        let found = paths("fn f() { let x = a::b(); println!(\"{}\", c::d::<E>(0)); }");
        assert!(
            found.contains(&"a::b".to_owned()) && found.contains(&"c::d".to_owned()),
            "{found:?}"
        );
    }

    #[test]
    fn comments_and_literals_hold_no_paths() {
        // A doc comment is an attribute called `doc` with a literal.
        let found = paths("// a::b\n/* c::d */ /// e::f\nconst X: &str = \"g::h\";");
        assert_eq!(found, ["doc", "const", "X", "str"]);
    }

    #[test]
    fn what_is_only_compiled_for_tests_is_left_out_and_counted() {
        let source =
            Source::parse("fn f() {}\n#[cfg(test)]\nmod tests {\n    use a::b;\n}\nuse c::d;\n")
                .unwrap();
        assert_eq!(source.test_lines, 4);
        let found: Vec<_> = source
            .paths
            .iter()
            .map(|path| path.segments.join("::"))
            .collect();
        assert!(
            !found.contains(&"a::b".to_owned()) && found.contains(&"c::d".to_owned()),
            "{found:?}"
        );
    }

    #[test]
    fn lines_are_counted_from_one() {
        let source = Source::parse("\nuse a::b;").unwrap();
        assert_eq!(source.paths.last().unwrap().line, 2);
    }
}
