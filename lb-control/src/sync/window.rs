//! Which nonces of a session were seen: each is taken once (RFC 6479's idea).

/// Nonces behind the newest that can still be told apart.
const WINDOW: u64 = 2048;
const WORDS: usize = (WINDOW / 64) as usize;
/// A nonce is among the newest up to so far behind the newest of all.
const NEWEST: u64 = 64;

/// What a nonce is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It was not seen yet.
    New,
    /// It was, by other paths alone, and not long ago.
    ByOthers,
    /// It was, or is too old to tell.
    Old,
}

/// The nonces of one direction of a session.
#[derive(Clone, Debug)]
pub struct Window {
    /// One more than the newest.
    end: u64,
    bits: [u64; WORDS],
    /// For each of the newest, by which paths it came.
    paths: [u8; NEWEST as usize],
}

impl Default for Window {
    fn default() -> Self {
        Self {
            end: 0,
            bits: [0; WORDS],
            paths: [0; NEWEST as usize],
        }
    }
}

impl Window {
    /// What `nonce` is that came by path number `path`. Changes nothing: whether it
    /// is authentic isn't known yet.
    pub fn look(&self, path: usize, nonce: u64) -> Seen {
        if nonce >= self.end {
            return Seen::New;
        }
        let behind = self.end - 1 - nonce;
        if behind >= WINDOW {
            return Seen::Old;
        }
        let (word, bit) = place(nonce);
        if self.bits.get(word).is_some_and(|word| word & bit == 0) {
            return Seen::New;
        }
        let paths = self.paths.get((nonce % NEWEST) as usize);
        if behind < NEWEST && paths.is_some_and(|paths| paths & path_bit(path) == 0) {
            Seen::ByOthers
        } else {
            Seen::Old
        }
    }

    /// `nonce` came by path number `path` and is authentic.
    pub fn take(&mut self, path: usize, nonce: u64) {
        if nonce >= self.end {
            // Whatever lies between was not seen.
            let first = self.end.max(nonce.saturating_sub(WINDOW - 1));
            for skipped in first..=nonce {
                let (word, bit) = place(skipped);
                if let Some(word) = self.bits.get_mut(word) {
                    *word &= !bit;
                }
            }
            for skipped in self.end.max(nonce.saturating_sub(NEWEST - 1))..=nonce {
                if let Some(paths) = self.paths.get_mut((skipped % NEWEST) as usize) {
                    *paths = 0;
                }
            }
            self.end = nonce.saturating_add(1);
        }
        let (word, bit) = place(nonce);
        if let Some(word) = self.bits.get_mut(word) {
            *word |= bit;
        }
        if self.end.saturating_sub(1).saturating_sub(nonce) < NEWEST
            && let Some(paths) = self.paths.get_mut((nonce % NEWEST) as usize)
        {
            *paths |= path_bit(path);
        }
    }
}

const fn place(nonce: u64) -> (usize, u64) {
    (((nonce / 64) as usize) % WORDS, 1 << (nonce % 64))
}

const fn path_bit(path: usize) -> u8 {
    1 << (path % 8)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_nonce_is_new_once() {
        let mut window = Window::default();
        assert_eq!(window.look(0, 0), Seen::New);
        assert_eq!(window.look(0, 0), Seen::New, "looking changes nothing");
        window.take(0, 0);
        assert_eq!(window.look(0, 0), Seen::Old);
        assert_eq!(window.look(1, 0), Seen::ByOthers);
        window.take(1, 0);
        assert_eq!(window.look(1, 0), Seen::Old, "the second time by this path");
    }

    #[test]
    fn what_is_behind_the_window_is_old() {
        let mut window = Window::default();
        window.take(0, 10_000);
        assert_eq!(window.look(0, 10_000 - WINDOW), Seen::Old);
        assert_eq!(window.look(0, 10_001 - WINDOW), Seen::New);
        window.take(0, 9_000);
        assert_eq!(window.look(1, 9_000), Seen::Old, "not among the newest");
    }

    #[test]
    fn the_last_nonce_of_all_does_no_harm() {
        let mut window = Window::default();
        window.take(0, u64::MAX - 1);
        assert_eq!(window.look(0, u64::MAX - 1), Seen::Old);
        assert_eq!(window.look(0, u64::MAX), Seen::New);
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_set_of_all(steps in proptest::collection::vec((0u64..6000, 0usize..3), 0..400)) {
            let mut window = Window::default();
            let mut all = BTreeSet::new();
            let mut newest = 0;
            for (nonce, path) in steps {
                let seen = window.look(path, nonce);
                if nonce + WINDOW > newest {
                    prop_assert_eq!(seen == Seen::New, !all.contains(&nonce));
                } else {
                    prop_assert_eq!(seen, Seen::Old);
                }
                if seen == Seen::New {
                    window.take(path, nonce);
                    all.insert(nonce);
                    newest = newest.max(nonce);
                }
            }
        }
    }
}
