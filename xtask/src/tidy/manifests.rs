//! Every crate inherits the workspace's lints.

use super::Finding;

/// `[lints] workspace = true` in every crate's manifest.
pub fn check(path: &str, text: &str) -> Vec<Finding> {
    let mut section = "";
    let mut is_crate = false;
    let mut inherits = false;
    for line in text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
    {
        if line.starts_with('[') {
            section = line;
            is_crate |= section == "[package]";
        }
        let line: String = line.split_whitespace().collect();
        inherits |= match section {
            "[lints]" => line == "workspace=true",
            "" => line == "lints.workspace=true",
            _ => false,
        };
    }
    if is_crate && !inherits {
        return vec![Finding::new(
            path,
            0,
            "the workspace's lints are not inherited: add `[lints] workspace = true`",
        )];
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_that_inherits_the_lints_is_fine() {
        assert!(
            check(
                "a/Cargo.toml",
                "[package]\nname = \"a\"\n\n[lints]\nworkspace = true\n"
            )
            .is_empty()
        );
    }

    #[test]
    fn a_crate_that_does_not_is_a_finding() {
        assert_eq!(
            check(
                "a/Cargo.toml",
                "[package]\nname = \"a\"\nversion.workspace = true\n"
            )
            .len(),
            1
        );
        assert_eq!(
            check(
                "a/Cargo.toml",
                "[package]\n[lints]\n# workspace = true\n[features]\n"
            )
            .len(),
            1
        );
        assert_eq!(
            check(
                "a/Cargo.toml",
                "[package]\n[lints]\n[dependencies.x]\nworkspace = true\n"
            )
            .len(),
            1
        );
    }

    #[test]
    fn a_workspace_without_a_package_has_no_lints_to_inherit() {
        assert!(check("Cargo.toml", "[workspace]\nmembers = []\n").is_empty());
    }
}
