//! What the maps tell: counters, and flows estimated from a sample.

use std::net::IpAddr;

use lb_common::{
    abi::{MemberEntry, MemberLoad, MemberStats, SAMPLE_SIZE, SampleEntry, sample_flag},
    counter::{DROP_ROW, DropReason, EVENT_ROW, Event},
    load::Counts,
};
use serde::Serialize;

use super::{bindings::PoolUse, links::AttachedMode};

/// All that is counted, at one moment.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PlaneStats {
    /// One for each member, those that left the configuration included.
    pub members: Vec<MemberRow>,
    /// Dropped packets, where there are any.
    pub drops: Vec<DropRow>,
    /// Other events, where there are any.
    pub events: Vec<EventRow>,
    /// One for each service.
    pub services: Vec<ServiceRow>,
    /// Flow tables at the last sweep.
    pub flow_table: FlowTableStats,
    /// Sources with a server at the last sweep, and how many there is room for.
    pub persistence: (u64, u64),
    /// Full NAT's addresses at the last sweep.
    pub pools: Vec<PoolRow>,
    /// Who else claimed VIPs of this node.
    pub claims: Vec<ClaimRow>,
    /// Flows are sampled where these bits of the hash are zero; the rate is
    /// one in `sample_mask + 1`.
    pub sample_mask: u32,
    /// Share of the sample's records in use, 0 to 1.
    pub sample_occupancy: f64,
    /// How the program is attached.
    pub interfaces: Vec<InterfaceRow>,
    /// Instructions the verifier looked at, where the kernel tells.
    pub verified_instructions: Option<u32>,
}

/// The ports of an address of full NAT's pool.
#[derive(Clone, Debug, Serialize)]
pub struct PoolRow {
    /// The address.
    pub address: IpAddr,
    /// Whether it left the configuration and waits for its last flow.
    pub draining: bool,
    /// How its ports are used.
    pub ports: PoolUse,
}

/// A VIP of this node that somebody else on the segment claimed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClaimRow {
    /// The VIP.
    pub address: IpAddr,
    /// MAC address of the last one that claimed it.
    pub mac: [u8; 6],
    /// Name of the device that the claim came in by.
    pub interface: String,
    /// Tick of the claim, to tell one from the next.
    pub ticks: u32,
    /// Its age.
    pub seconds_ago: u32,
}

/// Counters of one member.
#[derive(Clone, Debug, Serialize)]
pub struct MemberRow {
    /// Its id.
    pub id: u32,
    /// Name of its service.
    pub service: String,
    /// The backend's address.
    pub address: IpAddr,
    /// Port packets are rewritten to; `None` keeps it.
    pub port: Option<u16>,
    /// `up`, `draining`, `failing`, `dead`.
    pub state: &'static str,
    /// Whether it isn't in the configuration any more.
    pub departed: bool,
    /// Whether its next hop is resolved.
    pub next_hop_resolved: bool,
    /// Slots it is the current member of.
    pub slots: u32,
    /// Packets from clients.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Connections (TCP: SYNs).
    pub connections: u64,
    /// Replies translated (NAT).
    pub reply_packets: u64,
    /// Their bytes.
    pub reply_bytes: u64,
    /// Concurrent connections: counted, or else estimated from the sample.
    pub concurrent: Estimate,
    /// What is counted, under full tracking.
    pub counted: Option<Counted>,
}

/// A member's connections, counted one by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counted {
    /// Connections of which only a SYN was seen.
    pub half_open: u32,
    /// Connections that are open.
    pub open: u32,
    /// Connections it may have; zero: any number.
    pub max: u32,
}

impl MemberRow {
    pub(super) fn new(id: u32, service: String, member: &MemberEntry, stats: MemberStats) -> Self {
        Self {
            id,
            service,
            address: member.address.to_ip(member.outer_family),
            port: (!member.port.is_zero()).then(|| member.port.get()),
            state: state_name(member.state),
            departed: false,
            next_hop_resolved: member.next_hop().is_resolved(),
            slots: 0,
            packets: stats.packets,
            bytes: stats.bytes,
            connections: stats.connections,
            reply_packets: stats.reply_packets,
            reply_bytes: stats.reply_bytes,
            concurrent: Estimate::default(),
            counted: None,
        }
    }

    /// Under full tracking: takes over what the data path counts.
    pub(super) fn count(&mut self, load: MemberLoad) {
        let counts = Counts(load.counts);
        self.counted = Some(Counted {
            half_open: counts.half(),
            open: counts.open(),
            max: load.max,
        });
        self.concurrent = Estimate {
            value: f64::from(counts.open()),
            standard_error: 0.0,
        };
    }
}

fn state_name(state: u64) -> &'static str {
    use lb_common::member::MemberState;
    match MemberState(state) {
        MemberState::UP => "up",
        MemberState::DRAINING => "draining",
        MemberState::FAILING => "failing",
        MemberState::DEAD => "dead",
        _ => "free",
    }
}

/// A number with its standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Estimate {
    /// The most likely number.
    pub value: f64,
    /// Its standard error.
    pub standard_error: f64,
}

/// Packets dropped for one reason.
#[derive(Clone, Debug, Serialize)]
pub struct DropRow {
    /// Name of the service; `None` for packets that belong to none.
    pub service: Option<String>,
    /// [`DropReason::name`].
    pub reason: &'static str,
    /// Packets.
    pub packets: u64,
}

/// How often something happened.
#[derive(Clone, Debug, Serialize)]
pub struct EventRow {
    /// Name of the service; `None` where it belongs to none.
    pub service: Option<String>,
    /// [`Event::name`].
    pub event: &'static str,
    /// How often.
    pub count: u64,
}

/// One service.
#[derive(Clone, Debug, Serialize)]
pub struct ServiceRow {
    /// Its name.
    pub service: String,
    /// Its id.
    pub id: u32,
    /// Slots of its table.
    pub slots: u32,
    /// Slots in which flows are looked up.
    pub tracked_slots: u32,
    /// Living entries of the flow table at the last sweep.
    pub flow_entries: u64,
    /// Living entries of the reply table at the last sweep.
    pub reply_entries: u64,
}

/// The flow tables.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct FlowTableStats {
    /// Living entries of flows in tracked slots.
    pub entries: u64,
    /// Living entries of NAT replies.
    pub reply_entries: u64,
    /// Flows each table is sized for.
    pub max_flows: u64,
}

/// One interface.
#[derive(Clone, Debug, Serialize)]
pub struct InterfaceRow {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// How the program is attached; `None`: it isn't.
    pub mode: Option<AttachedMode>,
    /// Why it isn't native where that was tried.
    pub fallback_reason: Option<String>,
}

/// A flow of the sample.
#[derive(Clone, Debug, Serialize)]
pub struct SampledFlow {
    /// Client's address.
    pub source: IpAddr,
    /// Client's port.
    pub source_port: u16,
    /// VIP.
    pub destination: IpAddr,
    /// VIP's port.
    pub destination_port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// Name of the service.
    pub service: String,
    /// Address of the backend that got its last packet.
    pub backend: IpAddr,
    /// Seconds since the first packet seen.
    pub age_seconds: u32,
    /// Seconds since the last packet seen.
    pub idle_seconds: u32,
    /// Whether FIN or RST was seen.
    pub closing: bool,
}

pub(super) fn drop_rows(counts: &[u64], name: impl Fn(u32) -> Option<String>) -> Vec<DropRow> {
    rows(counts, DROP_ROW, DropReason::ALL)
        .map(|(service, reason, packets)| DropRow {
            service: name(service),
            reason: reason.name(),
            packets,
        })
        .collect()
}

pub(super) fn event_rows(counts: &[u64], name: impl Fn(u32) -> Option<String>) -> Vec<EventRow> {
    rows(counts, EVENT_ROW, Event::ALL)
        .map(|(service, event, count)| EventRow {
            service: name(service),
            event: event.name(),
            count,
        })
        .collect()
}

/// (service, what, count) where the count isn't zero.
fn rows<'a, T: Copy>(
    counts: &'a [u64],
    row: u32,
    all: &'a [T],
) -> impl Iterator<Item = (u32, T, u64)> + 'a {
    (0u32..)
        .zip(counts.chunks(row as usize))
        .flat_map(move |(service, counts)| {
            all.iter()
                .zip(counts)
                .filter(|(_, n)| **n > 0)
                .map(move |(what, n)| (service, *what, *n))
        })
}

/// Whether a sampled flow counts as a connection that is open now.
pub fn is_open(sample: &SampleEntry, now_ticks: u32, idle_ticks: u32) -> bool {
    sample.flags & sample_flag::CONFIRMED != 0
        && sample.flags & sample_flag::CLOSING == 0
        && now_ticks.wrapping_sub(sample.last_ticks) <= idle_ticks
}

/// The estimate from `counted` records of a sample of which `occupied` are in
/// use, taken of one flow in `rate`.
///
/// Flows that fall on a record in use displace one another, so the number
/// behind an occupancy is `-m ln(1 - occupied / m)` (Whang, Vander-Zanden,
/// Taylor: "A linear-time probabilistic counting algorithm for database
/// applications", ACM TODS 1990), of which each member has its part. The error
/// is that of a binomial sample and, for the table, the paper's (theorem 2).
pub fn estimate(counted: u64, occupied: u64, rate: u32) -> Estimate {
    if counted == 0 {
        return Estimate::default();
    }
    let m = f64::from(SAMPLE_SIZE);
    // A full table says only "at least so many".
    let full = (occupied as f64 / m).min(1.0 - 1.0 / m);
    let load = -(1.0 - full).ln();
    let behind = load * m;
    let part = counted as f64 / (occupied.max(1)) as f64;
    let sampled = behind * part;
    let rate = f64::from(rate);
    let of_sampling = sampled * (1.0 - 1.0 / rate);
    let of_table = m * (load.exp() - load - 1.0) * part * part
        + sampled * (1.0 - full / load.max(f64::MIN_POSITIVE));
    Estimate {
        value: sampled * rate,
        standard_error: (of_sampling + of_table).max(0.0).sqrt() * rate,
    }
}

/// The sampling mask for the next period: half as many flows when more than a
/// quarter of the records are in use, twice as many below a twentieth.
pub fn next_sample_mask(mask: u32, occupied: u64) -> u32 {
    let size = u64::from(SAMPLE_SIZE);
    if occupied * 4 > size {
        mask << 1 | 1
    } else if occupied * 20 < size {
        mask >> 1
    } else {
        mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Throws `flows` at the sample, half of them of one member, and returns
    /// that member's estimate.
    fn simulated(flows: u64, mask: u32, seed: &mut u64) -> Estimate {
        let mut table = vec![0u8; SAMPLE_SIZE as usize];
        for i in 0..flows {
            let hash = random(seed);
            if hash as u32 & mask == 0 {
                table[(hash >> 48) as usize] = 1 + (i % 2) as u8;
            }
        }
        let occupied = table.iter().filter(|t| **t > 0).count() as u64;
        let counted = table.iter().filter(|t| **t == 1).count() as u64;
        estimate(counted, occupied, mask + 1)
    }

    #[test]
    fn estimates_are_within_four_standard_errors_of_the_truth() {
        let mut seed = 1;
        for (flows, mask) in [(1000, 0), (30_000, 0), (100_000, 3), (1_000_000, 63)] {
            let e = simulated(flows, mask, &mut seed);
            let off = (e.value - flows as f64 / 2.0).abs();
            assert!(off <= 4.0 * e.standard_error + 1.0, "{flows} {mask}: {e:?}");
            assert!(
                e.standard_error < 0.05 * flows as f64,
                "{flows} {mask}: {e:?}"
            );
        }
    }

    #[test]
    fn a_few_flows_are_counted_nearly_exactly() {
        let e = estimate(10, 10, 1);
        assert!(
            (e.value - 10.0).abs() < 0.01 && e.standard_error < 0.1,
            "{e:?}"
        );
        assert_eq!(estimate(0, 0, 1), Estimate::default());
    }

    #[test]
    fn the_sampling_rate_follows_the_occupancy() {
        assert_eq!(next_sample_mask(0, 0), 0);
        assert_eq!(next_sample_mask(0, 16_385), 1);
        assert_eq!(next_sample_mask(1, 16_385), 3);
        assert_eq!(next_sample_mask(3, 10_000), 3);
        assert_eq!(next_sample_mask(3, 3_000), 1);
    }
}
