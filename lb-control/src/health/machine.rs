//! When checks run and what their results mean, without a clock or a socket.
