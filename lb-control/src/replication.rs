//! What hashing can't reproduce, told to a peer so that it can take over: the
//! shares that tables are made of, slots in which flows are looked up, their
//! entries, full NAT's bindings, and sources with a server of their own.
//!
//! Without a socket, a clock or a map: [`export`] reads tables and makes
//! messages, [`import`] reads messages and writes tables. The peer link carries
//! them in order or not at all. Depends on nothing but `lb_common`.

pub mod export;
pub mod import;
pub mod record;
pub mod world;

#[cfg(test)]
mod tests;
