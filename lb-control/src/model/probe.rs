//! What the checks do that are neither HTTP nor a mere connection.

use std::{fmt, path::PathBuf};

use serde::{Serialize, Serializer};

use super::{Pattern, Tls};

/// An ICMP or ICMPv6 echo request (RFC 792, RFC 4443 §4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Ping {
    /// Bytes of the IP packet, never to be fragmented; the least when absent.
    pub packet_size: Option<u16>,
}

/// A datagram and its answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Udp {
    /// What is sent.
    pub send: Vec<u8>,
    /// Silence is a time-out; without, only an ICMP error fails the check.
    pub answer_required: bool,
    /// A part of the answer.
    pub contains: Option<String>,
    /// A pattern that the answer matches.
    pub regex: Option<Pattern>,
}

/// A question to a name server (RFC 1035).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Dns {
    /// The name in question.
    pub query: String,
    /// The type of record, such as `A`.
    pub record: String,
    /// Over TCP instead of UDP (RFC 7766).
    pub tcp: bool,
    /// Response codes that pass, by their numbers.
    pub codes: Vec<u16>,
    /// Records that a successful answer has at least.
    pub min_answers: u16,
    /// The data of one of its records, in the form of a zone file.
    pub answer: Option<String>,
}

/// A mail server's greeting and its answer to EHLO (RFC 5321 §3.1, §3.2).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Smtp {
    /// What the balancer calls itself.
    pub helo: String,
    /// Goes on over TLS (RFC 3207).
    pub starttls: Option<Tls>,
}

/// A program whose exit status is the result.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Exec {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Whom it runs as.
    pub user: String,
    /// Statuses from 2 on pass, and are a weight in percent plus 2.
    pub dynamic: bool,
}

/// An agent beside the server, which says how it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Agent {
    /// The line protocol of HAProxy's agent-check, after sending this.
    Line {
        /// Sent first; may be empty.
        send: String,
    },
    /// JSON over HTTP, from this path.
    Json {
        /// Path and query, from the slash on.
        path: String,
    },
}

/// A number read by SNMP (RFC 3416) as the server's load.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Snmp {
    /// The object.
    pub oid: Vec<u64>,
    /// Its value when the server is fully used.
    pub full: u32,
    /// Who asks.
    pub access: SnmpAccess,
}

/// Who asks an SNMP agent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum SnmpAccess {
    /// Version 2c (RFC 1901).
    Community(Secret),
    /// Version 3 (RFC 3414).
    User {
        /// The user's name.
        user: String,
        /// How the messages are authenticated; not at all when absent.
        authentication: Option<(SnmpAuthentication, PathBuf)>,
        /// How they are encrypted, with the password's file.
        privacy: Option<(SnmpPrivacy, PathBuf)>,
    },
}

/// An authentication protocol of SNMP's user-based security model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SnmpAuthentication {
    /// HMAC-MD5-96 (RFC 3414 §6).
    Md5,
    /// HMAC-SHA-96 (RFC 3414 §7).
    Sha1,
    /// HMAC-SHA-2 (RFC 7860).
    Sha224,
    /// HMAC-SHA-2 (RFC 7860).
    Sha256,
    /// HMAC-SHA-2 (RFC 7860).
    Sha384,
    /// HMAC-SHA-2 (RFC 7860).
    Sha512,
}

/// A privacy protocol of SNMP's user-based security model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SnmpPrivacy {
    /// CBC-DES (RFC 3414 §8).
    Des,
    /// CFB128-AES-128 (RFC 3826).
    Aes128,
    /// AES with 192 bits, keys extended as by Reeder.
    Aes192,
    /// AES with 256 bits, keys extended as by Reeder.
    Aes256,
}

/// Text that is neither shown nor logged.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("(secret)")
    }
}
