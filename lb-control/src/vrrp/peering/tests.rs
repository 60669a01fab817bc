//! Nodes on a segment with two switches, and the links between them.

use super::{
    super::{
        codec::{Advertisement, Version},
        machine::{Action, Machine, Reason, Settings},
        references::References,
        report::HandOverId,
    },
    *,
};

mod faults;
mod hand_overs;
mod network;
