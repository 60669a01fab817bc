//! Files stay small enough to be read at once.

use super::{Finding, source::Source};

/// Lines of a file beside what is only compiled for tests.
const LIMIT: usize = 500;

/// A comment with a reason, on one of the first lines, lifts the limit.
const EXCUSE: &str = "// tidy: long because ";

/// How many lines from the top the excuse may stand.
const HEAD: usize = 20;

/// Files longer than [`LIMIT`], unless they say why.
pub fn check(path: &str, text: &str, source: &Source) -> Vec<Finding> {
    let lines = text.lines().count().saturating_sub(source.test_lines);
    let excused = text.lines().take(HEAD).any(|line| {
        line.strip_prefix(EXCUSE)
            .is_some_and(|reason| !reason.trim().is_empty())
    });
    if lines <= LIMIT || excused {
        return Vec::new();
    }
    let text = format!(
        "{lines} lines without tests, {LIMIT} are the limit: split it, or say `{EXCUSE}..` at its top"
    );
    vec![Finding::new(path, 0, text)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_too_long(path: &str, text: &str) -> bool {
        !check(path, text, &Source::parse(text).unwrap()).is_empty()
    }

    fn lines(count: usize) -> String {
        "fn f() {}\n".repeat(count)
    }

    #[test]
    fn five_hundred_lines_are_fine_and_one_more_is_not() {
        assert!(!is_too_long("a/src/b.rs", &lines(500)));
        assert!(is_too_long("a/src/b.rs", &lines(501)));
    }

    #[test]
    fn tests_do_not_count() {
        let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", lines(300));
        assert!(!is_too_long(
            "a/src/b.rs",
            &format!("{}{tests}", lines(400))
        ));
    }

    #[test]
    fn a_reason_at_the_top_lifts_the_limit_and_an_empty_one_does_not() {
        assert!(!is_too_long(
            "a/src/b.rs",
            &format!("//! B.\n{EXCUSE}it is one table\n{}", lines(501))
        ));
        assert!(is_too_long(
            "a/src/b.rs",
            &format!("{EXCUSE} \n{}", lines(501))
        ));
        assert!(is_too_long(
            "a/src/b.rs",
            &format!("{}{EXCUSE}it is one table\n", lines(501))
        ));
    }
}
