//! The interrupt controllers: register-exact state machines.
//!
//! A chip is a plain struct: register accesses, line levels and outcomes of deliveries go in, effects
//! come out. No lock, no thread, no file descriptor, no hypervisor, no clock. The fabric performs the
//! effects and tells the chip what came of them.

pub mod ioapic;
pub mod lapic;
pub mod pic;
