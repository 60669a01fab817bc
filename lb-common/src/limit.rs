//! Token buckets in one word.
//!
//! A bucket of `n` tokens a second holds `n` at most: after a quiet second `n`
//! may come at once. Its word is not the number of tokens but the time at which
//! the bucket is full again (the generic cell rate algorithm, ITU-T I.371
//! annex A), so that nothing has to be filled up while nobody looks. Times are
//! jiffies in steps of 2^-20; a zero is a full bucket.

/// Steps of a jiffy, as a power of two.
const STEP_SHIFT: u32 = 20;

/// The highest rate, in tokens a second. With it a bucket is off by less than
/// one in a hundred at every kernel's tick rate.
pub const HIGHEST_RATE: u32 = 1_000_000;

/// Steps in a second, for `hz` jiffies a second up to 1,000.
pub const fn second(hz: u32) -> u32 {
    hz << STEP_SHIFT
}

/// Steps that a token takes to come back, for a bucket of `per_second` tokens
/// (zero: no limit, and no steps). Rounded down: a second holds as many as
/// asked for, or a few more.
pub const fn cost(per_second: u32, hz: u32) -> u32 {
    match second(hz).checked_div(per_second) {
        Some(0) => 1,
        Some(steps) => steps,
        None => 0,
    }
}

/// A bucket.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket(pub u64);

impl Bucket {
    /// The bucket after a token was taken, if one was there, at `jiffies`.
    /// The same bucket, if not.
    #[inline(always)]
    #[must_use]
    pub const fn take(self, jiffies: u64, cost: u32, second: u32) -> Self {
        let now = jiffies << STEP_SHIFT;
        let ahead = self.0.wrapping_sub(now) as i64;
        // No bucket lacks more than it holds: a word further ahead is not of
        // this bucket, and must not close it.
        let missing = if ahead <= 0 || ahead as u64 > second as u64 {
            0
        } else {
            ahead as u64
        };
        let after = missing + cost as u64;
        if after > second as u64 {
            return self;
        }
        Self(now.wrapping_add(after))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::vec::Vec;

    use super::*;

    const RATES: [u32; 7] = [1, 2, 3, 10, 1000, 99_999, HIGHEST_RATE];
    const HZ: [u32; 4] = [100, 250, 300, 1000];

    fn take(bucket: &mut Bucket, jiffies: u64, rate: u32, hz: u32) -> bool {
        let after = bucket.take(jiffies, cost(rate, hz), second(hz));
        let taken = after != *bucket;
        *bucket = after;
        taken
    }

    #[test]
    fn a_quiet_second_holds_as_many_as_asked_for_and_less_than_a_hundredth_more() {
        for hz in HZ {
            for rate in RATES {
                let mut bucket = Bucket::default();
                let mut taken = 0u32;
                while take(&mut bucket, 1 << 32, rate, hz) {
                    taken += 1;
                }
                assert!(taken >= rate, "{hz} {rate}: {taken}");
                assert!(taken - rate <= rate / 100, "{hz} {rate}: {taken}");
            }
        }
    }

    #[test]
    fn no_limit_costs_nothing() {
        assert_eq!(cost(0, 250), 0);
    }

    #[test]
    fn a_word_from_nowhere_does_not_close_the_bucket() {
        for word in [u64::MAX >> 1, (1 << 40) << STEP_SHIFT, 1 << 62] {
            assert!(take(&mut Bucket(word), 1 << 32, 1, 250), "{word:x}");
        }
    }

    proptest! {
        #[test]
        fn no_stretch_of_time_lets_more_through_than_the_rate_and_a_seconds_worth(
            rate in prop_oneof![1u32..50, 50u32..5000], hz in prop::sample::select(&HZ[..]),
            gaps in prop::collection::vec((0u64..400, 1usize..60), 1..30),
            start in 0u64..1 << 43,
        ) {
            let mut bucket = Bucket::default();
            let mut now = start;
            let mut taken: Vec<u64> = Vec::new();
            for (gap, tries) in gaps {
                now += gap;
                for _ in 0..tries {
                    if take(&mut bucket, now, rate, hz) {
                        taken.push(now);
                    }
                }
            }
            for (i, from) in taken.iter().enumerate() {
                for (j, to) in taken.iter().enumerate().skip(i) {
                    let seconds = (to - from) as f64 / f64::from(hz);
                    let most = f64::from(rate) * (1.0 + seconds) * 1.01;
                    prop_assert!((j - i + 1) as f64 <= most + 1.0, "{} in {seconds} s", j - i + 1);
                }
            }
        }

        #[test]
        fn who_keeps_to_the_rate_is_never_refused(
            rate in 1u32..1000, hz in prop::sample::select(&HZ[..]), start in 0u64..1 << 43,
            burst in 0u32..100,
        ) {
            // A burst after a quiet second, then one at each token's time.
            let mut bucket = Bucket::default();
            for _ in 0..burst.min(rate.saturating_sub(1)) {
                prop_assert!(take(&mut bucket, start, rate, hz));
            }
            for n in 1..300u64 {
                let now = start + (n * u64::from(hz)).div_ceil(u64::from(rate));
                prop_assert!(take(&mut bucket, now, rate, hz), "{n}");
            }
        }

        #[test]
        fn what_is_refused_changes_nothing_and_a_second_later_the_bucket_is_full(
            rate in 1u32..1000, hz in prop::sample::select(&HZ[..]), start in 0u64..1 << 43,
        ) {
            let mut bucket = Bucket::default();
            while take(&mut bucket, start, rate, hz) {}
            let empty = bucket;
            prop_assert!(!take(&mut bucket, start, rate, hz));
            prop_assert_eq!(bucket, empty);
            let mut taken = 0;
            while take(&mut bucket, start + u64::from(hz), rate, hz) {
                taken += 1;
            }
            prop_assert!(taken >= rate);
        }
    }
}
