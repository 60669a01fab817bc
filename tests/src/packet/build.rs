//! Frames from parts, right by default and wrong where asked.

use std::net::{IpAddr, SocketAddr};

use super::{Mac, checksum, ethertype, protocol};

/// TCP flags as in the header's byte.
pub mod tcp_flags {
    #![expect(missing_docs, reason = "the names of RFC 9293 §3.1")]
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const PSH: u8 = 0x08;
    pub const ACK: u8 = 0x10;
}

#[derive(Clone, Debug)]
enum Layer4 {
    Tcp {
        flags: u8,
        seq: u32,
        ack: u32,
        window: u16,
        options: Vec<u8>,
    },
    Udp {
        no_checksum: bool,
    },
    /// Type, code, rest of the header.
    Icmp {
        kind: u8,
        code: u8,
        rest: [u8; 4],
    },
    /// Bytes of a protocol that is not known here.
    Raw(u8),
}

/// A frame in the making.
///
/// ```
/// use lb_tests::packet::{Packet, tcp_flags, verify};
/// let frame = Packet::tcp("10.0.0.1:4000".parse()?, "10.0.0.2:80".parse()?)
///     .flags(tcp_flags::SYN)
///     .ip_options(&[1, 1, 1, 0])
///     .vlan(7)
///     .build();
/// verify(&frame)?;
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Packet {
    source: SocketAddr,
    destination: SocketAddr,
    source_mac: Mac,
    destination_mac: Mac,
    /// (EtherType, tag control information), outermost first.
    vlans: Vec<(u16, u16)>,
    ttl: u8,
    tos: u8,
    id: u32,
    dont_fragment: bool,
    /// (offset in bytes, more fragments)
    fragment: Option<(u16, bool)>,
    ip_options: Vec<u8>,
    /// IPv6 extension headers: number, body without its next-header byte.
    extensions: Vec<(u8, Vec<u8>)>,
    layer4: Layer4,
    payload: Vec<u8>,
    bad_ip_checksum: bool,
    bad_layer4_checksum: bool,
    padding: usize,
}

impl Packet {
    fn new(source: SocketAddr, destination: SocketAddr, layer4: Layer4) -> Self {
        assert_eq!(
            source.is_ipv4(),
            destination.is_ipv4(),
            "one family per packet"
        );
        Self {
            source,
            destination,
            source_mac: Mac([2, 0, 0, 0, 0, 1]),
            destination_mac: Mac([2, 0, 0, 0, 0, 2]),
            vlans: vec![],
            ttl: 64,
            tos: 0,
            id: 0x1234,
            dont_fragment: true,
            fragment: None,
            ip_options: vec![],
            extensions: vec![],
            layer4,
            payload: vec![],
            bad_ip_checksum: false,
            bad_layer4_checksum: false,
            padding: 0,
        }
    }

    /// A TCP segment; ACK unless [`Self::flags`] says otherwise.
    pub fn tcp(source: SocketAddr, destination: SocketAddr) -> Self {
        let layer4 = Layer4::Tcp {
            flags: tcp_flags::ACK,
            seq: 0x0102_0304,
            ack: 0x0506_0708,
            window: 0xfaf0,
            options: vec![],
        };
        Self::new(source, destination, layer4)
    }

    /// A UDP datagram.
    pub fn udp(source: SocketAddr, destination: SocketAddr) -> Self {
        Self::new(source, destination, Layer4::Udp { no_checksum: false })
    }

    /// An ICMP or ICMPv6 message: type, code and the header's last four bytes.
    pub fn icmp(source: IpAddr, destination: IpAddr, kind: u8, code: u8, rest: [u8; 4]) -> Self {
        let layer4 = Layer4::Icmp { kind, code, rest };
        Self::new((source, 0).into(), (destination, 0).into(), layer4)
    }

    /// An echo request.
    pub fn echo_request(source: IpAddr, destination: IpAddr, id: u16, sequence: u16) -> Self {
        let kind = if source.is_ipv4() { 8 } else { 128 };
        Self::icmp(source, destination, kind, 0, echo_rest(id, sequence))
    }

    /// An echo reply.
    pub fn echo_reply(source: IpAddr, destination: IpAddr, id: u16, sequence: u16) -> Self {
        let kind = if source.is_ipv4() { 0 } else { 129 };
        Self::icmp(source, destination, kind, 0, echo_rest(id, sequence))
    }

    /// An IP packet of any protocol, with only a payload.
    pub fn other(source: IpAddr, destination: IpAddr, protocol: u8) -> Self {
        Self::new(
            (source, 0).into(),
            (destination, 0).into(),
            Layer4::Raw(protocol),
        )
    }

    /// MAC addresses.
    pub fn macs(mut self, source: Mac, destination: Mac) -> Self {
        (self.source_mac, self.destination_mac) = (source, destination);
        self
    }

    /// Source address and port.
    pub fn source(mut self, source: SocketAddr) -> Self {
        self.source = source;
        self
    }

    /// Destination address and port.
    pub fn destination(mut self, destination: SocketAddr) -> Self {
        self.destination = destination;
        self
    }

    /// Whether it is a TCP segment.
    pub fn is_tcp(&self) -> bool {
        matches!(self.layer4, Layer4::Tcp { .. })
    }

    /// TCP flags, see [`tcp_flags`].
    pub fn flags(mut self, value: u8) -> Self {
        let Layer4::Tcp { flags, .. } = &mut self.layer4 else {
            panic!("flags are TCP's")
        };
        *flags = value;
        self
    }

    /// TCP sequence and acknowledgement numbers.
    pub fn numbers(mut self, sequence: u32, acknowledgement: u32) -> Self {
        let Layer4::Tcp { seq, ack, .. } = &mut self.layer4 else {
            panic!("numbers are TCP's")
        };
        (*seq, *ack) = (sequence, acknowledgement);
        self
    }

    /// TCP options; the length must be a multiple of 4, at most 40.
    pub fn tcp_options(mut self, bytes: &[u8]) -> Self {
        assert!(
            bytes.len().is_multiple_of(4) && bytes.len() <= 40,
            "TCP options of {}",
            bytes.len()
        );
        let Layer4::Tcp { options, .. } = &mut self.layer4 else {
            panic!("options are TCP's")
        };
        *options = bytes.to_vec();
        self
    }

    /// UDP checksum 0: none was computed (RFC 768).
    pub fn no_udp_checksum(mut self) -> Self {
        let Layer4::Udp { no_checksum } = &mut self.layer4 else {
            panic!("that is UDP's")
        };
        *no_checksum = true;
        self
    }

    /// What follows the layer-4 header.
    pub fn payload(mut self, payload: impl Into<Vec<u8>>) -> Self {
        self.payload = payload.into();
        self
    }

    /// TTL or hop limit.
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// Type of service or traffic class.
    pub fn tos(mut self, tos: u8) -> Self {
        self.tos = tos;
        self
    }

    /// IP identification; IPv4 takes the low 16 bits.
    pub fn id(mut self, id: u32) -> Self {
        self.id = id;
        self
    }

    /// IPv4 options; the length must be a multiple of 4, at most 40.
    pub fn ip_options(mut self, bytes: &[u8]) -> Self {
        assert!(
            bytes.len().is_multiple_of(4) && bytes.len() <= 40,
            "IP options of {}",
            bytes.len()
        );
        assert!(self.source.is_ipv4(), "options are IPv4's");
        self.ip_options = bytes.to_vec();
        self
    }

    /// Appends an IPv6 extension header: its number, and its bytes from the
    /// second one on (8n - 1 of them).
    pub fn extension(mut self, number: u8, body: &[u8]) -> Self {
        assert!(
            (body.len() + 1).is_multiple_of(8),
            "an extension header of {}",
            body.len() + 1
        );
        assert!(self.source.is_ipv6(), "extension headers are IPv6's");
        self.extensions.push((number, body.to_vec()));
        self
    }

    /// Appends hop-by-hop options that do nothing (8 bytes).
    pub fn hop_by_hop(self) -> Self {
        self.extension(protocol::HOP_BY_HOP, &[0, 1, 4, 0, 0, 0, 0])
    }

    /// Makes it a fragment: offset in bytes (a multiple of 8) and whether more
    /// follow. At an offset other than 0 the payload follows the IP header
    /// without a layer-4 header. The checksum of a first fragment is computed
    /// over what is there.
    pub fn fragment(mut self, offset: u16, more: bool) -> Self {
        assert!(offset.is_multiple_of(8), "fragment offset {offset}");
        self.fragment = Some((offset, more));
        self.dont_fragment = false;
        self
    }

    /// Clears "don't fragment", which is set otherwise.
    pub fn may_fragment(mut self) -> Self {
        self.dont_fragment = false;
        self
    }

    /// Appends an 802.1Q tag.
    pub fn vlan(mut self, id: u16) -> Self {
        self.vlans.push((ethertype::VLAN, id));
        self
    }

    /// Puts an 802.1ad tag in front of all others.
    pub fn service_vlan(mut self, id: u16) -> Self {
        self.vlans.insert(0, (ethertype::QINQ, id));
        self
    }

    /// A wrong IPv4 header checksum.
    pub fn bad_ip_checksum(mut self) -> Self {
        self.bad_ip_checksum = true;
        self
    }

    /// A wrong layer-4 checksum.
    pub fn bad_layer4_checksum(mut self) -> Self {
        self.bad_layer4_checksum = true;
        self
    }

    /// Zeroes after the IP packet, as Ethernet pads short frames.
    pub fn padding(mut self, bytes: usize) -> Self {
        self.padding = bytes;
        self
    }

    /// The frame.
    pub fn build(&self) -> Vec<u8> {
        let mut out = self.ethernet();
        out.extend(self.ip_packet());
        out.resize(out.len() + self.padding, 0);
        out
    }

    /// Only the first `length` bytes of the frame.
    pub fn build_truncated(&self, length: usize) -> Vec<u8> {
        let mut out = self.build();
        out.truncate(length);
        out
    }

    /// The packet without its Ethernet header.
    pub fn ip_packet(&self) -> Vec<u8> {
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(s), IpAddr::V4(d)) => self.ipv4(s.octets(), d.octets()),
            (IpAddr::V6(s), IpAddr::V6(d)) => self.ipv6(s.octets(), d.octets()),
            _ => unreachable!("one family per packet"),
        }
    }

    fn ethernet(&self) -> Vec<u8> {
        let mut out = [self.destination_mac.0, self.source_mac.0].concat();
        for (tpid, tci) in &self.vlans {
            out.extend(tpid.to_be_bytes());
            out.extend(tci.to_be_bytes());
        }
        let kind = if self.source.is_ipv4() {
            ethertype::IPV4
        } else {
            ethertype::IPV6
        };
        out.extend(kind.to_be_bytes());
        out
    }

    fn ipv4(&self, source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        let body = self.layer4();
        let header_length = 20 + self.ip_options.len();
        let (offset, more) = self.fragment.unwrap_or((0, false));
        let flags = u16::from(self.dont_fragment) << 14 | u16::from(more) << 13 | (offset / 8);
        let mut out = vec![0x40 | low_byte(header_length / 4), self.tos];
        out.extend(length16(header_length + body.len()));
        out.extend(low16(self.id));
        out.extend(flags.to_be_bytes());
        out.extend([self.ttl, self.protocol(), 0, 0]);
        out.extend(source);
        out.extend(destination);
        out.extend(&self.ip_options);
        let sum = checksum::internet_checksum(&[&out]) ^ wrong(self.bad_ip_checksum);
        out[10..12].copy_from_slice(&sum.to_be_bytes());
        out.extend(body);
        out
    }

    fn ipv6(&self, source: [u8; 16], destination: [u8; 16]) -> Vec<u8> {
        let body = self.layer4();
        let mut extensions = self.extensions.clone();
        if let Some((offset, more)) = self.fragment {
            let mut fragment = vec![0];
            fragment.extend((offset | u16::from(more)).to_be_bytes());
            fragment.extend(self.id.to_be_bytes());
            extensions.push((protocol::FRAGMENT, fragment));
        }
        let numbers: Vec<u8> = extensions
            .iter()
            .map(|e| e.0)
            .chain([self.protocol()])
            .collect();
        let mut chain = Vec::new();
        for ((_, body), next) in extensions.iter().zip(&numbers[1..]) {
            chain.push(*next);
            chain.extend(body);
        }
        let mut out = vec![0x60 | self.tos >> 4, self.tos << 4, 0, 0];
        out.extend(length16(chain.len() + body.len()));
        out.extend([numbers[0], self.ttl]);
        out.extend(source);
        out.extend(destination);
        out.extend(chain);
        out.extend(body);
        out
    }

    fn protocol(&self) -> u8 {
        match self.layer4 {
            Layer4::Tcp { .. } => protocol::TCP,
            Layer4::Udp { .. } => protocol::UDP,
            Layer4::Icmp { .. } if self.source.is_ipv4() => protocol::ICMP,
            Layer4::Icmp { .. } => protocol::ICMPV6,
            Layer4::Raw(number) => number,
        }
    }

    /// Layer-4 header and payload, with the checksum.
    fn layer4(&self) -> Vec<u8> {
        if self.fragment.is_some_and(|(offset, _)| offset > 0) {
            return self.payload.clone();
        }
        let mut out = Vec::new();
        let (source, destination) = (self.source.port(), self.destination.port());
        let checksum_at = match &self.layer4 {
            Layer4::Tcp {
                flags,
                seq,
                ack,
                window,
                options,
            } => {
                out.extend(source.to_be_bytes());
                out.extend(destination.to_be_bytes());
                out.extend(seq.to_be_bytes());
                out.extend(ack.to_be_bytes());
                out.extend([low_byte((20 + options.len()) / 4) << 4, *flags]);
                out.extend(window.to_be_bytes());
                out.extend([0; 4]);
                out.extend(options);
                Some(16)
            }
            Layer4::Udp { no_checksum } => {
                out.extend(source.to_be_bytes());
                out.extend(destination.to_be_bytes());
                out.extend(length16(8 + self.payload.len()));
                out.extend([0; 2]);
                (!no_checksum).then_some(6)
            }
            Layer4::Icmp { kind, code, rest } => {
                out.extend([*kind, *code, 0, 0]);
                out.extend(rest);
                Some(2)
            }
            Layer4::Raw(_) => None,
        };
        out.extend(&self.payload);
        if let Some(at) = checksum_at {
            let (s, d) = (self.source.ip(), self.destination.ip());
            let mut sum = checksum::layer4(s, d, self.protocol(), &out);
            if sum == 0 && matches!(self.layer4, Layer4::Udp { .. }) {
                sum = 0xffff; // RFC 768: 0 means "none"
            }
            sum ^= wrong(self.bad_layer4_checksum);
            out[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        out
    }
}

/// An ICMP error about a packet: `inner` is the offending IP packet, cut to
/// what RFC 1812 §4.3.2.3 and RFC 4443 §2.4 let fit.
pub fn icmp_error(
    source: IpAddr,
    destination: IpAddr,
    kind: u8,
    code: u8,
    rest: [u8; 4],
    inner: &[u8],
) -> Packet {
    let most = if source.is_ipv4() {
        576 - 28
    } else {
        1280 - 48
    };
    let inner = &inner[..inner.len().min(most)];
    Packet::icmp(source, destination, kind, code, rest).payload(inner)
}

fn echo_rest(id: u16, sequence: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (id.to_be_bytes(), sequence.to_be_bytes());
    [a, b, c, d]
}

fn wrong(is_wrong: bool) -> u16 {
    if is_wrong { 0x5555 } else { 0 }
}

fn low_byte(n: usize) -> u8 {
    n.to_le_bytes()[0]
}

fn low16(n: u32) -> [u8; 2] {
    let [.., a, b] = n.to_be_bytes();
    [a, b]
}

fn length16(n: usize) -> [u8; 2] {
    u16::try_from(n)
        .expect("an IP packet is shorter than 64 KiB")
        .to_be_bytes()
}
