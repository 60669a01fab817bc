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
