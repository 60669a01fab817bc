//! The comparison: the least that a balancer with a flow table in an LRU hash
//! has to do. Service, flow, backend, counters, MAC addresses; IPv4 without
//! options only, no checks of lengths, no log, no answers for the VIP.

use aya_ebpf::{
    bindings::xdp_action,
    macros::{map, xdp},
    maps::{Array, HashMap, LruHashMap, PerCpuArray},
    programs::XdpContext,
};

use crate::layout::{LruBackend, LruFlow, LruPool, LruService, LruStats};

#[map]
static LRU_SERVICES: HashMap<LruService, LruPool> = HashMap::with_max_entries(64, 0);
#[map]
static LRU_FLOWS: LruHashMap<LruFlow, u32> = LruHashMap::with_max_entries(1, 0);
#[map]
static LRU_BACKENDS: Array<LruBackend> = Array::with_max_entries(1024, 0);
#[map]
static LRU_STATS: PerCpuArray<LruStats> = PerCpuArray::with_max_entries(1024, 0);
#[map]
static LRU_MISSES: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Ethernet, IPv4 without options, ports. Naturally aligned fields, because a
/// load that is declared unaligned is a load per byte.
#[repr(C)]
struct Headers {
    destination_mac: [u16; 3],
    source_mac: [u16; 3],
    ether_type: u16,
    version_ihl_tos: [u8; 2],
    length: u16,
    id: u16,
    fragment: u16,
    ttl_protocol: [u8; 2],
    checksum: u16,
    addresses: [[u16; 2]; 2],
    ports: [u16; 2],
}

const _: () = assert!(size_of::<Headers>() == 38);

#[xdp(frags)]
pub fn bench_lru(ctx: XdpContext) -> u32 {
    balance(&ctx).unwrap_or(xdp_action::XDP_PASS)
}

#[inline(always)]
fn balance(ctx: &XdpContext) -> Option<u32> {
    let start = ctx.data();
    let end = ctx.data_end();
    if start + size_of::<Headers>() > end {
        return None;
    }
    let headers = start as *mut Headers;
    // SAFETY: the bounds were checked.
    let (ether_type, version_ihl, fragment, protocol, ports) = unsafe {
        (
            (*headers).ether_type,
            (*headers).version_ihl_tos[0],
            (*headers).fragment,
            (*headers).ttl_protocol[1],
            (*headers).ports,
        )
    };
    if ether_type != 0x0800_u16.to_be()
        || version_ihl != 0x45
        || fragment & 0x3fff_u16.to_be() != 0
        || (protocol != TCP && protocol != UDP)
    {
        return None;
    }
    #[expect(
        clippy::cast_ptr_alignment,
        reason = "BPF loads words from any address; `read_unaligned` would load bytes and cost the measured program more"
    )]
    // SAFETY: within the headers; one load each, whatever the alignment.
    let addresses = unsafe { (start as *const u8).add(26).cast::<[u32; 2]>().read() };
    // SAFETY: nobody replaces entries while the program runs.
    let pool = unsafe {
        LRU_SERVICES.get(LruService {
            address: addresses[1],
            port: ports[1],
            protocol: u16::from(protocol),
        })
    }?;
    let flow = LruFlow {
        addresses,
        ports,
        protocol: u32::from(protocol),
    };
    // SAFETY: a value that is replaced while it is read is still a backend of
    // some flow; one word can't be torn.
    let index = match unsafe { LRU_FLOWS.get(flow) } {
        Some(index) => *index,
        None => assign(&flow, pool),
    };
    let backend = LRU_BACKENDS.get(index)?;
    let stats = LRU_STATS.get_ptr_mut(index)?;
    // SAFETY: this core's row, and the headers' bounds were checked.
    unsafe {
        (*stats).packets += 1;
        (*stats).bytes += (end - start) as u64;
        (*headers).destination_mac = backend.mac;
        (*headers).source_mac = backend.own_mac;
    }
    Some(xdp_action::XDP_TX)
}

/// A backend for a new flow.
#[inline(never)]
fn assign(flow: &LruFlow, pool: &LruPool) -> u32 {
    if let Some(misses) = LRU_MISSES.get_ptr_mut(0) {
        // SAFETY: this core's element.
        unsafe { *misses += 1 };
    }
    let ports = u32::from(flow.ports[0]) | u32::from(flow.ports[1]) << 16;
    let mixed = (flow.addresses[0] ^ ports.rotate_left(13)).wrapping_mul(0x9e37_79b1);
    let scaled = (u64::from(mixed ^ mixed >> 15) * u64::from(pool.size)) >> 32;
    let index = pool.offset.wrapping_add(scaled as u32);
    let _ = LRU_FLOWS.insert(flow, index, 0);
    index
}
