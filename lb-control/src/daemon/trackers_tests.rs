use super::*;
use crate::{
    daemon::{
        admin::AdminStore,
        conditions::{Known, conditions},
        testing,
    },
    health::{HealthState, Verdict},
    model::{Track, TrackedInterface},
};

fn vrrp(vrid: u8, group: Option<&str>, track: Track) -> Vrrp {
    Vrrp {
        vrid,
        track,
        sync_group: group.map(str::to_owned),
        ..testing::vrrp(&["192.0.2.10"])
    }
}

fn service(effect: Effect) -> Track {
    Track {
        services: vec![TrackedService {
            service: "shop".into(),
            minimum_backends: 2,
            effect,
        }],
        ..Track::default()
    }
}

fn interface(effect: Effect) -> Track {
    Track {
        interfaces: vec![TrackedInterface {
            name: "eth1".into(),
            effect,
        }],
        ..Track::default()
    }
}

/// What is told of these routers while so many of three backends are up.
fn look(trackers: &mut Trackers, routers: Vec<Vrrp>, up: usize, unix: u64) -> Option<Tracked> {
    let names = ["web-1", "web-2", "web-3"];
    let model = Model {
        vrrp: routers,
        ..testing::model(&names)
    };
    let directory = testing::Directory::new(&format!("trackers-{unix}-{up}"));
    let (admin, _) = AdminStore::open(&directory.0).unwrap();
    let known = names.iter().enumerate().map(|(number, name)| {
        let state = if number < up {
            HealthState::Up
        } else {
            HealthState::Down
        };
        let known = Known {
            state,
            verdict: (state == HealthState::Down).then_some(Verdict::Refused),
            ..Known::default()
        };
        (testing::key(name), known)
    });
    let before = Conditions::default();
    let found = conditions(
        &model,
        &known.collect(),
        &admin,
        false,
        testing::now(unix),
        &before,
    );
    let seen = Seen {
        model: &model,
        conditions: &found,
        links: &NeighbourView::default(),
    };
    trackers.look(&seen, unix)
}

#[test]
fn a_service_needs_so_many_backends_that_take_new_flows() {
    let mut trackers = Trackers::default();
    let routers = || vec![vrrp(51, None, service(Effect::Weight(-20)))];
    let tracker = |ok, usable, since| TrackerStatus {
        kind: "service".into(),
        name: "shop".into(),
        ok,
        weight: Some(-20),
        reason: format!("{usable} of 3 backends are usable, at least 2 needed"),
        since,
    };
    let told = |tracker| Some(vec![(51, vec![tracker])]);
    assert_eq!(
        look(&mut trackers, routers(), 2, 10),
        told(tracker(true, 2, 10))
    );
    // The same is told once.
    assert_eq!(look(&mut trackers, routers(), 2, 11), None);
    assert_eq!(
        look(&mut trackers, routers(), 1, 12),
        told(tracker(false, 1, 12))
    );
    assert_eq!(
        look(&mut trackers, routers(), 0, 13),
        told(tracker(false, 0, 12))
    );
    assert_eq!(
        look(&mut trackers, routers(), 3, 14),
        told(tracker(true, 3, 14))
    );
}

#[test]
fn before_its_first_result_a_service_is_well() {
    let model = Model {
        vrrp: vec![vrrp(51, None, service(Effect::Fault))],
        ..testing::model(&["web-1"])
    };
    let seen = Seen {
        model: &model,
        conditions: &Conditions::default(),
        links: &NeighbourView::default(),
    };
    let told = Trackers::default().look(&seen, 0).unwrap();
    assert!(told[0].1[0].ok, "{told:?}");
}

#[test]
fn a_sync_group_shares_its_weights_and_not_its_faults() {
    let mut trackers = Trackers::default();
    let routers = vec![
        vrrp(51, Some("site"), service(Effect::Weight(-20))),
        vrrp(52, Some("site"), interface(Effect::Fault)),
        vrrp(53, Some("site"), interface(Effect::Weight(-30))),
        vrrp(54, None, Track::default()),
    ];
    let told = look(&mut trackers, routers, 0, 20).unwrap();
    let named = |vrid: u8| -> Vec<(&str, Option<i16>)> {
        let trackers = told.iter().filter(|(of, _)| *of == vrid);
        let trackers = trackers.flat_map(|(_, trackers)| trackers);
        trackers.map(|t| (t.name.as_str(), t.weight)).collect()
    };
    assert_eq!(named(51), [("shop", Some(-20)), ("eth1", Some(-30))]);
    // One that is its own stays as it is.
    assert_eq!(named(52), [("eth1", None), ("shop", Some(-20))]);
    assert_eq!(named(53), [("eth1", Some(-30)), ("shop", Some(-20))]);
    assert_eq!(named(54), []);
}
