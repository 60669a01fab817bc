//! The packet that an ICMP error is about: its headers as far as they are
//! quoted (RFC 792; RFC 4443 §3), and their translation.

use core::arch::asm;

use lb_common::{
    binding,
    checksum::{Delta, apply_udp},
    counter::DropReason,
    hash::Tuple,
    net::{Addr, Be16, family, protocol},
};

use crate::{
    forward::nat::End,
    frame::Frame,
    packet::{Icmp, Ipv4, Ipv6, Packet, Udp},
    parse::Parsed,
};

/// Bytes of an ICMP header before the quote.
const ICMP: usize = 8;

/// IPv6 extension headers of the quoted packet that are walked.
const MAX_EXTENSIONS: usize = 6;

/// Where the parts of a quoted packet stand: offset of its transport header 16
/// bits, of its IP header 16, of the message's end 16; and its protocol 8.
#[derive(Clone, Copy)]
struct Places(u64);

impl Places {
    #[inline(always)]
    fn transport(self) -> usize {
        self.0 as usize & 0x3fff
    }

    #[inline(always)]
    fn network(self) -> usize {
        (self.0 >> 16) as usize & 0x3fff
    }

    #[inline(always)]
    fn end(self) -> usize {
        (self.0 >> 32) as usize & 0xffff
    }

    #[inline(always)]
    fn protocol(self) -> u8 {
        (self.0 >> 48) as u8
    }
}

/// What is quoted of a TCP or UDP packet.
#[derive(Clone, Copy)]
pub struct Quote {
    places: Places,
    source: Addr,
    destination: Addr,
    ports: [Be16; 2],
}

impl Quote {
    #[inline(always)]
    pub fn source(&self) -> Addr {
        self.source
    }

    /// The tuple of what goes the other way.
    #[inline(always)]
    pub fn reversed(&self, family: u8) -> Tuple {
        Tuple {
            source: self.destination,
            destination: self.source,
            source_port: self.ports[1],
            destination_port: self.ports[0],
            protocol: self.places.protocol(),
            family,
        }
    }
}

/// The packet that a message is about. An error about anything but a TCP or UDP
/// packet, or about a later fragment of one, is [`DropReason::Icmp`].
#[inline(always)]
pub fn read(packet: &Packet, parsed: &Parsed, noise: u64) -> Result<Quote, DropReason> {
    let network = parsed.offset() + ICMP;
    let end = parsed.end(packet);
    let header_bytes = if parsed.is_v4() { 20 } else { 40 };
    // Behind the message there may be padding.
    if network + header_bytes > end {
        return Err(DropReason::Malformed);
    }
    let (source, destination, transport, next) = if parsed.is_v4() {
        let ip = packet.at::<Ipv4>(network).ok_or(DropReason::Malformed)?;
        let header_bytes = usize::from(ip.version_ihl() & 0x0f) * 4;
        if ip.version_ihl() >> 4 != 4 || header_bytes < 20 || network + header_bytes > end {
            return Err(DropReason::Malformed);
        }
        if ip.fragment().get() & 0x1fff != 0 {
            return Err(DropReason::Icmp);
        }
        let [_, next] = ip.ttl_protocol();
        let (source, destination) = (Addr::v4(ip.source()), Addr::v4(ip.destination()));
        (source, destination, network + header_bytes, next)
    } else {
        let ip = packet.at::<Ipv6>(network).ok_or(DropReason::Malformed)?;
        if ip.version() >> 4 != 6 {
            return Err(DropReason::Malformed);
        }
        let (transport, next) = extensions(packet, network + 40, end, ip.next_header())?;
        (ip.source(), ip.destination(), transport, next)
    };
    if !matches!(next, protocol::TCP | protocol::UDP) {
        return Err(DropReason::Icmp);
    }
    // RFC 792 has eight bytes quoted; the ports are in the first four.
    if transport + 8 > end || transport > 0x3fff {
        return Err(DropReason::Malformed);
    }
    let mut places = transport as u64
        | (network as u64) << 16
        | (end as u64 & 0xffff) << 32
        | u64::from(next) << 48;
    // SAFETY: two operations on registers that cancel out, see `Parsed::forget`.
    unsafe {
        asm!("{0} ^= {1}", "{0} ^= {1}", inout(reg) places, in(reg) noise, options(pure, nomem));
    }
    let mut quote = Quote {
        places: Places(places),
        source,
        destination,
        ports: [Be16::default(); 2],
    };
    let upper = packet
        .at::<Udp>(quote.places.transport())
        .ok_or(DropReason::Malformed)?;
    quote.ports = [upper.source_port(), upper.destination_port()];
    Ok(quote)
}

/// Walks the extension headers from `offset` on (RFC 8200 §4): where they end,
/// and what follows.
#[inline(always)]
fn extensions(
    packet: &Packet,
    mut offset: usize,
    end: usize,
    mut next: u8,
) -> Result<(usize, u8), DropReason> {
    let mut walked = 0;
    while matches!(next, 0 | 43 | 44 | 60) {
        if walked == MAX_EXTENSIONS {
            return Err(DropReason::ExtensionHeaders);
        }
        if offset + 8 > end {
            return Err(DropReason::Malformed);
        }
        let extension = packet.at::<[u8; 4]>(offset).ok_or(DropReason::Malformed)?;
        let [following, length, third, fourth] = extension.read();
        if next == 44 {
            if u16::from_be_bytes([third, fourth]) >> 3 != 0 {
                return Err(DropReason::Icmp);
            }
            offset += 8;
        } else {
            offset += (usize::from(length) + 1) * 8;
        }
        next = following;
        walked += 1;
    }
    Ok((offset, next))
}

/// Where the headers of the packet stand that a message is about, for
/// [`rewrite`]; zero if there are none. One number: the stack of all nested
/// calls is 512 bytes.
#[inline(never)]
pub fn places(frame: &Frame<'_>, parsed: &Parsed) -> u64 {
    match read(&frame.packet, parsed, frame.config.hash_key[0]) {
        Ok(quote) => quote.places.0,
        Err(_) => 0,
    }
}

/// Rewrites both ends of the quoted packet, as [`rewrite`] one.
#[inline(always)]
pub fn replace(
    frame: &Frame<'_>,
    parsed: &Parsed,
    source: &binding::End,
    destination: &binding::End,
) -> bool {
    let places = places(frame, parsed);
    rewrite(&frame.packet, parsed, places, End::Source, source)
        && rewrite(&frame.packet, parsed, places, End::Destination, destination)
}

/// Puts address and port (zero keeps it) of `new` in the place of one end of the
/// quoted packet. All checksums change by what that changes in them (RFC 1624);
/// the quoted one of layer 4 if it is quoted, the message's also by the same
/// address in the place of the message's other end, which the caller writes: whom
/// the packet was sent to hears of it. `false`: the quote isn't there.
#[inline(never)]
pub fn rewrite(
    packet: &Packet,
    parsed: &Parsed,
    places: u64,
    end: End,
    new: &binding::End,
) -> bool {
    places != 0 && change(packet, parsed, Places(places), end, new).is_some()
}

#[inline(always)]
fn change(
    packet: &Packet,
    parsed: &Parsed,
    quote: Places,
    end: End,
    new: &binding::End,
) -> Option<()> {
    let address = &new.address;
    let upper = packet.at::<Udp>(quote.transport())?;
    let old_port = match end {
        End::Source => upper.source_port(),
        End::Destination => upper.destination_port(),
    };
    let port = new.port.or(old_port);
    match end {
        End::Source => upper.set_source_port(port),
        End::Destination => upper.set_destination_port(port),
    }
    // Of the message: all that changes in the quote, its checksums included.
    let (addresses, mut message) = if parsed.family() == family::V4 {
        let inner = packet.at::<Ipv4>(quote.network())?;
        let old = match end {
            End::Source => inner.source(),
            End::Destination => inner.destination(),
        };
        match end {
            End::Source => inner.set_source(address.0[0]),
            End::Destination => inner.set_destination(address.0[0]),
        }
        let addresses = Delta::NONE.replace128([old, 0, 0, 0], address.0);
        let old = inner.checksum();
        let new = addresses.apply(old);
        inner.set_checksum(new);
        (addresses, addresses.replace16(old, new))
    } else {
        let inner = packet.at::<Ipv6>(quote.network())?;
        let old = match end {
            End::Source => inner.source(),
            End::Destination => inner.destination(),
        };
        match end {
            End::Source => inner.set_source(*address),
            End::Destination => inner.set_destination(*address),
        }
        let addresses = Delta::NONE.replace128(old.0, address.0);
        // ICMPv6's checksum covers the outer addresses.
        let old = match end {
            End::Source => parsed.destination(),
            End::Destination => parsed.source(),
        };
        (addresses, addresses.replace128(old.0, address.0))
    };
    let delta = addresses.replace16(old_port.wire(), port.wire());
    message = message.replace16(old_port.wire(), port.wire());
    if quote.protocol() == protocol::UDP {
        let old = upper.checksum();
        let new = apply_udp(delta, old);
        upper.set_checksum(new);
        message = message.replace16(old, new);
    } else if quote.transport() + TCP_CHECKSUM + 2 <= quote.end()
        && let Some(checksum) = packet.at::<[u8; 2]>(quote.transport() + TCP_CHECKSUM)
    {
        let old = u16::from_ne_bytes(checksum.read());
        let new = delta.apply(old);
        checksum.write(new.to_ne_bytes());
        message = message.replace16(old, new);
    }
    let icmp = packet.at::<Icmp>(parsed.offset())?;
    icmp.set_checksum(message.apply(icmp.checksum()));
    Some(())
}

/// Offset of TCP's checksum in its header.
const TCP_CHECKSUM: usize = 16;
