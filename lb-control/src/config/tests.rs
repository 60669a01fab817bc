use std::{path::PathBuf, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::model::{Defence, OnBackendDown, Ports, Prefix, Replies};

const GOOD: &str = r#"
interfaces: [{name: eth0}]
pools:
  web:
    backends:
      - {name: a, address: 10.0.1.11, port: 8080}
      - name: b
        address: 10.0.1.12
        port: 8080
    health: [{type: tcp}]
services:
  - {name: shop, address: 203.0.113.10, port: 80, protocol: tcp, forwarding: nat, pool: web}
"#;

/// `GOOD` with one thing changed, and the errors it then has.
fn errors_after(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from:?} isn't in the good file");
    match parse(&GOOD.replacen(from, to, 1), "f.yaml") {
        Ok(_) => "none".into(),
        Err(errors) => errors.to_string(),
    }
}

fn good_after(from: &str, to: &str) -> Model {
    assert!(GOOD.contains(from), "{from:?} isn't in the good file");
    parse(&GOOD.replacen(from, to, 1), "f.yaml").unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn full_nat_needs_addresses_that_are_nobody_elses_and_room_for_their_ports() {
    let with = |full_nat: &str| {
        let text = GOOD.replace("forwarding: nat", "forwarding: full-nat");
        let text = text.replacen("\npools:", &format!("\n{full_nat}\npools:"), 1);
        match parse(&text, "f.yaml") {
            Ok(_) => "none".into(),
            Err(errors) => errors.to_string(),
        }
    };
    for (full_nat, expected) in [
        ("full_nat: {addresses: [10.0.1.200]}", "none"),
        (
            "",
            "services[0].forwarding: full-nat needs an address to send from: give one of IPv4",
        ),
        (
            "full_nat: {addresses: [\"fd00::1\"]}",
            "services[0].forwarding: full-nat needs an address to send from: give one of IPv4",
        ),
        (
            "full_nat: {addresses: []}",
            "full_nat.addresses: found an empty list; allowed: at least one address",
        ),
        (
            "full_nat: {ports: \"1-2\"}",
            "full_nat: `addresses` is missing",
        ),
        (
            "full_nat: {addresses: [10.0.1.200], ports: \"9-3\"}",
            "full_nat.ports: found \"9-3\"; allowed: a range of ports such as \"1024-65535\"",
        ),
        (
            "full_nat: {addresses: [203.0.113.10]}",
            "full_nat.addresses[0]: 203.0.113.10 is the address of service \"shop\"",
        ),
        (
            "full_nat: {addresses: [10.0.1.11]}",
            "full_nat.addresses[0]: 10.0.1.11 is backend \"a\" of pool \"web\"",
        ),
        (
            "full_nat: {addresses: [10.0.1.200, 10.0.1.200]}",
            "full_nat.addresses[1]: 10.0.1.200 is listed twice",
        ),
        (
            "full_nat: {addresses: [10.0.1.200, 10.0.1.201, 10.0.1.202]}",
            "full_nat.addresses: 3 addresses with 64512 ports each are 193536, dataplane.max_bindings is 131072",
        ),
    ] {
        let found = with(full_nat);
        assert!(found.contains(expected), "{full_nat}: {found}");
    }
    // A reply's destination tells which of the ports it belongs to.
    let several = GOOD
        .replace("port: 80,", "port: [80, 81],")
        .replace("[{type: tcp}]", "[{type: tcp, port: 8080}]");
    let error = parse(&several, "f.yaml").unwrap_err().to_string();
    assert!(error.contains("or use full-nat"), "{error}");
    let full = several
        .replace("forwarding: nat", "forwarding: full-nat")
        .replacen(
            "\npools:",
            "\nfull_nat: {addresses: [10.0.1.200]}\npools:",
            1,
        );
    assert!(parse(&full, "f.yaml").is_ok());
    let model = good_after(
        "\npools:",
        "\nfull_nat: {addresses: [10.0.1.200], ports: \"5000-5009\"}\npools:",
    );
    let pool = model.full_nat.unwrap();
    assert_eq!(
        (pool.first_port, pool.last_port, pool.ports()),
        (5000, 5009, 10)
    );
    let found = errors_after("pool: web}", "pool: web, replies: flow}");
    assert_eq!(found, "none");
    let text = GOOD.replace("forwarding: nat", "forwarding: full-nat, replies: flow");
    let found = parse(&text, "f.yaml").unwrap_err().to_string();
    assert!(
        found.contains("a reply's destination tells its flow"),
        "{found}"
    );
}

#[test]
fn every_error_names_its_place_what_was_found_and_what_is_allowed() {
    let second = "\n  - {name: api, address: 203.0.113.10, port: [79-81], protocol: tcp, forwarding: nat, pool: web}\n";
    let cases: &[(&str, &str, &str)] = &[
        (
            "port: 80,",
            "port: 0,",
            "f.yaml:12:47: services[0].port: found `0`; allowed: a port from 1 to 65535, a range such as \"8000-8100\", a list of these without overlap, or any",
        ),
        (
            "forwarding: nat",
            "forwading: nat",
            "f.yaml:12:5: services[0]: `forwarding` is missing\nf.yaml:12:66: services[0].forwading: unknown key `forwading`; did you mean `forwarding`?",
        ),
        (
            "        port: 8080",
            "        prt: 8080",
            "f.yaml:9:9: pools.web.backends[1].prt: unknown key `prt`; did you mean `port`?",
        ),
        (
            "type: tcp",
            "type: tls",
            "f.yaml:10:21: pools.web.health[0].type: found \"tls\"; allowed: ping, tcp, udp, http, https, dns, smtp, exec, agent, snmp",
        ),
        (
            "pool: web}",
            "pool: wbe}",
            "f.yaml:12:89: services[0].pool: there is no pool \"wbe\"; did you mean \"web\"?",
        ),
        (
            "10.0.1.11",
            "\"::ffff:1.2.3.4\"",
            "f.yaml:6:28: pools.web.backends[0].address: found \"::ffff:1.2.3.4\"; an IPv4 address in IPv6 form never occurs in packets; write it as IPv4; allowed: the unicast address of a host",
        ),
        (
            "forwarding: nat",
            "forwarding: l2-dsr",
            "f.yaml:12:92: services[0].pool: backend \"a\" has port 8080, but l2-dsr doesn't rewrite ports; leave the backend's port out, or use nat\nf.yaml:12:92: services[0].pool: backend \"b\" has port 8080, but l2-dsr doesn't rewrite ports; leave the backend's port out, or use nat",
        ),
        (
            "forwarding: nat",
            "forwarding: gue, replies: flow",
            "f.yaml:12:92: services[0].replies: is for nat; with gue replies don't pass here: remove it\nf.yaml:12:104: services[0].pool: backend \"a\" has port 8080, but gue doesn't rewrite ports; leave the backend's port out, or use nat\nf.yaml:12:104: services[0].pool: backend \"b\" has port 8080, but gue doesn't rewrite ports; leave the backend's port out, or use nat",
        ),
        (
            "10.0.1.12",
            "2001:db8::12",
            "f.yaml:12:89: services[0].pool: backend \"b\" (2001:db8::12) and the service's address 203.0.113.10 are not of the same family, and nat doesn't translate between them; use a pool of the service's family, or ipip or gue",
        ),
        (
            "\npools:",
            "\ndataplane: {tunnel: {source_v4: 198.18.0.1/16}}\npools:",
            "f.yaml:3:33: dataplane.tunnel.source_v4: found \"198.18.0.1/16\"; allowed: an IPv4 prefix of unicast addresses, /8 to /32, without bits behind its length, such as \"198.18.0.0/16\"",
        ),
        (
            "\npools:",
            "\ndataplane: {tunnel: {source_v6: \"2001:db8::/48\"}}\npools:",
            "f.yaml:3:33: dataplane.tunnel.source_v6: found \"2001:db8::/48\"; allowed: an IPv6 prefix of unicast addresses, /64 to /128, without bits behind its length, such as \"100::/64\"",
        ),
        (
            "\npools:",
            "\ndataplane: {tunnel: {port: 6080}}\npools:",
            "f.yaml:3:22: dataplane.tunnel.port: unknown key `port`; allowed: source_v4, source_v6, gue_port",
        ),
        (
            "pool: web}\n",
            &format!("pool: web}}{second}"),
            "f.yaml:13:46: services[1].port: 203.0.113.10 tcp port 80 belongs to both \"shop\" and \"api\"; a packet can have one service only",
        ),
        (
            "name: b",
            "name: a",
            "f.yaml:7:15: pools.web.backends[1].name: the name \"a\" is taken by an earlier backend of this pool",
        ),
        (
            "name: eth0",
            "name: an-interface-name",
            "f.yaml:2:21: interfaces[0].name: found \"an-interface-name\"; allowed: the name of an interface, at most 15 bytes without '/'",
        ),
        (
            "{type: tcp}",
            "{type: tcp, timeout: 3s}",
            "f.yaml:10:14: pools.web.health[0]: timeout 3s is longer than interval 2s; a check has to end before the next begins: raise the interval or lower the timeout",
        ),
        (
            "\npools:",
            "\ndataplane: {when_daemon_dead: no}\npools:",
            "f.yaml:3:31: dataplane.when_daemon_dead: found \"no\"; allowed: keep, yield",
        ),
        (
            "\npools:",
            "\ndataplane: {max_slots: 1024, tcp_idle: 3h}\npools:",
            "f.yaml:3:40: dataplane.tcp_idle: found \"3h\"; allowed: a time from 10s to 2h15m, such as \"10s\", \"500ms\" or \"2h15m\"",
        ),
        (
            "\npools:",
            "\ndns: []\npools:",
            "f.yaml:3:1: dns: `dns` is not supported by this version yet; remove it",
        ),
        (
            "\npools:",
            "\ndataplane: {pin_dir: /sys/fs/bpf/lb.1}\npools:",
            "f.yaml:3:22: dataplane.pin_dir: found \"/sys/fs/bpf/lb.1\"; allowed: an absolute path whose last part has no '.' (a BPF file system refuses it)",
        ),
        (
            "pool: web}",
            "pool: web, table_size: 1000}",
            "f.yaml:12:106: services[0].table_size: found `1000`; allowed: a prime, such as 1009",
        ),
        (
            "pool: web}",
            "pool: web, allow: [10.0.0.1/8]}",
            "f.yaml:12:102: services[0].allow[0]: found \"10.0.0.1/8\"; the address has bits behind the prefix; allowed: 10.0.0.0/8, or the address alone",
        ),
        (
            "pool: web}",
            "pool: web, deny: [10.0.0.0/33]}",
            "f.yaml:12:101: services[0].deny[0]: found \"10.0.0.0/33\"; allowed: a length from 0 to 32",
        ),
        (
            "pool: web}",
            "pool: web, deny: [\"2001:db8::/32\"]}",
            "f.yaml:12:101: services[0].deny[0]: 2001:db8::/32 and the service's address 203.0.113.10 are not of the same family, so no packet can match; remove it",
        ),
        (
            "pool: web}",
            "pool: web, allow: [10.0.0.0/8], deny: [192.0.2.1, 10.0.0.0/8]}",
            "f.yaml:12:133: services[0].deny[1]: 10.0.0.0/8 is in `allow`, too; a prefix can be in one list only",
        ),
        (
            "pool: web}",
            "pool: web, deny: [192.0.2.1, 192.0.2.1/32]}",
            "f.yaml:12:112: services[0].deny[1]: 192.0.2.1/32 is listed twice; remove one",
        ),
        (
            "pool: web}",
            "pool: web, allow: []}",
            "f.yaml:12:101: services[0].allow: found an empty list; allowed: at least one prefix; for everybody leave it out",
        ),
        (
            "pool: web}",
            "pool: web, limits: {new_flows_per_core: 0}}",
            "f.yaml:12:123: services[0].limits.new_flows_per_core: found `0`; allowed: a number from 1 to 1000000",
        ),
        (
            "pool: web}",
            "pool: web, on_backend_down: drop}",
            "f.yaml:12:111: services[0].on_backend_down: found \"drop\"; allowed: keep, rehash, reset",
        ),
        (
            "protocol: tcp, forwarding: nat, pool: web}",
            "protocol: udp, forwarding: nat, pool: web, limits: {new_flows_per_source: 9}, on_backend_down: reset}",
            "f.yaml:12:102: services[0].limits: under `udp: stateless` flows are not tracked, so a new one can't be told from others; use `udp: tracked`, or `udp: quic` where it is QUIC, or remove it\nf.yaml:12:146: services[0].on_backend_down: UDP has no reset; its flows move at once: remove it",
        ),
    ];
    let mut wrong = String::new();
    for (from, to, expected) in cases {
        // Several ports need the backends' own port to be left out.
        let found = errors_after(from, to);
        let found = found
            .lines()
            .filter(|l| !l.contains("fixed port"))
            .collect::<Vec<_>>()
            .join("\n");
        if found != *expected {
            wrong.push_str(&format!(
                "{to:?}\n  found    {found}\n  expected {expected}\n"
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn defaults_are_filled_in() {
    let model = good_after("80", "80");
    assert_eq!(model.dataplane.tcp_idle, Duration::from_secs(8_100));
    assert_eq!(model.dataplane.max_slots, 4_194_304);
    let check = &model.pools["web"].health[0];
    assert_eq!((check.interval.as_secs(), check.timeout.as_secs()), (2, 1));
    assert_eq!((check.rise, check.fall), (2, 3));
    let service = &model.services[0];
    assert_eq!(
        (service.table_size, service.table_size_is_explicit),
        (1_021, false)
    );
    assert_eq!(service.replies, Replies::Port);
}

/// A file with a service through a tunnel, and these lines before it.
fn tunnelled(vip: &str, backend: &str, tunnel: &str) -> String {
    format!(
        "interfaces: [{{name: eth0}}]\n\
         dataplane: {{tunnel: {{{tunnel}}}}}\n\
         pools: {{web: {{backends: [{{name: a, address: \"{backend}\"}}]}}}}\n\
         services:\n  \
         - {{name: shop, address: \"{vip}\", port: 80, protocol: tcp, forwarding: ipip, pool: web}}\n"
    )
}

#[test]
fn a_tunnel_leads_to_either_family() {
    for vip in ["203.0.113.10", "2001:db8::10"] {
        for backend in ["10.0.1.11", "2001:db8:1::11"] {
            let model = parse(&tunnelled(vip, backend, ""), "f.yaml");
            let model = model.unwrap_or_else(|errors| panic!("{errors}"));
            assert_eq!(model.dataplane.tunnel, crate::model::Tunnel::default());
        }
    }
}

#[test]
fn a_tunnels_source_is_no_backends_and_no_vips_address() {
    let errors = |vip, backend, tunnel| match parse(&tunnelled(vip, backend, tunnel), "f.yaml") {
        Ok(_) => "none".into(),
        Err(errors) => errors.to_string(),
    };
    assert_eq!(
        errors("203.0.113.10", "10.9.1.11", "source_v4: 10.9.0.0/16"),
        "f.yaml:2:33: dataplane.tunnel.source_v4: 10.9.0.0/16 holds 10.9.1.11, the address of backend \"a\"; \
         tunnels need source addresses that neither a backend nor a VIP has"
    );
    assert_eq!(
        errors(
            "2001:db8::10",
            "10.9.1.11",
            "source_v6: \"2001:db8::10/128\""
        ),
        "f.yaml:2:33: dataplane.tunnel.source_v6: 2001:db8::10/128 holds 2001:db8::10, the address of \
         service \"shop\"; tunnels need source addresses that neither a backend nor a VIP has"
    );
    assert_eq!(
        errors("203.0.113.10", "10.9.1.11", "source_v4: 10.8.0.0/16"),
        "none"
    );
    assert_eq!(
        errors("203.0.113.10", "10.9.1.11", "source_v4: 10.9.1.12/32"),
        "none"
    );
    // The default has to be stated differently then, too.
    let of_default = errors("203.0.113.10", "198.18.7.7", "");
    assert!(
        of_default.contains("198.18.0.0/16 holds 198.18.7.7"),
        "{of_default}"
    );
}

#[test]
fn sources_and_limits_are_read() {
    let service = "pool: web, allow: [10.0.0.0/8, 192.0.2.1], deny: [0.0.0.0/0], \
                   limits: {new_flows_per_core: 7}, on_backend_down: rehash}";
    let service = &good_after("pool: web}", service).services[0];
    let shown = |list: &[Prefix]| list.iter().map(Prefix::to_string).collect::<Vec<_>>();
    let defence = &service.defence;
    assert_eq!(shown(&defence.allow), ["10.0.0.0/8", "192.0.2.1/32"]);
    assert_eq!(shown(&defence.deny), ["0.0.0.0/0"]);
    assert_eq!(
        (defence.new_flows_per_core, defence.new_flows_per_source),
        (Some(7), None)
    );
    assert_eq!(service.on_backend_down, OnBackendDown::Rehash);
    let plain = &good_after("80", "80").services[0];
    assert_eq!(plain.defence, Defence::default());
    assert_eq!(plain.on_backend_down, OnBackendDown::Keep);
}

#[test]
fn as_many_prefixes_as_there_is_room_for() {
    let list: Vec<String> = (0..1024)
        .map(|n| format!("10.{}.{}.0/24", n / 256, n % 256))
        .collect();
    let text = |key: &str| {
        GOOD.replace(
            "\npools:",
            "\ndataplane: {max_source_prefixes: 1024}\npools:",
        )
        .replace(
            "pool: web}",
            &format!("pool: web, {key}: [{}]}}", list.join(", ")),
        )
    };
    assert_eq!(
        parse(&text("deny"), "f.yaml").unwrap().services[0]
            .defence
            .deny
            .len(),
        1024
    );
    // One more for everybody else.
    let errors = parse(&text("allow"), "f.yaml").unwrap_err().to_string();
    assert!(errors.contains("the file has 1025 prefixes"), "{errors}");
}

#[test]
fn replies_need_flows_where_a_backend_port_has_two_services() {
    let shared = "pool: web}\n  - {name: api, address: 203.0.113.11, port: 80, protocol: tcp, forwarding: nat, pool: web}";
    let model = good_after("pool: web}", shared);
    assert!(
        model
            .services
            .iter()
            .all(|service| service.replies == Replies::Flow)
    );
    let errors = errors_after(
        "pool: web}",
        &shared.replacen("web}", "web, replies: port}", 1),
    );
    assert!(
        errors.contains("`port` is impossible here: service \"api\""),
        "{errors}"
    );
}

#[test]
fn ports_are_sorted_ranges() {
    let text = GOOD
        .replace(", port: 8080", "")
        .replace("        port: 8080\n", "");
    let text = text.replace("type: tcp}", "type: tcp, port: 80}");
    let text = text.replace("port: 80,", "port: [443, 8000-8100, 80],");
    let model = parse(&text, "f.yaml").unwrap();
    let ranges = vec![(80, 80), (443, 443), (8_000, 8_100)];
    assert_eq!(model.services[0].ports, Ports::Ranges(ranges));
    assert_eq!(model.services[0].replies, Replies::Flow);
}

#[test]
fn a_repeated_key_is_an_error() {
    let errors = errors_after("port: 80,", "port: 80, port: 81,");
    assert!(
        errors.contains("duplicate entry with key \"port\""),
        "{errors}"
    );
}

#[test]
fn a_file_that_expands_without_end_is_refused() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for i in 1..30 {
        let last = format!("*a{}, ", i - 1).repeat(9);
        text.push_str(&format!("a{i}: &a{i} [{last}]\n"));
    }
    assert!(parse(&text, "f.yaml").is_err());
}

#[test]
fn every_example_is_a_good_configuration() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut count = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "yaml")
        {
            load(&path).unwrap_or_else(|errors| panic!("{errors}"));
            count += 1;
        }
    }
    assert!(count > 0, "no examples were found");
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in any::<String>()) {
        let _ = parse(&text, "f.yaml");
    }

    #[test]
    fn no_damage_to_a_good_file_makes_it_panic(
        at in 0..GOOD.len(), length in 0_usize..30, new in "[-a-z0-9:,\\[\\]{}&*!|> \n\"']{0,8}",
    ) {
        let mut text = GOOD.to_owned();
        text.replace_range(at..(at + length).min(GOOD.len()), &new);
        let _ = parse(&text, "f.yaml");
    }
}
