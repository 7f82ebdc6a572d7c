//! Entries of the VMM's own in the hypervisor's table: a Hyper-V SINT, a Xen event channel.

use super::core::Core;
use crate::hv::{HvError, OpaqueTarget};
use crate::route::Gsi;
use std::sync::Arc;

/// A route of the VMM's own. Dropping it leaves it out of the table from the next commit on: detach what uses it first.
#[derive(Debug)]
pub struct OpaqueRoute(Gsi);

/// Why a route could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// Every GSI that the hypervisor can route is taken.
    #[error("all GSIs that the hypervisor can route are taken")]
    NoGsi,
    /// The hypervisor did not take the table.
    #[error(transparent)]
    Hypervisor(#[from] HvError),
}

impl OpaqueRoute {
    pub(super) fn new(core: &Arc<Core>, target: OpaqueTarget) -> Result<Self, RouteError> {
        let gsi = core.table.allocate().ok_or(RouteError::NoGsi)?;
        core.table.publish(gsi.put(target), &*core.hypervisor)?;
        Ok(Self(gsi))
    }

    /// The GSI that it stands on.
    pub const fn gsi(&self) -> u32 {
        self.0.number()
    }
}
