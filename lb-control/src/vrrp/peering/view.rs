//! A virtual router as it is seen here, and what is ordered of it.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use super::{DEAF, PeerName};
use crate::vrrp::{
    machine::{Hold, Machine, State, Why},
    references::References,
    report::{Report, RouterId},
};

/// A virtual router of this node.
#[derive(Clone, Debug)]
pub struct View {
    /// What peers are told of it.
    pub report: Report,
    /// Its sync group.
    pub group: Option<String>,
    /// It takes over from lower priorities.
    pub preempts: bool,
    /// The last thing it heard was that somebody leaves.
    pub peer_left: bool,
    /// It is a backup because it handed over.
    pub is_handed_over: bool,
    /// Nobody was heard on its segment for a down interval.
    pub is_silent: bool,
    /// It would claim, but for this.
    pub waits: Option<Why>,
    /// An advertisement is overdue.
    pub doubts: bool,
    /// A reference host has answered after the last advertisement.
    pub has_answered_since: bool,
    /// Who is told of advertisements; empty: the group.
    pub unicast: Vec<IpAddr>,
}

impl View {
    /// Of a machine. `able`: its links are up, if it is in no fault.
    pub fn new(
        now: Instant,
        machine: &Machine,
        references: &References,
        is_v4: bool,
        able: bool,
        since: Instant,
    ) -> Self {
        let settings = machine.settings();
        let waits = machine.waits().cloned();
        let count = |number: usize| u8::try_from(number).unwrap_or(u8::MAX);
        let report = Report {
            id: RouterId {
                vrid: settings.vrid,
                is_v4,
            },
            state: machine.state(),
            priority: machine.priority(),
            able: able && matches!(machine.state(), State::Backup | State::Active),
            proof: references.has_proof(),
            answered: count(references.answering()),
            hosts: count(references.len()),
            handed_over: machine.has_handed_over(),
            taken: machine.has_taken(),
            deaf: matches!(waits, Some(Why::PeerActive(_))),
            interval: settings.interval,
            in_state: now.saturating_duration_since(since),
            source: settings.source,
        };
        let heard = machine.heard();
        Self {
            report,
            group: None,
            preempts: machine.preempts(),
            peer_left: machine.peer_left(),
            is_handed_over: machine.is_handed_over(),
            is_silent: machine.is_silent(now),
            waits,
            doubts: machine.doubts_from().is_some_and(|from| from <= now),
            has_answered_since: heard.is_none_or(|heard| references.has_answered_since(heard)),
            unicast: Vec::new(),
        }
    }

    pub(super) fn is_isolated(&self) -> bool {
        self.report.hosts > 0 && !self.report.proof
    }
}

/// What a virtual router of this node has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Not to claim, or to do so when it is time.
    Hold(Option<Hold>),
    /// Not to preempt, or as configured.
    Restrain(bool),
    /// Its lease is so much longer than three intervals.
    Lease(Duration),
    /// Reference hosts are to be asked now.
    Doubt(bool),
    /// Who was active at this address isn't any more.
    Left(IpAddr),
    /// The data path owns from now on; the rest follows.
    Own,
    /// Become active.
    TakeOver {
        /// Who hands over.
        peer: PeerName,
        /// Its address on the segment.
        from: IpAddr,
        /// It may preempt later.
        may_return: bool,
    },
    /// A peer is asked to take over.
    BeginHandOver {
        /// Which.
        peer: PeerName,
        /// Its address on the segment.
        to: IpAddr,
        /// This node may preempt later.
        may_return: bool,
    },
    /// Another one was active at the same time.
    Healed,
    /// It has.
    HandedOver,
    /// It has not.
    Keep,
    /// Whoever handed over believes that it didn't.
    LetGo,
}

impl Order {
    /// What of it is the machine's, and its reference hosts'.
    pub fn apply(&self, now: Instant, machine: &mut Machine, references: &mut References) {
        match self {
            Self::Hold(held) => machine.hold(now, held.clone()),
            Self::Restrain(restrained) => machine.restrain(*restrained),
            Self::Doubt(doubts) => references.doubt(now, *doubts),
            Self::Left(from) => machine.left(now, *from),
            Self::TakeOver {
                peer,
                from,
                may_return,
            } => machine.take_over(now, peer, *from, DEAF, *may_return),
            Self::BeginHandOver {
                peer,
                to,
                may_return,
            } => machine.begin_hand_over(peer, *to, *may_return),
            Self::Healed => machine.healed(now),
            Self::HandedOver => machine.handed_over(now),
            Self::Keep => machine.keep(now),
            Self::LetGo => machine.let_go(now),
            Self::Lease(_) | Self::Own => {}
        }
    }
}
