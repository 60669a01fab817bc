//! Virtual routers, as text for people.

use crate::{
    cli::table::{Align, Cell, Table, Tone, span},
    status::{VrrpStatus, request::FailoverAnswer},
};

/// `lbctl vrrp`; `now` in seconds since the Unix epoch.
pub fn vrrp(routers: &[VrrpStatus], colour: bool, now: u64) -> String {
    let mut table = Table::new(&[
        ("VRID", Align::Right),
        ("FAMILY", Align::Left),
        ("INTERFACE", Align::Left),
        ("STATE", Align::Left),
        ("SINCE", Align::Right),
        ("PRIORITY", Align::Left),
        ("ACTIVE", Align::Left),
        ("ADDRESSES", Align::Left),
        ("WHY", Align::Left),
    ]);
    for router in routers {
        let state = if router.isolated && router.state == "backup" {
            "isolated"
        } else {
            &router.state
        };
        let tone = match state {
            "active" | "backup" => Tone::Good,
            _ => Tone::Bad,
        };
        let active = match (router.state.as_str(), router.active_peer) {
            ("active", _) => "this node".to_owned(),
            (_, Some(peer)) => match router.active_priority {
                Some(priority) => format!("{peer} ({priority})"),
                None => peer.to_string(),
            },
            _ => "nobody heard".to_owned(),
        };
        let addresses: Vec<String> = router.addresses.iter().map(ToString::to_string).collect();
        table.row(vec![
            router.vrid.to_string().into(),
            router.family.as_str().into(),
            router.interface.as_str().into(),
            Cell::toned(state, tone),
            span(now.saturating_sub(router.since)).into(),
            priority(router).into(),
            active.into(),
            addresses.join(", ").into(),
            why(router).into(),
        ]);
    }
    let mut text = table.render(colour);
    for router in routers {
        for tracker in router.trackers.iter().filter(|tracker| !tracker.ok) {
            text += &format!(
                "VRID {} {}: {} {} fails since {}: {}\n",
                router.vrid,
                router.family,
                tracker.kind,
                tracker.name,
                span(now.saturating_sub(tracker.since)),
                tracker.reason
            );
        }
    }
    text
}

/// "130 = 150 − 20 script check-uplink".
fn priority(router: &VrrpStatus) -> String {
    let mut text = router.priority.to_string();
    if let [configured, parts @ ..] = router.priority_parts.as_slice()
        && !parts.is_empty()
    {
        text += &format!(" = {}", configured.change);
        for part in parts {
            let sign = if part.change < 0 { '−' } else { '+' };
            text += &format!(" {sign} {} {}", part.change.unsigned_abs(), part.what);
        }
    }
    text
}

/// `lbctl failover`.
pub fn failover(answer: &FailoverAnswer) -> String {
    let lines = answer.moved.iter().map(|moved| {
        let (vrid, family, peer) = (moved.vrid, &moved.family, &moved.peer);
        format!("virtual router {vrid} ({family}): {peer} is active\n")
    });
    lines.collect()
}

/// With what an operator has to know beside it.
fn why(router: &VrrpStatus) -> String {
    let mut words = vec![router.reason.clone()];
    if router.handed_over && !router.reason.starts_with("handed over") {
        words.push("handed over".into());
    }
    let (answering, all) = (router.reference_hosts_answering, router.reference_hosts);
    if answering < all {
        words.push(format!("{answering} of {all} reference hosts answer"));
    }
    words.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{PriorityPart, TrackerStatus};

    #[test]
    fn it_shows_what_a_priority_is_made_of_and_what_fails() {
        let part = |what: &str, change| PriorityPart {
            what: what.into(),
            change,
        };
        let tracker = |name: &str, ok| TrackerStatus {
            kind: "script".into(),
            name: name.into(),
            ok,
            weight: Some(-20),
            reason: "exit status 1".into(),
            since: 88,
        };
        let router = VrrpStatus {
            vrid: 51,
            family: "IPv4".into(),
            priority: 130,
            priority_parts: vec![
                part("configured", 150),
                part("script check-uplink", -20),
                part("interface eth1", 5),
            ],
            trackers: vec![tracker("check-uplink", false), tracker("disk", true)],
            ..VrrpStatus::default()
        };
        let text = vrrp(&[router], false, 100);
        let expected = "130 = 150 − 20 script check-uplink + 5 interface eth1 ";
        assert!(text.contains(expected), "{text}");
        let told: Vec<_> = text.lines().skip(2).collect();
        let expected = "VRID 51 IPv4: script check-uplink fails since 12 s: exit status 1";
        assert_eq!(told, [expected]);
        let plain = VrrpStatus {
            priority: 150,
            priority_parts: vec![part("configured", 150)],
            ..VrrpStatus::default()
        };
        assert_eq!(priority(&plain), "150");
    }

    use crate::status::request::MovedRouter;

    #[test]
    fn it_says_what_is_odd() {
        let router = VrrpStatus {
            state: "backup".into(),
            reason: "lb2 is active, heard by the peer link alone".into(),
            handed_over: true,
            isolated: true,
            reference_hosts: 2,
            ..VrrpStatus::default()
        };
        let text = vrrp(&[router], false, 100);
        for expected in [
            "isolated",
            "alone; handed over; 0 of 2 reference hosts answer",
        ] {
            assert!(text.contains(expected), "{expected} is not in {text}");
        }
        let answer = FailoverAnswer {
            moved: vec![MovedRouter {
                vrid: 51,
                family: "IPv4".into(),
                peer: "lb2".into(),
            }],
            errors: Vec::new(),
        };
        let expected = "virtual router 51 (IPv4): lb2 is active\n";
        assert_eq!(failover(&answer), expected);
    }

    #[test]
    fn it_says_who_is_active_and_why() {
        let router = VrrpStatus {
            vrid: 51,
            family: "IPv4".into(),
            interface: "eth0".into(),
            state: "backup".into(),
            reason: "10.0.0.2 advertises a better priority".into(),
            since: 90,
            priority: 100,
            addresses: vec!["10.0.0.100".parse().unwrap()],
            active_peer: Some("10.0.0.2".parse().unwrap()),
            active_priority: Some(150),
            ..VrrpStatus::default()
        };
        let text = vrrp(&[router], false, 100);
        let row = text.lines().nth(1).unwrap();
        for expected in [
            "51",
            "backup",
            "10 s",
            "10.0.0.2 (150)",
            "10.0.0.100",
            "a better priority",
        ] {
            assert!(row.contains(expected), "{expected} is not in {row}");
        }
    }
}
