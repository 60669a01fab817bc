//! Why packets are dropped, and what else is counted.
//!
//! Both are rows of per-CPU counters, one row a service; row 0 is for packets
//! that belong to no service.

macro_rules! names {
    ($(#[$doc:meta])* $name:ident, $row:ident { $($(#[$item_doc:meta])* $item:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$item_doc])* $item,)+ }

        impl $name {
            /// All of them, by number.
            pub const ALL: &[Self] = &[$(Self::$item,)+];

            /// The name in `lbctl` and in Prometheus.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$item => $text,)+ }
            }

            /// Index in the `counters` map of `row` (a service id).
            #[inline(always)]
            pub const fn index(self, row: u32) -> u32 {
                row * $row + self as u32
            }
        }

        const _: () = assert!($name::ALL.len() <= $row as usize);
    };
}

/// Counters a service has room for in the `DROPS` map.
pub const DROP_ROW: u32 = 32;

/// Counters a service has room for in the `EVENTS` map.
pub const EVENT_ROW: u32 = 32;

names! {
    /// Why a packet was dropped. Exactly one for each packet that is neither
    /// forwarded, answered nor passed to the kernel.
    DropReason, DROP_ROW {
        /// Addressed to a VIP of ours, but to a port or protocol without a service.
        NoService = "no_service",
        /// Another node owns the VIP.
        NotOwner = "not_owner",
        /// The service has no backend that may take the packet.
        NoBackend = "no_backend",
        /// The next hop's MAC address isn't known.
        NoNeighbour = "no_neighbour",
        /// A header field contradicts another or the frame.
        Malformed = "malformed",
        /// The frame ends within a header.
        Truncated = "truncated",
        /// A fragment that didn't follow its first one, or one of an ICMP message.
        Fragment = "fragment",
        /// More IPv6 extension headers than are walked, or one that can't be.
        ExtensionHeaders = "extension_headers",
        /// Routed hops are used up where NAT routes the packet.
        TtlExceeded = "ttl_exceeded",
        /// Addressed to a VIP with a protocol that isn't balanced.
        UnknownProtocol = "unknown_protocol",
        /// An ICMP message to a VIP that is neither an echo request nor an error
        /// about a TCP or UDP packet.
        Icmp = "icmp",
        /// A source address that can't be replied to.
        BadSource = "bad_source",
        /// Under NAT the client's port is in use towards the same backend
        /// through another service.
        ReplyConflict = "reply_conflict",
        /// Under NAT no reply entry could be made, so replies would be lost.
        ReplyTableFull = "reply_table_full",
        /// The route to the client says unreachable, prohibited or blackhole.
        NoRoute = "no_route",
        /// Longer than the way to the backend carries, a tunnel's headers included.
        TooBig = "too_big",
        /// The driver left no room before the frame for a longer head.
        NoHeadroom = "no_headroom",
        /// Under full NAT no port of the pool is free.
        NoSourcePort = "no_source_port",
        /// Under full NAT: a reply, or a packet that opens nothing, of no flow
        /// that has a binding.
        NoBinding = "no_binding",
        /// An ICMP error about a packet that no service's backend sent.
        IcmpUnmatched = "icmp_unmatched",
        /// A new flow, and every backend has as many connections as it may.
        MaxConnections = "max_connections",
        /// The maps contradict each other; a bug, or somebody else wrote them.
        Inconsistent = "inconsistent",
        /// The service's `allow` and `deny` don't let the source in.
        Denied = "denied",
        /// More new flows in a second than a core may take for the service.
        CoreLimit = "core_limit",
        /// More new flows in a second than the source may open.
        SourceLimit = "source_limit",
        /// The flow's backend is gone, and the client could not be told: the
        /// packet is an RST, or too many were sent in this second.
        BackendGone = "backend_gone",
    }
}

names! {
    /// What happened besides forwarding and dropping.
    Event, EVENT_ROW {
        /// ARP requests for a VIP answered.
        ArpReply = "arp_reply",
        /// Neighbour solicitations for a VIP answered.
        NeighbourAdvertisement = "neighbour_advertisement",
        /// Echo requests to a VIP answered.
        EchoReply = "echo_reply",
        /// Somebody else claimed a VIP that this node owns, by ARP or NA.
        DuplicateVip = "duplicate_vip",
        /// Entries made in the flow table.
        FlowInserted = "flow_inserted",
        /// Entries the flow table had no room for; the flow went to the slot's
        /// older member and the slot stays tracked for longer.
        Untracked = "untracked",
        /// Replies whose next hop isn't resolved, left to the kernel after rewriting.
        ReplyUnresolved = "reply_unresolved",
        /// Packets from a backend that belong to no flow, passed untouched.
        ReplyUnmatched = "reply_unmatched",
        /// Replies left to the kernel untouched because forwarding is off.
        ForwardingOff = "forwarding_off",
        /// Connections reset because their backend is gone.
        Reset = "reset",
        /// Full NAT's ports given to flows.
        BindingOpened = "binding_opened",
        /// NAT: packets of clients on a backend's own link, where there is no
        /// pool for full NAT; the backend's answers go past the balancer.
        LocalClient = "local_client",
        /// ICMP errors of flows that were forwarded.
        IcmpForwarded = "icmp_forwarded",
        /// ICMP errors that the data path sent to clients.
        IcmpErrorSent = "icmp_error_sent",
        /// ICMP errors that were due, but too many for one second.
        IcmpLimited = "icmp_limited",
        /// New flows that went to the server that their source had.
        Persistent = "persistent",
        /// Sources whose server could not be noted.
        PersistenceFull = "persistence_full",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_rows_do_not_overlap() {
        let names: HashSet<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        assert_eq!(names.len(), DropReason::ALL.len());
        let names: HashSet<_> = Event::ALL.iter().map(|r| r.name()).collect();
        assert_eq!(names.len(), Event::ALL.len());
        assert_eq!(DropReason::NoService.index(3), 96);
        for (i, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
        }
    }
}
