//! Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s (Noise Protocol Framework, revision 34):
//! two messages, fresh keys, and the shared key proves who may speak.
//!
//! The prologue binds the protocol's version and the session id. The payload of both
//! messages: epoch (8, big endian), incarnation (8), length of the name (1), name.
//!
//! The payload of the first message is authenticated before any Diffie–Hellman is
//! computed (`psk0` mixes the key and the ephemeral in first), so whoever has no key
//! costs little; but it can be a replay. The second one can't be: it covers the
//! fresh ephemeral of whoever reads it.

use snow::{Builder, HandshakeState, StatelessTransportState, params::NoiseParams};

use super::{
    settings::Key,
    wire::{MAX_PLAINTEXT, VERSION},
};

const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
/// Bytes of an ephemeral key.
const EPHEMERAL: usize = 32;

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Its name.
    pub name: String,
    /// Of this start of its daemon.
    pub epoch: u64,
    /// Of what it knows of the link: another one after it has given that up.
    pub incarnation: u64,
}

/// Why a handshake came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// Made with another key, or changed on the way.
    Key,
    /// Authentic, but not understood.
    Payload,
    /// This side could not make its part.
    Internal,
}

/// The keys of a session.
#[derive(Debug)]
pub struct Keys(StatelessTransportState);

/// A handshake that waits for its answer.
#[derive(Debug)]
pub struct Pending(HandshakeState);

/// First message of a handshake.
///
/// # Errors
/// The system has no random numbers.
pub fn initiate(key: &Key, session: u64, own: &Hello) -> Result<(Pending, Vec<u8>), Failed> {
    let prologue = prologue(session);
    let mut state = builder(key, &prologue)?
        .build_initiator()
        .map_err(|_| Failed::Internal)?;
    let message = write(&mut state, own)?;
    Ok((Pending(state), message))
}

/// Reads a first message. The other half, [`Answer::answer`], costs a
/// Diffie–Hellman.
///
/// # Errors
/// It is not from somebody with the key, or not understood.
pub fn read_initiation(key: &Key, session: u64, message: &[u8]) -> Result<(Answer, Hello), Failed> {
    let prologue = prologue(session);
    let mut state = builder(key, &prologue)?
        .build_responder()
        .map_err(|_| Failed::Internal)?;
    let hello = read(&mut state, message)?;
    Ok((Answer(state), hello))
}

/// A first message that was read.
#[derive(Debug)]
pub struct Answer(HandshakeState);

impl Answer {
    /// Second message, and the keys.
    ///
    /// # Errors
    /// The other one's ephemeral key is of no use, or there are no random numbers.
    pub fn answer(mut self, own: &Hello) -> Result<(Keys, Vec<u8>), Failed> {
        let message = write(&mut self.0, own)?;
        Ok((keys(self.0)?, message))
    }
}

/// Reads the second message. A failure leaves the handshake as it was.
///
/// # Errors
/// It does not answer this handshake, or is not understood.
pub fn read_response(pending: &mut Pending, message: &[u8]) -> Result<Hello, Failed> {
    read(&mut pending.0, message)
}

impl Pending {
    /// The keys, after the response was read.
    ///
    /// # Errors
    /// It was not.
    pub fn finish(self) -> Result<Keys, Failed> {
        keys(self.0)
    }
}

impl Keys {
    /// Encrypts and adds it to `datagram`. False if it can't be.
    #[must_use]
    pub fn encrypt(&self, nonce: u64, plaintext: &[u8], datagram: &mut Vec<u8>) -> bool {
        let mut buffer = [0; MAX_PLAINTEXT + super::wire::TAG];
        let written = self.0.write_message(nonce, plaintext, &mut buffer);
        let Some(written) = written.ok().and_then(|length| buffer.get(..length)) else {
            return false;
        };
        datagram.extend(written);
        true
    }

    /// Decrypts; `None` if it is not authentic.
    pub fn decrypt(&self, nonce: u64, ciphertext: &[u8]) -> Option<Vec<u8>> {
        let mut plaintext = vec![0; ciphertext.len()];
        let length = self
            .0
            .read_message(nonce, ciphertext, &mut plaintext)
            .ok()?;
        plaintext.truncate(length);
        Some(plaintext)
    }
}

fn prologue(session: u64) -> Vec<u8> {
    let mut prologue = b"lbctl peer link".to_vec();
    prologue.push(VERSION);
    prologue.extend(session.to_be_bytes());
    prologue
}

fn builder<'a>(key: &'a Key, prologue: &'a [u8]) -> Result<Builder<'a>, Failed> {
    let parameters: NoiseParams = PATTERN.parse().map_err(|_| Failed::Internal)?;
    Builder::new(parameters)
        .psk(0, key.bytes())
        .and_then(|builder| builder.prologue(prologue))
        .map_err(|_| Failed::Internal)
}

fn keys(state: HandshakeState) -> Result<Keys, Failed> {
    let state = state.into_stateless_transport_mode();
    state.map(Keys).map_err(|_| Failed::Internal)
}

fn write(state: &mut HandshakeState, own: &Hello) -> Result<Vec<u8>, Failed> {
    let name = own.name.as_bytes();
    let length = u8::try_from(name.len()).map_err(|_| Failed::Internal)?;
    let mut payload = Vec::with_capacity(17 + name.len());
    payload.extend(own.epoch.to_be_bytes());
    payload.extend(own.incarnation.to_be_bytes());
    payload.push(length);
    payload.extend(name);
    let mut message = vec![0; EPHEMERAL + payload.len() + super::wire::TAG];
    let written = state.write_message(&payload, &mut message);
    message.truncate(written.map_err(|_| Failed::Internal)?);
    Ok(message)
}

fn read(state: &mut HandshakeState, message: &[u8]) -> Result<Hello, Failed> {
    let mut payload = vec![0; message.len()];
    let length = state.read_message(message, &mut payload);
    let length = length.map_err(|_| Failed::Key)?;
    hello(payload.get(..length).unwrap_or_default()).ok_or(Failed::Payload)
}

fn hello(payload: &[u8]) -> Option<Hello> {
    let (epoch, rest) = payload.split_first_chunk()?;
    let (incarnation, rest) = rest.split_first_chunk()?;
    let (length, name) = rest.split_first()?;
    if name.len() != usize::from(*length) {
        return None;
    }
    Some(Hello {
        name: std::str::from_utf8(name).ok()?.to_owned(),
        epoch: u64::from_be_bytes(*epoch),
        incarnation: u64::from_be_bytes(*incarnation),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(name: &str) -> Hello {
        Hello {
            name: name.into(),
            epoch: 1,
            incarnation: 2,
        }
    }

    const KEY: Key = Key::new([7; 32]);

    #[test]
    fn both_have_the_same_keys_and_know_each_other() {
        let (mut pending, first) = initiate(&KEY, 5, &own("lb1")).unwrap();
        let (answer, hello) = read_initiation(&KEY, 5, &first).unwrap();
        assert_eq!(hello, own("lb1"));
        let (theirs, second) = answer.answer(&own("lb2")).unwrap();
        assert_eq!(read_response(&mut pending, &second).unwrap(), own("lb2"));
        let ours = pending.finish().unwrap();
        let mut sealed = Vec::new();
        assert!(ours.encrypt(9, b"text", &mut sealed));
        assert_eq!(theirs.decrypt(9, &sealed).as_deref(), Some(&b"text"[..]));
        assert_eq!(theirs.decrypt(8, &sealed), None, "another nonce");
        assert_eq!(ours.decrypt(9, &sealed), None, "the other direction's key");
    }

    #[test]
    fn another_key_session_or_byte_is_not_authentic() {
        let (mut pending, first) = initiate(&KEY, 5, &own("lb1")).unwrap();
        let failed =
            |key: &Key, session, message: &[u8]| read_initiation(key, session, message).err();
        assert_eq!(failed(&Key::new([8; 32]), 5, &first), Some(Failed::Key));
        assert_eq!(failed(&KEY, 6, &first), Some(Failed::Key));
        for at in 0..first.len() {
            let mut changed = first.clone();
            changed[at] ^= 1;
            assert_eq!(failed(&KEY, 5, &changed), Some(Failed::Key), "byte {at}");
        }
        assert_eq!(failed(&KEY, 5, &first[..20]), Some(Failed::Key));
        // A wrong answer leaves the handshake open for the right one.
        let (answer, _) = read_initiation(&KEY, 5, &first).unwrap();
        let (_, second) = answer.answer(&own("lb2")).unwrap();
        let mut changed = second.clone();
        changed[40] ^= 1;
        assert_eq!(read_response(&mut pending, &changed), Err(Failed::Key));
        assert_eq!(read_response(&mut pending, &second), Ok(own("lb2")));
    }

    #[test]
    fn a_payload_that_is_not_whole_is_refused() {
        assert_eq!(hello(&[0; 16]), None);
        assert_eq!(hello(&[&[0; 16][..], &[2], b"a"].concat()), None);
        assert_eq!(hello(&[&[0; 16][..], &[1], b"\xff"].concat()), None);
        assert_eq!(
            hello(&[&[0; 16][..], &[1], b"a"].concat()).unwrap().name,
            "a"
        );
    }
}
