//! What health checks do.

use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    path::PathBuf,
};

use regex::Regex;
use serde::{Serialize, Serializer};

use super::probe::{Agent, Dns, Exec, Ping, Smtp, Snmp, Udp};

/// What a health check does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase", tag = "type")]
pub enum CheckKind {
    /// Passes when an echo request is answered.
    Ping(Ping),
    /// Passes when the TCP handshake completes.
    Tcp,
    /// Passes when a datagram gets the expected answer.
    Udp(Box<Udp>),
    /// Passes when an HTTP/1.1 request gets the expected response.
    Http(Box<Http>),
    /// Passes when a name server answers as expected.
    Dns(Box<Dns>),
    /// Passes when a mail server is ready.
    Smtp(Box<Smtp>),
    /// Passes when a program says so.
    Exec(Box<Exec>),
    /// Passes unless the server's agent speaks against it.
    Agent(Box<Agent>),
    /// Passes when SNMP tells the server's load.
    Snmp(Box<Snmp>),
}

impl CheckKind {
    /// The check's `type`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ping(_) => "ping",
            Self::Tcp => "tcp",
            Self::Udp(_) => "udp",
            Self::Http(http) if http.tls.is_some() => "https",
            Self::Http(_) => "http",
            Self::Dns(_) => "dns",
            Self::Smtp(_) => "smtp",
            Self::Exec(_) => "exec",
            Self::Agent(_) => "agent",
            Self::Snmp(_) => "snmp",
        }
    }

    /// Whether clients of a service could send the same.
    pub fn has_connection(&self) -> bool {
        matches!(
            self,
            Self::Tcp | Self::Udp(_) | Self::Http(_) | Self::Dns(_) | Self::Smtp(_)
        )
    }

    /// Whether it sends datagrams, as clients of a UDP service do.
    pub fn is_of_datagrams(&self) -> bool {
        matches!(self, Self::Udp(_)) || matches!(self, Self::Dns(dns) if !dns.tcp)
    }

    /// Whether it makes no difference which of a server's ports it is for.
    pub fn is_of_the_whole_server(&self) -> bool {
        matches!(self, Self::Ping(_) | Self::Exec(_) | Self::Snmp(_))
    }

    /// The port where no other is given.
    pub fn own_port(&self) -> Option<u16> {
        match self {
            Self::Snmp(_) => Some(161),
            Self::Ping(_) => Some(0),
            _ => None,
        }
    }
}

/// An HTTP request and the response that is expected (RFC 9110, RFC 9112).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Http {
    /// `GET` or `HEAD`.
    pub method: HttpMethod,
    /// Path and query, from the slash on.
    pub path: String,
    /// Value of the header `Host`; the address and port when absent.
    pub host: Option<String>,
    /// Further headers: name and value.
    pub headers: Vec<(String, String)>,
    /// The request fills a packet of [`FULL_SIZE`] bytes and more.
    pub full_size: bool,
    /// What makes it pass.
    pub expect: Expect,
    /// Over TLS (RFC 9110 §4.2.2): the check is called `https`.
    pub tls: Option<Tls>,
}

/// Bytes of a request of full size: more than a packet of Ethernet's usual MTU
/// holds, and less than servers take for a header.
pub const FULL_SIZE: usize = 2000;

/// How a server proves who it is, and the balancer.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Tls {
    /// Name in the server's certificate; the backend's address when absent.
    pub server_name: Option<String>,
    /// Certificates of the authorities that count; the system's when absent.
    pub ca_file: Option<PathBuf>,
    /// Any certificate will do.
    pub insecure: bool,
    /// The balancer's own certificate.
    pub client: Option<ClientCertificate>,
}

/// A certificate and its key, both in PEM.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ClientCertificate {
    /// The certificate, and those that lead to its authority.
    pub certificate_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
}

/// The method of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum HttpMethod {
    /// The response has a body.
    #[default]
    Get,
    /// The response is its head alone.
    Head,
}

/// What a response has to be. Everything given has to hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Expect {
    /// Status codes, as inclusive ranges.
    pub status: Vec<(u16, u16)>,
    /// Headers that have to be there, with a part of their values.
    pub headers: Vec<(String, String)>,
    /// A part of the body.
    pub body_contains: Option<String>,
    /// A pattern that the body matches.
    pub body_regex: Option<Pattern>,
}

impl Expect {
    /// Whether the body has to be read.
    pub fn needs_body(&self) -> bool {
        self.body_contains.is_some() || self.body_regex.is_some()
    }
}

/// A regular expression. Two are the same if their texts are.
#[derive(Clone)]
pub struct Pattern(Regex);

impl Pattern {
    /// Compiles it.
    ///
    /// # Errors
    /// It is no regular expression, or too large a one.
    pub fn new(text: &str) -> Result<Self, regex::Error> {
        Regex::new(text).map(Self)
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Whether it matches somewhere.
    pub fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Pattern {}

impl PartialOrd for Pattern {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Pattern {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl Hash for Pattern {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}
