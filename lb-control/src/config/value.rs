//! Single values. Each function's error says what is allowed.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    time::Duration,
};

use super::yaml::Node;
use crate::{
    model::{Ports, Prefix, SourceBlock},
    scheduler,
};

/// What reading a value gives: the error says what is allowed.
pub(super) type Read<T> = Result<T, String>;

/// One of some names. `later` are names that a later version will know.
pub(super) fn choice<T: Copy>(node: &Node, names: &[(&str, T)], later: &[(&str, &str)]) -> Read<T> {
    let text = match node {
        Node::Text(text) => text.as_str(),
        _ => "",
    };
    if let Some((_, value)) = names.iter().find(|(name, _)| *name == text) {
        return Ok(*value);
    }
    let list: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
    let list = list.join(", ");
    Err(match later.iter().find(|(name, _)| *name == text) {
        Some((_, why)) => format!("not supported by this version yet{why}; allowed: {list}"),
        None => format!("allowed: {list}"),
    })
}

/// `true` or `false`.
pub(super) fn boolean(node: &Node) -> Read<bool> {
    match node {
        Node::Bool(value) => Ok(*value),
        _ => Err("allowed: true, false".into()),
    }
}

/// A whole number in a range.
pub(super) fn number(range: RangeInclusive<u32>) -> impl Fn(&Node) -> Read<u32> {
    move |node| {
        match node {
            Node::Integer(value) => u32::try_from(*value).ok().filter(|v| range.contains(v)),
            _ => None,
        }
        .ok_or_else(|| {
            format!(
                "allowed: a number from {} to {}",
                range.start(),
                range.end()
            )
        })
    }
}

/// A part of a whole, such as `50%`; `50` means the same.
pub(super) fn percent(node: &Node) -> Read<u8> {
    let number = match node {
        Node::Integer(value) => u8::try_from(*value).ok(),
        Node::Text(text) => text
            .strip_suffix('%')
            .and_then(|number| number.trim_end().parse().ok()),
        _ => None,
    };
    number
        .filter(|value| *value <= 100)
        .ok_or_else(|| "allowed: a percentage from 0% to 100%".into())
}

/// A backend's weight.
pub(super) fn weight(node: &Node) -> Read<u16> {
    number(0..=u16::MAX.into())(node).map(|value| u16::try_from(value).unwrap_or(u16::MAX))
}

/// The slots of a table.
pub(super) fn table_size(node: &Node) -> Read<u32> {
    let range = 251..=scheduler::LARGEST_TABLE;
    match number(range.clone())(node) {
        Ok(size) if scheduler::is_prime(size) => Ok(size),
        Ok(size) => {
            let next = (size..=*range.end()).find(|&size| scheduler::is_prime(size));
            Err(format!(
                "allowed: a prime, such as {}",
                next.unwrap_or(*range.end())
            ))
        }
        Err(_) => Err(format!(
            "allowed: a prime from {} to {}",
            range.start(),
            range.end()
        )),
    }
}

/// A time such as `2h15m`, `10s` or `500ms`.
pub(super) fn duration(range: RangeInclusive<Duration>) -> impl Fn(&Node) -> Read<Duration> {
    move |node| {
        match node {
            Node::Text(text) => duration_of(text).filter(|d| range.contains(d)),
            _ => None,
        }
        .ok_or_else(|| {
            format!(
                "allowed: a time from {} to {}, such as \"10s\", \"500ms\" or \"2h15m\"",
                shown_duration(*range.start()),
                shown_duration(*range.end())
            )
        })
    }
}

/// Numbers with units, each unit once, the largest first.
fn duration_of(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    let mut smaller_than = u64::MAX;
    while !rest.is_empty() {
        let (digits, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let (unit, after) = after.split_at(
            after
                .find(|c: char| c.is_ascii_digit())
                .unwrap_or(after.len()),
        );
        let unit_ms = match unit {
            "h" => 3_600_000,
            "m" => 60_000,
            "s" => 1_000,
            "ms" => 1,
            _ => return None,
        };
        if unit_ms >= smaller_than {
            return None;
        }
        smaller_than = unit_ms;
        let ms = digits.parse::<u64>().ok()?.checked_mul(unit_ms)?;
        total = total.checked_add(Duration::from_millis(ms))?;
        rest = after;
    }
    (smaller_than != u64::MAX).then_some(total)
}

/// A duration as it may be written in the file.
pub(super) fn shown_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, ms) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        if rest >= ms {
            text.push_str(&format!("{}{unit}", rest / ms));
            rest %= ms;
        }
    }
    if text.is_empty() { "0s".into() } else { text }
}

/// One port.
pub(super) fn port(node: &Node) -> Read<u16> {
    number(1..=u16::MAX.into())(node)
        .map(|value| u16::try_from(value).unwrap_or(u16::MAX))
        .map_err(|_| "allowed: a port from 1 to 65535".into())
}

/// A range of ports, such as "1024-65535".
pub(super) fn port_range(node: &Node) -> Read<(u16, u16)> {
    range(node)
        .filter(|(first, last)| first < last)
        .ok_or_else(|| "allowed: a range of ports such as \"1024-65535\"".into())
}

/// A port, or a range of them.
fn range(node: &Node) -> Option<(u16, u16)> {
    match node {
        Node::Text(text) => {
            let (first, last) = text.split_once('-')?;
            let of = |text: &str| text.trim().parse::<u16>().ok().filter(|&port| port > 0);
            let (first, last) = (of(first)?, of(last)?);
            (first <= last).then_some((first, last))
        }
        node => port(node).ok().map(|port| (port, port)),
    }
}

/// The ports of a service.
pub(super) fn ports(node: &Node) -> Read<Ports> {
    const ALLOWED: &str = "allowed: a port from 1 to 65535, a range such as \"8000-8100\", \
                           a list of these without overlap, or any";
    let mut ranges = match node {
        Node::Text(text) if text == "any" => return Ok(Ports::Any),
        Node::List(items) if !items.is_empty() => items
            .iter()
            .map(range)
            .collect::<Option<Vec<_>>>()
            .ok_or(ALLOWED)?,
        node => vec![range(node).ok_or(ALLOWED)?],
    };
    ranges.sort_unstable();
    let disjoint = ranges.windows(2).all(|pair| match pair {
        [(_, last), (first, _)] => last < first,
        _ => true,
    });
    if disjoint {
        Ok(Ports::Ranges(ranges))
    } else {
        Err(ALLOWED.into())
    }
}

/// The address of a host: one that a packet can come from and go to.
pub(super) fn address(node: &Node) -> Read<IpAddr> {
    const ALLOWED: &str = "allowed: an IPv4 or IPv6 address";
    let Node::Text(text) = node else {
        return Err(ALLOWED.into());
    };
    let address: IpAddr = text.parse().map_err(|_| ALLOWED.to_owned())?;
    let refused = match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Some("an IPv4 address in IPv6 form never occurs in packets; write it as IPv4")
        }
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            Some("a link-local address is not unique without its link")
        }
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address is no host's"),
        _ if address.is_unspecified() => Some("the unspecified address is no host's"),
        _ if address.is_multicast() => Some("a multicast address is no host's"),
        _ if address.is_loopback() => Some("loopback addresses never leave a host"),
        _ => None,
    };
    refused.map_or(Ok(address), |why| {
        Err(format!("{why}; allowed: the unicast address of a host"))
    })
}

/// A block of addresses: `10.0.0.0/8`, or one address.
pub(super) fn prefix(node: &Node) -> Read<Prefix> {
    const ALLOWED: &str =
        "allowed: a prefix such as \"192.0.2.0/24\" or \"2001:db8::/32\", or an address";
    let Node::Text(text) = node else {
        return Err(ALLOWED.into());
    };
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (text.as_str(), None),
    };
    let address: IpAddr = address.parse().map_err(|_| ALLOWED.to_owned())?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let is_plain = |bits: &str| bits.bytes().all(|b| b.is_ascii_digit());
    let bits = match bits {
        Some(bits) => bits
            .parse()
            .ok()
            .filter(|n| *n <= most && is_plain(bits))
            .ok_or_else(|| format!("allowed: a length from 0 to {most}"))?,
        None => most,
    };
    let prefix = Prefix::of(address, bits);
    if prefix.address == address {
        Ok(prefix)
    } else {
        Err(format!(
            "the address has bits behind the prefix; allowed: {prefix}, or the address alone"
        ))
    }
}

/// A prefix of IPv4 addresses that packets may come from.
pub(super) fn prefix_v4(
    lengths: RangeInclusive<u8>,
) -> impl Fn(&Node) -> Read<SourceBlock<Ipv4Addr>> {
    move |node| match block(node, &lengths) {
        Some((IpAddr::V4(address), length)) => Ok(SourceBlock { address, length }),
        _ => Err(prefix_allowed("IPv4", "198.18.0.0/16", &lengths)),
    }
}

/// A prefix of IPv6 addresses that packets may come from.
pub(super) fn prefix_v6(
    lengths: RangeInclusive<u8>,
) -> impl Fn(&Node) -> Read<SourceBlock<Ipv6Addr>> {
    move |node| match block(node, &lengths) {
        Some((IpAddr::V6(address), length)) => Ok(SourceBlock { address, length }),
        _ => Err(prefix_allowed("IPv6", "100::/64", &lengths)),
    }
}

fn prefix_allowed(family: &str, example: &str, lengths: &RangeInclusive<u8>) -> String {
    format!(
        "allowed: an {family} prefix of unicast addresses, /{} to /{}, without bits behind its \
         length, such as \"{example}\"",
        lengths.start(),
        lengths.end()
    )
}

/// Address and length of a prefix; the address is one of a host, or the first
/// of a prefix of them.
fn block(node: &Node, lengths: &RangeInclusive<u8>) -> Option<(IpAddr, u8)> {
    let Node::Text(text) = node else {
        return None;
    };
    let (address, length) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let length: u8 = length.parse().ok().filter(|l| lengths.contains(l))?;
    let (bits, width) = match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    let host_bits = width - u32::from(length);
    let is_whole = host_bits == 0 || bits & ((1 << host_bits) - 1) == 0;
    // A prefix of unspecified addresses is refused like the address itself.
    (is_whole && self::address(&Node::Text(address.to_string())).is_ok())
        .then_some((address, length))
}

/// Where to listen.
pub(super) fn socket_address(node: &Node) -> Read<SocketAddr> {
    match node {
        Node::Text(text) => text.parse().ok(),
        _ => None,
    }
    .ok_or_else(|| {
        "allowed: an address and a port, such as \"127.0.0.1:9464\" or \"[::1]:9464\"".into()
    })
}

/// A name: 1 to 63 of `a-z 0-9 . _ -`, the first a letter or digit.
pub(super) fn name(node: &Node) -> Read<String> {
    match node {
        Node::Text(text) if is_name(text) => Ok(text.clone()),
        Node::Integer(_) | Node::Float(_) | Node::Bool(_) => {
            Err("allowed: a name; put it in quotes".into())
        }
        _ => Err(NAME_ALLOWED.into()),
    }
}

/// What a name may be.
pub(super) const NAME_ALLOWED: &str =
    "allowed: 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit";

/// Whether a text is a name.
pub(super) fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| plain(b) || b"._-".contains(&b))
        && text.bytes().next().is_some_and(plain)
}

/// The name of a network interface, by the kernel's rules.
pub(super) fn interface(node: &Node) -> Read<String> {
    match node {
        Node::Text(text)
            if (1..=15).contains(&text.len())
                && text != "."
                && text != ".."
                && text
                    .bytes()
                    .all(|b| b.is_ascii_graphic() && b != b'/' && b != b':') =>
        {
            Ok(text.clone())
        }
        _ => Err("allowed: the name of an interface, at most 15 bytes without '/'".into()),
    }
}

/// An absolute path.
pub(super) fn absolute_path(node: &Node) -> Read<std::path::PathBuf> {
    match node {
        Node::Text(text) if text.starts_with('/') && !text.contains('\0') => Ok(text.into()),
        _ => Err("allowed: an absolute path".into()),
    }
}

/// A directory in a BPF file system, which takes no dots in names.
pub(super) fn pin_dir(node: &Node) -> Read<std::path::PathBuf> {
    let path = absolute_path(node)?;
    let is_plain = |part: &std::ffi::OsStr| !part.to_string_lossy().contains('.');
    if path.file_name().is_some_and(is_plain) {
        Ok(path)
    } else {
        Err(
            "allowed: an absolute path whose last part has no '.' (a BPF file system refuses it)"
                .into(),
        )
    }
}
