//! Requests to the kernel over a netlink socket of their own, many in one
//! system call. The kernel works them off while it takes them, so the calls
//! here are short though they block.

use std::{io, time::Duration};

use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};
use socket2::SockRef;

/// Requests in one system call: their answers have to fit into the socket's
/// receive buffer, and the kernel counts a page or two for each.
const BATCH: usize = 32;

const RECEIVE_BUFFER_BYTES: usize = 1 << 20;

/// An answer of the kernel: a message, nothing but consent, or an error.
pub type Answer = io::Result<Option<RouteNetlinkMessage>>;

/// The socket.
#[derive(Debug)]
pub struct Requests {
    socket: Socket,
    sequence: u32,
}

impl Requests {
    /// Opens it in the network namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        // A lost answer must not stop the watcher for good.
        let options = SockRef::from(&socket);
        options.set_read_timeout(Some(Duration::from_secs(2)))?;
        options.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Gives every object of a kind to `each`.
    pub fn dump(
        &mut self,
        request: RouteNetlinkMessage,
        mut each: impl FnMut(RouteNetlinkMessage),
    ) -> io::Result<()> {
        let mut bytes = Vec::new();
        let sequence = self.append(&mut bytes, request, NLM_F_REQUEST | NLM_F_DUMP);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for message in messages(&datagram) {
                match message {
                    Ok(message) if message.header.sequence_number != sequence => {}
                    Ok(message) => match message.payload {
                        NetlinkPayload::InnerMessage(inner) => each(inner),
                        NetlinkPayload::Done(_) => return Ok(()),
                        NetlinkPayload::Error(error) => return Err(error.to_io()),
                        _ => {}
                    },
                    // One object we can't read must not hide the others.
                    Err(_) => {}
                }
            }
        }
    }

    /// Sends the requests and returns their answers in the same order. A
    /// request with `NLM_F_ACK` is answered by consent or an error, one
    /// without by a message or an error.
    pub fn batch(&mut self, requests: Vec<(RouteNetlinkMessage, u16)>) -> io::Result<Vec<Answer>> {
        let mut answers = Vec::with_capacity(requests.len());
        let mut requests = requests.into_iter().peekable();
        while requests.peek().is_some() {
            let mut bytes = Vec::new();
            let first = self.sequence.wrapping_add(1);
            let mut sent = 0;
            for (request, flags) in requests.by_ref().take(BATCH) {
                self.append(&mut bytes, request, NLM_F_REQUEST | flags);
                sent += 1;
            }
            self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
            self.collect(first, sent, &mut answers)?;
        }
        Ok(answers)
    }

    fn collect(&self, first: u32, sent: usize, answers: &mut Vec<Answer>) -> io::Result<()> {
        let mut got: Vec<Option<Answer>> = (0..sent).map(|_| None).collect();
        let mut missing = sent;
        while missing > 0 {
            let (datagram, _) = self.socket.recv_from_full()?;
            for message in messages(&datagram) {
                let (sequence, answer) = match message {
                    Ok(message) => {
                        let sequence = message.header.sequence_number;
                        match message.payload {
                            NetlinkPayload::InnerMessage(inner) => (sequence, Ok(Some(inner))),
                            NetlinkPayload::Error(error) if error.code.is_none() => {
                                (sequence, Ok(None))
                            }
                            NetlinkPayload::Error(error) => (sequence, Err(error.to_io())),
                            _ => continue,
                        }
                    }
                    Err(unreadable) => (
                        unreadable.sequence,
                        Err(io::Error::other("unreadable answer of the kernel")),
                    ),
                };
                let index = sequence.wrapping_sub(first) as usize;
                if let Some(slot) = got.get_mut(index)
                    && slot.is_none()
                {
                    *slot = Some(answer);
                    missing -= 1;
                }
            }
        }
        answers.extend(got.into_iter().flatten());
        Ok(())
    }

    fn append(&mut self, bytes: &mut Vec<u8>, request: RouteNetlinkMessage, flags: u16) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(request);
        message.header.flags = flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let start = bytes.len();
        // Requests stand on multiples of four bytes, as their lengths are.
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        if let Some(place) = bytes.get_mut(start..) {
            message.serialize(place);
        }
        self.sequence
    }
}

/// Flags of a request that is answered by consent or an error.
pub const ACKNOWLEDGED: u16 = NLM_F_ACK;

/// A message that this program's netlink library doesn't understand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Its type (`RTM_…`).
    pub message_type: u16,
    /// Its sequence number.
    pub sequence: u32,
}

/// The messages of a datagram.
pub fn messages(
    datagram: &[u8],
) -> impl Iterator<Item = Result<NetlinkMessage<RouteNetlinkMessage>, Unreadable>> + '_ {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*rest.first_chunk::<4>()?) as usize;
        let message_type = u16::from_ne_bytes(*rest.get(4..)?.first_chunk::<2>()?);
        let sequence = u32::from_ne_bytes(*rest.get(8..)?.first_chunk::<4>()?);
        let message = rest.get(..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(
            NetlinkMessage::deserialize(message).map_err(|_| Unreadable {
                message_type,
                sequence,
            }),
        )
    })
}
