//! How many slots a service's table has.

/// Slots that each backend gets on average, at least.
///
/// Shares are exact to one slot, so this makes them exact to one per cent of a
/// backend's share.
pub const SLOTS_PER_BACKEND: u32 = 100;

/// The largest table there is (1 GiB of slots).
pub const LARGEST_TABLE: u32 = 134_217_689;

/// Primes to choose from, ascending; neighbours differ by at most a factor of
/// about two, and by less in the sizes that are common.
///
/// The first leaves a small pool room to grow to 10 backends before its table,
/// whose size is fixed for the service's life, gets coarse.
const SIZES: [u32; 23] = [
    1_021,
    2_039,
    4_093,
    8_191,
    10_007,
    16_381,
    24_571,
    32_749,
    49_157,
    65_537,
    98_299,
    131_071,
    196_613,
    262_139,
    524_287,
    1_048_573,
    2_097_143,
    4_194_301,
    8_388_593,
    16_777_213,
    33_554_393,
    67_108_859,
    LARGEST_TABLE,
];

/// Slots of the table of a service whose pool has so many backends: the
/// smallest listed prime that is at least [`SLOTS_PER_BACKEND`] times as many,
/// and [`LARGEST_TABLE`] beyond the list.
pub fn table_size(backends: usize) -> u32 {
    let wanted = (backends as u64).saturating_mul(u64::from(SLOTS_PER_BACKEND));
    SIZES
        .into_iter()
        .find(|&size| u64::from(size) >= wanted)
        .unwrap_or(LARGEST_TABLE)
}

/// Whether `n` is a prime, by trial division (microseconds for any table size).
pub fn is_prime(n: u32) -> bool {
    let n = u64::from(n);
    match n {
        0 | 1 => false,
        2 | 3 => true,
        _ if n % 2 == 0 => false,
        _ => (3..)
            .step_by(2)
            .take_while(|d| d * d <= n)
            .all(|d| n % d != 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_size_is_a_prime_and_the_list_ascends() {
        assert!(SIZES.into_iter().all(is_prime));
        assert!(SIZES.is_sorted());
        for composite in [0, 1, 9, 25, 65_535, 10_001, 134_217_727] {
            assert!(!is_prime(composite), "{composite}");
        }
    }

    #[test]
    fn a_table_has_at_least_100_slots_for_each_backend() {
        for backends in (0..1000).chain([5_000, 70_000, 1_000_000]) {
            assert!(
                table_size(backends) as usize >= backends * 100,
                "{backends}"
            );
        }
        assert_eq!(table_size(0), 1_021);
        assert_eq!(table_size(10), 1_021);
        assert_eq!(table_size(11), 2_039);
        assert_eq!(table_size(100), 10_007);
        assert_eq!(table_size(655), 65_537);
        assert_eq!(table_size(usize::MAX), LARGEST_TABLE);
    }
}
