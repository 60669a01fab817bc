//! What RFC 9568 demands of a router of ours, by section, and the tests that show
//! it. (Not listed: what is demanded of hosts, of token ring, and of routers that
//! accept packets to the virtual addresses by their own stack; here the data path
//! answers for them. Virtual MAC addresses, §7.3 and §8.1.2, §8.2.2, are not there
//! yet.)

const CODEC: &str = include_str!("codec_tests.rs");
const MACHINE: &str = include_str!("machine_tests.rs");
const SIMULATION: &str = include_str!("simulation_tests.rs");
const SOCKET: &str = include_str!("socket.rs");
const ANNOUNCE: &str = include_str!("announce.rs");
/// With keepalived, which throws away what it has to.
const INTEROP: &str = include_str!("../../../tests/tests/vrrp.rs");

/// Section, what it demands, where that is tested, and the test.
const DEMANDS: [(&str, &str, &str, &str); 34] = [
    (
        "5.1.1.2",
        "IPv4 goes to 224.0.0.18",
        INTEROP,
        "version_3_by_multicast",
    ),
    (
        "5.1.1.3",
        "a TTL of 255 is sent",
        INTEROP,
        "version_3_by_multicast",
    ),
    (
        "5.1.1.3",
        "another TTL is thrown away",
        CODEC,
        "what_the_rfcs_throw_away_is_thrown_away",
    ),
    (
        "5.1.1.3",
        "the TTL is read from the header",
        SOCKET,
        "an_ipv4_header_is_read_with_its_options",
    ),
    (
        "5.1.2.2",
        "IPv6 goes to ff02::12",
        INTEROP,
        "version_3_by_multicast",
    ),
    (
        "5.1.2.3",
        "a hop limit of 255, both ways",
        INTEROP,
        "version_3_by_multicast",
    ),
    (
        "5.2",
        "the format of a message",
        CODEC,
        "the_bytes_are_those_of_the_rfcs",
    ),
    (
        "5.2.2",
        "an unknown type is thrown away",
        CODEC,
        "what_the_rfcs_throw_away_is_thrown_away",
    ),
    (
        "5.2.4",
        "priority 255 is the owner's",
        MACHINE,
        "who_has_the_addresses_itself_is_active_at_once",
    ),
    (
        "5.2.4",
        "priority 0 is for leaving alone",
        MACHINE,
        "another_priority_is_told_at_once",
    ),
    (
        "5.2.5",
        "no address: ignored",
        CODEC,
        "what_the_rfcs_throw_away_is_thrown_away",
    ),
    (
        "5.2.6",
        "reserved bits are ignored",
        CODEC,
        "what_the_rfcs_throw_away_is_thrown_away",
    ),
    (
        "5.2.7",
        "the interval is in centiseconds",
        CODEC,
        "intervals_have_the_units_of_their_version",
    ),
    (
        "5.2.8",
        "the checksum, IPv6 with a pseudo-header",
        CODEC,
        "the_checksum_of_ipv6_covers_the_addresses",
    ),
    (
        "5.2.8",
        "the checksum of IPv4 without one",
        CODEC,
        "the_bytes_are_those_of_the_rfcs",
    ),
    (
        "5.2.9",
        "addresses in the message",
        CODEC,
        "what_is_written_is_read_and_in_which_form",
    ),
    (
        "6.1",
        "skew and down interval",
        MACHINE,
        "a_backup_counts_by_the_interval_of_who_is_active",
    ),
    (
        "6.1",
        "preemption can be off",
        MACHINE,
        "without_preemption_a_lower_priority_stays_active",
    ),
    (
        "6.1",
        "the owner preempts whatever is set",
        MACHINE,
        "who_has_the_addresses_itself_is_active_at_once",
    ),
    (
        "6.4.1",
        "from Initialize",
        MACHINE,
        "every_event_in_every_state_leads_where_the_rfc_says",
    ),
    (
        "6.4.2",
        "as Backup: timer, adverts, leaving",
        MACHINE,
        "every_event_in_every_state_leads_where_the_rfc_says",
    ),
    (
        "6.4.2",
        "a leaving one is followed after the skew",
        MACHINE,
        "who_leaves_is_followed_after_the_skew_alone",
    ),
    (
        "6.4.2",
        "a backup does not answer ARP",
        INTEROP,
        "a_higher_priority_of_keepalived_is_respected",
    ),
    (
        "6.4.2",
        "gratuitous ARP when it becomes active",
        ANNOUNCE,
        "arp_asks_for_its_own_address",
    ),
    (
        "6.4.2",
        "unsolicited NA with R and O",
        ANNOUNCE,
        "an_advertisement_is_whole",
    ),
    (
        "6.4.3",
        "as Active: ties by address",
        MACHINE,
        "every_event_in_every_state_leads_where_the_rfc_says",
    ),
    (
        "6.4.3",
        "an inferior one is answered at once",
        MACHINE,
        "every_event_in_every_state_leads_where_the_rfc_says",
    ),
    (
        "6.4.3",
        "an active one answers ARP",
        INTEROP,
        "one_after_the_other",
    ),
    (
        "6.4.3",
        "priority 0 when it is stopped",
        INTEROP,
        "one_after_the_other",
    ),
    (
        "7.1",
        "checks of received messages",
        CODEC,
        "what_the_rfcs_throw_away_is_thrown_away",
    ),
    (
        "7.1",
        "not the owner's own priority",
        MACHINE,
        "who_has_the_addresses_itself_is_active_at_once",
    ),
    (
        "7.1",
        "an address list that differs is noted",
        MACHINE,
        "other_addresses_are_odd_and_taken",
    ),
    (
        "7.2",
        "one owner at a time",
        SIMULATION,
        "without_loss_there_is_one_owner_and_a_dead_one_is_followed_in_time",
    ),
    (
        "8.4",
        "version 2 is kept apart",
        MACHINE,
        "version_2_is_stricter_and_its_skew_is_of_a_second",
    ),
];

#[test]
fn every_demand_has_its_test() {
    for (section, demand, place, test) in DEMANDS {
        assert!(
            place.contains(&format!("fn {test}(")),
            "§{section}, {demand}: no test {test}"
        );
    }
}
