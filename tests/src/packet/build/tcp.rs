//! TCP's part of a packet.

use super::{Layer4, Packet};

impl Packet {
    /// TCP flags, see [`tcp_flags`](super::tcp_flags).
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

    /// TCP's window.
    pub fn window(mut self, value: u16) -> Self {
        let Layer4::Tcp { window, .. } = &mut self.layer4 else {
            panic!("windows are TCP's")
        };
        *window = value;
        self
    }
}
