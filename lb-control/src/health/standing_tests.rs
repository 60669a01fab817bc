use HealthState::{Down, Overloaded, Unknown, Up};
use Verdict as V;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

const RULES: Rules = Rules {
    rise: 2,
    fall: 3,
    overloaded_limit: Duration::from_secs(60),
    hold_down: Duration::from_secs(2),
    hold_down_limit: Duration::from_secs(300),
};

/// A check whose clock is ours: a result each second.
struct Check {
    standing: Standing,
    now: Instant,
}

impl Check {
    fn in_state(state: HealthState) -> Self {
        Self {
            standing: Standing::restored(state),
            now: Instant::now(),
        }
    }

    fn see(&mut self, verdicts: &[Verdict]) -> HealthState {
        for verdict in verdicts {
            self.now += SECOND;
            self.standing = self.standing.after(*verdict, &RULES, self.now);
        }
        self.standing.state
    }
}

/// The state after some verdicts, one a second.
fn after(state: HealthState, verdicts: &[Verdict]) -> HealthState {
    Check::in_state(state).see(verdicts)
}

#[test]
fn every_state_and_verdict_leads_to_the_state_the_table_says() {
    // By state and verdict: how many of them in a row lead out, and to where.
    // `None`: they never do, within a minute.
    type Row = (Verdict, Option<(usize, HealthState)>);
    let table: [(HealthState, [Row; 8]); 4] = [
        (
            Unknown,
            [
                (V::Pass, Some((1, Up))),
                (V::Slow, Some((1, Overloaded))),
                (V::Overloaded, Some((1, Overloaded))),
                (V::Drain, Some((1, Overloaded))),
                (V::Timeout, Some((1, Down))),
                (V::Refused, Some((1, Down))),
                (V::WrongAnswer, Some((1, Down))),
                (V::NotMade, None),
            ],
        ),
        (
            Up,
            [
                (V::Pass, None),
                (V::Slow, Some((3, Overloaded))),
                (V::Overloaded, Some((3, Overloaded))),
                (V::Drain, Some((1, Overloaded))),
                (V::Timeout, Some((3, Overloaded))),
                (V::Refused, Some((3, Down))),
                (V::WrongAnswer, Some((3, Down))),
                (V::NotMade, None),
            ],
        ),
        (
            Overloaded,
            [
                (V::Pass, Some((2, Up))),
                (V::Slow, None),
                (V::Overloaded, None),
                (V::Drain, None),
                // The first at second 1, the limit of 60 s later.
                (V::Timeout, Some((61, Down))),
                (V::Refused, Some((3, Down))),
                (V::WrongAnswer, Some((3, Down))),
                (V::NotMade, None),
            ],
        ),
        (
            Down,
            [
                (V::Pass, Some((2, Up))),
                (V::Slow, Some((2, Overloaded))),
                (V::Overloaded, Some((2, Overloaded))),
                (V::Drain, Some((2, Overloaded))),
                (V::Timeout, None),
                (V::Refused, None),
                (V::WrongAnswer, None),
                (V::NotMade, None),
            ],
        ),
    ];
    for (state, row) in table {
        let mut verdicts: Vec<_> = row.iter().map(|(verdict, _)| verdict.name()).collect();
        verdicts.sort_unstable();
        verdicts.dedup();
        assert_eq!(verdicts.len(), V::ALL.len(), "{state:?} has a row for each");
        for (verdict, expected) in row {
            let mut check = Check::in_state(state);
            let left = (1..=70)
                .map(|n| (n, check.see(&[verdict])))
                .find(|(_, now)| *now != state);
            assert_eq!(left, expected, "{state:?} and {verdict:?} again and again");
        }
    }
}

#[test]
fn a_probe_that_could_not_be_made_leaves_every_state_and_its_counts_alone() {
    for state in [Unknown, Up, Overloaded, Down] {
        for before in V::ALL {
            let mut check = Check::in_state(state);
            check.see(&[before]);
            let standing = check.standing;
            check.see(&[V::NotMade]);
            assert_eq!(check.standing, standing, "{state:?}, {before:?}");
        }
    }
}

#[test]
fn a_pass_between_failures_begins_the_count_anew() {
    use V::{Pass, Refused, Timeout};
    assert_eq!(after(Up, &[Refused, Refused, Pass, Refused, Refused]), Up);
    assert_eq!(after(Up, &[Timeout, Timeout, Pass, Timeout, Timeout]), Up);
    assert_eq!(after(Down, &[Pass, Refused, Pass]), Down);
    assert_eq!(after(Overloaded, &[Pass, V::Slow, Pass]), Overloaded);
}

#[test]
fn a_killed_server_is_out_after_fall_results_whether_it_refuses_or_is_silent() {
    for verdicts in [
        [V::Refused, V::Refused, V::Refused],
        [V::Timeout, V::Timeout, V::Timeout],
        [V::Timeout, V::Refused, V::Timeout],
        [V::Slow, V::Timeout, V::Refused],
    ] {
        let mut check = Check::in_state(Up);
        assert_eq!(check.see(&verdicts[..2]), Up, "{verdicts:?}");
        assert_ne!(check.see(&verdicts[2..]), Up, "{verdicts:?}");
    }
}

#[test]
fn a_gone_host_that_is_silent_and_unreachable_by_turns_is_down_after_fall_refusals() {
    use V::{Refused, Timeout};
    let mut check = Check::in_state(Up);
    assert_eq!(check.see(&[Timeout, Refused, Timeout]), Overloaded);
    assert_eq!(check.see(&[Refused, Timeout]), Overloaded);
    assert_eq!(check.see(&[Refused]), Down);
}

#[test]
fn any_answer_of_an_overloaded_server_shows_that_it_lives() {
    let mut check = Check::in_state(Overloaded);
    for _ in 0..10 {
        check.see(&[V::Timeout; 50]);
        assert_eq!(check.see(&[V::Slow]), Overloaded);
    }
    assert_eq!(check.see(&[V::Timeout; 61]), Down);
}

#[test]
fn a_flapping_check_waits_twice_as_long_each_time_up_to_the_limit() {
    let mut check = Check::in_state(Up);
    let mut waits = Vec::new();
    for _ in 0..11 {
        check.see(&[V::Refused; 3]);
        let left = check.now;
        while check.standing.state != Up {
            check.see(&[V::Pass]);
        }
        waits.push((check.now - left).as_secs());
    }
    // `rise` passes; then 2 s doubled.
    assert_eq!(waits, [2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
}

#[test]
fn a_check_that_stayed_up_for_the_limit_is_forgiven() {
    let mut check = Check::in_state(Up);
    for _ in 0..4 {
        check.see(&[V::Refused; 3]);
        while check.standing.state != Up {
            check.see(&[V::Pass]);
        }
    }
    check.see(&[V::Pass; 301]);
    assert_eq!(check.see(&[V::Refused; 3]), Down);
    assert_eq!(check.see(&[V::Pass; 2]), Up);
}

#[test]
fn a_limit_of_one_or_a_lowered_one_decides_at_once() {
    let now = Instant::now();
    let strict = Rules {
        rise: 1,
        fall: 1,
        ..RULES
    };
    let up = Standing::restored(Up);
    assert_eq!(up.after(V::Refused, &strict, now).state, Down);
    assert_eq!(up.after(V::Timeout, &strict, now).state, Overloaded);
    let shaken = up
        .after(V::Refused, &RULES, now)
        .after(V::Refused, &RULES, now);
    assert_eq!(shaken.after(V::Refused, &strict, now).state, Down);
}

#[test]
fn only_a_count_on_its_way_to_another_state_is_a_change() {
    let changing = |state, verdicts: &[Verdict]| {
        let mut check = Check::in_state(state);
        check.see(verdicts);
        check.standing.is_changing(&RULES)
    };
    assert!(!changing(Up, &[V::Pass]));
    assert!(changing(Up, &[V::Timeout]));
    assert!(!changing(Up, &[V::Timeout; 3]), "overloaded, and stays");
    assert!(changing(Overloaded, &[V::Pass]));
    assert!(changing(Down, &[V::Pass]));
    assert!(!changing(Down, &[V::Refused; 2]));
}
