//! Names of the programs in the object.

/// The data path.
pub const LB: &str = "lb";
/// Writes a [`super::ClockReading`]; run by BPF_PROG_TEST_RUN only.
pub const CLOCK: &str = "lb_clock";

/// Sends health checks' probes the way of clients' packets; on a device of
/// its own.
pub const PROBE: &str = "lb_probe";

/// Place in `PROGRAMS` of what answers ARP and neighbour discovery.
pub const NEIGHBOUR: u32 = 0;
/// Place in `PROGRAMS` of what takes ICMP and ICMPv6 messages.
pub const ICMP: u32 = 1;
/// Place in `PROGRAMS` of what translates replies.
pub const REPLY: u32 = 2;
/// Place in `PROGRAMS` of what gives clients' packets another source.
pub const FULL_NAT: u32 = 3;
/// Place in `PROGRAMS` of what takes packets to full NAT's addresses.
pub const BINDING: u32 = 4;
/// Place in `PROGRAMS` of what resets connections.
pub const RESET: u32 = 5;
/// Place in `PROGRAMS` of what sends packets on with a head of another
/// length: in a tunnel, or with other VLAN tags.
pub const HEAD: u32 = 6;
/// Place in `PROGRAMS` of what looks up flows in tracked slots, finds the
/// slots of services by source, and delivers what full tracking decided on.
pub const TRACKED: u32 = 7;
/// Place in `PROGRAMS` of what notes flows whose replies are recognised one
/// by one.
pub const EXPECT: u32 = 8;
/// Place in `PROGRAMS` of what answers with ICMP and ICMPv6 errors.
pub const ICMP_ERROR: u32 = 9;
/// Place in `PROGRAMS` of what takes fragments.
pub const FRAGMENT: u32 = 10;
/// Place in `PROGRAMS` of what takes packets of services with full tracking.
pub const SCHEDULE: u32 = 11;
/// Place in `PROGRAMS` of what takes answers to probes.
pub const PROBED: u32 = 12;

/// The programs of `PROGRAMS`, by place. Each has a stack of its own and is
/// verified by itself.
pub const TAILS: [&str; 13] = [
    "lb_neighbour",
    "lb_icmp",
    "lb_reply",
    "lb_full_nat",
    "lb_binding",
    "lb_reset",
    "lb_head",
    "lb_tracked",
    "lb_expect",
    "lb_icmp_error",
    "lb_fragment",
    "lb_schedule",
    "lb_probed",
];
