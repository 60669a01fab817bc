//! Virtual routers, as text for people.

use crate::{
    cli::table::{Align, Cell, Table, Tone, span},
    status::VrrpStatus,
};

/// `lbctl vrrp`; `now` in seconds since the Unix epoch.
pub fn vrrp(routers: &[VrrpStatus], colour: bool, now: u64) -> String {
    let mut table = Table::new(&[
        ("VRID", Align::Right),
        ("FAMILY", Align::Left),
        ("INTERFACE", Align::Left),
        ("STATE", Align::Left),
        ("SINCE", Align::Right),
        ("PRIORITY", Align::Right),
        ("ACTIVE", Align::Left),
        ("ADDRESSES", Align::Left),
        ("WHY", Align::Left),
    ]);
    for router in routers {
        let tone = match router.state.as_str() {
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
            Cell::toned(&router.state, tone),
            span(now.saturating_sub(router.since)).into(),
            router.priority.to_string().into(),
            active.into(),
            addresses.join(", ").into(),
            router.reason.as_str().into(),
        ]);
    }
    table.render(colour)
}

#[cfg(test)]
mod tests {
    use super::*;

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
