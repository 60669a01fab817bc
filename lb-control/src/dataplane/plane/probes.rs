//! The data path as the way of health checks' probes.

use std::{collections::HashMap, net::IpAddr};

use super::Plane;
use crate::{
    dataplane::{error::PlaneError, load, owners::OwnerWords, probes::ProbePorts},
    model::Model,
};

/// A member, by the service, the backend's address and its port in the model.
pub type NamedMember = (String, IpAddr, Option<u16>, u32);

impl Plane {
    /// The source ports of probes.
    pub fn probe_ports(&self) -> ProbePorts {
        self.loaded.probe_ports.clone()
    }

    /// Takes probes from this device from now on.
    ///
    /// # Errors
    /// The program can't be attached.
    pub fn take_probes_from(&mut self, ifindex: u32) -> Result<(), PlaneError> {
        load::attach_probes(&mut self.loaded, ifindex)
    }

    /// The owner words, for whoever decides on them.
    ///
    /// # Errors
    /// The pinned maps can't be opened.
    pub fn owner_words(&self, model: &Model) -> Result<OwnerWords, PlaneError> {
        OwnerWords::open(&model.dataplane.pin_dir, self.loaded.hz)
    }

    /// Changes whenever [`Self::members`] may.
    pub fn members_version(&self) -> u64 {
        self.members_version
    }

    /// The members of the model's services that the maps have.
    pub fn members(&self, model: &Model) -> Vec<NamedMember> {
        let ids: HashMap<&str, u32> = self
            .desired
            .service_names
            .iter()
            .map(|(id, name)| (name.as_str(), *id))
            .collect();
        let known: HashMap<(u32, IpAddr, u16), u32> = self
            .desired
            .members
            .iter()
            .filter(|(id, _)| !self.desired.departed.contains(id))
            .map(|(id, member)| {
                let address = member.address.to_ip(member.outer_family);
                ((member.service, address, member.port.get()), *id)
            })
            .collect();
        let mut members = Vec::new();
        for service in &model.services {
            let Some(id) = ids.get(service.name.as_str()) else {
                continue;
            };
            for (_, backend) in model.backends_of(service) {
                // Methods that keep the port have none in their members.
                let ports = [backend.port.unwrap_or(0), 0];
                let member = ports
                    .iter()
                    .find_map(|port| known.get(&(*id, backend.address, *port)));
                members.extend(
                    member.map(|member| {
                        (service.name.clone(), backend.address, backend.port, *member)
                    }),
                );
            }
        }
        members
    }
}
