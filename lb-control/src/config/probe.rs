//! What a health check does: the keys that belong to its type.

mod http;
mod others;

use super::{reader::Fields, value};
use crate::model::CheckKind;

/// Types of checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Ping,
    Tcp,
    Udp,
    Http,
    Https,
    Dns,
    Smtp,
    Exec,
    Agent,
    Snmp,
}

use Type::{Agent, Dns, Exec, Http, Https, Ping, Smtp, Snmp, Tcp, Udp};

/// As they are written.
const TYPES: [(&str, Type); 10] = [
    ("ping", Ping),
    ("tcp", Tcp),
    ("udp", Udp),
    ("http", Http),
    ("https", Https),
    ("dns", Dns),
    ("smtp", Smtp),
    ("exec", Exec),
    ("agent", Agent),
    ("snmp", Snmp),
];

/// Types that read a certificate.
const TLS: &[Type] = &[Https, Smtp];

/// Keys of a check that are read here, and whose they are.
const KEYS: [(&str, &[Type]); 30] = [
    ("packet_size", &[Ping]),
    ("path", &[Http, Https, Agent]),
    ("host", &[Http, Https]),
    ("method", &[Http, Https]),
    ("headers", &[Http, Https]),
    ("full_size", &[Http, Https]),
    ("expect", &[Udp, Http, Https, Dns]),
    ("server_name", TLS),
    ("ca_file", TLS),
    ("insecure", TLS),
    ("certificate_file", TLS),
    ("key_file", TLS),
    ("send", &[Udp, Agent]),
    ("send_hex", &[Udp]),
    ("answer", &[Udp]),
    ("query", &[Dns]),
    ("record", &[Dns]),
    ("transport", &[Dns]),
    ("helo", &[Smtp]),
    ("starttls", &[Smtp]),
    ("command", &[Exec]),
    ("dynamic", &[Exec]),
    ("user", &[Exec, Snmp]),
    ("oid", &[Snmp]),
    ("full", &[Snmp]),
    ("community", &[Snmp]),
    ("authentication", &[Snmp]),
    ("authentication_file", &[Snmp]),
    ("privacy", &[Snmp]),
    ("privacy_file", &[Snmp]),
];

/// The names of all keys that are read here.
pub(super) fn keys() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(|(key, _)| *key)
}

/// Reads the type and what belongs to it. `None` after an error.
pub(super) fn read(fields: &Fields<'_>) -> Option<CheckKind> {
    let kind = fields
        .required("type")?
        .read(|node| value::choice(node, &TYPES, &[]))?;
    for (key, types) in KEYS {
        if let Some(at) = fields.get(key).filter(|_| !types.contains(&kind)) {
            at.error(format!(
                "is for checks of type {}; remove it",
                listed(types)
            ));
        }
    }
    let port = fields.get("port");
    match (kind, port) {
        (Ping, Some(at)) => at.error("pings have no port; remove it"),
        (Agent, None) => fields.error("an agent has a port of its own; give the check a `port`"),
        _ => {}
    }
    match kind {
        Ping => Some(CheckKind::Ping(others::ping(fields))),
        Tcp => Some(CheckKind::Tcp),
        Udp => others::udp(fields).map(|udp| CheckKind::Udp(Box::new(udp))),
        Http => Some(CheckKind::Http(Box::new(http::http(fields)))),
        Https => Some(CheckKind::Http(Box::new(crate::model::Http {
            tls: Some(http::tls_of(fields)),
            ..http::http(fields)
        }))),
        Dns => others::dns(fields).map(|dns| CheckKind::Dns(Box::new(dns))),
        Smtp => Some(CheckKind::Smtp(Box::new(others::smtp(fields)))),
        Exec => others::exec(fields).map(|exec| CheckKind::Exec(Box::new(exec))),
        Agent => others::agent(fields).map(|agent| CheckKind::Agent(Box::new(agent))),
        Snmp => others::snmp(fields).map(|snmp| CheckKind::Snmp(Box::new(snmp))),
    }
}

/// Reads the keys of a program.
pub(super) fn exec(fields: &Fields<'_>) -> Option<crate::model::Exec> {
    others::exec(fields)
}

/// "http, https and agent".
fn listed(types: &[Type]) -> String {
    let names: Vec<&str> = TYPES
        .iter()
        .filter(|(_, kind)| types.contains(kind))
        .map(|(name, _)| *name)
        .collect();
    match names.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
        None => String::new(),
    }
}

#[cfg(test)]
#[path = "probe/tests.rs"]
mod tests;
