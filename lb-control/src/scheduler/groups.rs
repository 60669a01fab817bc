//! Which priority groups take part, and how much of the traffic each takes.

use super::Member;

/// A member among those of its service.
#[derive(Clone, Copy, Debug)]
pub struct Ranked {
    /// Its id and its share; zero: it gets no new flows.
    pub member: Member,
    /// Its priority group, from 1.
    pub priority: u8,
    /// Connections it may have; zero: any number.
    pub max: u32,
    /// What it can take now, and what it can take when all is well, in the same
    /// unit. Of a group the sums count.
    pub capacity: (u32, u32),
}

/// Resolution of a group's part of the traffic.
const WHOLE: u64 = 1 << 20;

/// The members that share the table.
///
/// A group is enough while at least `min_available` percent of its capacity is
/// available. Below that it keeps what is available, held against what would be
/// enough, and the next group takes over the rest, and so on: no jump in
/// either direction. With zero percent the first group that has anybody takes
/// all.
pub fn open(ranked: &[Ranked], min_available: u8) -> Vec<Member> {
    let takes_part = |r: &&Ranked| r.member.share > 0;
    let mut groups: Vec<u8> = ranked
        .iter()
        .filter(takes_part)
        .map(|r| r.priority)
        .collect();
    groups.sort_unstable();
    groups.dedup();
    let of = |group: u8| {
        ranked
            .iter()
            .filter(move |r| r.priority == group && r.member.share > 0)
            .map(|r| r.member)
    };
    let mut left = WHOLE;
    let mut parts: Vec<(u8, u64)> = Vec::new();
    for group in groups.iter().copied() {
        let part = enough(ranked, group, min_available).min(left);
        left -= part;
        if part > 0 {
            parts.push((group, part));
        }
    }
    match parts.as_slice() {
        [] => groups
            .first()
            .map(|first| of(*first).collect())
            .unwrap_or_default(),
        // Shares as they are: nothing moves that needn't.
        [(only, _)] => of(*only).collect(),
        parts => {
            let mut members = Vec::new();
            for &(group, part) in parts {
                let total: u64 = of(group).map(|m| u64::from(m.share)).sum();
                members.extend(of(group).map(|member| {
                    let share = (part * u64::from(member.share)).checked_div(total);
                    let share = u32::try_from(share.unwrap_or(0)).unwrap_or(u32::MAX).max(1);
                    Member { share, ..member }
                }));
            }
            members
        }
    }
}

/// The part of the traffic that a group is enough for.
fn enough(ranked: &[Ranked], group: u8, min_available: u8) -> u64 {
    let own = || ranked.iter().filter(|r| r.priority == group);
    let available: u64 = own().map(|r| u64::from(r.capacity.0)).sum();
    let all: u64 = own().map(|r| u64::from(r.capacity.1)).sum();
    let needed = all * u64::from(min_available);
    if needed == 0 {
        return WHOLE;
    }
    let part = u128::from(available) * 100 * u128::from(WHOLE) / u128::from(needed);
    u64::try_from(part).unwrap_or(WHOLE).min(WHOLE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Members of weight 100: (priority, available percent).
    fn ranked(members: &[(u8, u32)]) -> Vec<Ranked> {
        (1..)
            .zip(members)
            .map(|(id, &(priority, available))| Ranked {
                member: Member {
                    identity: u64::from(id),
                    share: available,
                    id,
                },
                priority,
                max: 0,
                capacity: (available, 100),
            })
            .collect()
    }

    /// Percent of the traffic that each group gets.
    fn parts(members: &[(u8, u32)], min_available: u8) -> Vec<u64> {
        let ranked = ranked(members);
        let open = open(&ranked, min_available);
        let total: u64 = open.iter().map(|m| u64::from(m.share)).sum();
        (1..=4)
            .map(|group| {
                let share: u64 = open
                    .iter()
                    .filter(|m| ranked[m.id as usize - 1].priority == group)
                    .map(|m| u64::from(m.share))
                    .sum();
                (share * 200 / total.max(1)).div_ceil(2)
            })
            .collect()
    }

    #[test]
    fn without_a_limit_the_first_group_that_has_anybody_takes_all() {
        assert_eq!(
            parts(&[(1, 100), (1, 0), (1, 0), (2, 100)], 0),
            [100, 0, 0, 0]
        );
        assert_eq!(parts(&[(1, 0), (1, 0), (2, 100)], 0), [0, 100, 0, 0]);
    }

    #[test]
    fn below_the_limit_the_next_group_takes_over_what_is_missing_and_gives_it_back() {
        let at = |up: usize| {
            let mut members: Vec<(u8, u32)> =
                (0..4).map(|n| (1, 100 * u32::from(n < up))).collect();
            members.extend([(2, 100), (2, 100)]);
            parts(&members, 75)
        };
        assert_eq!(at(4), [100, 0, 0, 0]);
        assert_eq!(at(3), [100, 0, 0, 0], "exactly enough");
        assert_eq!(at(2), [67, 33, 0, 0]);
        assert_eq!(at(1), [33, 67, 0, 0]);
        assert_eq!(at(0), [0, 100, 0, 0]);
    }

    #[test]
    fn a_second_group_that_is_not_enough_either_is_followed_by_the_third() {
        let members = [(1, 100), (1, 0), (2, 50), (2, 0), (3, 100)];
        assert_eq!(parts(&members, 100), [50, 25, 25, 0]);
    }

    #[test]
    fn a_ramping_backend_leaves_what_it_cannot_take_yet_to_the_next_group() {
        assert_eq!(parts(&[(1, 10), (2, 100)], 100), [10, 90, 0, 0]);
        assert_eq!(parts(&[(1, 60), (2, 100)], 100), [60, 40, 0, 0]);
    }

    #[test]
    fn one_open_group_has_its_shares_as_they_are() {
        let members = ranked(&[(1, 100), (1, 30), (2, 100)]);
        let shares: Vec<u32> = open(&members, 50).iter().map(|m| m.share).collect();
        assert_eq!(shares, [100, 30]);
    }

    proptest! {
        #[test]
        fn whoever_gets_flows_can_take_them_and_somebody_does(
            members in proptest::collection::vec((1u8..=4, 0u32..=100), 1..12), min in 0u8..=100,
        ) {
            let ranked = ranked(&members);
            let open = open(&ranked, min);
            prop_assert!(open.iter().all(|m| m.share > 0 && members[m.id as usize - 1].1 > 0));
            prop_assert_eq!(open.is_empty(), members.iter().all(|m| m.1 == 0));
        }
    }
}
