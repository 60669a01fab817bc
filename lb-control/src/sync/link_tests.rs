//! Who may speak, and what others achieve: nothing but counts.

use std::time::Duration;

use proptest::prelude::*;

use super::{
    Link,
    tests_net::{KEY, Network, Numbers, config},
};
use crate::sync::{
    counts::Reason,
    handshake::{self, Hello},
    settings::Key,
    wire::{self, Kind},
};

const SECOND: Duration = Duration::from_secs(1);

fn rejected(link: &Link) -> Vec<(String, u64)> {
    let all = link.rejected_by_name().into_iter();
    all.filter(|(_, count)| *count > 0).collect()
}

/// All of a kind that a side has sent.
fn sent(network: &Network, side: usize, kind: Kind) -> Vec<Vec<u8>> {
    let all = network
        .sent
        .iter()
        .filter(|(by, _, datagram)| *by == side && wire::decode(datagram).unwrap().kind == kind);
    all.map(|(_, _, datagram)| datagram.clone()).collect()
}

/// A hint may bring another session; nothing but that.
fn state(link: &Link) -> (bool, Option<u64>, u64) {
    (link.is_up(), link.epoch(), link.streams_made)
}

#[test]
fn in_fair_weather_it_is_up_within_two_round_trips_and_nothing_is_rejected() {
    let mut network = Network::new(1, 3);
    let start = network.now;
    network.run_until(|n| n.are_up());
    assert!(network.now - start <= Duration::from_millis(4));
    network.run(10 * SECOND);
    for side in 0..2 {
        assert_eq!(rejected(&network.links[side]), []);
        let link = &network.links[side];
        for path in link.paths() {
            assert!(path.is_alive(network.now, link.path_time_out()) && path.heard_by_peer());
            assert_eq!(path.round_trip(), Some(Duration::from_millis(2)));
        }
    }
    assert!(
        network
            .sent
            .iter()
            .all(|(_, _, datagram)| datagram.len() <= wire::MAX_DATAGRAM)
    );
}

#[test]
fn with_another_key_or_name_nothing_comes_up_and_it_is_counted() {
    for (is_key, reason) in [(true, "wrong_key"), (false, "wrong_node")] {
        let mut network = Network::new(2, 1);
        let mut other = config(1, 5, 1);
        if is_key {
            other.key = Key::new([8; 32]);
        } else {
            other.node = "lb3".into();
        }
        network.links[1] = Link::new(other, Box::new(Numbers(9)), network.now);
        network.run(10 * SECOND);
        for link in &network.links {
            assert!(!link.is_up());
        }
        let counts = network
            .links
            .each_ref()
            .map(|link| link.rejected_by_name()[reason]);
        // With the right key, who begins learns the wrong name from the answer.
        assert!(counts[usize::from(is_key)] >= 10, "{reason} {counts:?}");
    }
}

#[test]
fn a_session_that_is_up_outlives_everything_that_was_ever_sent() {
    let mut network = Network::up(3, 2);
    network.run(5 * SECOND);
    network.restart(0, 77);
    network.run(5 * SECOND);
    assert!(network.are_up());
    network.drain();
    let before = network.links.each_ref().map(state);
    let events = network.events.clone();
    let captured = network.sent.clone();
    for (by, path, datagram) in &captured {
        network.links[1 - by].handle_datagram(network.now, *path, datagram);
        network.drain();
    }
    network.run(10 * SECOND);
    assert_eq!(network.links.each_ref().map(state), before);
    assert_eq!(network.events, events);
    let counts = &network.links[1].rejected;
    assert!(counts.of(Reason::Replayed) > 100 && counts.of(Reason::UnknownSession) > 100);
}

#[test]
fn a_replayed_first_message_of_before_the_restart_replaces_nothing() {
    let mut network = Network::up(4, 1);
    let first = sent(&network, 0, Kind::Initiation).remove(0);
    network.restart(1, 88);
    network.run(5 * SECOND);
    let before = network.links.each_ref().map(state);
    for _ in 0..100 {
        network.links[1].handle_datagram(network.now, 0, &first);
        network.run(Duration::from_millis(50));
    }
    assert_eq!(network.links.each_ref().map(state), before);
    assert!(
        network.links[1].rejected.of(Reason::HandshakeLimited) > 0,
        "answers are bounded"
    );
    // And the answers are none that anybody waits for.
    assert!(network.links[0].rejected.of(Reason::UnknownSession) > 0);
}

#[test]
fn hints_do_no_more_than_a_handshake_now_and_then() {
    let mut network = Network::up(5, 1);
    network.run(SECOND);
    let session = network.links[0].session().unwrap().id;
    let before = network.links.each_ref().map(|link| link.streams_made);
    network.sent.clear();
    for number in 0..1000 {
        let id = [0, session, number][number as usize % 3];
        let hint = wire::header(Kind::Hint, id, 0);
        network.links[0].handle_datagram(network.now, 0, &hint);
        network.run(Duration::from_millis(10));
    }
    assert_eq!(
        network.links.each_ref().map(|link| link.streams_made),
        before
    );
    assert!(network.are_up());
    let handshakes = sent(&network, 0, Kind::Initiation).len();
    assert!(
        (2..=13).contains(&handshakes),
        "{handshakes} in ten seconds"
    );
}

#[test]
fn handshakes_of_somebody_with_the_key_are_limited() {
    let mut network = Network::up(6, 1);
    let hello = Hello {
        name: "lb1".into(),
        epoch: 1,
        incarnation: 1,
    };
    for id in 0..100 {
        let (_, message) = handshake::initiate(&KEY, id, &hello).unwrap();
        let mut datagram = wire::header(Kind::Initiation, id, 0);
        datagram.extend(message);
        network.links[1].handle_datagram(network.now, 0, &datagram);
    }
    assert!(network.links[1].rejected.of(Reason::HandshakeLimited) >= 89);
    assert!(network.are_up());
}

#[test]
fn each_role_sends_its_messages_alone() {
    let mut network = Network::up(7, 1);
    let first = sent(&network, 0, Kind::Initiation).remove(0);
    let second = sent(&network, 1, Kind::Response).remove(0);
    let hint = wire::header(Kind::Hint, 0, 0);
    network.links[0].handle_datagram(network.now, 0, &first);
    network.links[1].handle_datagram(network.now, 0, &second);
    network.links[1].handle_datagram(network.now, 0, &hint);
    let counts = network
        .links
        .each_ref()
        .map(|link| link.rejected.of(Reason::WrongRole));
    assert_eq!(counts, [1, 2]);
}

#[test]
fn what_was_sent_by_every_path_proves_each_alive_and_by_one_only_that() {
    let mut network = Network::up(8, 2);
    network.run(SECOND);
    network.cut = vec![1];
    network.run(2 * SECOND);
    let is_alive = |n: &Network| {
        let link = &n.links[1];
        link.paths()[1].is_alive(n.now, link.path_time_out())
    };
    assert!(!is_alive(&network));
    // A keepalive of the other path does not.
    let (_, _, keepalive) = network
        .sent
        .iter()
        .rev()
        .find(|(by, path, _)| (*by, *path) == (0, 0))
        .unwrap()
        .clone();
    network.run(Duration::from_millis(5));
    network.links[1].handle_datagram(network.now, 1, &keepalive);
    assert!(!is_alive(&network));
    assert_eq!(network.links[1].rejected.of(Reason::Replayed), 1);
    // An urgent message does, once.
    assert!(network.links[0].tell(b"now"));
    network.run(Duration::from_millis(5));
    let urgent = network
        .sent
        .iter()
        .rev()
        .find(|(by, path, d)| (*by, *path) == (0, 1) && d.len() < 60);
    let (_, _, urgent) = urgent.unwrap().clone();
    network.links[1].handle_datagram(network.now, 1, &urgent);
    assert!(is_alive(&network));
    network.links[1].handle_datagram(network.now, 1, &urgent);
    assert_eq!(network.links[1].rejected.of(Reason::Replayed), 2);
    network.run(Duration::from_millis(5));
    assert_eq!(network.urgent[1], [b"now".to_vec()]);
}

#[test]
fn nothing_is_sent_while_it_is_down() {
    let mut network = Network::new(9, 1);
    assert!(!network.links[0].tell(b"now"));
    assert!(!network.links[0].send(network.now, b"m"));
    assert_eq!(network.links[0].urgent_status().dropped, 1);
    network.run_until(|n| n.are_up());
    // Its reader does not know yet that there is a stream.
    let mut early = Network::up(9, 1);
    early.is_reader_slow = [true; 2];
    early.restart(0, 5);
    early.run_until(|n| n.are_up());
    assert!(!early.links[0].send(early.now, b"m"));
    early.is_reader_slow = [false; 2];
    early.drain();
    assert!(early.links[0].send(early.now, b"m"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_a_peer_with_the_key_says_the_node_goes_on(
        plaintexts in proptest::collection::vec((0u8..6, proptest::collection::vec(any::<u8>(), 0..60)), 1..40),
    ) {
        let mut network = Network::up(51, 1);
        for (kind, mut plaintext) in plaintexts {
            // Mostly what begins like a message.
            plaintext.splice(0..0, [0, kind]);
            let session = network.links[0].sessions.current_mut().unwrap();
            let datagram = session.seal(&plaintext).unwrap();
            network.links[1].handle_datagram(network.now, 0, &datagram);
            let _ = network.links[1].send(network.now, b"m");
            network.run(Duration::from_millis(3));
        }
        network.run(SECOND);
        prop_assert!(network.are_up());
    }

    #[test]
    fn random_and_mutated_datagrams_have_no_effect(
        steps in proptest::collection::vec((any::<usize>(), any::<usize>(), any::<u8>(), 0usize..4, proptest::collection::vec(any::<u8>(), 0..80)), 1..60),
    ) {
        let mut network = Network::up(50, 2);
        network.run(SECOND);
        let before = network.links.each_ref().map(state);
        let captured = network.sent.clone();
        for (which, at, value, how, noise) in steps {
            let (by, path, mut datagram) = captured[which % captured.len()].clone();
            let at = at % datagram.len();
            match how {
                0 => datagram[at] ^= value | 1,
                1 => datagram.truncate(at),
                2 => datagram.extend(noise),
                _ => datagram = noise,
            }
            for side in [by, 1 - by] {
                network.links[side].handle_datagram(network.now, path, &datagram);
            }
            network.run(Duration::from_millis(1));
        }
        network.run(SECOND);
        prop_assert!(network.are_up());
        prop_assert_eq!(network.links.each_ref().map(state), before);
    }
}
