//! Keys of checks of types `http` and `https`, and of TLS.

use hyper::http::{HeaderName, HeaderValue, uri::PathAndQuery};
use rustls::pki_types::ServerName;

use super::super::{
    reader::{At, Fields, shown},
    value,
    yaml::Node,
};
use crate::model::{ClientCertificate, Expect, Http, HttpMethod, Pattern, Tls};

pub(super) fn tls_of(fields: &Fields<'_>) -> Tls {
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

pub(super) fn http(fields: &Fields<'_>) -> Http {
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
        full_size: fields.or("full_size", false, value::boolean),
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

pub(super) fn text(node: &Node) -> Result<String, String> {
    match node {
        Node::Text(text) if !text.is_empty() => Ok(text.clone()),
        Node::Integer(number) => Ok(number.to_string()),
        _ => Err("allowed: text".into()),
    }
}

/// From the slash on, without a fragment (RFC 9112 §3.2.1).
pub(super) fn path(node: &Node) -> Result<String, String> {
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

pub(super) fn pattern(node: &Node) -> Result<Pattern, String> {
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
