//! The rules as the kernel runs them.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::{Result, ensure};
use lb_common::{
    abi::{CORE_LIMIT_RESETS, RESETS_PER_SECOND, ServiceEntry, map, method, service_flag},
    flow::{BUCKET_WORDS, FlowTable as _, memory::MemoryTable},
    hash::Tuple,
    member::MemberState,
    net::protocol,
    slot::SlotWord,
    track::Kind,
};
use lb_tests::{
    packet::{self, Packet, tcp_flags},
    program::{INGRESS, Program, Sizes, action, member},
};

use crate::plant::{HALF_UNITS, IDLE_UNITS, KEY, MEMBERS, Plant, RESET, SERVICE, SIZE, SYN_WINDOW};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLIENT: [u8; 6] = [2, 9, 9, 9, 9, 9];

pub struct Kernel {
    program: Program,
    buckets: u32,
    /// Since the limit of resets was last lifted.
    resets: u32,
}

impl Kernel {
    pub fn new(buckets: u32, resets: bool) -> Result<Self> {
        let sizes = Sizes {
            members: MEMBERS,
            slots: SIZE,
            buckets,
            ..Sizes::default()
        };
        let mut program = Program::load(sizes)?;
        program.configure(|config| {
            config.hash_key = KEY;
            config.syn_window_ticks = SYN_WINDOW;
            config.half_units = HALF_UNITS;
            config.longest_idle_units = IDLE_UNITS;
        })?;
        let link = program.add_link(INGRESS, MAC)?;
        let vip: SocketAddr = "192.0.2.1:80".parse()?;
        program.add_vip(vip.ip(), 0)?;
        let entry = ServiceEntry {
            id: SERVICE,
            slot_size: SIZE,
            idle_units: IDLE_UNITS,
            flags: if resets { service_flag::RESET } else { 0 },
            ..ServiceEntry::default()
        };
        program.add_service(vip.ip(), vip.port(), protocol::TCP, entry)?;
        for id in 1..MEMBERS {
            let [_, _, high, low] = id.to_be_bytes();
            let address = [10, 0, high, low].into();
            // The MAC address tells the member that a frame went to.
            let mac = [2, 1, 0, 0, high, low];
            let mut record = member(
                SERVICE,
                method::L2_DSR,
                protocol::TCP,
                address,
                0,
                (vip.ip(), 0),
                (mac, link),
            );
            record.state = MemberState::FREE.0;
            program.set_member(id, record)?;
        }
        Ok(Self {
            program,
            buckets,
            resets: 0,
        })
    }
}

impl Plant for Kernel {
    fn packet(&mut self, tuple: &Tuple, kind: Kind) -> Result<Option<u32>> {
        let end = |addr: lb_common::net::Addr, port: lb_common::net::Be16| {
            SocketAddr::new(addr.to_ip(tuple.family), port.get())
        };
        let flags = match kind {
            Kind::Syn => tcp_flags::SYN,
            Kind::Data | Kind::Datagram => tcp_flags::ACK,
            Kind::Fin => tcp_flags::FIN | tcp_flags::ACK,
            Kind::Rst => tcp_flags::RST,
        };
        let frame = Packet::tcp(
            end(tuple.source, tuple.source_port),
            end(tuple.destination, tuple.destination_port),
        )
        .flags(flags)
        .macs(packet::Mac(CLIENT), packet::Mac(MAC))
        .build();
        let outcome = self.program.run(&frame)?;
        match outcome.action {
            action::TX if outcome.frame[..6] == CLIENT => {
                self.resets += 1;
                if self.resets == RESETS_PER_SECOND / 2 {
                    self.resets = 0;
                    self.program.lift_core_limit(CORE_LIMIT_RESETS)?;
                }
                Ok(Some(RESET))
            }
            action::TX => {
                let id = u32::from(outcome.frame[4]) << 8 | u32::from(outcome.frame[5]);
                ensure!(
                    outcome.frame[..4] == [2, 1, 0, 0],
                    "{:?}",
                    &outcome.frame[..6]
                );
                Ok(Some(id))
            }
            action::DROP => Ok(None),
            other => anyhow::bail!("action {other}"),
        }
    }

    fn set_ticks(&mut self, ticks: u32) -> Result<()> {
        self.program.set_ticks(ticks)
    }

    fn set_state(&mut self, id: u32, state: MemberState) -> Result<()> {
        let mut record = self.program.member(id)?;
        record.state = state.0;
        self.program.set_member(id, record)
    }

    fn slots(&mut self) -> Result<Vec<SlotWord>> {
        (0..SIZE).map(|index| self.program.slot(index)).collect()
    }

    fn set_slots(&mut self, slots: &BTreeMap<u32, SlotWord>) -> Result<()> {
        slots
            .iter()
            .try_for_each(|(index, word)| self.program.set_slot(*index, *word))
    }

    fn with_flows(&mut self, sweep: &mut dyn FnMut(&MemoryTable)) -> Result<()> {
        let copy = MemoryTable::new(self.buckets);
        let mut map = self.program.array::<[u64; BUCKET_WORDS]>(map::FLOWS)?;
        for index in 0..self.buckets {
            for (word, value) in map.get(&index, 0)?.into_iter().enumerate() {
                copy.replace(index, word, 0, value);
            }
        }
        sweep(&copy);
        for index in 0..self.buckets {
            let words: [u64; BUCKET_WORDS] = std::array::from_fn(|word| copy.load(index, word));
            map.set(index, words, 0)?;
        }
        Ok(())
    }

    fn events(&mut self) -> Result<(u64, u64)> {
        let events = self.program.events(SERVICE)?;
        let of = |name| events.get(name).copied().unwrap_or(0);
        Ok((of("flow_inserted"), of("untracked")))
    }
}
