//! Rows of [`stats::PlaneStats`].

use std::collections::BTreeMap;

use lb_common::clock::UNIT_SHIFT;

use super::Plane;
use crate::dataplane::{links, state::MapSnapshot, stats, store::StoreError};

impl Plane {
    /// Estimates the members' concurrent connections; returns the sample's occupancy.
    pub(super) fn estimate(
        &self,
        snapshot: &MapSnapshot,
        now: u32,
        rows: &mut BTreeMap<u32, stats::MemberRow>,
    ) -> f64 {
        let mask = snapshot.config.sample_mask;
        let idle: BTreeMap<u32, u32> = snapshot
            .entries()
            .map(|s| (s.id, (s.idle_units + 1) << UNIT_SHIFT))
            .collect();
        let longest = self.longest_idle_ticks();
        let mut open: BTreeMap<u32, u64> = BTreeMap::new();
        let mut occupied = 0u64;
        for sample in self.loaded.maps.sample() {
            // Of before the mask grew: its flow isn't sampled any more.
            if sample.check as u32 & mask != 0 {
                continue;
            }
            occupied += u64::from(now.wrapping_sub(sample.last_ticks) <= longest);
            let service = snapshot.members.get(&sample.member).map(|m| m.service);
            let idle = service.and_then(|s| idle.get(&s)).copied().unwrap_or(0);
            if stats::is_open(&sample, now, idle) {
                *open.entry(sample.member).or_default() += 1;
            }
        }
        for (member, counted) in open {
            if let Some(row) = rows.get_mut(&member)
                && row.counted.is_none()
            {
                row.concurrent = stats::estimate(counted, occupied, mask.saturating_add(1));
            }
        }
        occupied as f64 / f64::from(lb_common::abi::SAMPLE_SIZE)
    }

    pub(super) fn service_rows(&self, snapshot: &MapSnapshot) -> Vec<stats::ServiceRow> {
        snapshot
            .slots
            .iter()
            .map(|(id, words)| {
                let flows = self.swept.services.get(id).copied().unwrap_or_default();
                stats::ServiceRow {
                    service: snapshot.service_names.get(id).cloned().unwrap_or_default(),
                    id: *id,
                    slots: words.len() as u32,
                    tracked_slots: words.iter().filter(|w| w.is_tracked()).count() as u32,
                    flow_entries: flows.living + flows.closing + flows.half_open,
                    reply_entries: flows.reply_flows,
                }
            })
            .collect()
    }

    /// Who else claimed VIPs that there are.
    pub(super) fn claim_rows(
        &self,
        snapshot: &MapSnapshot,
        now: u32,
    ) -> Result<Vec<stats::ClaimRow>, StoreError> {
        let claims = self.loaded.maps.claims()?;
        let rows = claims
            .into_iter()
            .filter(|(vip, _)| snapshot.vips.contains_key(vip))
            .map(|(vip, claim)| stats::ClaimRow {
                address: vip.address.to_ip(vip.family),
                mac: claim.mac,
                interface: links::ifname(claim.device)
                    .unwrap_or_else(|| format!("index {}", claim.device)),
                ticks: claim.ticks,
                seconds_ago: self.seconds(now.wrapping_sub(claim.ticks)),
            });
        Ok(rows.collect())
    }

    /// The interfaces and how the program is attached to each.
    pub fn interface_rows(&self) -> Vec<stats::InterfaceRow> {
        self.loaded
            .attached
            .iter()
            .map(|a| stats::InterfaceRow {
                name: a.name.clone(),
                ifindex: a.ifindex,
                mode: links::xdp_on(a.ifindex).ok().flatten().map(|x| x.mode),
                fallback_reason: a.fallback_reason.clone(),
            })
            .collect()
    }
}
