//! The next hop of every target, decided without a socket.
