//! Words that have no place in the tree: notes of unfinished work, and paths
//! of one person's machine.

use super::Finding;

/// Notes of unfinished work belong into an issue. Split, so that this file does
/// not hold them itself.
const NOTES: [&str; 3] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
];

/// Beginnings of paths that exist on one machine alone.
const MACHINE_PATHS: [&str; 3] = [
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
    concat!("/Us", "ers/"),
];

/// A comment with a reason, on the same line, lifts the rule.
const EXCUSE: &str = "tidy: allowed because ";

/// Lines with a note of unfinished work or a machine's path.
pub fn check(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.contains(EXCUSE))
    {
        for word in NOTES.iter().filter(|word| has_word(line, word)) {
            findings.push(Finding::new(
                path,
                number + 1,
                format!("`{word}`: finish it, or open an issue"),
            ));
        }
        for start in MACHINE_PATHS.iter().filter(|start| line.contains(**start)) {
            findings.push(Finding::new(
                path,
                number + 1,
                format!("`{start}..` is a path of one machine"),
            ));
        }
    }
    findings
}

fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let (before, after) = (&line[..at], &line[at + word.len()..]);
        !before.ends_with(is_part) && !after.starts_with(is_part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_of_unfinished_work_is_a_finding_with_its_line() {
        let found = check("a.rs", &format!("fn f() {{}}\n// {}: later", NOTES[0]));
        assert_eq!(
            found.iter().map(|finding| finding.line).collect::<Vec<_>>(),
            [2]
        );
    }

    #[test]
    fn a_word_that_only_contains_it_is_fine() {
        assert!(check("a.sh", &format!("mktemp -d lb.{0}{0}", NOTES[2])).is_empty());
    }

    #[test]
    fn a_path_of_one_machine_is_a_finding() {
        assert_eq!(
            check("a.md", &format!("cd {}me/src", MACHINE_PATHS[1])).len(),
            1
        );
    }

    #[test]
    fn a_reason_on_the_line_lifts_the_rule() {
        assert!(
            check(
                "a.rs",
                &format!("// {} tidy: allowed because it is quoted", NOTES[0])
            )
            .is_empty()
        );
    }
}
