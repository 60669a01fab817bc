//! Hand-overs that are asked for.

use super::{
    network::{DELAY, ID, INTERVALS, Make, Network, TWO, each, settled},
    *,
};

fn has_moved(network: &Network, index: usize) -> bool {
    let outcome = network.nodes[index].outcomes.last().unwrap();
    assert_eq!(
        outcome.moved.is_empty(),
        !outcome.errors.is_empty(),
        "{outcome:?}"
    );
    !outcome.moved.is_empty()
}

#[test]
fn a_hand_over_has_no_gap_and_stays_until_it_is_handed_back() {
    each(|make| {
        let mut network = settled(make);
        network.hand_over(0, None, false);
        network.run(Duration::from_millis(20));
        assert_eq!(network.owners(), [1]);
        assert!(has_moved(&network, 0));
        network.settle();
        // The priority of the first one is higher.
        assert_eq!(network.owners(), [1]);
        assert!(network.nodes[0].machine.has_handed_over());
        let by: PeerName = "lb1".into();
        assert_eq!(network.nodes[1].reasons.last(), Some(&Reason::TookOver(by)));
        network.hand_over(1, None, false);
        network.settle();
        assert_eq!(network.owners(), [0]);
        assert!(has_moved(&network, 1));
        assert!(!network.nodes[0].machine.has_handed_over());
        assert_eq!(network.nobody, Duration::ZERO);
        assert!(network.several <= DELAY * 4, "{:?}", network.several);
        // Who dies after it is followed by who had handed over.
        network.hand_over(0, None, false);
        network.settle();
        network.kill(1);
        network.settle();
        assert_eq!(network.owners(), [0]);
        assert!(network.longest_nobody <= network.bound(0));
    });
}

#[test]
fn who_stops_hands_over_first_and_takes_over_again_when_it_comes_back() {
    each(|make| {
        let mut network = settled(make);
        network.stop(0);
        assert_eq!(network.owners(), [1]);
        network.settle();
        assert_eq!(network.owners(), [1]);
        network.revive(0);
        network.settle();
        assert_eq!(network.owners(), [0]);
        assert_eq!(network.nobody, Duration::ZERO);
        assert!(network.several <= DELAY * 4, "{:?}", network.several);
    });
}

#[test]
fn who_stops_without_an_answer_says_that_it_leaves() {
    each(|make| {
        let mut network = settled(make);
        network.unlinked = vec![1];
        network.stop(0);
        let bound = network.nodes[1].machine.skew() + DELAY;
        network.settle();
        assert_eq!(
            (network.owners(), network.several),
            (vec![1], Duration::ZERO)
        );
        assert!(
            network.longest_nobody <= bound,
            "{:?}",
            network.longest_nobody
        );
    });
}

#[test]
fn the_third_one_does_not_preempt_what_was_handed_over() {
    for seed in 0..5 {
        let mut network = settled(Make {
            priorities: &[200, 100, 150],
            seed,
            ..TWO
        });
        network.hand_over(0, Some(1), false);
        network.settle();
        assert_eq!(network.owners(), [1]);
        assert!(has_moved(&network, 0));
        assert_eq!(network.nobody, Duration::ZERO);
        assert!(network.several <= DELAY * 2);
        // Without a wish it goes to the best.
        network.hand_over(1, None, false);
        network.settle();
        assert_eq!(network.owners(), [0]);
        network.hand_over(0, None, false);
        network.settle();
        assert_eq!(network.owners(), [2]);
    }
}

#[test]
fn who_is_in_sync_is_better_than_who_has_a_higher_priority() {
    let mut network = settled(Make {
        priorities: &[200, 100, 150],
        ..TWO
    });
    network.nodes[1].peering.in_sync(true);
    network.step(1);
    network.settle();
    network.hand_over(0, None, false);
    network.settle();
    assert_eq!(network.owners(), [1]);
}

/// With any loss it moves or it doesn't, and never for a moment there is nobody.
#[test]
fn a_hand_over_over_a_bad_link_moves_all_or_changes_nothing() {
    let (mut moved, mut failed, mut several) = (0, 0, Duration::ZERO);
    for interval in INTERVALS {
        for seed in 0..60 {
            let mut network = settled(Make {
                interval,
                seed,
                ..TWO
            });
            network.peer_loss = 600;
            network.lan_loss = 100;
            network.hand_over(0, None, false);
            network.run(Duration::from_millis(110));
            network.peer_loss = 0;
            network.lan_loss = 0;
            network.run(Duration::from_millis(150));
            if network.nodes[0].outcomes.is_empty() {
                panic!("no outcome");
            }
            several = several.max(network.several);
            network.settle();
            let has_moved = has_moved(&network, 0);
            moved += u32::from(has_moved);
            failed += u32::from(!has_moved);
            let owner = usize::from(has_moved);
            assert_eq!(network.owners(), [owner], "{interval:?}, seed {seed}");
            assert_eq!(network.nobody, Duration::ZERO, "{interval:?}, seed {seed}");
        }
    }
    println!("moved {moved}, failed {failed}, several owners for at most {several:?}");
    assert!(moved > 100 && failed > 0);
    assert!(several <= Duration::from_millis(250), "{several:?}");
}

#[test]
fn without_anybody_to_take_over_the_operator_is_told_why() {
    let mut network = settled(TWO);
    let errors = |network: &Network, index: usize| {
        network.nodes[index]
            .outcomes
            .last()
            .unwrap()
            .errors
            .join("; ")
    };
    network.hand_over(1, None, false);
    assert!(errors(&network, 1).contains("no virtual router is active on this node"));
    network.hand_over(0, Some(0), false);
    assert!(errors(&network, 0).contains("no peer is called lb1; there are: lb2"));
    network.nodes[1].machine.broken("eth0 carries no frames");
    network.step(1);
    network.run(Duration::from_millis(50));
    network.hand_over(0, None, false);
    assert!(errors(&network, 0).contains("virtual router 7 (IPv4) is no backup on lb2"));
    network.kill(1);
    network.settle();
    network.hand_over(0, None, false);
    assert!(errors(&network, 0).contains("lb2 has said nothing of virtual router 7 (IPv4) lately"));
    assert_eq!(
        (network.owners(), network.nobody),
        (vec![0], Duration::ZERO)
    );
    let mut alone = settled(Make {
        has_link: false,
        ..TWO
    });
    alone.hand_over(0, None, false);
    assert!(errors(&alone, 0).contains("no peer is heard by the peer link"));
}

#[test]
fn no_answer_leaves_everything_as_it_was() {
    let mut network = settled(TWO);
    network.unlinked = vec![1];
    network.hand_over(0, None, false);
    network.run(Duration::from_millis(101));
    let outcome = network.nodes[0].outcomes.last().unwrap();
    assert_eq!(
        outcome.errors,
        ["lb2 did not answer within 100 ms; nothing has changed"]
    );
    // At 0, 10, 30, 50, 70 and 90 ms, and that it is cancelled.
    assert_eq!(network.nodes[0].sent.len(), 7);
    assert_eq!(
        (network.owners(), network.nobody),
        (vec![0], Duration::ZERO)
    );
}

#[test]
fn what_is_said_again_later_has_no_effect() {
    let mut network = settled(TWO);
    network.hand_over(0, None, false);
    network.settle();
    network.hand_over(1, None, false);
    network.settle();
    assert_eq!(network.owners(), [0]);
    let said = |network: &Network| -> Vec<(usize, usize, Vec<u8>)> {
        let nodes = network.nodes.iter().enumerate();
        nodes
            .flat_map(|(from, node)| {
                node.sent
                    .iter()
                    .map(move |(to, bytes)| (from, *to, bytes.clone()))
            })
            .collect()
    };
    let old = said(&network);
    assert!(old.len() >= 4);
    network.forget();
    for (from, to, bytes) in old {
        network.replay(from, to, bytes);
        network.run(Duration::from_millis(500));
        assert_eq!(network.owners(), [0]);
    }
    assert_eq!(network.several + network.nobody, Duration::ZERO);
    // Of an earlier start of the daemon, of nobody, and of a stranger.
    let stale = network.nodes[1].peering.counts().stale;
    let take = Message::Take {
        id: HandOverId {
            epoch: 99,
            number: 99,
        },
        may_return: false,
        routers: vec![ID],
    };
    network.replay(0, 1, take.encode());
    network.replay(0, 1, vec![1, 2, 3]);
    network.settle();
    assert_eq!(network.owners(), [0]);
    let counts = network.nodes[1].peering.counts();
    assert_eq!((counts.stale, counts.malformed), (stale + 1, 1));
}

/// What `lbctl failover` does to a sync group and to others.
#[test]
fn a_sync_group_goes_as_a_whole() {
    let now = Instant::now();
    let mut peering = Peering::new(1);
    peering.link(true);
    let id = |vrid| RouterId { vrid, is_v4: true };
    let report = |vrid, state| Report {
        id: id(vrid),
        state,
        priority: 100,
        able: true,
        proof: false,
        answered: 0,
        hosts: 0,
        handed_over: false,
        taken: false,
        deaf: false,
        interval: Duration::from_secs(1),
        in_state: Duration::ZERO,
        source: [192, 0, 2, 2].into(),
    };
    let view = |vrid, group: Option<&str>| View {
        report: report(vrid, State::Active),
        group: group.map(str::to_owned),
        preempts: true,
        peer_left: false,
        is_handed_over: false,
        is_silent: false,
        waits: None,
        doubts: false,
        has_answered_since: false,
        unicast: Vec::new(),
    };
    peering.observe(vec![
        view(1, Some("site")),
        view(2, Some("site")),
        view(3, None),
    ]);
    let backups: Vec<Report> = (1..=3).map(|vrid| report(vrid, State::Backup)).collect();
    let peer: PeerName = "lb2".into();
    for message in Message::reports(5, 1, true, &backups) {
        peering.heard(now, &peer, &message.encode());
    }
    peering.hand_over(now, &[2], None, false, 1);
    let took = std::iter::from_fn(|| peering.next_effect()).find_map(|effect| match effect {
        Effect::Tell(_, bytes) => Message::decode(&bytes),
        _ => None,
    });
    let Some(Message::Take {
        id: _,
        routers,
        may_return: false,
    }) = took
    else {
        panic!("{took:?}")
    };
    assert_eq!(routers, [id(1), id(2)]);
    // One that isn't here: nothing moves.
    peering.hand_over(now, &[3, 9], None, false, 2);
    let effects: Vec<Effect> = std::iter::from_fn(|| peering.next_effect()).collect();
    let [Effect::Done(2, outcome)] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!(
        outcome.errors,
        ["virtual router 9 is not active on this node"]
    );
}
