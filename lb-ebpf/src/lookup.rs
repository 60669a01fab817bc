//! Whose packet it is: VIPs, services, owners.

use lb_common::{
    abi::{Config, RangeKey, ServiceEntry, ServiceKey, VipKey, feature, owner, vip_flag},
    hash::Tuple,
    net::Addr,
};

use crate::{clock, maps};

/// The service a packet is addressed to.
#[inline(always)]
pub fn service(config: &Config, tuple: &Tuple) -> Option<&'static ServiceEntry> {
    let exact = maps::service(&ServiceKey {
        address: tuple.destination,
        port: tuple.destination_port,
        protocol: tuple.protocol,
        family: tuple.family,
    });
    if exact.is_some() || config.features & feature::RANGES == 0 {
        return exact;
    }
    maps::service_in_range(RangeKey {
        address: tuple.destination,
        family: tuple.family,
        protocol: tuple.protocol,
        port: tuple.destination_port,
    })
}

/// Whether a service has a flag of `service_flag`. Read anew each time: what
/// the verifier knows of a flag from a branch would make it look at all that
/// follows once more.
#[inline(always)]
pub fn has_flag(service: &ServiceEntry, flag: u16) -> bool {
    // SAFETY: a reference.
    unsafe { (&raw const service.flags).read_volatile() & flag != 0 }
}

/// Whether this node owns what owner word `index` stands for.
#[inline(always)]
pub fn owns(index: u16) -> bool {
    match maps::owner(index) {
        owner::FOREVER => true,
        lease_end => clock::jiffies() < lease_end,
    }
}

/// What an address is to this node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Vip {
    /// No VIP.
    No,
    /// A VIP that another node answers for.
    NotOwned,
    /// A VIP that this node answers for.
    Owned,
    /// An address of full NAT's pool that this node answers for.
    Pool,
}

/// Index of the owner word of an address that this node answers for.
#[inline(always)]
pub fn owner_of_answered(address: Addr, family: u8) -> Option<u16> {
    let entry = maps::vip(&VipKey {
        address,
        family,
        reserved: [0; 3],
    })?;
    owns(entry.owner).then_some(entry.owner)
}

/// What an address is to this node.
#[inline(always)]
pub fn vip(address: Addr, family: u8) -> Vip {
    match maps::vip(&VipKey {
        address,
        family,
        reserved: [0; 3],
    }) {
        None => Vip::No,
        Some(entry) if owns(entry.owner) => match entry.flags & vip_flag::POOL {
            0 => Vip::Owned,
            _ => Vip::Pool,
        },
        Some(_) => Vip::NotOwned,
    }
}
