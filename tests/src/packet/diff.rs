//! Byte-exact comparison that people can read.

use std::fmt::Write as _;

use super::{View, ethertype, protocol};

/// What differs between two frames, or nothing.
pub fn diff(expected: &[u8], got: &[u8]) -> Option<String> {
    if expected == got {
        return None;
    }
    let mut out = String::new();
    if expected.len() != got.len() {
        let _ = writeln!(out, "expected {} bytes, got {}", expected.len(), got.len());
    }
    let names = field_names(expected);
    let mut at = 0;
    while at < expected.len().max(got.len()) {
        let name = names.get(at).copied().unwrap_or("beyond the end");
        let mut end = at + 1;
        while end < names.len() && names[end] == name {
            end += 1;
        }
        if at >= names.len() {
            end = expected.len().max(got.len());
        }
        let (e, g) = (part(expected, at, end), part(got, at, end));
        if e != g {
            let _ = writeln!(
                out,
                "  byte {at:3} {name}: expected {}, got {}",
                hex(e),
                hex(g)
            );
        }
        at = end;
    }
    let _ = writeln!(
        out,
        "expected frame:\n{}got frame:\n{}",
        dump(expected),
        dump(got)
    );
    Some(out)
}

/// Panics with the [`diff`] when the frames are not the same.
///
/// # Panics
/// That is what it is for.
#[track_caller]
pub fn assert_same_frame(what: &str, expected: &[u8], got: &[u8]) {
    if let Some(difference) = diff(expected, got) {
        panic!("{what}: frames differ\n{difference}");
    }
}

fn part(bytes: &[u8], from: usize, to: usize) -> &[u8] {
    &bytes[from.min(bytes.len())..to.min(bytes.len())]
}

fn hex(bytes: &[u8]) -> String {
    const SHOWN: usize = 24;
    if bytes.is_empty() {
        return "nothing".into();
    }
    let mut out: String = bytes
        .iter()
        .take(SHOWN)
        .map(|b| format!("{b:02x}"))
        .collect();
    if bytes.len() > SHOWN {
        out.push('…');
    }
    out
}

fn dump(bytes: &[u8]) -> String {
    let mut out = String::new();
    for (i, line) in bytes.chunks(16).enumerate() {
        let _ = writeln!(out, "  {:04x}  {}", i * 16, hex(line));
    }
    out
}

type Fields = &'static [(&'static str, usize)];

const ETHERNET: Fields = &[("ethernet destination", 6), ("ethernet source", 6)];
const TAG: Fields = &[("VLAN protocol", 2), ("VLAN tag", 2)];
const IPV4: Fields = &[
    ("IPv4 version/IHL", 1),
    ("IPv4 TOS", 1),
    ("IPv4 total length", 2),
    ("IPv4 id", 2),
    ("IPv4 flags/offset", 2),
    ("IPv4 TTL", 1),
    ("IPv4 protocol", 1),
    ("IPv4 checksum", 2),
    ("IPv4 source", 4),
    ("IPv4 destination", 4),
];
const IPV6: Fields = &[
    ("IPv6 version/class/label", 4),
    ("IPv6 payload length", 2),
    ("IPv6 next header", 1),
    ("IPv6 hop limit", 1),
    ("IPv6 source", 16),
    ("IPv6 destination", 16),
];
const TCP: Fields = &[
    ("TCP source port", 2),
    ("TCP destination port", 2),
    ("TCP sequence", 4),
    ("TCP acknowledgement", 4),
    ("TCP data offset", 1),
    ("TCP flags", 1),
    ("TCP window", 2),
    ("TCP checksum", 2),
    ("TCP urgent pointer", 2),
];
const UDP: Fields = &[
    ("UDP source port", 2),
    ("UDP destination port", 2),
    ("UDP length", 2),
    ("UDP checksum", 2),
];
const ICMP: Fields = &[
    ("ICMP type", 1),
    ("ICMP code", 1),
    ("ICMP checksum", 2),
    ("ICMP rest of header", 4),
];

/// The field each byte belongs to.
fn field_names(frame: &[u8]) -> Vec<&'static str> {
    let mut names = Vec::new();
    if let Ok(view) = View::parse(frame) {
        let mut add = |fields: Fields| {
            for (name, length) in fields {
                names.extend(std::iter::repeat_n(*name, *length));
            }
        };
        add(ETHERNET);
        view.vlans.iter().for_each(|_| add(TAG));
        add(&[("EtherType", 2)]);
        let start = 14 + 4 * view.vlans.len();
        match view.ethertype {
            ethertype::IPV4 => add(IPV4),
            ethertype::IPV6 => add(IPV6),
            _ => {}
        }
        if view.addresses().is_some() {
            let layer4 = start + view.ip_header().len();
            let gap = layer4.saturating_sub(names.len());
            names.extend(std::iter::repeat_n("IP options or extension headers", gap));
            if view.fragment.is_none_or(|f| f.offset == 0) {
                let fields = match view.protocol {
                    protocol::TCP => TCP,
                    protocol::UDP => UDP,
                    protocol::ICMP | protocol::ICMPV6 => ICMP,
                    _ => &[],
                };
                for (name, length) in fields {
                    names.extend(std::iter::repeat_n(*name, *length));
                }
            }
        }
    }
    names.resize(frame.len(), "payload");
    names
}
