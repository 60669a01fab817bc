//! Virtual routers.

use std::collections::BTreeMap;

use super::page::{Page, counter, gauge};
use crate::status::{NotifyStatus, VrrpStatus};

const STATES: [&str; 4] = ["initialize", "backup", "active", "fault"];

/// Adds them.
pub(super) fn vrrp(page: &mut Page, routers: &[VrrpStatus]) {
    let vrids: Vec<String> = routers.iter().map(|r| r.vrid.to_string()).collect();
    let each = || routers.iter().zip(&vrids);
    let labels = |router: &VrrpStatus, vrid: &str| {
        [
            ("vrid", vrid.to_owned()),
            ("family", router.family.clone()),
            ("interface", router.interface.clone()),
        ]
    };
    let with = |router: &VrrpStatus, vrid: &str, name: &'static str, value: &str| {
        let mut all = labels(router, vrid).to_vec();
        all.push((name, value.to_owned()));
        all
    };
    let states = each().flat_map(|(router, vrid)| {
        STATES.map(|state| {
            let is_it = f64::from(u8::from(router.state == state));
            gauge(&borrowed(&with(router, vrid, "state", state)), is_it)
        })
    });
    page.gauges(
        "lb_vrrp_state",
        "1 for the state that a virtual router has on this node.",
        states.collect(),
    );
    let priorities = each()
        .map(|(router, vrid)| gauge(&borrowed(&labels(router, vrid)), router.priority.into()));
    page.gauges(
        "lb_vrrp_priority",
        "Priority that a virtual router advertises now.",
        priorities.collect(),
    );
    let mut gauges = |name: &str, help: &str, of: fn(&VrrpStatus) -> usize| {
        let all =
            each().map(|(router, vrid)| gauge(&borrowed(&labels(router, vrid)), of(router) as f64));
        page.gauges(name, help, all.collect());
    };
    gauges(
        "lb_vrrp_isolated",
        "1 while a virtual router has reference hosts and none of them answers.",
        |router| usize::from(router.isolated),
    );
    gauges(
        "lb_vrrp_reference_hosts",
        "Reference hosts of a virtual router.",
        |router| router.reference_hosts,
    );
    gauges(
        "lb_vrrp_reference_hosts_answering",
        "Reference hosts of a virtual router that answer.",
        |router| router.reference_hosts_answering,
    );
    gauges(
        "lb_vrrp_handed_over",
        "1 while a virtual router has been handed over and doesn't preempt.",
        |router| usize::from(router.handed_over),
    );
    gauges(
        "lb_vrrp_peers_active",
        "Peers that say by the peer link that they are active.",
        |router| router.peers_active,
    );
    let mut counters = |name: &str, help: &str, of: fn(&VrrpStatus) -> u64| {
        let counted =
            each().map(|(router, vrid)| counter(&borrowed(&labels(router, vrid)), of(router)));
        page.counters(name, help, counted.collect());
    };
    counters(
        "lb_vrrp_became_active_total",
        "Times that a virtual router became active on this node.",
        |router| router.became_active,
    );
    counters(
        "lb_vrrp_advertisements_sent_total",
        "Advertisements that were sent.",
        |router| router.sent,
    );
    counters(
        "lb_vrrp_advertisements_received_total",
        "Advertisements that were received and taken.",
        |router| router.received,
    );
    counters(
        "lb_vrrp_handed_over_total",
        "Times that a virtual router was handed over to a peer.",
        |router| router.handed_over_total,
    );
    counters(
        "lb_vrrp_taken_over_total",
        "Times that a peer handed a virtual router over to this node.",
        |router| router.taken_over_total,
    );
    counters(
        "lb_vrrp_advertisements_late_total",
        "Advertisements that were sent an interval late or more.",
        |router| router.late,
    );
    let rejected = each().flat_map(|(router, vrid)| {
        router.rejected.iter().map(|(reason, count)| {
            counter(&borrowed(&with(router, vrid, "reason", reason)), *count)
        })
    });
    page.counters(
        "lb_vrrp_rejected_total",
        "Messages that were thrown away, or are odd, by reason.",
        rejected.collect(),
    );
    let trackers = each().flat_map(|(router, vrid)| {
        router.trackers.iter().map(|tracker| {
            let mut all = with(router, vrid, "kind", &tracker.kind);
            all.push(("tracker", tracker.name.clone()));
            gauge(&borrowed(&all), f64::from(u8::from(tracker.ok)))
        })
    });
    page.gauges(
        "lb_vrrp_tracker_ok",
        "1 while what a virtual router watches is as it should be.",
        trackers.collect(),
    );
    let told = each().filter_map(|row| Some((row, row.0.notify.as_ref()?)));
    let mut results = |name: &str, help: &str, of: fn(&NotifyStatus) -> &BTreeMap<String, u64>| {
        let counted = told.clone().flat_map(|((router, vrid), notify)| {
            of(notify)
                .iter()
                .map(|(result, count)| {
                    counter(&borrowed(&with(router, vrid, "result", result)), *count)
                })
                .collect::<Vec<_>>()
        });
        page.counters(name, help, counted.collect());
    };
    results(
        "lb_vrrp_notify_runs_total",
        "Runs of the command of `notify`, by result.",
        |notify| &notify.command,
    );
    results(
        "lb_vrrp_notify_lines_total",
        "Lines for the FIFO of `notify`, by result.",
        |notify| &notify.fifo,
    );
}

fn borrowed<'a>(labels: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    labels
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect()
}
