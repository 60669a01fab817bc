//! Lookup tables: which member owns which slot.
//!
//! Everything here is a pure function of its arguments, so that two nodes with
//! the same configuration hold the same table. Depends on `model` alone.

pub mod groups;
mod maglev;
mod share;
mod table_size;
mod turns;

use std::net::IpAddr;

use crate::model::Scheduler;

pub use groups::Ranked;
pub use maglev::{Member, Probe, maglev, maglev_observed};
pub use share::{Factor, Factors, shares};
pub use table_size::{LARGEST_TABLE, SLOTS_PER_BACKEND, is_prime, table_size};
pub use turns::{Turns, turns};

/// Words of a service's list of `members` among the slots: none for nobody,
/// else in steps, so that a list seldom moves when a backend comes or goes.
pub const fn list_slots(members: u32) -> u32 {
    members.next_multiple_of(16)
}

/// The table of a scheduler, and the slots of its cycle of turns; 0 where it
/// has none.
pub fn table(scheduler: Scheduler, members: &[Member], size: u32) -> Turns {
    match scheduler {
        Scheduler::RoundRobin => turns(members, size),
        Scheduler::Maglev | Scheduler::LeastConnections | Scheduler::ResponseTime => Turns {
            slots: maglev(members, size),
            cycle: 0,
        },
    }
}

/// The identity of a backend in a lookup table: its family, address and port
/// (`None` where the packet keeps its port).
///
/// It places the backend's slots, so it must give the same number on every
/// node and in every version; changing it moves flows.
pub fn identity(address: IpAddr, port: Option<u16>) -> u64 {
    let (family, high, low) = match address {
        IpAddr::V4(v4) => (4, 0, u64::from(v4.to_bits())),
        IpAddr::V6(v6) => {
            let bits = v6.to_bits();
            (6, (bits >> 64) as u64, bits as u64)
        }
    };
    // Port 0 can't be configured, so it stands for "none".
    let tail = family << 16 | u64::from(port.unwrap_or(0));
    mix(mix(mix(high) ^ low) ^ tail)
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood: "Fast splittable
/// pseudorandom number generators", OOPSLA 2014): a bijection that spreads
/// every input bit over the whole word.
fn mix(value: u64) -> u64 {
    let mut x = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_stay_what_they_were_in_earlier_versions() {
        let v4 = identity("10.0.1.11".parse().unwrap(), Some(8080));
        let v6 = identity("2001:db8::11".parse().unwrap(), None);
        assert_eq!(
            (v4, v6),
            (10_811_173_364_309_208_150, 14_492_178_006_424_396_879)
        );
    }

    #[test]
    fn family_address_and_port_each_change_the_identity() {
        let of = |address: &str, port| identity(address.parse().unwrap(), port);
        let base = of("10.0.1.11", Some(80));
        assert_ne!(base, of("10.0.1.12", Some(80)));
        assert_ne!(base, of("10.0.1.11", Some(81)));
        assert_ne!(base, of("10.0.1.11", None));
        assert_ne!(base, of("::10.0.1.11", Some(80)));
    }
}
