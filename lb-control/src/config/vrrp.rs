//! `vrrp`: the virtual routers.

mod track;

use std::time::Duration;

use super::{
    reader::{At, Errors, Fields, Path},
    value,
    yaml::Node,
};
use crate::model::{Model, Vrrp};

const SHORTEST: Duration = Duration::from_millis(10);
/// Twelve bits of centiseconds (RFC 9568 §5.2.7).
const LONGEST: Duration = Duration::from_millis(40_950);
const LONGEST_DELAY: Duration = Duration::from_secs(3600);
/// What an advertisement has room for within an Ethernet frame.
const MOST_ADDRESSES: usize = 64;

/// Reads one of them. `None` after an error.
pub(super) fn read(at: &At<'_>) -> Option<Vrrp> {
    let known = [
        "vrid",
        "interface",
        "priority",
        "advertisement_interval",
        "version",
        "preempt",
        "preempt_delay",
        "startup_delay",
        "addresses",
        "checksum",
        "unicast_peers",
        "track",
        "sync_group",
        "notify",
        "virtual_mac",
    ];
    let later = [];
    let fields = at.fields(&known, &later)?;
    let vrid = fields.required("vrid")?.read(value::number(1..=255));
    let interface = fields.required("interface")?.read(value::interface);
    let delay = |key| {
        fields.or(
            key,
            Duration::ZERO,
            value::duration(Duration::ZERO..=LONGEST_DELAY),
        )
    };
    let versions = [("2", 2), ("3", 3)];
    let version = fields.or("version", 3, |node| match node {
        Node::Integer(number) => value::choice(&Node::Text(number.to_string()), &versions, &[]),
        other => value::choice(other, &versions, &[]),
    });
    let vrid = vrid.map(|vrid| u8::try_from(vrid).unwrap_or(u8::MAX));
    let track = fields.get("track").map(track::track).unwrap_or_default();
    let notify = fields
        .get("notify")
        .and_then(|at| track::notify(at, vrid.unwrap_or_default()));
    let vrrp = Vrrp {
        vrid: vrid?,
        interface: interface?,
        priority: u8::try_from(fields.or("priority", 100, value::number(1..=255))).unwrap_or(100),
        interval: fields.or(
            "advertisement_interval",
            Duration::from_secs(1),
            value::duration(SHORTEST..=LONGEST),
        ),
        version,
        preempt: fields.or("preempt", true, value::boolean),
        preempt_delay: delay("preempt_delay"),
        startup_delay: delay("startup_delay"),
        addresses: addresses(fields.required("addresses")?),
        pseudo_header: fields.or("checksum", false, |node| {
            value::choice(node, &[("rfc9568", false), ("pseudo-header", true)], &[])
        }),
        peers: fields
            .get("unicast_peers")
            .map(addresses)
            .unwrap_or_default(),
        track,
        notify,
        sync_group: fields.optional("sync_group", value::name),
        virtual_mac: fields.or("virtual_mac", true, value::boolean),
    };
    check(&fields, &vrrp);
    Some(vrrp)
}

fn addresses(at: &At<'_>) -> Vec<std::net::IpAddr> {
    let items = at.items();
    if items.is_empty() && matches!(at.node, Node::List(_)) {
        at.error("found an empty list; allowed: at least one address");
    }
    items
        .iter()
        .filter_map(|at| at.read(value::address))
        .collect()
}

fn check(fields: &Fields<'_>, vrrp: &Vrrp) {
    let error = |key: &str, message: &str| {
        if let Some(at) = fields.get(key) {
            at.error(message);
        }
    };
    let whole = vrrp.interval.subsec_nanos() == 0 && vrrp.interval.as_secs() <= 255;
    if vrrp.version == 2 && !whole {
        error(
            "advertisement_interval",
            "version 2 counts in whole seconds; give such a number, or version 3",
        );
    }
    if !vrrp.interval.as_millis().is_multiple_of(10) {
        error(
            "advertisement_interval",
            "version 3 counts in hundredths of a second; give a multiple of 10ms",
        );
    }
    if vrrp.version == 2 && vrrp.addresses.iter().any(|a| a.is_ipv6()) {
        error("addresses", "version 2 has IPv4 alone; give version 3");
    }
    if vrrp.addresses.len() > MOST_ADDRESSES {
        error(
            "addresses",
            "more addresses than an advertisement holds (64); make several virtual routers",
        );
    }
    for is_v4 in [true, false] {
        let has = |all: &[std::net::IpAddr]| all.iter().any(|a| a.is_ipv4() == is_v4);
        if !vrrp.peers.is_empty() && has(&vrrp.addresses) && !has(&vrrp.peers) {
            error(
                "unicast_peers",
                "the addresses have a family that no peer has; IPv4 and IPv6 are advertised each by itself",
            );
        }
        let hosts = &vrrp.track.reference_hosts;
        if !hosts.is_empty() && has(&vrrp.addresses) && !has(hosts) {
            error(
                "track",
                "the addresses have a family that no reference host has; IPv4 and IPv6 are proved each by \
                 itself",
            );
        }
    }
    if let Some(host) = vrrp
        .track
        .reference_hosts
        .iter()
        .find(|host| vrrp.addresses.contains(host))
    {
        error(
            "track",
            &format!(
                "{host} is a virtual address; a reference host is somebody else, such as the router"
            ),
        );
    }
}

/// What concerns several of them.
pub(super) fn check_all(model: &Model, errors: &Errors) {
    for (index, vrrp) in model.vrrp.iter().enumerate() {
        let path = Path::default().key("vrrp").index(index);
        let earlier = model.vrrp.get(..index).unwrap_or_default();
        if earlier.iter().any(|other| other.vrid == vrrp.vrid) {
            errors.add(
                path.key("vrid"),
                format!(
                    "VRID {} is that of an earlier virtual router; give each its own, also on different \
                     interfaces",
                    vrrp.vrid
                ),
            );
        }
        let is_ours = |name: &String| model.interfaces.iter().any(|i| i.name == *name);
        track::check(model, vrrp, &path, errors);
        if !is_ours(&vrrp.interface) {
            errors.add(
                path.key("interface"),
                format!(
                    "{} is not among `interfaces`: the data path wouldn't answer there",
                    vrrp.interface
                ),
            );
        }
        for (number, address) in vrrp.addresses.iter().enumerate() {
            let all = earlier.iter().flat_map(|other| &other.addresses);
            let own = vrrp.addresses.get(..number).unwrap_or_default();
            if all.chain(own).any(|other| other == address) {
                errors.add(
                    path.key("addresses").index(number),
                    format!("{address} is listed twice; an address has one virtual router"),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn routers(text: &str) -> Result<Vec<Vrrp>, String> {
        let text = format!(
            "interfaces: [{{name: eth0}}, {{name: eth1}}]\npools: {{}}\nservices: []\nvrrp:\n{text}\n"
        );
        match parse(&text, "f.yaml") {
            Ok(model) => Ok(model.vrrp),
            Err(errors) => Err(errors.to_string()),
        }
    }

    #[test]
    fn a_virtual_router_has_defaults() {
        let all = routers("- {vrid: 51, interface: eth0, addresses: [10.0.0.1, \"2001:db8::1\"]}");
        let router = &all.unwrap_or_else(|e| panic!("{e}"))[0];
        assert_eq!((router.vrid, router.priority, router.version), (51, 100, 3));
        assert_eq!(router.interval, Duration::from_secs(1));
        assert!(
            router.preempt
                && router.virtual_mac
                && !router.pseudo_header
                && router.peers.is_empty()
        );
        assert_eq!(router.addresses.len(), 2);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_place() {
        let one = "vrid: 1, interface: eth0, addresses: [10.0.0.1]";
        for (text, expected) in [
            ("- {}", "vrrp[0]: `vrid` is missing"),
            (
                "- {vrid: 256, interface: eth0, addresses: [10.0.0.1]}",
                "vrid: found `256`; allowed: a number from 1 to 255",
            ),
            (
                "- {vrid: 1, interface: eth0, addresses: []}",
                "addresses: found an empty list",
            ),
            (&format!("- {{{one}, priority: 0}}"), "priority: found `0`"),
            (
                &format!("- {{{one}, version: 4}}"),
                "version: found `4`; allowed: 2, 3",
            ),
            (
                &format!("- {{{one}, version: 2, advertisement_interval: 500ms}}"),
                "advertisement_interval: version 2 counts in whole seconds",
            ),
            (
                &format!("- {{{one}, advertisement_interval: 15ms}}"),
                "version 3 counts in hundredths of a second",
            ),
            (
                "- {vrid: 1, interface: eth0, version: 2, addresses: [\"2001:db8::1\"]}",
                "addresses: version 2 has IPv4 alone",
            ),
            (
                &format!("- {{{one}, unicast_peers: [\"2001:db8::2\"]}}"),
                "unicast_peers: the addresses have a family that no peer has",
            ),
            (
                "- {vrid: 1, interface: eth7, addresses: [10.0.0.1]}",
                "vrrp[0].interface: eth7 is not among `interfaces`",
            ),
            (
                &format!("- {{{one}}}\n- {{vrid: 1, interface: eth1, addresses: [10.0.0.2]}}"),
                "vrrp[1].vrid: VRID 1 is that of an earlier virtual router",
            ),
            (
                &format!("- {{{one}}}\n- {{vrid: 2, interface: eth1, addresses: [10.0.0.1]}}"),
                "vrrp[1].addresses[0]: 10.0.0.1 is listed twice",
            ),
            (
                &format!("- {{{one}, track: {{interfaces: [eth1, eth7]}}}}"),
                "vrrp[0].track.interfaces[1]: eth7 is not among `interfaces`",
            ),
            (
                &format!("- {{{one}, virtual_mac: 7}}"),
                "virtual_mac: found `7`",
            ),
            (
                &format!("- {{{one}, track: {{reference_hosts: [\"2001:db8::1\"]}}}}"),
                "track: the addresses have a family that no reference host has",
            ),
            (
                &format!("- {{{one}, track: {{reference_hosts: [10.0.0.1]}}}}"),
                "track: 10.0.0.1 is a virtual address",
            ),
            (
                &format!("- {{{one}, track: {{reference_hosts: []}}}}"),
                "reference_hosts: found an empty list",
            ),
            (
                &format!(
                    "- {{{one}, track: {{reference_hosts: [{}]}}}}",
                    ["10.0.0.9"; 9].join(", ")
                ),
                "reference_hosts: found 9 reference hosts; allowed: at most 8",
            ),
        ] {
            let errors = routers(text).err().unwrap_or_default();
            assert!(
                errors.contains(expected),
                "{text}\n  found    {errors}\n  expected {expected}"
            );
        }
    }
}
