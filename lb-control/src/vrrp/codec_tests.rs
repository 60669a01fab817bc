use proptest::prelude::*;

use super::*;

fn v4() -> Ends {
    Ends {
        source: "192.0.2.1".parse().unwrap(),
        destination: GROUP_V4.into(),
    }
}

fn v6() -> Ends {
    Ends {
        source: "fe80::1".parse().unwrap(),
        destination: GROUP_V6.into(),
    }
}

fn advertisement(version: Version, addresses: &[&str]) -> Advertisement {
    Advertisement {
        version,
        vrid: 51,
        priority: 150,
        interval: Duration::from_secs(1),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
    }
}

/// Every version, family and form that there is.
fn all() -> Vec<(Advertisement, Ends, ChecksumForm)> {
    let (own, other) = (ChecksumForm::Message, ChecksumForm::PseudoHeader);
    let two = ["192.0.2.10", "192.0.2.11"];
    vec![
        (advertisement(Version::V2, &two), v4(), own),
        (advertisement(Version::V3, &two), v4(), own),
        (advertisement(Version::V3, &two), v4(), other),
        (
            advertisement(Version::V3, &["fe80::1:1", "2001:db8::10"]),
            v6(),
            own,
        ),
    ]
}

#[test]
fn what_is_written_is_read_and_in_which_form() {
    for (sent, ends, form) in all() {
        let message = sent.encode(&ends, form);
        let read = Advertisement::decode(&message, &ends, TTL);
        assert_eq!(read, Ok((sent, form)));
    }
}

/// Written down by hand from RFC 9568 §5.2 and RFC 3768 §5.3.
#[test]
fn the_bytes_are_those_of_the_rfcs() {
    let message = |version| {
        let mut one = advertisement(version, &["192.0.2.10"]);
        one.interval = Duration::from_secs(2);
        one.encode(&v4(), ChecksumForm::Message)
    };
    // 0x3133 + 0x9601 + 0x00c8 + 0xc000 + 0x020a = 0x18a06, folded 0x8a07.
    assert_eq!(
        message(Version::V3),
        [0x31, 51, 150, 1, 0, 200, 0x75, 0xf8, 192, 0, 2, 10]
    );
    // 0x2133 + 0x9601 + 0x0002 + 0xc000 + 0x020a = 0x17940, folded 0x7941.
    assert_eq!(
        message(Version::V2),
        [
            0x21, 51, 150, 1, 0, 2, 0x86, 0xbe, 192, 0, 2, 10, 0, 0, 0, 0, 0, 0, 0, 0
        ]
    );
    // And what the pseudo-header 192.0.2.1, 224.0.0.18, 112, 12 takes off.
    let mut one = advertisement(Version::V3, &["192.0.2.10"]);
    one.interval = Duration::from_secs(2);
    let other = one.encode(&v4(), ChecksumForm::PseudoHeader);
    // 0x8a07 + 0xc000 + 0x0201 + 0xe000 + 0x0012 + 0x70 + 0x0c = 0x22c96 → 0x2c98.
    assert_eq!(other[6..8], [0xd3, 0x67]);
}

#[test]
fn intervals_have_the_units_of_their_version() {
    let of = |version, interval| {
        let mut sent = advertisement(version, &["192.0.2.10"]);
        sent.interval = interval;
        let message = sent.encode(&v4(), ChecksumForm::Message);
        let (read, _) = Advertisement::decode(&message, &v4(), TTL).unwrap();
        read.interval.as_millis()
    };
    let millis = Duration::from_millis;
    assert_eq!(of(Version::V3, millis(10)), 10);
    assert_eq!(of(Version::V3, millis(40_950)), 40_950);
    // What the field doesn't hold is the most that it does.
    assert_eq!(of(Version::V3, millis(99_999)), 40_950);
    assert_eq!(of(Version::V3, millis(1)), 10);
    assert_eq!(of(Version::V2, millis(3_000)), 3_000);
    assert_eq!(of(Version::V2, millis(300_000)), 255_000);
}

/// Changes a good message, puts its checksum right, and reads it.
fn changed(
    version: Version,
    change: impl FnOnce(&mut Vec<u8>),
) -> Result<(Advertisement, ChecksumForm), Malformed> {
    let mut message = advertisement(version, &["192.0.2.10"]).encode(&v4(), ChecksumForm::Message);
    change(&mut message);
    if message.len() >= HEADER {
        message[6..8].fill(0);
        let right = !sum(&message, 0);
        message[6..8].copy_from_slice(&right.to_be_bytes());
    }
    Advertisement::decode(&message, &v4(), TTL)
}

#[test]
fn what_the_rfcs_throw_away_is_thrown_away() {
    let good = advertisement(Version::V3, &["192.0.2.10"]).encode(&v4(), ChecksumForm::Message);
    for ttl in [0, 1, 64, 254] {
        let read = Advertisement::decode(&good, &v4(), ttl);
        assert_eq!(read.unwrap_err(), Malformed::Ttl);
    }
    let (two, three) = (Version::V2, Version::V3);
    let of = |version, change: fn(&mut Vec<u8>)| changed(version, change).unwrap_err();
    assert_eq!(of(three, |m| m[0] = 0x11), Malformed::Version);
    assert_eq!(of(three, |m| m[0] = 0x41), Malformed::Version);
    assert_eq!(of(three, |m| m[0] = 0x32), Malformed::Type);
    assert_eq!(of(three, |m| m[3] = 2), Malformed::Length);
    assert_eq!(of(two, |m| m.truncate(19)), Malformed::Length);
    assert_eq!(of(three, |m| m.truncate(7)), Malformed::Length);
    assert_eq!(of(three, |m| m[1] = 0), Malformed::Vrid);
    assert_eq!(of(three, |m| m[3] = 0), Malformed::NoAddress);
    assert_eq!(of(three, |m| m[4..6].fill(0)), Malformed::Interval);
    assert_eq!(of(two, |m| m[5] = 0), Malformed::Interval);
    assert_eq!(of(two, |m| m[4] = 1), Malformed::Authentication);
    // The four bits before the interval are reserved, and ignored (§5.2.6).
    assert!(changed(three, |m| m[4] |= 0xf0).is_ok());
    let mut wrong = good;
    wrong[2] ^= 1;
    let read = Advertisement::decode(&wrong, &v4(), TTL);
    assert_eq!(read.unwrap_err(), Malformed::Checksum);
    // IPv6 has version 3 alone.
    let over_v6 = advertisement(two, &["192.0.2.10"]).encode(&v4(), ChecksumForm::Message);
    let read = Advertisement::decode(&over_v6, &v6(), TTL);
    assert_eq!(read.unwrap_err(), Malformed::Version);
}

/// A pseudo-header that isn't that of the packet is a wrong checksum.
#[test]
fn the_checksum_of_ipv6_covers_the_addresses() {
    let sent = advertisement(Version::V3, &["fe80::1:1"]);
    let message = sent.encode(&v6(), ChecksumForm::Message);
    let other = Ends {
        source: "fe80::2".parse().unwrap(),
        ..v6()
    };
    let read = Advertisement::decode(&message, &other, TTL);
    assert_eq!(read.unwrap_err(), Malformed::Checksum);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), ttl in any::<u8>()) {
        for ends in [v4(), v6()] {
            let _ = Advertisement::decode(&bytes, &ends, ttl);
            let _ = Advertisement::decode(&bytes, &ends, TTL);
        }
    }

    /// Behind a right checksum, too.
    #[test]
    fn no_change_of_a_good_message_makes_it_panic_or_lie(
        which in 0..4usize,
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        keep in any::<prop::sample::Index>(),
    ) {
        let (sent, ends, form) = all().swap_remove(which);
        let mut message = sent.encode(&ends, form);
        let place = at.index(message.len());
        message[place] = byte;
        message.truncate(keep.index(message.len()) + 1);
        if message.len() >= HEADER {
            message[6..8].fill(0);
            let covered = covered(sent.version, &ends, form, message.len());
            let right = !sum(&message, covered);
            message[6..8].copy_from_slice(&right.to_be_bytes());
        }
        if let Ok((read, _)) = Advertisement::decode(&message, &ends, TTL) {
            prop_assert!(read.vrid != 0 && !read.interval.is_zero() && !read.addresses.is_empty());
            prop_assert_eq!(usize::from(message[3]), read.addresses.len());
        }
    }
}
