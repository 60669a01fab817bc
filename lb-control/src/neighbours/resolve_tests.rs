use super::*;

const BACKEND: &str = "10.0.0.9";
const GATEWAY: &str = "10.0.0.1";
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 10];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn link(ifindex: u32, name: &str) -> Link {
    Link {
        name: name.to_owned(),
        ifindex,
        mac: [2, 0, 0, 0, 1, ifindex as u8],
        mtu: 1500,
        up: true,
        kind: None,
        master: None,
        vlan: None,
        forwards: true,
    }
}

fn target(address: &str, on_link_only: bool) -> Target {
    Target {
        address: ip(address),
        on_link_only,
    }
}

fn via(ifindex: u32, gateway: Option<&str>) -> Route {
    Route::Via {
        ifindex,
        gateway: gateway.map(ip),
        mtu: None,
    }
}

fn known(mac: [u8; 6]) -> Neighbour {
    Neighbour {
        state: NeighbourState::Known,
        mac: Some(mac),
    }
}

fn without_mac(state: NeighbourState) -> Neighbour {
    Neighbour { state, mac: None }
}

fn actions(resolver: &mut Resolver) -> Vec<Action> {
    std::iter::from_fn(|| resolver.next_action()).collect()
}

fn hop(resolver: &Resolver, address: &str) -> Result<Hop, Unresolved> {
    resolver.view().hops[&ip(address)].clone()
}

/// `eth0` (2) is managed, `eth9` (9) is not.
fn resolver(targets: &[Target]) -> Resolver {
    let mut resolver = Resolver::new(["eth0".to_owned()]);
    resolver.begin_dump();
    resolver.handle_link(link(2, "eth0"));
    resolver.handle_link(link(9, "eth9"));
    resolver.end_of_dump();
    resolver.set_targets(targets);
    resolver
}

/// With the backend resolved on `eth0`.
fn resolved() -> Resolver {
    let mut resolver = resolver(&[target(BACKEND, true)]);
    resolver.handle_route(ip(BACKEND), via(2, None));
    resolver.handle_neighbour((2, ip(BACKEND)), known(MAC));
    actions(&mut resolver);
    resolver
}

#[test]
fn a_new_target_is_looked_up_once_and_pending_till_then() {
    let mut resolver = resolver(&[target(BACKEND, true)]);
    resolver.set_targets(&[target(BACKEND, true)]);
    assert_eq!(actions(&mut resolver), [Action::LookUp(ip(BACKEND))]);
    assert_eq!(hop(&resolver, BACKEND), Err(Unresolved::Pending));
}

#[test]
fn a_backend_on_the_link_is_kept_resolved_and_used_when_known() {
    let mut resolver = resolver(&[target(BACKEND, true)]);
    actions(&mut resolver);
    resolver.handle_route(ip(BACKEND), via(2, None));
    assert_eq!(actions(&mut resolver), [Action::Keep((2, ip(BACKEND)))]);
    assert!(matches!(
        hop(&resolver, BACKEND),
        Err(Unresolved::Resolving { .. })
    ));
    resolver.handle_neighbour((2, ip(BACKEND)), known(MAC));
    let expected = Hop {
        mac: MAC,
        ifindex: 2,
        mtu: 1500,
    };
    assert_eq!(hop(&resolver, BACKEND), Ok(expected));
}

#[test]
fn a_backend_behind_a_router_takes_the_routers_mac() {
    let mut resolver = resolver(&[target("203.0.113.5", false)]);
    actions(&mut resolver);
    resolver.handle_route(ip("203.0.113.5"), via(2, Some(GATEWAY)));
    assert_eq!(actions(&mut resolver), [Action::Keep((2, ip(GATEWAY)))]);
    resolver.handle_neighbour((2, ip(GATEWAY)), known(MAC));
    assert_eq!(hop(&resolver, "203.0.113.5").unwrap().mac, MAC);
}

#[test]
fn l2_dsr_through_a_router_is_refused_with_the_reason() {
    let mut resolver = resolver(&[target("203.0.113.5", true)]);
    resolver.handle_route(ip("203.0.113.5"), via(2, Some(GATEWAY)));
    let text = hop(&resolver, "203.0.113.5").unwrap_err().to_string();
    assert_eq!(
        text,
        "reached through the router 10.0.0.1 on eth0; L2 DSR needs it on a link of this machine"
    );
}

#[test]
fn a_link_that_is_not_managed_is_refused_by_name() {
    let mut resolver = resolver(&[target(BACKEND, false)]);
    actions(&mut resolver);
    resolver.handle_route(ip(BACKEND), via(9, None));
    assert_eq!(actions(&mut resolver), [], "nothing to keep there");
    assert_eq!(
        hop(&resolver, BACKEND).unwrap_err().to_string(),
        "reached over eth9, which isn't under interfaces"
    );
}

#[test]
fn an_address_of_this_machine_and_one_without_a_route_say_so() {
    let mut resolver = resolver(&[target("10.0.0.2", false), target("198.51.100.1", false)]);
    resolver.handle_route(ip("10.0.0.2"), Route::Local);
    resolver.handle_route(
        ip("198.51.100.1"),
        Route::None("network unreachable".into()),
    );
    assert_eq!(hop(&resolver, "10.0.0.2"), Err(Unresolved::Local));
    assert_eq!(
        hop(&resolver, "198.51.100.1").unwrap_err().to_string(),
        "no route: network unreachable"
    );
}

#[test]
fn another_mac_is_used_as_soon_as_the_kernel_names_it() {
    let mut resolver = resolved();
    resolver.handle_neighbour((2, ip(BACKEND)), known(OTHER_MAC));
    assert_eq!(hop(&resolver, BACKEND).unwrap().mac, OTHER_MAC);
}

#[test]
fn a_failed_neighbour_stays_failed_through_further_attempts() {
    let mut resolver = resolved();
    resolver.handle_neighbour((2, ip(BACKEND)), without_mac(NeighbourState::Failed));
    resolver.handle_neighbour((2, ip(BACKEND)), without_mac(NeighbourState::Resolving));
    assert_eq!(
        hop(&resolver, BACKEND).unwrap_err().to_string(),
        "10.0.0.9 on eth0 doesn't answer ARP"
    );
    resolver.handle_neighbour((2, ip(BACKEND)), known(MAC));
    assert_eq!(hop(&resolver, BACKEND).unwrap().mac, MAC);
}

#[test]
fn a_deleted_entry_is_made_anew() {
    let mut resolver = resolved();
    resolver.handle_neighbour_gone((2, ip(BACKEND)));
    assert_eq!(actions(&mut resolver), [Action::Keep((2, ip(BACKEND)))]);
}

#[test]
fn a_permanent_entry_is_used_and_never_touched() {
    let mut resolver = resolver(&[target(BACKEND, true)]);
    actions(&mut resolver);
    resolver.handle_neighbour(
        (2, ip(BACKEND)),
        Neighbour {
            state: NeighbourState::Permanent,
            mac: Some(MAC),
        },
    );
    resolver.handle_route(ip(BACKEND), via(2, None));
    assert_eq!(actions(&mut resolver), []);
    assert_eq!(hop(&resolver, BACKEND).unwrap().mac, MAC);
}

#[test]
fn another_gateway_releases_the_old_one() {
    let mut resolver = resolver(&[target("203.0.113.5", false)]);
    resolver.handle_route(ip("203.0.113.5"), via(2, Some(GATEWAY)));
    actions(&mut resolver);
    resolver.handle_route(ip("203.0.113.5"), via(2, Some("10.0.0.2")));
    assert_eq!(
        actions(&mut resolver),
        [
            Action::Release((2, ip(GATEWAY))),
            Action::Keep((2, ip("10.0.0.2")))
        ]
    );
}

#[test]
fn a_target_that_is_gone_is_released() {
    let mut resolver = resolved();
    resolver.set_targets(&[]);
    assert_eq!(actions(&mut resolver), [Action::Release((2, ip(BACKEND)))]);
    assert!(resolver.view().hops.is_empty());
}

#[test]
fn only_targets_within_a_changed_prefix_are_looked_up_again() {
    let mut resolver = resolver(&[
        target("10.0.0.9", false),
        target("10.0.1.9", false),
        target("2001:db8::9", false),
    ]);
    actions(&mut resolver);
    resolver.handle_routing_change(Some((ip("10.0.1.0"), 24)));
    assert_eq!(actions(&mut resolver), [Action::LookUp(ip("10.0.1.9"))]);
    resolver.handle_routing_change(Some((ip("2001:db8::"), 32)));
    assert_eq!(actions(&mut resolver), [Action::LookUp(ip("2001:db8::9"))]);
    resolver.handle_routing_change(Some((ip("0.0.0.0"), 0)));
    assert_eq!(actions(&mut resolver).len(), 2);
}

#[test]
fn a_link_that_goes_down_and_up_again_is_said_and_looked_up() {
    let mut resolver = resolved();
    resolver.handle_link(Link {
        up: false,
        ..link(2, "eth0")
    });
    assert_eq!(
        hop(&resolver, BACKEND).unwrap_err().to_string(),
        "eth0 is down"
    );
    actions(&mut resolver);
    resolver.handle_neighbour_gone((2, ip(BACKEND)));
    resolver.handle_link(link(2, "eth0"));
    assert_eq!(
        actions(&mut resolver),
        [Action::LookUp(ip(BACKEND)), Action::Keep((2, ip(BACKEND)))]
    );
}

#[test]
fn a_link_message_that_changes_nothing_asks_the_kernel_nothing() {
    let mut resolver = resolved();
    resolver.handle_link(link(2, "eth0"));
    assert_eq!(actions(&mut resolver), []);
}

#[test]
fn after_a_dump_lost_deletions_are_noticed() {
    let mut resolver = resolved();
    resolver.begin_dump();
    resolver.handle_link(link(2, "eth0"));
    resolver.end_of_dump();
    let todo = actions(&mut resolver);
    assert!(todo.contains(&Action::Keep((2, ip(BACKEND)))), "{todo:?}");
}

#[test]
fn the_view_lists_managed_links_only() {
    let names: Vec<String> = resolved()
        .view()
        .links
        .into_iter()
        .map(|link| link.name)
        .collect();
    assert_eq!(names, ["eth0"]);
}

#[test]
fn ten_thousand_targets_are_kept_without_quadratic_work() {
    let targets: Vec<Target> = (0..10_000_u32)
        .map(|n| Target {
            address: IpAddr::V4((0x0a00_0000 + n).into()),
            on_link_only: true,
        })
        .collect();
    let mut resolver = resolver(&targets);
    assert_eq!(actions(&mut resolver).len(), targets.len());
    for target in &targets {
        resolver.handle_route(target.address, via(2, None));
    }
    assert_eq!(actions(&mut resolver).len(), targets.len());
    resolver.handle_neighbour((2, targets[5].address), known(MAC));
    assert_eq!(actions(&mut resolver), [], "an event costs nothing");
}

#[test]
fn the_loss_of_a_managed_link_is_told_once_and_no_other_change_is() {
    let down = |ifindex, name| Link {
        up: false,
        ..link(ifindex, name)
    };
    let mut resolver = resolver(&[]);
    assert!(!resolver.take_link_loss(), "they were found");
    resolver.handle_link(down(9, "eth9"));
    assert!(!resolver.take_link_loss(), "it isn't managed");
    resolver.handle_link(down(2, "eth0"));
    assert!(resolver.take_link_loss());
    assert!(!resolver.take_link_loss());
    resolver.handle_link(down(2, "eth0"));
    assert!(!resolver.take_link_loss(), "it was down before");
    resolver.handle_link(link(2, "eth0"));
    assert!(!resolver.take_link_loss(), "it came up");
    resolver.handle_link_gone(2);
    assert!(resolver.take_link_loss());
}
