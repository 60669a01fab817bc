//! The virtual MAC addresses of virtual routers (RFC 9568 §7.3), on the devices
//! on which they have them.

use lb_common::counter::DropReason;

use crate::{
    frame::Frame,
    lookup, maps,
    packet::MacWords,
    verdict::{NO_SERVICE, Verdict},
};

/// What becomes of a frame that isn't taken.
pub const NOT_OWNER: Verdict = Verdict::drop(NO_SERVICE, DropReason::NotOwner as u32);

/// Gives a frame to the virtual MAC address of a virtual router that this node
/// owns the address of the device that it came in by: it is for this node from
/// here on, for the kernel as well. `false` if the virtual router is another
/// node's now, and nobody here may have it. A bridge carries such a frame to
/// that node.
#[inline(always)]
pub fn take(frame: &Frame<'_>) -> bool {
    let Some(index) = frame.ethernet.destination().virtual_router() else {
        return true;
    };
    if maps::virtual_mac_device(index) != frame.ingress.device {
        // Somebody else's virtual router, such as the routers' own.
        return true;
    }
    if !lookup::owns(index as u16) {
        return frame.is_bridged();
    }
    frame
        .ethernet
        .set_destination(MacWords::new(frame.ingress.mac));
    true
}

/// The MAC address at which addresses with this owner word are on the device
/// that the frame came in by.
#[inline(always)]
pub fn of_owner(frame: &Frame<'_>, index: u16) -> MacWords {
    if maps::virtual_mac_device(index.into()) == frame.ingress.device {
        MacWords::of_virtual_router(index)
    } else {
        MacWords::new(frame.ingress.mac)
    }
}
