//! The link between two balancers: authenticated, encrypted, by one or more paths.
//!
//! Two services: urgent messages, sent at once by every path and at most once
//! delivered; and a stream each way that loses nothing and keeps the order.
//!
//! [`settings`] and [`handle`] are what others use. `link` decides, without a
//! clock or a socket; `wire`, `frame`, `handshake`, `window`, `session`, `path` and
//! `stream` are its parts, `thread` runs it. May import [`crate::status`] only.

mod counts;
mod frame;
pub mod handle;
mod handshake;
mod link;
mod path;
mod peer;
mod session;
pub mod settings;
mod socket;
mod stream;
mod thread;
mod window;
mod wire;

#[cfg(test)]
mod testing;

pub use handle::{
    Change, PeerLinks, Refused, Sinks, StreamEvent, StreamSender, UrgentSender, UrgentSink,
};
pub use settings::{Key, PathSettings, PeerSettings, Settings};

/// Bytes of the longest message, urgent or of the stream.
pub const MAX_MESSAGE: usize = 1100;
