//! What a health check does: the keys that belong to its type.

use hyper::http::{HeaderName, HeaderValue, uri::PathAndQuery};
use rustls::pki_types::ServerName;

use super::{
    reader::{At, Fields, shown},
    value,
    yaml::Node,
};
use crate::model::{CheckKind, ClientCertificate, Expect, Http, HttpMethod, Pattern, Tls};

/// Keys of a check that are read here.
pub(super) const KEYS: [&str; 10] = [
    "path",
    "host",
    "method",
    "headers",
    "expect",
    "server_name",
    "ca_file",
    "insecure",
    "certificate_file",
    "key_file",
];

/// Those of them that belong to TLS: the last ones.
const TLS_KEYS: usize = 5;

/// Keys that the design has for types of checks that aren't there yet.
pub(super) const LATER: [&str; 3] = ["send", "query", "command"];

/// Types of checks that aren't there yet.
const LATER_TYPES: [&str; 9] = [
    "ping", "icmp", "tls", "dns", "udp", "smtp", "script", "agent", "snmp",
];

/// Reads the type and what belongs to it. `None` after an error.
pub(super) fn read(fields: &Fields<'_>) -> Option<CheckKind> {
    let later = LATER_TYPES.map(|name| (name, ""));
    let types = [
        ("tcp", Type::Tcp),
        ("http", Type::Http),
        ("https", Type::Https),
    ];
    let kind = fields
        .required("type")?
        .read(|node| value::choice(node, &types, &later))?;
    let (plain, tls) = KEYS.split_at(KEYS.len() - TLS_KEYS);
    let only_for = |keys: &[&str], what: &str| {
        for at in keys.iter().filter_map(|key| fields.get(key)) {
            at.error(format!("is for checks of type {what}; remove it"));
        }
    };
    match kind {
        Type::Tcp => {
            only_for(plain, "http and https");
            only_for(tls, "https");
            Some(CheckKind::Tcp)
        }
        Type::Http => {
            only_for(tls, "https");
            Some(CheckKind::Http(Box::new(http(fields))))
        }
        Type::Https => Some(CheckKind::Http(Box::new(Http {
            tls: Some(tls_of(fields)),
            ..http(fields)
        }))),
    }
}

#[derive(Clone, Copy)]
enum Type {
    Tcp,
    Http,
    Https,
}

fn tls_of(fields: &Fields<'_>) -> Tls {
    let file = |key| fields.optional(key, value::absolute_path);
    let client = match (file("certificate_file"), file("key_file")) {
        (Some(certificate_file), Some(key_file)) => Some(ClientCertificate {
            certificate_file,
            key_file,
        }),
        (None, None) => None,
        _ => {
            for key in ["certificate_file", "key_file"] {
                if let Some(at) = fields.get(key) {
                    at.error("certificate_file and key_file belong together; give both or neither");
                }
            }
            None
        }
    };
    let tls = Tls {
        server_name: fields.optional("server_name", server_name),
        ca_file: file("ca_file"),
        insecure: fields.or("insecure", false, value::boolean),
        client,
    };
    if tls.insecure
        && tls.ca_file.is_some()
        && let Some(at) = fields.get("insecure")
    {
        at.error("takes any certificate, whatever ca_file says; remove one of them");
    }
    tls
}

/// A host's name or address, as in a certificate (RFC 6125).
fn server_name(node: &Node) -> Result<String, String> {
    match node {
        Node::Text(text) if ServerName::try_from(text.as_str()).is_ok() => Ok(text.clone()),
        _ => Err("allowed: the name of a host, such as shop.example".into()),
    }
}

fn http(fields: &Fields<'_>) -> Http {
    let methods = [("GET", HttpMethod::Get), ("HEAD", HttpMethod::Head)];
    let method = fields.or("method", HttpMethod::Get, |node| {
        value::choice(node, &methods, &[])
    });
    let expect = expect(fields.get("expect"));
    if method == HttpMethod::Head
        && expect.needs_body()
        && let Some(at) = fields.get("method")
    {
        at.error("HEAD gets no body, and `expect` looks at it; use GET");
    }
    let headers = fields.get("headers").map(At::entries).unwrap_or_default();
    Http {
        method,
        path: fields.or("path", "/".into(), path),
        host: fields.optional("host", header_value),
        headers: headers
            .into_iter()
            .filter_map(|(name, at)| header(name, &at))
            .collect(),
        expect,
        tls: None,
    }
}

fn expect(at: Option<&At<'_>>) -> Expect {
    let known = ["status", "headers", "body_contains", "body_regex"];
    let fields = at.and_then(|at| at.fields(&known, &[]));
    let fields = fields.as_ref();
    let headers = fields
        .and_then(|f| f.get("headers"))
        .map(At::entries)
        .unwrap_or_default();
    Expect {
        status: fields.map_or_else(any_success, |f| f.or("status", any_success(), statuses)),
        headers: headers
            .into_iter()
            .filter_map(|(name, at)| header(name, &at))
            .collect(),
        body_contains: fields.and_then(|f| f.optional("body_contains", text)),
        body_regex: fields.and_then(|f| f.optional("body_regex", pattern)),
    }
}

fn any_success() -> Vec<(u16, u16)> {
    vec![(200, 299)]
}

/// A name and a value (RFC 9110 §5.1, §5.5).
fn header(name: &str, at: &At<'_>) -> Option<(String, String)> {
    let value = at.read(header_value)?;
    if HeaderName::from_bytes(name.as_bytes()).is_err() {
        at.error(format!("{name:?} is no name of a header"));
        return None;
    }
    Some((name.to_owned(), value))
}

fn header_value(node: &Node) -> Result<String, String> {
    let text = match node {
        Node::Integer(number) => number.to_string(),
        Node::Text(text) => text.clone(),
        _ => return Err("allowed: text".into()),
    };
    match HeaderValue::from_str(&text) {
        Ok(_) => Ok(text),
        Err(_) => Err("allowed: text without control characters".into()),
    }
}

fn text(node: &Node) -> Result<String, String> {
    match node {
        Node::Text(text) if !text.is_empty() => Ok(text.clone()),
        Node::Integer(number) => Ok(number.to_string()),
        _ => Err("allowed: text".into()),
    }
}

/// From the slash on, without a fragment (RFC 9112 §3.2.1).
fn path(node: &Node) -> Result<String, String> {
    const ALLOWED: &str = "allowed: a path from the slash on, such as \"/healthz?deep=1\"";
    match node {
        Node::Text(text)
            if text.starts_with('/')
                && !text.contains('#')
                && text.parse::<PathAndQuery>().is_ok() =>
        {
            Ok(text.clone())
        }
        _ => Err(ALLOWED.into()),
    }
}

fn pattern(node: &Node) -> Result<Pattern, String> {
    let Node::Text(text) = node else {
        return Err("allowed: a regular expression".into());
    };
    Pattern::new(text).map_err(|error| format!("allowed: a regular expression; {error}"))
}

/// A code, a range of them, or a list of these.
fn statuses(node: &Node) -> Result<Vec<(u16, u16)>, String> {
    let items = match node {
        Node::List(items) if !items.is_empty() => items.as_slice(),
        one => std::slice::from_ref(one),
    };
    items
        .iter()
        .map(|item| {
            status(item).ok_or_else(|| {
                format!(
                    "allowed: status codes and ranges, such as [200, \"300-399\"], and not {}",
                    shown(item)
                )
            })
        })
        .collect()
}

fn status(node: &Node) -> Option<(u16, u16)> {
    let code = |text: &str| {
        let code = text.trim().parse::<u16>().ok();
        code.filter(|code| (100..=599).contains(code))
    };
    match node {
        Node::Integer(number) => {
            let code = code(&number.to_string())?;
            Some((code, code))
        }
        Node::Text(text) => {
            let (first, last) = text.split_once('-')?;
            let range = (code(first)?, code(last)?);
            (range.0 <= range.1).then_some(range)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

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
                "health[0].path: is for checks of type http and https; remove it",
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
                "health[0].ca_file: is for checks of type https; remove it",
            ),
            (
                "type: tcp, insecure: true",
                "health[0].insecure: is for checks of type https; remove it",
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
            (
                "type: smtp",
                "type: found \"smtp\"; not supported by this version yet",
            ),
        ] {
            let errors = check(keys).err().unwrap_or_default();
            assert!(
                errors.contains(expected),
                "{keys}\n  found    {errors}\n  expected {expected}"
            );
        }
    }
}
