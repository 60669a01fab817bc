//! Links to peers, as text for people.

use crate::{
    cli::table::{Align, Cell, Table, Tone, span},
    status::{LinkStatus, PathStatus, ReplicationStatus, Standing},
};

/// `lbctl sync`; `now` in seconds since the Unix epoch.
pub fn sync(links: &[LinkStatus], colour: bool, now: u64) -> String {
    let mut table = Table::new(&[
        ("PEER", Align::Left),
        ("STATE", Align::Left),
        ("SINCE", Align::Right),
        ("EPOCH", Align::Left),
        ("SENT", Align::Right),
        ("RESENT", Align::Right),
        ("WAITING", Align::Right),
        ("LAG", Align::Right),
        ("RECEIVED", Align::Right),
        ("FLOWS", Align::Left),
        ("REJECTED", Align::Left),
    ]);
    for link in links {
        let (state, tone) = if link.up {
            ("up", Tone::Good)
        } else {
            ("down", Tone::Bad)
        };
        let rejected = link.rejected.iter().filter(|(_, count)| **count > 0);
        let rejected: Vec<String> = rejected
            .map(|(reason, count)| format!("{reason} {count}"))
            .collect();
        table.row(vec![
            link.peer.as_str().into(),
            Cell::toned(state, tone),
            span(now.saturating_sub(link.since)).into(),
            link.epoch.clone().unwrap_or_else(|| "-".into()).into(),
            link.stream.sent.to_string().into(),
            link.stream.resent.to_string().into(),
            link.stream.waiting.to_string().into(),
            format!("{} ms", link.stream.lag_ms).into(),
            link.stream.received.to_string().into(),
            flows(&link.replication).into(),
            rejected.join(", ").into(),
        ]);
    }
    let links_table = table.render(colour);
    let mut table = Table::new(&[
        ("PEER", Align::Left),
        ("LOCAL", Align::Left),
        ("REMOTE", Align::Left),
        ("PATH", Align::Left),
        ("HEARD", Align::Right),
        ("ROUND TRIP", Align::Right),
        ("WHY", Align::Left),
    ]);
    for link in links {
        for path in &link.paths {
            let (state, tone) = state(path);
            let heard = path.heard_ago_ms;
            let trip = path.round_trip_us;
            table.row(vec![
                link.peer.as_str().into(),
                path.local.to_string().into(),
                path.remote.to_string().into(),
                Cell::toned(state, tone),
                heard
                    .map_or_else(|| "never".into(), |ago| format!("{ago} ms ago"))
                    .into(),
                trip.map_or_else(|| "-".into(), |trip| format!("{:.1} ms", trip as f64 / 1e3))
                    .into(),
                path.error.clone().unwrap_or_default().into(),
            ]);
        }
    }
    format!("{links_table}\n{}", table.render(colour))
}

/// Which flows are where.
fn flows(replication: &ReplicationStatus) -> String {
    let tells = match (replication.tells, replication.services) {
        (true, 1..) => "told, ",
        _ => "",
    };
    let hears = match &replication.hears {
        Standing::Waiting => "not told yet".to_owned(),
        Standing::Bulk => "being told".to_owned(),
        Standing::InSync => "in sync".to_owned(),
        Standing::Partial => format!(
            "partly: {} records name what this node doesn't have",
            replication.received.unknown
        ),
        Standing::Incompatible(why) => format!("not taken over: {why}"),
    };
    format!("{tells}{hears}")
}

const fn state(path: &PathStatus) -> (&'static str, Tone) {
    match (path.alive, path.heard_by_peer) {
        (true, true) => ("alive", Tone::Good),
        (true, false) => ("deaf peer", Tone::Bad),
        (false, _) => ("dead", Tone::Bad),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_the_link_and_its_paths_do() {
        let path = |local: &str, alive: bool| PathStatus {
            local: local.parse().unwrap(),
            remote: "10.0.9.2:9465".parse().unwrap(),
            alive,
            heard_by_peer: alive,
            heard_ago_ms: alive.then_some(42),
            round_trip_us: alive.then_some(250),
            sent: 1,
            received: 1,
            error: (!alive).then(|| "Network is unreachable".into()),
        };
        let link = LinkStatus {
            peer: "lb2".into(),
            up: true,
            since: 90,
            epoch: Some("00000000deadbeef".into()),
            paths: vec![path("10.0.9.1:9465", true), path("10.0.8.1:9465", false)],
            rejected: [("replayed".to_owned(), 3), ("foreign".to_owned(), 0)].into(),
            replication: ReplicationStatus {
                tells: true,
                services: 2,
                hears: Standing::Incompatible("its flow table has another size".into()),
                ..ReplicationStatus::default()
            },
            ..LinkStatus::default()
        };
        let text = sync(&[link], false, 100);
        let lines: Vec<&str> = text.lines().collect();
        for (line, expected) in [
            (
                1,
                &[
                    "lb2",
                    "up",
                    "10 s",
                    "00000000deadbeef",
                    "told, not taken over: its flow table has another size",
                    "replayed 3",
                ][..],
            ),
            (4, &["10.0.9.1:9465", "alive", "42 ms ago", "0.2 ms"]),
            (
                5,
                &["10.0.8.1:9465", "dead", "never", "Network is unreachable"],
            ),
        ] {
            for word in expected {
                assert!(
                    lines[line].contains(word),
                    "{word} is not in {}",
                    lines[line]
                );
            }
        }
        assert!(!text.contains("foreign"), "what is 0 is not shown");
    }
}
