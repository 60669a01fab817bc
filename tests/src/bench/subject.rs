//! The data path with its maps filled for one forwarding method: a service
//! whose slots are stable, and one whose slots all changed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};
use aya::programs::{ProgramFd, ProgramInfo};
use lb_common::{
    abi::{ServiceEntry, feature, method},
    clock,
    counter::Event,
    flow::buckets_for,
    net::protocol,
    slot::SlotWord,
};
use lb_control::scheduler::{Member, identity, maglev, table_size};

use super::{
    driver::{Driver, Traffic},
    layout::FRAME,
};
use crate::{
    packet::{Mac, Packet},
    program::{INGRESS, Program, Sizes, member},
};

/// Backends of each service.
pub const BACKENDS: u32 = 100;

/// Flows that the flow tables are made for: as many entries as the comparison
/// has room for, so that neither has to refuse or evict.
pub const MAX_FLOWS: u32 = 1 << 21;

/// The balancer's MAC address.
pub const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Of the service with stable slots, and of the comparison's.
pub const STABLE_VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const TRACKED_VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// Of all services.
pub const PORT: u16 = 80;

const STABLE: u32 = 1;
const TRACKED: u32 = 2;

/// The loaded data path.
pub struct Subject {
    program: Program,
    /// Packets driven through it before the measurement.
    before: u64,
    /// Entries they made in the flow table.
    inserted: u64,
}

impl Subject {
    /// Loads it with two services of `method`. `sample_mask` as in
    /// [`lb_common::abi::Config`].
    pub fn load(method: u8, sample_mask: u32) -> Result<Self> {
        let sizes = Sizes {
            buckets: buckets_for(MAX_FLOWS),
            ..Sizes::default()
        };
        let mut program = Program::load(sizes)?;
        program.configure(|config| {
            // As the controller sets it on a kernel of 250 Hz; with a standing
            // clock no entry would ever be refreshed.
            config.clock_shift = clock::shift_for_hz(250);
            config.sample_mask = sample_mask;
            if method == method::NAT {
                config.features |= feature::REPLIES;
            }
        })?;
        program.add_link(INGRESS, OWN_MAC)?;
        let mut this = Self {
            program,
            before: 0,
            inserted: 0,
        };
        this.add_service(STABLE, STABLE_VIP, method)?;
        this.add_service(TRACKED, TRACKED_VIP, method)?;
        Ok(this)
    }

    fn add_service(&mut self, service: u32, vip: Ipv4Addr, method: u8) -> Result<()> {
        let slot_size = table_size(BACKENDS as usize);
        let slot_offset = (service - 1) * slot_size;
        let first = (service - 1) * BACKENDS + 1;
        let mut members = Vec::new();
        for id in first..first + BACKENDS {
            let address = IpAddr::V4((0x0a02_0000 + id).into());
            let entry = member(
                service,
                method,
                protocol::TCP,
                address,
                8080,
                (vip.into(), PORT),
                (backend_mac(id), INGRESS as u16),
            );
            self.program.set_member(id, entry)?;
            members.push(Member {
                identity: identity(address, Some(8080)),
                share: 1,
                id,
            });
        }
        let current = maglev(&members, slot_size);
        for (index, &id) in (slot_offset..).zip(&current) {
            let slot = if service == TRACKED {
                let base = first + (id - first + 1) % BACKENDS;
                SlotWord::tracked(id, base, 0)
            } else {
                SlotWord::stable(id)
            };
            self.program.set_slot(index, slot)?;
        }
        self.program.add_vip(vip.into(), 0)?;
        let entry = ServiceEntry {
            id: service,
            slot_offset,
            slot_size,
            idle_units: 990,
            ..ServiceEntry::default()
        };
        self.program
            .add_service(vip.into(), PORT, protocol::TCP, entry)
    }

    /// The program.
    pub fn target(&self) -> Result<ProgramFd> {
        Ok(self.program.lb()?.fd()?.try_clone()?)
    }

    /// What it looks like to the kernel.
    pub fn info(&self) -> Result<ProgramInfo> {
        Ok(self.program.lb()?.info()?)
    }

    /// Makes an entry for each of `flows` of the tracked service.
    pub fn fill(&mut self, driver: &mut Driver, flows: u64) -> Result<()> {
        let mut traffic = Traffic::new(frame(true), flows);
        driver.run(&self.target()?, &mut traffic, u32::try_from(flows)?)?;
        self.before = flows;
        self.inserted = self.inserted()?;
        // Both buckets of a flow may be full: a few in a million at this load.
        ensure!(
            self.inserted <= flows && self.inserted >= flows - flows / 10_000,
            "{flows} flows were to get an entry, but {} did",
            self.inserted
        );
        Ok(())
    }

    /// Entries made in the flow table so far.
    fn inserted(&mut self) -> Result<u64> {
        let events = self.program.events(TRACKED)?;
        Ok(*events.get(Event::FlowInserted.name()).unwrap_or(&0))
    }

    /// Whether each of `driven` packets was forwarded without a new entry.
    pub fn verify(&mut self, driven: u64) -> Result<()> {
        let inserted = self.inserted()?;
        ensure!(
            inserted == self.inserted,
            "there were {} entries before the measurement and {inserted} after it",
            self.inserted
        );
        let mut forwarded = 0;
        for id in 1..=2 * BACKENDS {
            forwarded += self.program.stats(id)?.packets;
        }
        ensure!(
            forwarded == driven + self.before,
            "{driven} packets measured and {} before, but {forwarded} forwarded",
            self.before
        );
        Ok(())
    }
}

/// The MAC address of member `id`.
pub fn backend_mac(id: u32) -> [u8; 6] {
    let [_, _, high, low] = id.to_be_bytes();
    [2, 0, 0, 1, high, low]
}

/// Whether a frame was addressed to a backend.
pub fn goes_to_a_backend(frame: &[u8]) -> bool {
    frame.starts_with(&[2, 0, 0, 1]) && frame.get(6..12) == Some(OWN_MAC.as_slice())
}

/// The frame of the first flow: a TCP segment of the least size on a wire.
pub fn frame(tracked: bool) -> [u8; FRAME] {
    let vip = if tracked { TRACKED_VIP } else { STABLE_VIP };
    let source = SocketAddr::from(([10, 64, 0, 0], 0x1000));
    let built = Packet::tcp(source, (vip, PORT).into())
        .macs(Mac(CLIENT_MAC), Mac(OWN_MAC))
        .payload([0; FRAME - 54])
        .build();
    let mut frame = [0; FRAME];
    for (to, from) in frame.iter_mut().zip(built) {
        *to = from;
    }
    frame
}
