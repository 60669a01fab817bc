//! Links to peers.

use super::page::{Page, counter, gauge};
use crate::status::{LinkStatus, PathStatus, Standing};

/// Adds them.
pub(super) fn sync(page: &mut Page, links: &[LinkStatus]) {
    let mut gauges = |name: &str, help: &str, of: fn(&LinkStatus) -> f64| {
        let all = links.iter();
        let all = all.map(|link| gauge(&[("peer", &link.peer)], of(link)));
        page.gauges(name, help, all.collect());
    };
    gauges("lb_sync_up", "Whether the link to a peer is up.", |link| {
        f64::from(u8::from(link.up))
    });
    gauges(
        "lb_sync_waiting_messages",
        "Messages of the stream to a peer that are not acknowledged.",
        |link| link.stream.waiting as f64,
    );
    gauges(
        "lb_sync_lag_seconds",
        "How long the oldest of them waits.",
        |link| link.stream.lag_ms as f64 / 1e3,
    );
    let mut counters = |name: &str, help: &str, of: fn(&LinkStatus) -> u64| {
        let all = links.iter();
        let all = all.map(|link| counter(&[("peer", &link.peer)], of(link)));
        page.counters(name, help, all.collect());
    };
    counters(
        "lb_sync_became_up_total",
        "Times that the link to a peer came up, with streams that begin anew.",
        |link| link.became_up,
    );
    counters(
        "lb_sync_sessions_total",
        "Sessions with a peer that came into force; each has fresh keys.",
        |link| link.sessions,
    );
    counters(
        "lb_sync_messages_sent_total",
        "Messages of the stream that were sent to a peer.",
        |link| link.stream.sent,
    );
    counters(
        "lb_sync_messages_received_total",
        "Messages of the stream that came from a peer.",
        |link| link.stream.received,
    );
    counters(
        "lb_sync_resent_total",
        "Datagrams of the stream that were sent again.",
        |link| link.stream.resent,
    );
    counters(
        "lb_sync_urgent_sent_total",
        "Urgent messages that were sent to a peer.",
        |link| link.urgent.sent,
    );
    counters(
        "lb_sync_urgent_dropped_total",
        "Urgent messages that were not sent, as the link was down.",
        |link| link.urgent.dropped,
    );
    counters(
        "lb_sync_urgent_received_total",
        "Urgent messages that came from a peer.",
        |link| link.urgent.received,
    );
    replication(page, links);
    let rejected = links.iter().flat_map(|link| {
        let reasons = link.rejected.iter();
        reasons.map(|(reason, count)| counter(&[("peer", &link.peer), ("reason", reason)], *count))
    });
    page.counters(
        "lb_sync_rejected_total",
        "Datagrams that were thrown away, by reason.",
        rejected.collect(),
    );
    paths(page, links);
}

/// What is replicated.
fn replication(page: &mut Page, links: &[LinkStatus]) {
    let mut gauges = |name: &str, help: &str, of: fn(&LinkStatus) -> Option<f64>| {
        let all = links.iter();
        let all = all.filter_map(|link| Some(gauge(&[("peer", &link.peer)], of(link)?)));
        page.gauges(name, help, all.collect());
    };
    gauges(
        "lb_sync_in_sync",
        "Whether all that the peer has told of its flows is here.",
        |link| {
            Some(f64::from(u8::from(
                link.replication.hears == Standing::InSync,
            )))
        },
    );
    gauges(
        "lb_sync_incompatible",
        "Whether the peer's flows can't be taken over.",
        |link| {
            let is = matches!(link.replication.hears, Standing::Incompatible(_));
            Some(f64::from(u8::from(is)))
        },
    );
    gauges(
        "lb_sync_replication_lag_seconds",
        "Age of the tables that the peer has as a whole.",
        |link| link.replication.lag_ms.map(|lag| lag as f64 / 1e3),
    );
    let kinds = |link: &LinkStatus| {
        let (told, taken) = (link.replication.sent, link.replication.received);
        [
            ("flows", told.flows, taken.flows),
            ("slots", told.slots, taken.slots),
            ("bindings", told.bindings, taken.bindings),
            ("sources", told.sources, taken.sources),
        ]
    };
    let all = || {
        links
            .iter()
            .flat_map(|link| kinds(link).map(|kind| (&link.peer, kind)))
    };
    let told =
        all().map(|(peer, (kind, told, _))| counter(&[("peer", peer), ("kind", kind)], told));
    page.counters(
        "lb_sync_told_total",
        "Records of flows that a peer was told.",
        told.collect(),
    );
    let taken =
        all().map(|(peer, (kind, _, taken))| counter(&[("peer", peer), ("kind", kind)], taken));
    page.counters(
        "lb_sync_taken_total",
        "Records of a peer's flows that were taken over.",
        taken.collect(),
    );
    let mut counters = |name: &str, help: &str, of: fn(&LinkStatus) -> u64| {
        let all = links.iter();
        let all = all.map(|link| counter(&[("peer", &link.peer)], of(link)));
        page.counters(name, help, all.collect());
    };
    counters(
        "lb_sync_told_bytes_total",
        "Bytes of the records that a peer was told.",
        |link| link.replication.sent.bytes,
    );
    counters(
        "lb_sync_bulks_total",
        "Times that a peer was told everything.",
        |link| link.replication.sent.bulks,
    );
    let not_taken = links.iter().flat_map(|link| {
        let counts = link.replication.received;
        [
            ("own", counts.own),
            ("unknown", counts.unknown),
            ("refused", counts.refused),
            ("malformed", counts.malformed),
        ]
        .map(|(reason, count)| counter(&[("peer", &link.peer), ("reason", reason)], count))
    });
    page.counters(
        "lb_sync_not_taken_total",
        "Records of a peer's flows that were not taken over, by reason.",
        not_taken.collect(),
    );
}

/// Labelled with the peer's end: this node's may be the same for several.
fn paths(page: &mut Page, links: &[LinkStatus]) {
    let all: Vec<(&str, String, &PathStatus)> = links
        .iter()
        .flat_map(|link| {
            let paths = link.paths.iter();
            paths.map(|path| (link.peer.as_str(), path.remote.to_string(), path))
        })
        .collect();
    let alive = all.iter().map(|(peer, remote, path)| {
        let value = f64::from(u8::from(path.alive));
        gauge(&[("peer", peer), ("path", remote)], value)
    });
    page.gauges(
        "lb_sync_path_up",
        "Whether a peer is heard by a path.",
        alive.collect(),
    );
    let trips = all.iter().filter_map(|(peer, remote, path)| {
        let seconds = path.round_trip_us? as f64 / 1e6;
        Some(gauge(&[("peer", peer), ("path", remote)], seconds))
    });
    page.gauges(
        "lb_sync_path_round_trip_seconds",
        "Round trip by a path, smoothed.",
        trips.collect(),
    );
    let mut counters = |name: &str, help: &str, of: fn(&PathStatus) -> u64| {
        let counted = all
            .iter()
            .map(|(peer, remote, path)| counter(&[("peer", peer), ("path", remote)], of(path)));
        page.counters(name, help, counted.collect());
    };
    counters(
        "lb_sync_datagrams_sent_total",
        "Datagrams that were sent by a path.",
        |path| path.sent,
    );
    counters(
        "lb_sync_datagrams_received_total",
        "Datagrams that came by a path and were authentic.",
        |path| path.received,
    );
}
