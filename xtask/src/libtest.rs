//! Reads what Rust's test harness prints, and counts.

use std::ops::AddAssign;

/// Results of any number of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed, and binaries that did not come to an end.
    pub failed: u64,
    /// Tests that were marked to be left out.
    pub skipped: u64,
}

impl Counts {
    /// A failure that no test reported.
    pub const ONE_FAILURE: Self = Self {
        passed: 0,
        failed: 1,
        skipped: 0,
    };

    fn all(self) -> u64 {
        self.passed + self.failed + self.skipped
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Counts from the lines of one run, which may hold several harnesses one after
/// the other, as doctests do.
///
/// A harness announces its number of tests and sums up at its end. A sum counts
/// only if it fits the announcement: a failed test's output, which is printed
/// in between, may hold lines of the same shape.
#[derive(Debug, Default)]
pub struct Reader {
    counts: Counts,
    announced: Option<u64>,
}

impl Reader {
    /// Takes one line, without its end.
    pub fn line(&mut self, line: &str) {
        if let Some(tests) = parse_announcement(line) {
            // What was announced before and never summed up has crashed; but
            // within the output of a failed test it is just text.
            if self.announced.is_none() {
                self.announced = Some(tests);
            }
        } else if let Some((counts, others)) = parse_sum(line)
            && self.announced == Some(counts.all() + others)
        {
            self.counts += counts;
            self.announced = None;
        }
    }

    /// The counts of the whole run. `success` is whether the process ended
    /// well; if it did not and no test is known to have failed, or a harness
    /// never summed up, that is one failure more.
    pub fn finish(mut self, success: bool) -> Counts {
        if self.announced.is_some() || (!success && self.counts.failed == 0) {
            self.counts += Counts::ONE_FAILURE;
        }
        self.counts
    }
}

/// `running 3 tests`
fn parse_announcement(line: &str) -> Option<u64> {
    let (number, unit) = line.strip_prefix("running ")?.split_once(' ')?;
    matches!(unit, "test" | "tests").then(|| number.parse().ok())?
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s`:
/// the counts, and how many were run beside them (benchmarks).
fn parse_sum(line: &str) -> Option<(Counts, u64)> {
    let line = line.strip_prefix("test result: ")?;
    let line = line
        .strip_prefix("ok. ")
        .or_else(|| line.strip_prefix("FAILED. "))?;
    let number = |unit: &str| {
        line.split("; ")
            .find_map(|part| part.split_once(' ').filter(|(_, found)| *found == unit))?
            .0
            .parse()
            .ok()
    };
    let counts = Counts {
        passed: number("passed")?,
        failed: number("failed")?,
        skipped: number("ignored")?,
    };
    Some((counts, number("measured")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(output: &str, success: bool) -> Counts {
        let mut reader = Reader::default();
        output.lines().for_each(|line| reader.line(line));
        reader.finish(success)
    }

    const FOUR: &str = "\nrunning 4 tests\ntest a ... ok\n\n\
        test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s\n\n";

    #[test]
    fn ignored_tests_are_skipped_and_filtered_ones_do_not_exist() {
        assert_eq!(
            read(FOUR, true),
            Counts {
                passed: 3,
                failed: 0,
                skipped: 1
            }
        );
    }

    #[test]
    fn several_harnesses_are_added_up() {
        let one = "running 1 test\ntest result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        assert_eq!(
            read(&format!("{FOUR}{one}"), false),
            Counts {
                passed: 3,
                failed: 1,
                skipped: 1
            }
        );
    }

    #[test]
    fn a_harness_that_never_sums_up_is_a_failure() {
        assert_eq!(
            read("running 2 tests\ntest a ... ok\n", false),
            Counts::ONE_FAILURE
        );
        assert_eq!(
            read("running 2 tests\ntest a ... ok\n", true),
            Counts::ONE_FAILURE
        );
    }

    #[test]
    fn a_bad_exit_without_a_failed_test_is_a_failure() {
        assert_eq!(
            read(FOUR, false),
            Counts {
                passed: 3,
                failed: 1,
                skipped: 1
            }
        );
        assert_eq!(read("", false), Counts::ONE_FAILURE);
    }

    #[test]
    fn a_sum_within_the_output_of_a_failed_test_does_not_count() {
        let output = "running 1 test\n---- a stdout ----\nrunning 9 tests\n\
            test result: ok. 9 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
            test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        assert_eq!(read(output, false), Counts::ONE_FAILURE);
    }

    #[test]
    fn lines_of_other_shapes_are_no_sums() {
        for line in [
            "test result: ok.",
            "test result: ok. x passed; 0 failed; 0 ignored",
            "result: ok. 3 passed",
            "",
        ] {
            assert_eq!(parse_sum(line), None, "{line}");
        }
    }
}
