//! The keys by which packets find a service.

use lb_common::{
    abi::{RANGE_KEY_FIXED_BITS, RangeKey, ServiceEntry, ServiceKey, VipEntry, VipKey, feature},
    net::{Addr, Be16},
};

use super::Builder;
use crate::{
    dataplane::{ports, state::PortBlock},
    model::Service,
};

impl Builder<'_> {
    pub(super) fn keys(&mut self, service: &Service, entry: ServiceEntry) {
        let (address, family) = Addr::from_ip(service.address);
        let protocol = service.protocol.number();
        self.state.vips.insert(
            VipKey {
                address,
                family,
                reserved: [0; 3],
            },
            VipEntry {
                owner: entry.owner,
                flags: 0,
            },
        );
        let keys = ports::keys(&service.ports);
        for port in keys.single {
            let port = Be16::new(port);
            self.state.services.insert(
                ServiceKey {
                    address,
                    port,
                    protocol,
                    family,
                },
                entry,
            );
        }
        for block in keys.blocks {
            self.state.config.features |= feature::RANGES;
            self.state.ranges.insert(
                PortBlock {
                    prefix_bits: RANGE_KEY_FIXED_BITS + block.prefix_bits,
                    key: RangeKey {
                        address,
                        family,
                        protocol,
                        port: Be16::new(block.first),
                    },
                },
                entry,
            );
        }
    }

    /// Addresses of virtual routers that no service has: a gateway's, such as that
    /// of servers behind NAT. Whoever owns them answers for them.
    pub(super) fn virtual_addresses(&mut self) {
        for address in self.model.vrrp.iter().flat_map(|vrrp| &vrrp.addresses) {
            let owner = self.model.owner_word(*address);
            let (address, family) = Addr::from_ip(*address);
            let key = VipKey {
                address,
                family,
                reserved: [0; 3],
            };
            self.state
                .vips
                .entry(key)
                .or_insert(VipEntry { owner, flags: 0 });
        }
    }
}
