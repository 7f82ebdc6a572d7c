//! irqfabric carries an interrupt from a virtual device's wire or message to a guest CPU's vector.

#![deny(unsafe_code)]

pub mod chip;
pub mod fabric;
pub mod hv;
pub mod line;
pub mod memory;
pub mod msg;
mod route;
mod sync;
