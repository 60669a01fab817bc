//! Probes through the data path: the device, the ports and the members.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use crate::{
    dataplane::{
        desired::Link,
        plane::Plane,
        probes::{ProbePorts, TakenPort},
    },
    health::{
        Health, Through, checked_backends,
        way::{Pass, Passage},
    },
    model::{Model, ProbePath},
    neighbours::probe_device::{self, INNER, ProbeDevice},
};

use super::controller::Controller;

/// What an Ethernet device has where nobody says otherwise.
const USUAL_MTU: u32 = 1500;

/// The way of probes into the data path, where a check needs it.
#[derive(Debug, Default)]
pub struct ProbeWay {
    device: Option<ProbeDevice>,
    /// Of the members that the checks know.
    members: Option<u64>,
}

/// Ports of the data path, as the checks see them.
#[derive(Debug)]
struct Ports {
    ports: ProbePorts,
    path: ProbePath,
}

impl Passage for Ports {
    fn open(&self, member: u32, source: IpAddr) -> Result<Pass, String> {
        let taken: TakenPort = self
            .ports
            .take(member, source)
            .ok_or("all source ports of probes (`dataplane.probes`) are in use")?;
        Ok(Pass {
            port: self.path.first_port.saturating_add(taken.place),
            mark: self.path.mark,
            back: Box::new(taken),
        })
    }
}

/// The device as a link of the data path.
fn link(device: &ProbeDevice) -> Link {
    Link {
        name: INNER.to_owned(),
        ifindex: device.inner,
        mac: device.mac,
        mtu: device.mtu,
        is_bridge: false,
        is_blocked: false,
        egress: device.inner,
        tags: [0; 2],
        ways: Vec::new(),
    }
}

/// Whether a check of the model goes by its service.
fn is_needed(model: &Model) -> bool {
    checked_backends(model)
        .iter()
        .flat_map(|backend| &backend.checks)
        .any(|(key, _)| key.through.is_some())
}

impl ProbeWay {
    /// Makes the way if the model needs it and there is none. The device lets
    /// through what any of the links does.
    ///
    /// # Errors
    /// The kernel refuses; in words.
    pub fn establish(
        &mut self,
        model: &Model,
        controller: &mut Controller<Plane>,
        health: &Health,
    ) -> Result<(), String> {
        if self.device.is_some() || !is_needed(model) {
            return Ok(());
        }
        let path = model.dataplane.probes;
        let plane = &mut controller.data_path;
        let mtu = controller
            .neighbours
            .devices
            .iter()
            .map(|device| device.mtu)
            .max();
        let failed = |error: String| {
            format!(
                "health checks can't go by their services (`via: service`): {error}; \
                 `via: address` for all checks needs nothing of this"
            )
        };
        let device = probe_device::make(&path, mtu.unwrap_or(USUAL_MTU)).map_err(failed)?;
        plane
            .take_probes_from(device.inner)
            .map_err(|error| failed(error.to_string()))?;
        health.set_passage(Arc::new(Ports {
            ports: plane.probe_ports(),
            path,
        }));
        self.device = Some(device);
        controller.probes = Some((link(&device), path.first_port));
        Ok(())
    }

    /// Tells the checks which members there are, if that has changed.
    pub fn tell(&mut self, model: &Model, plane: &Plane, health: &Health) {
        let version = plane.members_version();
        if self.device.is_none() || self.members == Some(version) {
            return;
        }
        self.members = Some(version);
        let members: BTreeMap<Through, u32> = plane
            .members(model)
            .into_iter()
            .map(|(service, address, port, id)| {
                let through = Through {
                    service,
                    address,
                    port,
                };
                (through, id)
            })
            .collect();
        health.set_members(Arc::new(members));
    }
}
