//! Harness for the suites that need root: namespaces, topologies, real
//! clients and servers, and packets made and checked by hand.
//!
//! Whatever is made here carries the process id in its name and is removed
//! when its value is dropped, also after a panic; what a killed process left
//! behind is swept when the next one starts. Nothing is skipped silently: a
//! missing program or privilege is an error that names it.
//!
//! A test is usually written as
//!
//! ```no_run
//! use lb_tests::{check, topology::{Kind, Options, Topology}};
//!
//! check(|| {
//!     let topology = Topology::new(Kind::Dsr, &Options::default())?;
//!     topology.client.ns.exec(&["ping", "-c1", "10.2.0.11"])?;
//!     Ok(())
//! });
//! ```

pub mod bench;
mod bpf;
pub mod cleanup;
pub mod config;
pub mod conns;
pub mod daemon;
pub mod decapsulator;
pub mod demo;
mod evidence;
pub mod held;
pub mod ipvs;
pub mod machine;
pub mod mutation;
pub mod netns;
pub mod owners;
pub mod packet;
pub mod pair;
pub mod process;
pub mod program;
pub mod readme;
pub mod servers;
pub mod site;
pub mod topology;
pub mod tunnel;

pub use evidence::check;
