//! Which services send a source to the server that it has.

use std::{fmt, time::Duration};

use serde::Serialize;

/// Persistence by source of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Persistence {
    /// Leading bits of an IPv4 source that have a server together, 1 to 32.
    pub prefix_v4: u8,
    /// Leading bits of an IPv6 source that have a server together, 1 to 128.
    pub prefix_v6: u8,
    /// A source without a packet for so long has no server any more.
    pub timeout: Duration,
    /// Services of one group share what they know. `None`: the service is alone.
    pub group: Option<String>,
}

impl Persistence {
    /// What the group is known by, `service` being whose persistence it is. A
    /// group's name has no slash in it.
    pub fn group_name(&self, service: &str) -> String {
        match &self.group {
            Some(group) => group.clone(),
            None => format!("service/{service}"),
        }
    }
}

impl fmt::Display for Persistence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            prefix_v4,
            prefix_v6,
            timeout,
            group,
        } = self;
        write!(f, "source /{prefix_v4} /{prefix_v6}, {timeout:?}")?;
        match group {
            Some(group) => write!(f, ", group {group}"),
            None => Ok(()),
        }
    }
}
