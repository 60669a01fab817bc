//! The real data path without an interface: its object loaded into the kernel,
//! its maps filled by hand, packets run through it by BPF_PROG_TEST_RUN.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader, Pod, TestRunOptions, VerifierLogLevel,
    maps::{
        Array, HashMap, Map, MapData, PerCpuArray, PerCpuValues, ProgramArray, lpm_trie::Key,
        lpm_trie::LpmTrie,
    },
    programs::{ProgramError, ProgramInfo, TestRun as _, Xdp},
};
use lb_common::{
    abi::{self, Config, LinkEntry, MemberEntry, ServiceEntry, Tags, map},
    binding::Ring,
    net::{Addr, Be16, Mac, NextHop},
    slot::SlotWord,
};
use lb_control::dataplane::object::DATA_PATH;

use crate::cleanup::{self, Bpffs, TempDir};

mod contents;
mod counters;
mod full_nat;
mod ingress;
mod pool;

pub use contents::Contents;
pub use pool::{Pool, Pooled};

/// XDP's actions by number.
pub mod action {
    /// The packet was dropped by an error.
    pub const ABORTED: u32 = 0;
    /// The packet was dropped.
    pub const DROP: u32 = 1;
    /// The kernel gets it.
    pub const PASS: u32 = 2;
    /// Out of the interface it came in by.
    pub const TX: u32 = 3;
    /// Out of another.
    pub const REDIRECT: u32 = 4;
}

/// Loopback's index: where BPF_PROG_TEST_RUN says that packets come from.
pub const INGRESS: u32 = 1;

/// A second to the limits of new flows, longer than any test runs: what a
/// bucket held is all that passes.
pub const SECOND_STEPS: u32 = u32::MAX;

/// Sizes of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Services, and keys of them.
    pub services: u32,
    /// Members.
    pub members: u32,
    /// Slots of all tables.
    pub slots: u32,
    /// Buckets of each flow table.
    pub buckets: u32,
    /// Full NAT's bindings.
    pub bindings: u32,
    /// Packets whose fragments are under way.
    pub fragments: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            services: 64,
            members: 1024,
            slots: 1 << 17,
            buckets: 1024,
            bindings: 4096,
            fragments: 1024,
        }
    }
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// See [`action`].
    pub action: u32,
    /// The frame afterwards.
    pub frame: Vec<u8>,
}

/// The loaded data path.
pub struct Program {
    ebpf: Ebpf,
    _tails: ProgramArray<MapData>,
    sizes: Sizes,
}

impl Program {
    /// Loads the object with a configuration under which time stands still
    /// until [`Self::set_ticks`] moves it, and without links.
    pub fn load(sizes: Sizes) -> Result<Self> {
        Self::load_logging(sizes, 0)
    }

    /// As [`Self::load`], with the debug log up to `level` compiled in: 0 is
    /// none, 5 all. Nobody reads it.
    pub fn load_logging(sizes: Sizes, level: u8) -> Result<Self> {
        cleanup::sweep();
        let dir = TempDir::new()?;
        let fs = Bpffs::mount(&dir)?;
        let mut loader = EbpfLoader::new();
        loader
            .default_map_pin_directory(fs.path())
            .verifier_log_level(VerifierLogLevel::STATS);
        loader
            .map_max_entries(map::SERVICES, sizes.services)
            .map_max_entries(map::RANGES, sizes.services * 32)
            .map_max_entries(map::VIPS, sizes.services)
            .map_max_entries(map::REPLIES, sizes.members)
            .map_max_entries(map::CORE_LIMITS, sizes.services + 1)
            .map_max_entries(map::SLOTS, sizes.slots)
            .map_max_entries(map::MEMBERS, sizes.members)
            .map_max_entries(map::LOADS, sizes.members)
            .map_max_entries(map::TURNS, sizes.services)
            .map_max_entries(map::STATS, sizes.members)
            .map_max_entries(map::FLOWS, sizes.buckets)
            .map_max_entries(map::REPLY_FLOWS, sizes.buckets)
            .map_max_entries(map::FRAGMENTS, sizes.fragments)
            .map_max_entries(map::NAT_FLOWS, sizes.buckets)
            .map_max_entries(map::BINDINGS, sizes.bindings + 1)
            .map_max_entries(
                map::FREE_PORTS,
                Ring::lines(Ring::capacity_for(sizes.bindings)),
            )
            .override_global(aya_log_level(), &level, true);
        let mut ebpf = loader
            .load(DATA_PATH)
            .context("can't load the data path's object")?;
        let programs = [abi::program::LB, abi::program::CLOCK, abi::program::PROBE];
        for name in programs.iter().chain(&abi::program::TAILS) {
            let program: &mut Xdp = ebpf
                .program_mut(name)
                .context("the object lacks a program")?
                .try_into()?;
            load(program).with_context(|| format!("the kernel refused the program {name}"))?;
        }
        // The kernel empties it when nobody holds it, and the pins go with `fs`.
        let map = ebpf
            .take_map(map::PROGRAMS)
            .context("the object lacks its program array")?;
        let mut tails: ProgramArray<MapData> = map.try_into()?;
        for (place, name) in (0u32..).zip(abi::program::TAILS) {
            let program: &Xdp = ebpf
                .program(name)
                .context("the object lacks a program")?
                .try_into()?;
            tails.set(place, program.fd()?, 0)?;
        }
        let mut this = Self {
            ebpf,
            _tails: tails,
            sizes,
        };
        this.initialise()?;
        Ok(this)
    }

    /// Writes what is not zero at first into empty maps.
    fn initialise(&mut self) -> Result<()> {
        let sizes = self.sizes;
        self.configure(|config| {
            *config = Config {
                hash_key: [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908],
                clock_shift: 63,
                syn_window_ticks: 4,
                half_units: 9,
                second_steps: SECOND_STEPS,
                longest_idle_units: 990,
                icmp_cost: 1,
                flow_buckets: sizes.buckets,
                reply_buckets: sizes.buckets,
                nat_buckets: sizes.buckets,
                free_ports: Ring::capacity_for(sizes.bindings),
                ..Config::default()
            };
        })?;
        Ok(self
            .array::<u64>(map::OWNERS)?
            .set(0, abi::owner::FOREVER, 0)?)
    }

    /// Instructions the verifier looked at in the data path.
    pub fn verified_instructions(&self) -> Result<u32> {
        self.verified_instructions_of(abi::program::LB)
    }

    /// Instructions the verifier looked at in a program of the object.
    pub fn verified_instructions_of(&self, name: &str) -> Result<u32> {
        let program: &Xdp = self
            .ebpf
            .program(name)
            .context("the object lacks the program")?
            .try_into()?;
        let info: ProgramInfo = program.info()?;
        info.verified_instruction_count()
            .context("the kernel doesn't tell")
    }

    /// The program that every packet goes through.
    pub fn lb(&self) -> Result<&Xdp> {
        Ok(self
            .ebpf
            .program(abi::program::LB)
            .context("the object lacks a program")?
            .try_into()?)
    }

    fn map(&mut self, name: &str) -> Result<&mut Map> {
        self.ebpf
            .map_mut(name)
            .with_context(|| format!("the object lacks the map {name}"))
    }

    /// A map as an array.
    pub fn array<V: Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, V>> {
        Ok(self.map(name)?.try_into()?)
    }

    /// A map as an array of values per core.
    pub fn per_cpu<V: Pod>(&mut self, name: &str) -> Result<PerCpuArray<&mut MapData, V>> {
        Ok(self.map(name)?.try_into()?)
    }

    /// A map as a hash.
    pub fn hash<K: Pod, V: Pod>(&mut self, name: &str) -> Result<HashMap<&mut MapData, K, V>> {
        Ok(self.map(name)?.try_into()?)
    }

    /// Changes the configuration word by word.
    pub fn configure(&mut self, change: impl FnOnce(&mut Config)) -> Result<()> {
        let mut array = self.array::<Config>(map::CONFIG)?;
        let mut config = array.get(&0, 0)?;
        change(&mut config);
        Ok(array.set(0, config, 0)?)
    }

    /// The configuration.
    pub fn config(&mut self) -> Result<Config> {
        Ok(self.array::<Config>(map::CONFIG)?.get(&0, 0)?)
    }

    /// Sets the data path's time.
    pub fn set_ticks(&mut self, ticks: u32) -> Result<()> {
        self.configure(|config| config.clock_offset = ticks)
    }

    /// Adds an interface; the index of its entry.
    pub fn add_link(&mut self, ifindex: u32, mac: Mac) -> Result<u16> {
        let index = LinkEntry::place(ifindex, [0; 2]);
        let entry = LinkEntry::plain(ifindex, mac, 1500);
        self.array::<LinkEntry>(map::LINKS)?.set(index, entry, 0)?;
        Ok(index as u16)
    }

    /// Adds a VLAN device with these tags on interface `nic`, as where packets
    /// come in by and as what the kernel's routing names.
    pub fn add_vlan(&mut self, nic: u32, tags: Tags, device: u32, mac: Mac) -> Result<()> {
        let entry = LinkEntry {
            match_ifindex: device,
            match_tags: [0; 2],
            device,
            ifindex: nic,
            tags,
            mac,
            flags: 0,
            mtu: 1500,
        };
        let mut links = self.array::<LinkEntry>(map::LINKS)?;
        for (match_ifindex, match_tags) in [(device, [0; 2]), (nic, tags)] {
            let entry = LinkEntry {
                match_ifindex,
                match_tags,
                ..entry
            };
            let index = LinkEntry::place(match_ifindex, match_tags);
            anyhow::ensure!(links.get(&index, 0)?.ifindex == 0, "the place is taken");
            links.set(index, entry, 0)?;
        }
        Ok(())
    }

    /// Makes an address a VIP, owned as owner word `owner` says.
    pub fn add_vip(&mut self, address: IpAddr, owner: u16) -> Result<()> {
        let (address, family) = Addr::from_ip(address);
        let key = abi::VipKey {
            address,
            family,
            reserved: [0; 3],
        };
        let entry = abi::VipEntry { owner, flags: 0 };
        Ok(self.hash(map::VIPS)?.insert(key, entry, 0)?)
    }

    /// Adds a service of one port.
    pub fn add_service(
        &mut self,
        address: IpAddr,
        port: u16,
        protocol: u8,
        entry: ServiceEntry,
    ) -> Result<()> {
        let (address, family) = Addr::from_ip(address);
        let key = abi::ServiceKey {
            address,
            port: Be16::new(port),
            protocol,
            family,
        };
        Ok(self.hash(map::SERVICES)?.insert(key, entry, 0)?)
    }

    /// Adds a service of the ports that share `bits` leading bits with `port`.
    pub fn add_range(
        &mut self,
        address: IpAddr,
        (port, bits): (u16, u32),
        protocol: u8,
        entry: ServiceEntry,
    ) -> Result<()> {
        let (address, family) = Addr::from_ip(address);
        let key = abi::RangeKey {
            address,
            family,
            protocol,
            port: Be16::new(port),
        };
        let key = Key::new(abi::RANGE_KEY_FIXED_BITS + bits, key);
        let mut ranges: LpmTrie<_, abi::RangeKey, ServiceEntry> =
            self.map(map::RANGES)?.try_into()?;
        Ok(ranges.insert(&key, entry, 0)?)
    }

    /// Makes packets from a backend's address and port replies of `member`
    /// (zero: of the one that their flow names).
    pub fn add_reply(
        &mut self,
        backend: IpAddr,
        port: u16,
        protocol: u8,
        member: u32,
    ) -> Result<()> {
        let (address, family) = Addr::from_ip(backend);
        let key = abi::ReplyKey {
            address,
            port: Be16::new(port),
            protocol,
            family,
        };
        Ok(self
            .hash(map::REPLIES)?
            .insert(key, abi::ReplyEntry { member }, 0)?)
    }

    /// Sets a member's record.
    pub fn set_member(&mut self, id: u32, entry: MemberEntry) -> Result<()> {
        Ok(self.array::<MemberEntry>(map::MEMBERS)?.set(id, entry, 0)?)
    }

    /// A member's record.
    pub fn member(&mut self, id: u32) -> Result<MemberEntry> {
        Ok(self.array::<MemberEntry>(map::MEMBERS)?.get(&id, 0)?)
    }

    /// Sets a slot.
    pub fn set_slot(&mut self, index: u32, slot: SlotWord) -> Result<()> {
        Ok(self.array::<u64>(map::SLOTS)?.set(index, slot.0, 0)?)
    }

    /// A slot.
    pub fn slot(&mut self, index: u32) -> Result<SlotWord> {
        Ok(SlotWord(self.array::<u64>(map::SLOTS)?.get(&index, 0)?))
    }

    /// Fills the buckets of a row of `CORE_LIMITS` on every core.
    pub fn lift_core_limit(&mut self, row: u32) -> Result<()> {
        let mut limits: PerCpuArray<_, u64> = self.map(map::CORE_LIMITS)?.try_into()?;
        let zeros = PerCpuValues::try_from(vec![0; limits.get(&row, 0)?.len()])?;
        Ok(limits.set(row, zeros, 0)?)
    }

    /// Adds a prefix to a set of sources; see [`abi::source`].
    pub fn add_source(&mut self, set: u32, prefix: (IpAddr, u32), value: u32) -> Result<()> {
        let (address, _) = Addr::from_ip(prefix.0);
        let key = abi::SourceKey { set, address };
        let key = Key::new(abi::SOURCE_KEY_FIXED_BITS + prefix.1, key);
        let mut sources: LpmTrie<_, abi::SourceKey, u32> = self.map(map::SOURCES)?.try_into()?;
        Ok(sources.insert(&key, value, 0)?)
    }

    /// Runs one frame through the program.
    pub fn run(&self, frame: &[u8]) -> Result<Outcome> {
        run(self.lb()?, frame, None)
    }

    /// Runs one frame through the program on the device that probes come in by.
    pub fn run_probe(&self, frame: &[u8]) -> Result<Outcome> {
        let program = self.ebpf.program(abi::program::PROBE);
        run(
            program.context("the object lacks a program")?.try_into()?,
            frame,
            None,
        )
    }

    /// The sizes it was loaded with.
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }
}

/// Runs one frame through a program, in the given `struct xdp_md` if there is one.
fn run(program: &Xdp, frame: &[u8], context: Option<&[u8]>) -> Result<Outcome> {
    let mut out = vec![0; frame.len() + 256];
    let result = program.test_run(TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut out),
        ctx_in: context,
        ..TestRunOptions::new()
    })?;
    out.truncate(result.data_size_out as usize);
    Ok(Outcome {
        action: result.return_value,
        frame: out,
    })
}

/// The verifier gives up with EAGAIN when a signal arrives meanwhile.
fn load(program: &mut Xdp) -> Result<(), ProgramError> {
    let mut attempts = 1;
    loop {
        match program.load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.raw_os_error() == Some(libc::EAGAIN) && attempts < 20 =>
            {
                attempts += 1;
            }
            result => return result,
        }
    }
}

fn aya_log_level() -> &'static str {
    "AYA_LOG_LEVEL"
}

/// A member of service `service` at `address`, reached through link `link`.
#[allow(clippy::too_many_arguments)]
pub fn member(
    service: u32,
    method: u8,
    protocol: u8,
    address: IpAddr,
    port: u16,
    (vip, vip_port): (IpAddr, u16),
    (mac, link): (Mac, u16),
) -> MemberEntry {
    let (address, outer_family) = Addr::from_ip(address);
    let (vip, family) = Addr::from_ip(vip);
    MemberEntry {
        state: lb_common::member::MemberState::UP.0,
        next_hop: NextHop::new(mac, link).0,
        address,
        vip,
        service,
        port: Be16::new(port),
        vip_port: Be16::new(vip_port),
        method,
        family,
        protocol,
        outer_family,
        mtu: 0,
        reserved: [0; 2],
    }
}
