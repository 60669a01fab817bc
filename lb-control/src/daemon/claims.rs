//! Warnings of VIPs that somebody else has: on the first claim, and once a
//! minute at most while there are more.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::dataplane::stats::ClaimRow;

/// Time between two warnings of one VIP. What a daemon finds at its start and
/// is older is in the status alone.
const PAUSE: Duration = Duration::from_secs(60);

/// What was warned of.
#[derive(Debug, Default)]
pub struct Claims {
    /// When, and the claim's tick.
    warned: BTreeMap<IpAddr, (Instant, u32)>,
}

impl Claims {
    /// The claims to warn of now.
    pub fn due<'a>(&mut self, rows: &'a [ClaimRow], now: Instant) -> Vec<&'a ClaimRow> {
        self.warned
            .retain(|vip, _| rows.iter().any(|row| row.address == *vip));
        let mut due = Vec::new();
        for row in rows {
            let is_due = match self.warned.get(&row.address) {
                None => u64::from(row.seconds_ago) < PAUSE.as_secs(),
                Some((at, ticks)) => {
                    *ticks != row.ticks && now.saturating_duration_since(*at) >= PAUSE
                }
            };
            if is_due {
                self.warned.insert(row.address, (now, row.ticks));
                due.push(row);
            }
        }
        due
    }
}

/// A MAC address as people write it.
pub fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(vip: &str, ticks: u32, seconds_ago: u32) -> ClaimRow {
        ClaimRow {
            address: vip.parse().unwrap(),
            mac: [2, 0, 0, 0, 0, 0xfe],
            interface: "eth0".into(),
            ticks,
            seconds_ago,
        }
    }

    #[test]
    fn the_first_claim_is_warned_of_and_then_one_a_minute() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut claims = Claims::default();
        assert!(claims.due(&[], start).is_empty());
        for second in 0..=120u32 {
            let rows = [claim("192.0.2.1", second, 0)];
            let warned = !claims.due(&rows, at(second.into())).is_empty();
            assert_eq!(warned, second % 60 == 0, "second {second}");
        }
    }

    #[test]
    fn each_vip_is_warned_of_by_itself_and_anew_after_it_was_gone() {
        let now = Instant::now();
        let mut claims = Claims::default();
        let first = claim("192.0.2.1", 1, 0);
        let second = claim("2001:db8::1", 1, 0);
        assert_eq!(claims.due(std::slice::from_ref(&first), now), [&first]);
        let rows = [first.clone(), second.clone()];
        assert_eq!(claims.due(&rows, now), [&second]);
        assert!(claims.due(&[second], now).is_empty());
        assert_eq!(claims.due(&rows, now), [&first]);
    }

    #[test]
    fn neither_an_old_claim_nor_one_that_was_warned_of_is_news() {
        let now = Instant::now();
        let mut claims = Claims::default();
        assert!(claims.due(&[claim("192.0.2.1", 1, 60)], now).is_empty());
        let rows = [claim("192.0.2.1", 100, 0)];
        assert_eq!(claims.due(&rows, now).len(), 1);
        assert!(claims.due(&rows, now + 2 * PAUSE).is_empty());
    }

    #[test]
    fn a_mac_address_is_written_in_pairs() {
        assert_eq!(mac([2, 0x1b, 0, 0xa, 0xff, 0]), "02:1b:00:0a:ff:00");
    }
}
