//! What a plan is executed on.

use lb_common::{
    abi::{
        Config, LinkEntry, MemberEntry, PoolEntry, ReplyEntry, ReplyKey, ServerKey, ServiceEntry,
        ServiceKey, VipEntry, VipKey,
    },
    member::MemberState,
    slot::SlotWord,
};

use super::{
    desired::MemberLimits,
    state::{LocalPrefix, MapSnapshot, PortBlock, SourcePrefix},
};

/// A map refused an operation.
#[derive(Debug, thiserror::Error)]
#[error("map {map}: {what}")]
pub struct StoreError {
    /// Name of the map.
    pub map: &'static str,
    /// What was tried.
    pub what: String,
    /// The kernel's reason.
    #[source]
    pub source: std::io::Error,
}

/// The maps of a data path, running or imagined. Every method is atomic to
/// packets.
pub trait MapStore {
    /// Everything the maps hold.
    ///
    /// # Errors
    /// A map can't be read.
    fn snapshot(&self) -> Result<MapSnapshot, StoreError>;
    /// Writes the fields of the configuration that differ.
    ///
    /// # Errors
    /// The map can't be written; so for all below.
    fn set_config(&mut self, config: &Config) -> Result<(), StoreError>;
    /// Writes the owner word of VIPs that no VRRP instance governs.
    fn own_always(&mut self) -> Result<(), StoreError>;
    /// Writes or frees an interface's entry.
    fn set_link(&mut self, index: u16, link: Option<&LinkEntry>) -> Result<(), StoreError>;
    /// Names or frees a service id; a new name starts with its counters at zero.
    fn set_service_name(&mut self, id: u32, name: Option<&str>) -> Result<(), StoreError>;
    /// Writes a member's whole record and sets its counters to zero, those of
    /// its connections included; nothing names the id at that time.
    fn write_member(&mut self, id: u32, member: &MemberEntry) -> Result<(), StoreError>;
    /// Writes a member's state.
    fn set_member_state(&mut self, id: u32, state: MemberState) -> Result<(), StoreError>;
    /// Writes a member's next hop.
    fn set_next_hop(&mut self, id: u32, next_hop: u64) -> Result<(), StoreError>;
    /// Writes how long packets towards a member may be.
    fn set_mtu(&mut self, id: u32, mtu: u16) -> Result<(), StoreError>;
    /// Reads a slot.
    fn slot(&self, index: u32) -> Result<SlotWord, StoreError>;
    /// Replaces a slot if it is still `current`; otherwise returns what it is.
    fn replace_slot(
        &mut self,
        index: u32,
        current: SlotWord,
        new: SlotWord,
    ) -> Result<Result<(), SlotWord>, StoreError>;
    /// Writes a member's limits; its counts stay.
    fn set_limits(&mut self, id: u32, limits: MemberLimits) -> Result<(), StoreError>;
    /// Writes a word of a list in `SLOTS`.
    fn set_listed(&mut self, index: u32, member: u32) -> Result<(), StoreError>;
    /// Adds or replaces a service of one port.
    fn put_service(&mut self, key: &ServiceKey, entry: &ServiceEntry) -> Result<(), StoreError>;
    /// Removes one; that it isn't there is no error, here and below.
    fn remove_service(&mut self, key: &ServiceKey) -> Result<(), StoreError>;
    /// Adds or replaces a service of a block of ports.
    fn put_range(&mut self, block: &PortBlock, entry: &ServiceEntry) -> Result<(), StoreError>;
    /// Removes one.
    fn remove_range(&mut self, block: &PortBlock) -> Result<(), StoreError>;
    /// Adds or replaces a VIP.
    fn put_vip(&mut self, key: &VipKey, entry: &VipEntry) -> Result<(), StoreError>;
    /// Removes one.
    fn remove_vip(&mut self, key: &VipKey) -> Result<(), StoreError>;
    /// Adds or replaces a prefix of sources.
    fn put_source(&mut self, prefix: &SourcePrefix, value: u32) -> Result<(), StoreError>;
    /// Removes one.
    fn remove_source(&mut self, prefix: &SourcePrefix) -> Result<(), StoreError>;
    /// Says which member a service has on a server.
    fn put_server(&mut self, key: &ServerKey, member: u32) -> Result<(), StoreError>;
    /// Removes that.
    fn remove_server(&mut self, key: &ServerKey) -> Result<(), StoreError>;
    /// Adds or replaces a source of replies.
    fn put_reply(&mut self, key: &ReplyKey, entry: &ReplyEntry) -> Result<(), StoreError>;
    /// Removes one.
    fn remove_reply(&mut self, key: &ReplyKey) -> Result<(), StoreError>;
    /// Adds or replaces an address of full NAT's pool.
    fn put_pool(&mut self, key: &VipKey, entry: &PoolEntry) -> Result<(), StoreError>;
    /// Removes one.
    fn remove_pool(&mut self, key: &VipKey) -> Result<(), StoreError>;
    /// Adds a prefix of clients that a backend would answer directly.
    fn put_local(&mut self, prefix: &LocalPrefix, value: u32) -> Result<(), StoreError>;
    /// Removes one.
    fn remove_local(&mut self, prefix: &LocalPrefix) -> Result<(), StoreError>;
}
