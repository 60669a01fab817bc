//! Full NAT's addresses and the clients that need them.

use lb_common::{
    abi::{PoolEntry, VipKey, service_flag, vip_flag},
    net::Addr,
};

use super::*;
use crate::{
    dataplane::{
        desired::{DesiredError, OwnAddress},
        state::LocalPrefix,
    },
    model::FullNat,
};

fn with_pool(addresses: &[&str], ports: (u16, u16), forwarding: ForwardingMethod) -> Model {
    let service = Service {
        forwarding,
        ..service(1, "p")
    };
    Model {
        full_nat: Some(FullNat {
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            first_port: ports.0,
            last_port: ports.1,
        }),
        ..one_pool([1, 2], vec![service])
    }
}

fn key(address: &str) -> VipKey {
    let (address, family) = Addr::from_ip(address.parse().unwrap());
    VipKey {
        address,
        family,
        reserved: [0; 3],
    }
}

fn apply(maps: &mut FakeMaps, model: &Model) {
    for op in ops(maps, model, &runtime()) {
        execute(maps, &op, NOW).unwrap();
    }
}

fn refused(maps: &FakeMaps, model: &Model, runtime: &Runtime) -> DesiredError {
    let snapshot = maps.snapshot().unwrap();
    let expired = BTreeSet::new();
    let given = Given {
        snapshot: &snapshot,
        capacity: CAPACITY,
        hz: 250,
        expired: &expired,
    };
    desired(model, runtime, given, &mut TableCache::default()).unwrap_err()
}

#[test]
fn addresses_get_rows_of_bindings_of_their_own_and_keep_them() {
    let mut maps = FakeMaps::new(CAPACITY.slots);
    let full = ForwardingMethod::FullNat;
    apply(
        &mut maps,
        &with_pool(&["10.9.0.1", "fd00::9"], (2000, 2399), full),
    );
    let pools = maps.snapshot().unwrap().pools;
    let entry = |base| PoolEntry {
        base,
        count: 400,
        first_port: 2000,
        draining: 0,
    };
    assert_eq!(pools[&key("10.9.0.1")], entry(1), "index zero is nobody's");
    assert_eq!(pools[&key("fd00::9")], entry(401));
    let snapshot = maps.snapshot().unwrap();
    assert_eq!(snapshot.vips[&key("fd00::9")].flags, vip_flag::POOL);
    let both = feature::POOL_V4 | feature::POOL_V6;
    assert_eq!(snapshot.config.features & both, both);
    let service = snapshot.services.values().next().unwrap();
    assert_eq!(service.flags, service_flag::FULL_NAT);

    // The first leaves and drains; what comes gets none of its ports.
    let model = with_pool(&["fd00::9", "10.9.0.2"], (2000, 2399), full);
    let error = refused(&maps, &model, &runtime());
    assert!(
        matches!(error, DesiredError::TooManyBindings { free: 200, .. }),
        "{error:?}"
    );
    apply(&mut maps, &with_pool(&["fd00::9"], (2000, 2399), full));
    let pools = maps.snapshot().unwrap().pools;
    assert_eq!(pools[&key("fd00::9")], entry(401));
    let drains = PoolEntry {
        draining: 1,
        ..entry(1)
    };
    assert_eq!(pools[&key("10.9.0.1")], drains);
    let snapshot = maps.snapshot().unwrap();
    assert_eq!(snapshot.vips[&key("10.9.0.1")].flags, vip_flag::POOL);
    assert_eq!(snapshot.config.features & both, feature::POOL_V6);
    // And is taken up again where it was.
    apply(
        &mut maps,
        &with_pool(&["10.9.0.1", "fd00::9"], (2000, 2399), full),
    );
    assert_eq!(maps.snapshot().unwrap().pools[&key("10.9.0.1")], entry(1));
}

#[test]
fn other_ports_for_an_address_that_is_there_and_addresses_of_this_node_are_refused() {
    let mut maps = FakeMaps::new(CAPACITY.slots);
    let full = ForwardingMethod::FullNat;
    apply(&mut maps, &with_pool(&["10.9.0.1"], (2000, 2399), full));
    let error = refused(
        &maps,
        &with_pool(&["10.9.0.1"], (2000, 2499), full),
        &runtime(),
    );
    assert!(
        error.to_string().contains("has the ports 2000-2399"),
        "{error}"
    );
    let own = OwnAddress {
        address: "10.9.0.2".parse().unwrap(),
        prefix_bits: 24,
        ifindex: 9,
    };
    let runtime = Runtime {
        addresses: vec![own],
        ..runtime()
    };
    let error = refused(&maps, &with_pool(&["10.9.0.2"], (1, 9), full), &runtime);
    assert!(
        error.to_string().contains("10.9.0.2 is this node's own"),
        "{error}"
    );
}

#[test]
fn clients_on_the_link_of_a_nat_backend_are_local_and_others_are_not() {
    let backend = one_pool([1, 2], vec![]).pools["p"].backends[0].address;
    let link = runtime().links[0].ifindex;
    let own = |address: &str, prefix_bits, ifindex| OwnAddress {
        address: address.parse().unwrap(),
        prefix_bits,
        ifindex,
    };
    let IpAddr::V4(v4) = backend else {
        panic!("of IPv4")
    };
    let [a, b, c, _] = v4.octets();
    let near = format!("{a}.{b}.{c}.254");
    let local = |method, addresses: Vec<OwnAddress>| {
        let maps = FakeMaps::new(CAPACITY.slots);
        let runtime = Runtime {
            addresses,
            ..runtime()
        };
        let model = with_pool(&["10.9.0.1"], (2000, 2009), method);
        let desired = wanted(&maps, &model, &runtime, &BTreeSet::new());
        let flags = desired.services.values().next().unwrap().flags;
        let prefixes: Vec<LocalPrefix> = desired.local.keys().copied().collect();
        (prefixes, flags & service_flag::LOCAL != 0)
    };
    let (prefixes, asks) = local(ForwardingMethod::Nat, vec![own(&near, 24, link)]);
    assert!(asks);
    assert_eq!(prefixes.len(), 1);
    assert_eq!(prefixes[0].prefix_bits, 32 + 24);
    let network = prefixes[0].key.address.to_ip(4);
    assert_eq!(network.to_string(), format!("{a}.{b}.{c}.0"));
    for (method, address) in [
        (ForwardingMethod::FullNat, own(&near, 24, link)),
        (ForwardingMethod::L2Dsr, own(&near, 24, link)),
        (ForwardingMethod::Nat, own("172.30.0.1", 24, link)),
        (ForwardingMethod::Nat, own(&near, 24, link + 100)),
        (ForwardingMethod::Nat, own(&near, 32, link)),
        (ForwardingMethod::Nat, own("fd00::1", 64, link)),
    ] {
        let what = format!("{method:?} {address:?}");
        assert_eq!(local(method, vec![address]), (vec![], false), "{what}");
    }
    let (prefixes, _) = local(ForwardingMethod::Nat, vec![own(&near, 0, link)]);
    assert_eq!(prefixes[0].prefix_bits, 32, "everything");
}
