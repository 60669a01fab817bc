//! A frame taken apart.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};

use super::{Mac, ethertype, protocol};

/// A fragment's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// In bytes.
    pub offset: u16,
    /// Whether more follow.
    pub more: bool,
    /// Identification.
    pub id: u32,
}

/// Where the parts of a frame are. Padding after the IP packet is not seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View<'a> {
    /// Destination MAC address.
    pub destination_mac: Mac,
    /// Source MAC address.
    pub source_mac: Mac,
    /// VLAN ids, outermost first.
    pub vlans: Vec<u16>,
    /// EtherType after the tags.
    pub ethertype: u16,
    /// TTL or hop limit; 0 when this is not IP.
    pub ttl: u8,
    /// Protocol after the extension headers; 0 when this is not IP.
    pub protocol: u8,
    /// When it is one.
    pub fragment: Option<Fragment>,
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    /// From the first byte of the IP header to the end of the IP packet; what
    /// follows the EtherType when this is not IP.
    packet: &'a [u8],
    layer4_at: usize,
}

impl<'a> View<'a> {
    /// Takes a frame apart; an error when a header is cut short or a length is
    /// wrong.
    pub fn parse(frame: &'a [u8]) -> Result<Self> {
        let ethernet = frame.get(..14).context("shorter than an Ethernet header")?;
        let mut view = Self {
            destination_mac: Mac(ethernet[..6].try_into()?),
            source_mac: Mac(ethernet[6..12].try_into()?),
            vlans: vec![],
            ethertype: u16_at(frame, 12)?,
            ttl: 0,
            protocol: 0,
            fragment: None,
            source: None,
            destination: None,
            packet: &[],
            layer4_at: 0,
        };
        let mut at = 14;
        while matches!(view.ethertype, ethertype::VLAN | ethertype::QINQ) {
            view.vlans.push(u16_at(frame, at)? & 0x0fff);
            view.ethertype = u16_at(frame, at + 2)?;
            at += 4;
        }
        view.packet = &frame[at..];
        match view.ethertype {
            ethertype::IPV4 => view.ipv4()?,
            ethertype::IPV6 => view.ipv6()?,
            _ => {}
        }
        Ok(view)
    }

    fn ipv4(&mut self) -> Result<()> {
        let header = self
            .packet
            .get(..20)
            .context("shorter than an IPv4 header")?;
        ensure!(
            header[0] >> 4 == 4,
            "version {} in an IPv4 frame",
            header[0] >> 4
        );
        let header_length = usize::from(header[0] & 0xf) * 4;
        let total = usize::from(u16_at(header, 2)?);
        ensure!(header_length >= 20, "IPv4 header length {header_length}");
        ensure!(
            header_length <= total && total <= self.packet.len(),
            "IPv4 total length {total}, header {header_length}, {} bytes there",
            self.packet.len()
        );
        let flags = u16_at(header, 6)?;
        let (offset, more) = ((flags & 0x1fff) * 8, flags & 0x2000 != 0);
        if offset > 0 || more {
            self.fragment = Some(Fragment {
                offset,
                more,
                id: u16_at(header, 4)?.into(),
            });
        }
        self.ttl = header[8];
        self.protocol = header[9];
        self.source = Some(Ipv4Addr::from(<[u8; 4]>::try_from(&header[12..16])?).into());
        self.destination = Some(Ipv4Addr::from(<[u8; 4]>::try_from(&header[16..20])?).into());
        self.layer4_at = header_length;
        self.packet = &self.packet[..total];
        Ok(())
    }

    fn ipv6(&mut self) -> Result<()> {
        let header = self
            .packet
            .get(..40)
            .context("shorter than an IPv6 header")?;
        ensure!(
            header[0] >> 4 == 6,
            "version {} in an IPv6 frame",
            header[0] >> 4
        );
        let total = 40 + usize::from(u16_at(header, 4)?);
        ensure!(
            total <= self.packet.len(),
            "IPv6 packet of {total} bytes, {} there",
            self.packet.len()
        );
        self.ttl = header[7];
        self.source = Some(Ipv6Addr::from(<[u8; 16]>::try_from(&header[8..24])?).into());
        self.destination = Some(Ipv6Addr::from(<[u8; 16]>::try_from(&header[24..40])?).into());
        self.packet = &self.packet[..total];
        let (mut next, mut at) = (header[6], 40);
        loop {
            let length = match next {
                protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION => {
                    let units = self
                        .packet
                        .get(at + 1)
                        .context("extension header cut short")?;
                    (usize::from(*units) + 1) * 8
                }
                protocol::FRAGMENT => {
                    let place = u16_at(self.packet, at + 2)?;
                    let (high, low) = (u16_at(self.packet, at + 4)?, u16_at(self.packet, at + 6)?);
                    self.fragment = Some(Fragment {
                        offset: place & 0xfff8,
                        more: place & 1 != 0,
                        id: u32::from(high) << 16 | u32::from(low),
                    });
                    8
                }
                _ => break,
            };
            next = self.packet[at];
            at += length;
            ensure!(at <= self.packet.len(), "extension header cut short");
            if self.fragment.is_some_and(|f| f.offset > 0) {
                break;
            }
        }
        self.protocol = next;
        self.layer4_at = at;
        Ok(())
    }

    /// Source and destination, when this is IP.
    pub fn addresses(&self) -> Option<(IpAddr, IpAddr)> {
        self.source.zip(self.destination)
    }

    /// Source address and port, when this is TCP or UDP and has the header.
    pub fn source(&self) -> Option<SocketAddr> {
        Some((self.source?, self.port(0)?).into())
    }

    /// Destination address and port, when this is TCP or UDP and has the header.
    pub fn destination(&self) -> Option<SocketAddr> {
        Some((self.destination?, self.port(2)?).into())
    }

    fn port(&self, at: usize) -> Option<u16> {
        let first = self.fragment.is_none_or(|f| f.offset == 0);
        let has_ports = matches!(self.protocol, protocol::TCP | protocol::UDP);
        if first && has_ports {
            u16_at(self.layer4(), at).ok()
        } else {
            None
        }
    }

    /// TCP flags, when this is TCP and has the header.
    pub fn tcp_flags(&self) -> Option<u8> {
        let first = self.fragment.is_none_or(|f| f.offset == 0);
        (first && self.protocol == protocol::TCP)
            .then(|| self.layer4().get(13).copied())
            .flatten()
    }

    /// The IP packet from its header to its end; empty or the rest of the
    /// frame when this is not IP.
    pub fn ip_packet(&self) -> &'a [u8] {
        self.packet
    }

    pub(super) fn ip_header(&self) -> &'a [u8] {
        &self.packet[..self.layer4_at]
    }

    /// From the layer-4 header to the end of the IP packet; all of the packet
    /// when this is not IP.
    pub fn layer4(&self) -> &'a [u8] {
        &self.packet[self.layer4_at..]
    }

    /// What follows the TCP, UDP or ICMP header.
    pub fn payload(&self) -> &'a [u8] {
        let message = self.layer4();
        let header = match self.protocol {
            protocol::TCP => message.get(12).map_or(0, |b| usize::from(b >> 4) * 4),
            protocol::UDP | protocol::ICMP | protocol::ICMPV6 => 8,
            _ => 0,
        };
        message.get(header..).unwrap_or_default()
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    let two = bytes.get(at..at + 2).context("a header is cut short")?;
    Ok(u16::from_be_bytes([two[0], two[1]]))
}
