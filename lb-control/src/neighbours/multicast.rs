//! Membership of the VIPs' solicited-node groups.

use std::net::{IpAddr, Ipv6Addr};

/// A group that could not be joined.
#[derive(Debug, thiserror::Error)]
#[error("joining {group} on interface {ifindex}: {source}")]
pub struct JoinError {
    /// The group.
    pub group: Ipv6Addr,
    /// The interface.
    pub ifindex: u32,
    /// The kernel's answer.
    pub source: std::io::Error,
}

/// Groups joined on interfaces, held for as long as this lives.
#[derive(Debug, Default)]
pub struct SolicitedNodes {}

impl SolicitedNodes {
    /// Joins the groups of these VIPs (IPv4 ones are skipped) on these
    /// interfaces, and leaves those that are no longer wanted. What could not
    /// be joined is returned, and tried again by the next call.
    pub fn set(&mut self, _vips: &[IpAddr], _ifindexes: &[u32]) -> Vec<JoinError> {
        unimplemented!()
    }
}
