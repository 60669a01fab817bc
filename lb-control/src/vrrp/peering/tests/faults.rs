//! The six faults, and others.

use super::{
    network::{DELAY, INTERVALS, Make, Network, TWO, each, settled},
    *,
};

#[test]
fn a_dead_one_is_followed_as_soon_as_without_a_peer_link() {
    each(|make| {
        for references in [true, false] {
            let longest = [true, false].map(|has_link| {
                let mut network = settled(Make {
                    has_link,
                    references,
                    ..make
                });
                network.kill(0);
                let next = &network.nodes[1].machine;
                let bound = make.interval * 3 + next.skew() + DELAY;
                network.settle();
                assert_eq!(network.owners(), [1]);
                assert_eq!(network.several, Duration::ZERO);
                assert!(
                    network.longest_nobody <= bound,
                    "{:?}, bound {bound:?}, {:?}",
                    network.longest_nobody,
                    make.interval
                );
                network.longest_nobody
            });
            // The lease of the dead one hides the first intervals of both.
            assert!(longest[0] <= longest[1] + DELAY, "{longest:?}");
        }
    });
}

#[test]
fn a_hung_one_is_followed_and_does_not_own_when_it_goes_on() {
    each(|make| {
        let mut network = settled(make);
        network.hang(0, true);
        network.settle();
        assert_eq!(network.owners(), [1]);
        assert!(network.longest_nobody <= network.bound(1));
        network.hang(0, false);
        assert_eq!(network.owners(), [1], "{:?}", make.interval);
        assert_eq!(network.several, Duration::ZERO);
        network.settle();
        // It preempts then.
        assert_eq!(network.owners(), [0]);
        assert!(network.several <= DELAY * 2);
    });
}

#[test]
fn a_lost_carrier_is_told_by_the_peer_link_and_followed_within_the_skew() {
    each(|make| {
        let mut network = settled(make);
        network.nodes[0].cable = false;
        network.nodes[0].machine.broken("eth0 carries no frames");
        network.step(0);
        let bound = network.nodes[1].machine.skew() + DELAY * 2;
        network.settle();
        assert_eq!(network.owners(), [1]);
        assert_eq!(network.several, Duration::ZERO);
        assert!(
            network.longest_nobody <= bound,
            "{:?}, bound {bound:?}",
            network.longest_nobody
        );
    });
}

#[test]
fn a_cut_trunk_leaves_the_owner_alone_and_nobody_beside_it() {
    each(|make| {
        for references in [true, false] {
            let mut network = settled(Make { references, ..make });
            network.trunk = false;
            network.settle();
            assert_eq!(network.owners(), [0], "{:?}", make.interval);
            assert_eq!(network.nobody, Duration::ZERO);
            assert_eq!(network.several, Duration::ZERO);
            let waits = network.nodes[1].machine.waits();
            assert_eq!(waits, Some(&Why::PeerActive("lb1".into())));
            network.trunk = true;
            network.settle();
            assert_eq!(
                (network.owners(), network.several),
                (vec![0], Duration::ZERO)
            );
            assert_eq!(network.nodes[1].machine.waits(), None);
            // And the other way round: whoever dies behind the cut is followed.
            network.trunk = false;
            network.settle();
            network.forget();
            network.kill(0);
            network.settle();
            assert_eq!(network.owners(), [1]);
            assert!(network.longest_nobody <= network.bound(1));
        }
    });
}

#[test]
fn a_standby_alone_on_a_cut_cable_never_claims() {
    each(|make| {
        // With the peer link or a reference host it knows better.
        for (references, unlinked) in [(true, false), (false, false), (true, true)] {
            let mut network = settled(Make { references, ..make });
            network.nodes[1].cable = false;
            if unlinked {
                network.unlinked = vec![1];
            }
            for _ in 0..3 {
                network.settle();
                assert_eq!(network.owners(), [0], "{:?}", make.interval);
            }
            assert_eq!(network.several, Duration::ZERO);
            assert_eq!(network.nobody, Duration::ZERO);
            let waits = network.nodes[1].machine.waits();
            let is_isolated = waits == Some(&Why::Isolated);
            assert_eq!(is_isolated, unlinked, "{waits:?}");
            network.nodes[1].cable = true;
            network.unlinked.clear();
            network.settle();
            assert_eq!(network.owners(), [0]);
            assert!(network.several <= DELAY * 2, "{:?}", network.several);
        }
    });
}

#[test]
fn an_owner_whose_cable_fails_silently_hands_over_to_who_has_proof() {
    each(|make| {
        let mut network = settled(make);
        network.nodes[0].cable = false;
        let cut = network.now;
        let bound = network.bound(1);
        while network.owners() != [1] {
            network.run(Duration::from_millis(1));
            let time = network.now - cut;
            assert!(time <= bound, "{time:?}, bound {bound:?}");
        }
        assert!(network.several <= DELAY * 2, "{:?}", network.several);
        network.settle();
        assert_eq!(
            (network.owners(), network.nobody),
            (vec![1], Duration::ZERO)
        );
    });
}

#[test]
fn a_quiet_segment_demotes_nobody() {
    each(|make| {
        // The reference hosts are dead, the nodes hear each other.
        let mut network = settled(make);
        network.quiet = true;
        network.settle();
        assert_eq!(network.owners(), [0]);
        assert_eq!(network.nobody, Duration::ZERO);
    });
}

#[test]
fn after_a_full_cut_both_own_and_the_better_one_announces_again_when_it_heals() {
    each(|make| {
        let mut network = settled(make);
        network.trunk = false;
        network.unlinked = vec![1];
        network.settle();
        assert_eq!(network.owners(), [0, 1]);
        assert_eq!(network.nobody, Duration::ZERO);
        let announced = network.nodes[0].announced;
        network.trunk = true;
        network.unlinked.clear();
        network.run(make.interval * 2 + DELAY * 2);
        assert_eq!(network.owners(), [0]);
        assert!(network.nodes[0].announced > announced);
    });
}

#[test]
fn a_node_that_comes_back_waits_for_sync_or_for_its_time() {
    for synced_after in [Some(Duration::from_secs(3)), None] {
        let mut network = settled(TWO);
        network.sync_wait = Some(Duration::from_secs(20));
        network.kill(0);
        network.settle();
        network.forget();
        network.revive(0);
        network.run(synced_after.unwrap_or(Duration::from_secs(19)));
        assert_eq!(network.owners(), [1]);
        if synced_after.is_some() {
            network.nodes[0].peering.in_sync(true);
            network.step(0);
        }
        network.run(Duration::from_secs(2));
        assert_eq!(network.owners(), [0]);
        assert_eq!(network.nobody, Duration::ZERO);
        assert!(network.several <= DELAY);
        // With nobody active it doesn't wait.
        network.kill(0);
        network.kill(1);
        network.settle();
        network.forget();
        network.revive(0);
        network.run(Duration::from_secs(1));
        assert_eq!(network.owners(), [0]);
    }
}

/// One fault at a time, at any moment, with loss on both paths or none: in time
/// there is one owner again, and never a second one while a path is whole.
#[test]
fn any_single_fault_leaves_one_owner_among_two_to_five() {
    const PRIORITIES: [&[u8]; 4] = [
        &[200, 100],
        &[200, 150, 100],
        &[200, 180, 120, 100],
        &[250, 200, 150, 100, 50],
    ];
    for seed in 0..12_u64 {
        let priorities = PRIORITIES[usize::try_from(seed % 4).unwrap()];
        let interval = INTERVALS[usize::try_from(seed % 3).unwrap()];
        let mut network = Network::new(Make {
            priorities,
            interval,
            seed,
            ..TWO
        });
        network.settle();
        for _ in 0..6 {
            network.forget();
            let pause = network.random.below(1_500);
            network.run(Duration::from_millis(pause));
            let victim = usize::try_from(network.random.below(priorities.len() as u64)).unwrap();
            let fault = network.random.below(6);
            let lowest = network.bound(priorities.len() - 1);
            match fault {
                0 => network.kill(victim),
                1 => network.hang(victim, true),
                2 => network.nodes[victim].cable = false,
                3 => network.trunk = false,
                4 => network.unlinked = vec![victim],
                _ => network.stop(victim),
            }
            network.settle();
            let owners = network.owners();
            let context = format!("seed {seed}, fault {fault} of {victim}, owners {owners:?}");
            assert_eq!(owners.len(), 1, "{context}");
            assert!(
                fault < 2 && owners != [victim] || fault != 2 || network.nodes[owners[0]].cable,
                "{context}"
            );
            assert!(network.longest_nobody <= lowest, "{context}");
            assert!(
                network.several <= DELAY * 4,
                "{context}: several for {:?}",
                network.several
            );
            network.trunk = true;
            network.unlinked.clear();
            network.nodes[victim].cable = true;
            network.hang(victim, false);
            if !network.nodes[victim].alive {
                network.revive(victim);
            }
            network.settle();
            assert_eq!(network.owners(), [0], "{context}");
        }
    }
}

/// A tenth of all advertisements and of all messages between peers is lost.
#[test]
fn two_lossy_paths_have_fewer_second_owners_than_one() {
    let several = [false, true].map(|has_link| {
        let mut several = Duration::ZERO;
        for seed in 0..5 {
            let mut network = Network::new(Make {
                has_link,
                seed,
                ..TWO
            });
            network.settle();
            network.forget();
            (network.lan_loss, network.peer_loss) = (200, 100);
            network.run(Duration::from_secs(60));
            several += network.several;
            (network.lan_loss, network.peer_loss) = (0, 0);
            network.settle();
            assert_eq!(network.owners(), [0], "seed {seed}");
        }
        several
    });
    println!("several owners within 1200 s: {several:?} without and with a peer link");
    assert!(several[1] * 10 < several[0], "{several:?}");
}
