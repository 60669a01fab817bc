//! The way of checks' probes.

use super::{
    reader::{At, Errors, Fields, Path},
    value,
};
use crate::model::{CheckKind, ForwardingMethod, Pool, ProbePath, Service, Via};

/// Source ports of probes end at the last port there is.
const LAST_FIRST_PORT: u32 = 65_536 - lb_common::abi::PROBE_PORTS;

/// `dataplane.probes`.
pub(super) fn read(at: Option<&At<'_>>) -> ProbePath {
    let default = ProbePath::default();
    let known = ["mark", "mask", "table", "first_port"];
    let Some(fields) = at.and_then(|at| at.fields(&known, &[])) else {
        return default;
    };
    let first = value::number(1024..=LAST_FIRST_PORT);
    let first_port = fields.or("first_port", default.first_port.into(), first);
    let path = ProbePath {
        mark: fields.or("mark", default.mark, value::number(1..=u32::MAX)),
        mask: fields.or("mask", default.mask, value::number(1..=u32::MAX)),
        table: fields.or("table", default.table, value::number(1..=u32::MAX)),
        first_port: u16::try_from(first_port).unwrap_or(default.first_port),
    };
    if path.mark & !path.mask != 0 {
        let at = fields.get("mark").or(fields.get("mask"));
        let message = format!(
            "the mark {:#x} has bits that the mask {:#x} doesn't have; no packet would have it",
            path.mark, path.mask
        );
        at.into_iter().for_each(|at| at.error(message.as_str()));
    }
    // The kernel's own tables (iproute2's rt_tables).
    if matches!(path.table, 253..=255)
        && let Some(at) = fields.get("table")
    {
        at.error("253 to 255 are the kernel's own tables; give another");
    }
    path
}

/// A check's `via`.
pub(super) fn via(fields: &Fields<'_>, kind: Option<&CheckKind>) -> Option<Via> {
    let names = [("address", Via::Address), ("service", Via::Service)];
    let via = fields.optional("via", |node| value::choice(node, &names, &[]))?;
    if let (Via::Service, Some(kind), Some(at)) = (via, kind, fields.get("via"))
        && !kind.has_connection()
    {
        at.error(format!(
            "a check of type {} asks the server itself, and can't go by the service; remove it",
            kind.name()
        ));
    }
    Some(via)
}

/// Under NAT a backend has the one port that the service leads to.
pub(super) fn check(service: &Service, pool: &Pool, path: &Path, errors: &Errors) {
    if !matches!(
        service.forwarding,
        ForwardingMethod::Nat | ForwardingMethod::FullNat
    ) {
        return;
    }
    let checks = pool.health.iter().filter(|c| c.via == Some(Via::Service));
    for check in checks {
        if let Some(port) = check.port {
            errors.add(
                path.key("pool"),
                format!(
                    "a health check of pool {:?} goes by the service to port {port}, but {} leads to one \
                     port of a backend only; remove the check's port, or `via: service`",
                    service.pool, service.forwarding
                ),
            );
        }
        if matches!(&check.kind, CheckKind::Udp(udp) if !udp.answer_required) {
            errors.add(
                path.key("pool"),
                format!(
                    "a UDP check of pool {:?} goes by the service and passes without an answer; under {} \
                     no ICMP error reaches it, and it would always pass: set `answer: required`",
                    service.pool, service.forwarding
                ),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{config::parse, model::ProbePath};

    fn errors(dataplane: &str, check: &str, forwarding: &str) -> String {
        let text = format!(
            "interfaces: [{{name: eth0}}]\ndataplane: {{probes: {{{dataplane}}}}}\n\
             full_nat: {{addresses: [10.0.2.1], ports: \"2000-2099\"}}\n\
             pools: {{web: {{backends: [{{name: a, address: 10.0.1.11}}], health: [{{{check}}}]}}}}\n\
             services: [{{name: s, address: 10.0.0.1, port: 80, protocol: tcp, \
             forwarding: {forwarding}, pool: web}}]\n"
        );
        match parse(&text, "f.yaml") {
            Ok(_) => String::new(),
            Err(errors) => errors.to_string(),
        }
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_place() {
        let udp = "type: udp, send: x, answer: optional";
        for (dataplane, check, forwarding, expected) in [
            (
                "mark: 0x10, mask: 0xf",
                "type: tcp",
                "nat",
                "probes.mark: the mark 0x10 has bits that the mask 0xf",
            ),
            ("mark: 0", "type: tcp", "nat", "probes.mark: found `0`"),
            (
                "table: 254",
                "type: tcp",
                "nat",
                "probes.table: 253 to 255 are the kernel's own",
            ),
            (
                "first_port: 61441",
                "type: tcp",
                "nat",
                "first_port: found `61441`; allowed: a number from 1024 to 61440",
            ),
            (
                "",
                "type: ping, via: service",
                "l2-dsr",
                "health[0].via: a check of type ping asks the server itself",
            ),
            (
                "",
                "type: tcp, via: vip",
                "l2-dsr",
                "allowed: address, service",
            ),
            (
                "",
                "type: tcp, via: service, port: 81",
                "nat",
                "to port 81, but nat leads to one port",
            ),
            (
                "",
                "type: tcp, via: service, port: 81",
                "full-nat",
                "full-nat leads to one port",
            ),
            (
                "",
                &format!("{udp}, via: service"),
                "nat",
                "set `answer: required`",
            ),
            ("", &format!("{udp}, via: service"), "l2-dsr", ""),
            ("", "type: tcp, via: service, port: 81", "l2-dsr", ""),
            (
                "mark: 1, mask: 1, table: 7, first_port: 40000",
                "type: tcp, via: address",
                "nat",
                "",
            ),
        ] {
            let found = errors(dataplane, check, forwarding);
            assert!(
                found.contains(expected) && found.is_empty() == expected.is_empty(),
                "{dataplane}; {check}; {forwarding}\n  found    {found}\n  expected {expected}"
            );
        }
    }

    #[test]
    fn the_defaults_fit_together() {
        let ProbePath {
            mark,
            mask,
            first_port,
            ..
        } = ProbePath::default();
        assert_eq!(mark & !mask, 0);
        // Above what Linux gives to connections (ip_local_port_range), and whole.
        assert!(first_port > 60_999 && u32::from(first_port) <= super::LAST_FIRST_PORT);
    }
}
