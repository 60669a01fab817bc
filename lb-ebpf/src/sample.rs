//! A sample of the flows with their full tuples, by hash: what people see as
//! flows, and what concurrent connections are estimated from where not every
//! flow is tracked. Costs a look at two bits of the hash for the rest.

use lb_common::{
    abi::{Config, SAMPLE_SIZE, SampleEntry, ServiceEntry, sample_flag},
    clock::UNIT_SHIFT,
    hash::{bucket_bits, scale, tag},
    track::Kind,
};

use crate::{clock, maps, parse::Parsed};

/// A flow that has been closing for so long sends nothing any more, in ticks:
/// seconds.
const CLOSED_TICKS: u32 = 3;

/// Notes the packet if its flow is in the sample. The number of connections
/// that it opens as far as can be told: a TCP SYN is one, a UDP flow new to the
/// sample stands for as many as the sample leaves out.
#[inline(always)]
pub fn note(
    config: &Config,
    service: &ServiceEntry,
    parsed: &Parsed,
    flow_hash: u64,
    member: u32,
) -> u64 {
    let is_tcp = parsed.is_tcp();
    let opened = u64::from(parsed.kind() == Kind::Syn);
    if bucket_bits(flow_hash) & config.sample_mask != 0 {
        return opened;
    }
    let is_new = record(config, service.idle_units, parsed, flow_hash, member);
    if is_tcp {
        opened
    } else {
        u64::from(is_new) * (u64::from(config.sample_mask) + 1)
    }
}

/// Whether the flow wasn't in the sample before.
#[inline(never)]
fn record(config: &Config, idle_units: u32, parsed: &Parsed, flow_hash: u64, member: u32) -> bool {
    let Some(at) = maps::sample(scale(tag(flow_hash), SAMPLE_SIZE)) else {
        return false;
    };
    let old = maps::read_sample(at);
    let now = clock::ticks(config);
    // Zero means "being written".
    let check = flow_hash | 1;
    let flags = match parsed.kind() {
        Kind::Syn => 0,
        Kind::Data | Kind::Datagram => sample_flag::CONFIRMED,
        Kind::Fin | Kind::Rst => sample_flag::CONFIRMED | sample_flag::CLOSING,
    };
    let age = now.wrapping_sub(old.last_ticks);
    let limit = if old.flags & sample_flag::CONFIRMED != 0 {
        idle_units << UNIT_SHIFT
    } else {
        config.half_units << UNIT_SHIFT
    };
    if old.check == check && age <= limit {
        // A SYN opens the tuple's next connection.
        let flags = if parsed.kind() == Kind::Syn {
            0
        } else {
            old.flags | flags
        };
        if age != 0 || flags != old.flags || member != old.member {
            maps::touch_sample(at, member, flags, now);
        }
        return false;
    }
    // A living flow keeps its place; a SYN that nobody followed up, or a flow
    // that has closed, gives way to more than a SYN. Not a closing one: its last
    // acknowledgement, coming after another flow took the place, would look
    // like the first packet of a flow that is open.
    let gives_way = old.flags & sample_flag::CONFIRMED == 0
        || (old.flags & sample_flag::CLOSING != 0 && age >= CLOSED_TICKS);
    if old.check != 0 && age <= limit && !(gives_way && parsed.kind() != Kind::Syn) {
        return false;
    }
    let tuple = &parsed.tuple();
    maps::write_sample(
        at,
        &SampleEntry {
            check,
            source: tuple.source,
            destination: tuple.destination,
            source_port: tuple.source_port,
            destination_port: tuple.destination_port,
            protocol: tuple.protocol,
            family: tuple.family,
            flags,
            member,
            first_ticks: now,
            last_ticks: now,
            reserved: 0,
        },
    );
    true
}
