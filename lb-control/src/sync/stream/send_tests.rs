use super::*;

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn taken(taken: u64, ranges: &[(u16, u16)]) -> Acknowledgement {
    Acknowledgement {
        taken,
        ranges: ranges.to_vec(),
    }
}

/// `count` packets with one message each, which leaves no room for another.
fn filled(now: Instant, count: usize) -> Outgoing {
    let mut outgoing = Outgoing::default();
    for _ in 0..count {
        assert!(outgoing.push(now, &[7; 1100]));
    }
    outgoing
}

fn numbers(outgoing: &mut Outgoing, now: Instant) -> Vec<u64> {
    let mut numbers = Vec::new();
    while let Some(next) = outgoing.next(now) {
        numbers.push(next.number);
    }
    numbers
}

#[test]
fn short_messages_share_a_packet_until_it_is_sent() {
    let now = Instant::now();
    let mut outgoing = Outgoing::default();
    assert!(outgoing.push(now, b"ab") && outgoing.push(now, b""));
    let first = outgoing.next(now).unwrap();
    assert_eq!(
        (first.number, first.messages, first.again),
        (0, &b"\0\x02ab\0\0"[..], false)
    );
    assert!(outgoing.push(now, b"c"));
    assert_eq!(outgoing.next(now).unwrap().number, 1);
    outgoing.acknowledge(now, &taken(1, &[]));
    assert_eq!((outgoing.acknowledged(), outgoing.waiting()), (2, 1));
}

#[test]
fn the_ring_bounds_what_waits() {
    let now = Instant::now();
    let mut outgoing = filled(now, RING);
    assert!(!outgoing.push(now, &[7; 1100]));
    assert_eq!(outgoing.waiting(), RING as u64);
    let sent = numbers(&mut outgoing, now).len();
    assert_eq!(sent, 32, "the first window");
    outgoing.acknowledge(now, &taken(1, &[]));
    assert!(outgoing.push(now, &[7; 1100]));
    assert!(!outgoing.push(now, &[7; 1100]));
}

#[test]
fn three_later_ones_that_came_mean_a_loss() {
    let now = Instant::now();
    let mut outgoing = filled(now, 10);
    numbers(&mut outgoing, now);
    outgoing.acknowledge(now + ms(1), &taken(0, &[(1, 2)]));
    assert_eq!(
        numbers(&mut outgoing, now + ms(1)),
        [] as [u64; 0],
        "two may be reordering"
    );
    outgoing.acknowledge(now + ms(1), &taken(0, &[(1, 3)]));
    let again = outgoing.next(now + ms(1)).unwrap();
    assert_eq!((again.number, again.again), (0, true));
    assert_eq!(numbers(&mut outgoing, now + ms(1)), [] as [u64; 0], "once");
    outgoing.acknowledge(now + ms(2), &taken(10, &[]));
    assert_eq!((outgoing.acknowledged(), outgoing.deadline()), (10, None));
}

#[test]
fn without_an_answer_it_is_sent_again_later_and_later() {
    let mut now = Instant::now();
    let mut outgoing = filled(now, 1);
    numbers(&mut outgoing, now);
    outgoing.acknowledge(now + ms(2), &taken(1, &[]));
    assert!(outgoing.push(now, b"m"));
    numbers(&mut outgoing, now);
    let mut waits = Vec::new();
    for _ in 0..10 {
        let due = outgoing.deadline().unwrap();
        outgoing.handle_time_out(due - ms(1));
        assert_eq!(outgoing.next(now), None, "early");
        outgoing.handle_time_out(due);
        waits.push((due - now).as_millis());
        now = due;
        assert_eq!(numbers(&mut outgoing, now), [1]);
    }
    // 2 ms measured, so the least; up to a second.
    assert_eq!(waits, [10, 20, 40, 80, 160, 320, 640, 1000, 1000, 1000]);
    outgoing.acknowledge(now, &taken(2, &[]));
    assert!(outgoing.push(now, b"m"));
    numbers(&mut outgoing, now);
    assert_eq!(outgoing.deadline(), Some(now + ms(10)), "as soon as ever");
}

#[test]
fn the_window_is_halved_once_for_losses_of_one_round_trip() {
    let now = Instant::now();
    let mut outgoing = filled(now, 200);
    for turn in 1..=3 {
        numbers(&mut outgoing, now);
        outgoing.acknowledge(now, &taken(turn * 32, &[]));
    }
    assert_eq!(outgoing.window, 32.0 + 96.0);
    numbers(&mut outgoing, now);
    outgoing.acknowledge(now, &taken(96, &[(1, 1), (3, 1), (5, 6)]));
    let after = outgoing.window;
    assert_eq!(after, (128.0 + 8.0) / 2.0);
    numbers(&mut outgoing, now);
    outgoing.acknowledge(now, &taken(96, &[(1, 1), (3, 1), (5, 6), (12, 4)]));
    assert!(outgoing.window >= after, "{}", outgoing.window);
}

#[test]
fn an_acknowledgement_that_cannot_be_changes_nothing() {
    let now = Instant::now();
    let mut outgoing = filled(now, 3);
    outgoing.next(now);
    outgoing.acknowledge(now, &taken(2, &[]));
    outgoing.acknowledge(now, &taken(u64::MAX, &[(u16::MAX, u16::MAX)]));
    outgoing.acknowledge(now, &taken(0, &[(1, u16::MAX)]));
    assert_eq!((outgoing.acknowledged(), outgoing.waiting()), (0, 3));
    assert_eq!(numbers(&mut outgoing, now), [1, 2]);
}
