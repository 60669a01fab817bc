//! What people see.

use std::{io::IsTerminal as _, sync::OnceLock};

use super::report::{Report, SceneReport, Share};

const BAR: usize = 40;

fn colour() -> bool {
    static COLOUR: OnceLock<bool> = OnceLock::new();
    *COLOUR
        .get_or_init(|| std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none())
}

fn paint(code: &str, text: &str) -> String {
    if colour() {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// The start of a scene.
pub fn title(text: &str) {
    println!("\n{}", paint("1;36", &format!("=== {text} ===")));
}

/// The start of an act.
pub fn headline(text: &str) {
    println!("\n{}", paint("1", &format!("-- {text}")));
}

/// One fact.
pub fn fact(text: &str) {
    println!("   {text}");
}

/// A fact that was checked: green, or red.
pub fn checked(holds: bool, text: &str) {
    let mark = if holds {
        paint("32", "ok")
    } else {
        paint("1;31", "NO")
    };
    println!("   {mark} {text}");
}

/// Something that should hold and doesn't.
pub fn problem(text: &str) {
    println!("   {} {text}", paint("1;31", "PROBLEM:"));
}

/// Text as it is, indented.
pub fn block(text: &str) {
    for line in text.trim_end().lines() {
        println!("   {}", paint("2", line));
    }
}

/// A command and its output.
pub fn command(line: &str, output: &str) {
    println!("   $ {line}");
    block(output);
}

/// Measured and configured share of a backend.
pub fn share(name: &str, requests: u64, share: Share) {
    let width = (share.measured * BAR as f64).round();
    let filled = (0..BAR).take_while(|i| (*i as f64) < width).count();
    println!(
        "   {name:<10} {:5.1} %  (configured {:4.1} %)  {}{}  {requests} connections",
        share.measured * 100.0,
        share.configured * 100.0,
        paint("36", &"#".repeat(filled)),
        ".".repeat(BAR - filled),
    );
}

/// The end.
pub fn summary(report: &Report) {
    println!("\n{}", paint("1;36", "=== in short ==="));
    println!("   {:<44} {:>8} {:>8}", "", "dsr", "nat");
    let row = |what: &str, value: fn(&SceneReport) -> u64| {
        println!(
            "   {what:<44} {:>8} {:>8}",
            value(&report.dsr),
            value(&report.nat)
        );
    };
    row("HTTP requests", |s| s.requests);
    row("  failed", |s| s.failed);
    row("  refused between the kill and its noticing", |s| {
        s.failed_until_noticed
    });
    row("connections held open", |s| s.held);
    row("  lost by draining a backend", |s| s.lost_on_drain);
    row("  lost by killing one: its own", |s| s.lost_on_kill_of_own);
    row("  lost by killing one: of the others", |s| {
        s.lost_on_kill_of_others
    });
    row("  lost by its coming back", |s| s.lost_on_recovery);
    row("replies seen at the balancer", |s| s.replies_at_balancer);
    row("differences between client's and servers' logs", |s| {
        s.log_differences
    });
    println!(
        "   {:<44} {:>7.2}s {:>7.2}s",
        "time until the killed backend was out",
        report.dsr.seconds_until_out,
        report.nat.seconds_until_out
    );
    for problem in report.dsr.problems.iter().chain(&report.nat.problems) {
        println!("   {} {problem}", paint("1;31", "PROBLEM:"));
    }
    let verdict = if report.ok {
        paint("1;32", "Everything that should hold held.")
    } else {
        paint("1;31", "Not everything that should hold held.")
    };
    println!("\n   {verdict} ({:.0} s)", report.seconds);
}
