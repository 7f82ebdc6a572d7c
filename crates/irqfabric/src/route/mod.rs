//! Routes: who listens to a vector's eventfd, and the hypervisor's table of GSIs.
//!
//! A route with an irqfd is a cache. The dispatcher can always deliver a vector; the kernel may do it instead while a
//! route stands for the vector's message and the irqfd is attached. Detaching at any moment is safe, since the
//! kernel takes an event from the eventfd only while it is attached, and the dispatcher reads it only while it is not.
//!
//! ```text
//!             lend                 promote                 mask
//!   Nobody ───────────► Cold ─────────────────► Hot ─────────────────► Masked
//!                        ▲ ▲     attach, drain   │ ▲      detach         │ │
//!                        │ └──── detach ─────────┘ └───── unmask ────────┘ │
//!                        │     evict, forget, disable  attach, drain       │
//!                        └─────────── evict, forget, change, disable ──────┘
//! ```
//!
//! *Cold* and *Masked* are the dispatcher's to read, *Hot* is the kernel's. *Masked* differs from a masked *Cold* by
//! its route alone, which is kept so that unmasking is one attach. The whole table, which a test compares with
//! [`Listener::on`]:
//!
//! | from | event | to | action |
//! | --- | --- | --- | --- |
//! | Nobody | Lend | Cold | Listen |
//! | Nobody | Drop | Dropped | Nothing |
//! | Cold | Promote | Hot | Attach |
//! | Cold | Drop | Dropped | Nothing |
//! | Hot | Change | Hot | Reroute |
//! | Hot | Forget | Cold | Detach |
//! | Hot | Mask | Masked | DetachKeepingRoute |
//! | Hot | Disable | Cold | Detach |
//! | Hot | Evict | Cold | Detach |
//! | Hot | Drop | Dropped | Detach |
//! | Masked | Change | Cold | Release |
//! | Masked | Forget | Cold | Release |
//! | Masked | Unmask | Hot | Attach |
//! | Masked | Disable | Cold | Release |
//! | Masked | Evict | Cold | Release |
//! | Masked | Drop | Dropped | Release |
//!
//! Every other event leaves a listener as it is and asks for nothing.

mod cost;
mod listener;
mod table;

pub(crate) use cost::Cost;
pub(crate) use listener::{Action, Event, Listener};
pub(crate) use table::{Gsi, GsiTable, Since};
