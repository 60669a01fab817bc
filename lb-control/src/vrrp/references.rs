//! Proof that a node still reaches its segment: reference hosts that answer, without
//! a clock or a socket.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

/// Probes that may stay unanswered.
const MISSED: u32 = 3;

/// Probes are not sent more often than so.
const SHORTEST: Duration = Duration::from_millis(100);

/// But for a moment when it matters now.
const HURRIED: Duration = Duration::from_millis(10);
const HURRIED_FOR: Duration = Duration::from_millis(100);

/// The reference hosts of one virtual router.
#[derive(Debug)]
pub struct References {
    hosts: Vec<Host>,
    period: Duration,
    next: Option<Instant>,
    hurried_until: Option<Instant>,
    doubts: bool,
}

#[derive(Debug)]
struct Host {
    address: IpAddr,
    answered: Option<Instant>,
    /// Probes since it last answered.
    unanswered: u32,
}

impl Host {
    fn is_answering(&self) -> bool {
        self.answered.is_some() && self.unanswered <= MISSED
    }
}

impl References {
    /// None has answered yet. They are probed every `interval`, and not more often
    /// than every 100 ms.
    pub fn new(hosts: &[IpAddr], interval: Duration) -> Self {
        let host = |address: &IpAddr| Host {
            address: *address,
            answered: None,
            unanswered: 0,
        };
        Self {
            hosts: hosts.iter().map(host).collect(),
            period: interval.max(SHORTEST),
            next: None,
            hurried_until: None,
            doubts: false,
        }
    }

    /// Whether there is any.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.hosts.len()
    }

    /// How many have answered one of the last three probes.
    pub fn answering(&self) -> usize {
        self.hosts.iter().filter(|host| host.is_answering()).count()
    }

    /// When [`Self::probes`] has something to send; `None` before its first call.
    pub fn due(&self) -> Option<Instant> {
        self.next
    }

    /// Whom to probe now.
    pub fn probes(&mut self, now: Instant) -> Vec<IpAddr> {
        if self.is_empty() || self.next.is_some_and(|next| next > now) {
            return Vec::new();
        }
        let is_hurried = self.hurried_until.is_some_and(|until| until > now);
        let period = if is_hurried { HURRIED } else { self.period };
        self.next = now.checked_add(period);
        let probe = |host: &mut Host| {
            host.unanswered = host.unanswered.saturating_add(1);
            host.address
        };
        self.hosts.iter_mut().map(probe).collect()
    }

    /// A host has answered.
    pub fn answered(&mut self, now: Instant, from: IpAddr) {
        for host in self.hosts.iter_mut().filter(|host| host.address == from) {
            host.answered = Some(now);
            host.unanswered = 0;
        }
    }

    /// Whether what is known may be too old to decide now. With the beginning of a
    /// doubt, ten probes follow each other quickly.
    pub fn doubt(&mut self, now: Instant, doubts: bool) {
        if doubts && !self.doubts && !self.is_empty() {
            self.hurried_until = now.checked_add(HURRIED_FOR);
            self.next = Some(now);
        }
        self.doubts = doubts;
    }

    /// Whether one has answered one of the last three probes.
    pub fn has_proof(&self) -> bool {
        self.hosts.iter().any(Host::is_answering)
    }

    /// Whether one has answered after `since`.
    pub fn has_answered_since(&self, since: Instant) -> bool {
        let answers = self.hosts.iter().filter_map(|host| host.answered);
        answers.into_iter().any(|answered| answered > since)
    }

    /// The interface is gone: nothing is known.
    pub fn forget(&mut self) {
        for host in &mut self.hosts {
            host.answered = None;
            host.unanswered = 0;
        }
        self.next = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(number: u8) -> IpAddr {
        [192, 0, 2, number].into()
    }

    #[test]
    fn an_answer_proves_for_three_probes_more() {
        let mut now = Instant::now();
        let mut references = References::new(&[host(1), host(2)], Duration::from_millis(10));
        assert!(!references.has_proof());
        assert_eq!(references.probes(now), [host(1), host(2)]);
        references.answered(now, host(9));
        assert!(!references.has_proof(), "a stranger's answer");
        references.answered(now, host(2));
        assert_eq!((references.answering(), references.len()), (1, 2));
        for _ in 0..3 {
            assert_eq!(references.due(), now.checked_add(SHORTEST));
            now += SHORTEST;
            assert_eq!(references.probes(now).len(), 2);
            assert!(references.has_proof());
        }
        now += SHORTEST;
        references.probes(now);
        assert!(!references.has_proof(), "three probes unanswered");
        references.answered(now, host(1));
        assert!(references.has_proof());
        references.forget();
        assert!(!references.has_proof());
    }

    #[test]
    fn a_doubt_is_probed_quickly_and_not_for_long() {
        let mut now = Instant::now();
        let mut references = References::new(&[host(1)], Duration::from_secs(1));
        references.probes(now);
        references.answered(now, host(1));
        let since = now;
        assert!(!references.has_answered_since(since));
        now += HURRIED;
        let mut sent = 0;
        for _ in 0..100 {
            // It lasts, and begins once.
            references.doubt(now, true);
            sent += references.probes(now).len();
            now += HURRIED;
        }
        assert!((10..=12).contains(&sent), "{sent} probes in a second");
        assert!(!references.has_proof());
        references.answered(now, host(1));
        assert!(references.has_proof() && references.has_answered_since(since));
    }

    #[test]
    fn without_hosts_nothing_is_probed() {
        let mut references = References::new(&[], Duration::from_secs(1));
        references.doubt(Instant::now(), true);
        assert_eq!(references.probes(Instant::now()), [] as [IpAddr; 0]);
        assert!(references.is_empty() && !references.has_proof());
    }
}
