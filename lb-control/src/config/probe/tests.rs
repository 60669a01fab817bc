use super::*;
use crate::{config::parse, model::HttpMethod};

fn check(keys: &str) -> Result<CheckKind, String> {
    let text = format!(
        "interfaces: [{{name: eth0}}]\n\
         pools: {{web: {{backends: [{{name: a, address: 10.0.1.11, port: 80}}], health: [{{{keys}}}]}}}}\n\
         services: []\n"
    );
    match parse(&text, "f.yaml") {
        Ok(model) => Ok(model.pools["web"].health[0].kind.clone()),
        Err(errors) => Err(errors.to_string()),
    }
}

#[test]
fn an_http_check_has_defaults_and_takes_everything_else_from_the_file() {
    let CheckKind::Http(plain) = check("type: http").unwrap() else {
        panic!("no HTTP check");
    };
    assert_eq!(
        (
            plain.method,
            plain.path.as_str(),
            &plain.host,
            &plain.expect.status[..]
        ),
        (HttpMethod::Get, "/", &None, &[(200, 299)][..])
    );
    assert!(plain.headers.is_empty() && !plain.expect.needs_body());
    let all = "type: http, path: \"/x?y=1\", host: shop.example, method: GET, headers: {X-A: 1, x-b: two}, \
               expect: {status: [200, \"301-302\"], headers: {x-c: d}, body_contains: ok, body_regex: \"^o\"}";
    let CheckKind::Http(full) = check(all).unwrap_or_else(|e| panic!("{e}")) else {
        panic!("no HTTP check");
    };
    assert_eq!(full.path, "/x?y=1");
    assert_eq!(full.host.as_deref(), Some("shop.example"));
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(full.headers, [pair("X-A", "1"), pair("x-b", "two")]);
    assert_eq!(full.expect.status, [(200, 200), (301, 302)]);
    assert_eq!(full.expect.headers, [pair("x-c", "d")]);
    assert!(full.expect.needs_body());
}

#[test]
fn what_makes_no_sense_is_refused_with_its_place() {
    for (keys, expected) in [
        (
            "type: tcp, path: /x",
            "health[0].path: is for checks of type http, https and agent; remove it",
        ),
        (
            "type: http, path: x",
            "health[0].path: found \"x\"; allowed: a path from the slash on",
        ),
        (
            "type: http, path: \"/a b\"",
            "health[0].path: found \"/a b\"",
        ),
        (
            "type: http, method: POST",
            "health[0].method: found \"POST\"; allowed: GET, HEAD",
        ),
        (
            "type: http, headers: {\"a b\": c}",
            "\"a b\" is no name of a header",
        ),
        (
            "type: http, headers: {a: \"b\\nc\"}",
            "allowed: text without control characters",
        ),
        (
            "type: http, expect: {status: 99}",
            "expect.status: found `99`; allowed: status codes",
        ),
        (
            "type: http, expect: {status: [200, \"299-200\"]}",
            "and not \"299-200\"",
        ),
        (
            "type: http, expect: {body_regex: \"(\"}",
            "expect.body_regex: found \"(\"; allowed: a regular expression",
        ),
        (
            "type: http, expect: {boddy_contains: x}",
            "did you mean `body_contains`?",
        ),
        (
            "type: http, method: HEAD, expect: {body_contains: x}",
            "HEAD gets no body",
        ),
        (
            "type: http, ca_file: /x",
            "health[0].ca_file: is for checks of type https and smtp; remove it",
        ),
        (
            "type: tcp, insecure: true",
            "health[0].insecure: is for checks of type https and smtp; remove it",
        ),
        ("type: https, ca_file: x", "health[0].ca_file: found \"x\""),
        (
            "type: https, insecure: true, ca_file: /x",
            "health[0].insecure: takes any certificate",
        ),
        (
            "type: https, key_file: /x",
            "certificate_file and key_file belong together",
        ),
        (
            "type: https, server_name: \"a b\"",
            "health[0].server_name: found \"a b\"",
        ),
        ("type: ping, port: 1", "health[0].port: pings have no port"),
        (
            "type: ping, packet_size: 67",
            "packet_size: found `67`; allowed: a number from 68",
        ),
        ("type: udp", "give the check `send` or `send_hex`"),
        (
            "type: udp, send: x, send_hex: \"00\"",
            "send_hex: `send` is given, too",
        ),
        (
            "type: udp, send_hex: \"abc\"",
            "found \"abc\"; allowed: bytes in hexadecimal",
        ),
        (
            "type: udp, send: x, answer: no",
            "allowed: required, optional",
        ),
        (
            "type: udp, send: x, expect: {status: 200}",
            "unknown key `status`; allowed: body_contains, body_regex",
        ),
        ("type: dns", "health[0]: `query` is missing"),
        (
            "type: dns, query: \"a..b\"",
            "query: found \"a..b\"; allowed: a name",
        ),
        (
            "type: dns, query: a, record: B",
            "record: found \"B\"; allowed: a type of record",
        ),
        (
            "type: dns, query: a, expect: {rcode: [NOERROR, GONE]}",
            "rcode: found a list; allowed: NOERROR, FORMERR",
        ),
        (
            "type: smtp, ca_file: /x",
            "ca_file: has no meaning without TLS; give `starttls: true`",
        ),
        (
            "type: smtp, helo: \"a b\"",
            "helo: found \"a b\"; allowed: a name without spaces",
        ),
        ("type: exec", "health[0]: `command` is missing"),
        (
            "type: exec, command: check",
            "command: found \"check\"; allowed: a list",
        ),
        (
            "type: exec, command: [check]",
            "the program \"check\" has to be an absolute path",
        ),
        (
            "type: exec, command: []",
            "command: allowed: a program and its arguments",
        ),
        ("type: agent", "an agent has a port of its own"),
        (
            "type: agent, port: 1, path: /x, send: y",
            "send: belongs to the line protocol",
        ),
        ("type: snmp", "health[0]: `oid` is missing"),
        (
            "type: snmp, oid: \"1.40.1\"",
            "oid: found \"1.40.1\"; allowed: an object's number",
        ),
        (
            "type: snmp, oid: 1.3.6.x",
            "oid: found \"1.3.6.x\"; allowed: an object's number",
        ),
        (
            "type: snmp, oid: 1.3.6, privacy: aes128",
            "privacy: belongs to version 3 of SNMP, which needs a `user`",
        ),
        (
            "type: snmp, oid: 1.3.6, user: a, community: b",
            "community: belongs to version 2c",
        ),
        (
            "type: snmp, oid: 1.3.6, user: a, authentication: sha256",
            "authentication and authentication_file belong together",
        ),
        (
            "type: snmp, oid: 1.3.6, user: a, privacy: des, privacy_file: /x",
            "privacy: SNMP encrypts only what it authenticates",
        ),
        (
            "type: tcp, timeout: 1s, slow_after: 1s",
            "slow_after: 1s is not shorter than timeout 1s",
        ),
        (
            "type: imap",
            "type: found \"imap\"; allowed: ping, tcp, udp",
        ),
    ] {
        let errors = check(keys).err().unwrap_or_default();
        assert!(
            errors.contains(expected),
            "{keys}\n  found    {errors}\n  expected {expected}"
        );
    }
}

#[test]
fn the_other_checks_have_defaults_too() {
    let udp = CheckKind::Udp(Box::new(crate::model::Udp {
        send: vec![0xde, 0xad],
        answer_required: true,
        contains: None,
        regex: None,
    }));
    assert_eq!(check("type: udp, send_hex: \"DE ad\""), Ok(udp));
    let dns = CheckKind::Dns(Box::new(crate::model::Dns {
        query: "shop.example".into(),
        record: "A".into(),
        tcp: false,
        codes: vec![0],
        min_answers: 1,
        answer: None,
    }));
    assert_eq!(check("type: dns, query: shop.example"), Ok(dns));
    let CheckKind::Dns(dns) =
        check("type: dns, query: x, expect: {rcode: [NOERROR, NXDOMAIN]}").unwrap()
    else {
        panic!("no DNS check");
    };
    assert_eq!(dns.codes, [0, 3]);
    let CheckKind::Exec(exec) = check("type: exec, command: [/bin/x, 7]").unwrap() else {
        panic!("no exec check");
    };
    assert_eq!(exec.command, ["/bin/x", "7"]);
    assert_eq!((exec.user.as_str(), exec.dynamic), ("nobody", false));
    let CheckKind::Snmp(snmp) = check("type: snmp, oid: .1.3.6.1").unwrap() else {
        panic!("no SNMP check");
    };
    assert_eq!((snmp.oid.as_slice(), snmp.full), (&[1, 3, 6, 1][..], 100));
    let keys = "type: snmp, oid: 1.3.6.1, user: u, authentication: sha256, authentication_file: /a, \
                privacy: aes128, privacy_file: /p";
    assert!(check(keys).is_ok(), "{:?}", check(keys));
    for keys in [
        "type: ping, packet_size: 1500",
        "type: smtp, starttls: true, ca_file: /x",
        "type: agent, port: 9, send: \"a\\n\"",
        "type: agent, port: 9, path: /x",
        "type: tcp, slow_after: 200ms",
    ] {
        assert!(check(keys).is_ok(), "{keys}: {:?}", check(keys));
    }
}
