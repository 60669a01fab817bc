//! What happens to virtual routers, in words.

use super::{
    codec::Advertisement,
    machine::{Oddity, Reason, State, Why},
    packet::Mac,
};

pub(super) fn family(is_v4: bool) -> &'static str {
    if is_v4 { "IPv4" } else { "IPv6" }
}

pub(super) fn name(state: State) -> &'static str {
    match state {
        State::Initialize => "initialize",
        State::Backup => "backup",
        State::Active => "active",
        State::Fault => "fault",
    }
}

pub(super) fn shown(reason: &Reason) -> String {
    match reason {
        Reason::Started => "started".into(),
        Reason::Stopped => "stopped".into(),
        Reason::OwnsAddresses => "has the addresses itself (priority 255)".into(),
        Reason::Silence => "nobody advertises".into(),
        Reason::PeerLeft => "the active one has left".into(),
        Reason::Better(peer) => format!("{peer} advertises a better priority"),
        Reason::Overslept(silent) => {
            format!("was silent for {silent:?}; somebody else may be active")
        }
        Reason::Broken(why) => why.clone(),
        Reason::Mended => "what it needs is there again".into(),
        Reason::Group => "its sync group did".into(),
        Reason::HandedOver(peer) => format!("handed over to {peer}"),
        Reason::TookOver(peer) => format!("{peer} handed over"),
        Reason::Cancelled => "the hand-over to this node came to nothing".into(),
    }
}

/// Why it doesn't claim.
pub(super) fn waits(why: &Why) -> String {
    match why {
        Why::Group => "nobody advertises, but its sync group can't become active".into(),
        Why::PeerActive(peer) => format!("{peer} is active, heard by the peer link alone"),
        Why::Isolated => "isolated: nobody advertises, and no reference host answers".into(),
    }
}

pub(super) fn words(oddity: Oddity, advertisement: &Advertisement) -> (&'static str, String) {
    match oddity {
        Oddity::Version => (
            "other_version",
            format!(
                "speaks version {}; give both the same `version`",
                u8::from(advertisement.version)
            ),
        ),
        Oddity::Interval => (
            "other_interval",
            format!(
                "advertises every {:?}; give both the same interval",
                advertisement.interval
            ),
        ),
        Oddity::Addresses => (
            "other_addresses",
            format!(
                "advertises {:?}, which is another list",
                advertisement.addresses
            ),
        ),
        Oddity::TwoOwners => (
            "two_owners",
            "has priority 255, too; only one node can have the addresses itself".into(),
        ),
    }
}

/// A MAC address as people write it.
pub(super) fn shown_mac(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
