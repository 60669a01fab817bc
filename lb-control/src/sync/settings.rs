//! What a node knows of its links before they are made.

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// Between two keepalives, where nothing else is said.
pub const KEEPALIVE: Duration = Duration::from_millis(100);

/// The secret that the nodes share.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; Self::BYTES]);

impl Key {
    /// Its length.
    pub const BYTES: usize = 32;

    /// These bytes.
    pub const fn new(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// A fresh one.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn generate() -> io::Result<Self> {
        let mut bytes = [0; Self::BYTES];
        getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Self(bytes))
    }

    /// From 64 hexadecimal digits or base64, with white space around it.
    ///
    /// # Errors
    /// It is neither, or all zero; says what is allowed, and nothing of the text.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const ALLOWED: &str = "it has to be 32 bytes as 64 hexadecimal digits or in base64, as `lbctl sync-key` \
             makes them";
        let text = text.trim();
        let bytes = hexadecimal(text).or_else(|| STANDARD.decode(text).ok()?.try_into().ok());
        match bytes {
            Some(bytes) if bytes != [0; Self::BYTES] => Ok(Self(bytes)),
            _ => Err(ALLOWED),
        }
    }

    /// As `lbctl sync-key` prints it.
    pub fn to_hexadecimal(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub(super) const fn bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

fn hexadecimal(text: &str) -> Option<[u8; Key::BYTES]> {
    if text.len() != 2 * Key::BYTES {
        return None;
    }
    let mut bytes = [0; Key::BYTES];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).ok()?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        *byte = u8::from_str_radix(digits, 16).ok()?;
    }
    Some(bytes)
}

/// All links of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// This node's name.
    pub node: String,
    /// The secret that all nodes share.
    pub key: Key,
    /// Between two keepalives on a path, at least 10 ms. A path is alive while
    /// something authentic came within five of them, at least 300 ms.
    pub keepalive: Duration,
    /// The peers; their names are unique and not this node's.
    pub peers: Vec<PeerSettings>,
}

/// The link to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSettings {
    /// What the peer calls itself.
    pub name: Arc<str>,
    /// The ways to it, the best first; 1 to 8.
    pub paths: Vec<PathSettings>,
}

/// Most paths of a link.
pub const MOST_PATHS: usize = 8;

/// One way to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathSettings {
    /// This node's end.
    pub local: SocketAddr,
    /// The peer's end, of the same family.
    pub remote: SocketAddr,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_hexadecimal_or_base64() {
        let bytes: [u8; 32] = std::array::from_fn(|index| index as u8);
        let key = Key::new(bytes);
        assert_eq!(
            Key::parse(&format!("{}\n", key.to_hexadecimal())),
            Ok(key.clone())
        );
        assert_eq!(
            Key::parse(&key.to_hexadecimal().to_uppercase()),
            Ok(key.clone())
        );
        assert_eq!(
            Key::parse(" AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"),
            Ok(key)
        );
    }

    #[test]
    fn a_fresh_key_is_another_one_each_time() {
        let fresh = Key::generate().unwrap();
        assert_eq!(Key::parse(&fresh.to_hexadecimal()), Ok(fresh.clone()));
        assert_ne!(Key::generate().unwrap(), fresh);
    }

    #[test]
    fn whatever_else_is_no_key_and_is_not_repeated() {
        for text in [
            "",
            "secret",
            &"0".repeat(64),
            &"+1".repeat(32),
            &"g".repeat(64),
            &"ä".repeat(32),
            &"1".repeat(62),
        ] {
            let error = Key::parse(text).unwrap_err();
            assert!(text.is_empty() || !error.contains(text), "{error}");
        }
        assert_eq!(format!("{:?}", Key::new([7; 32])), "Key(..)");
    }
}
