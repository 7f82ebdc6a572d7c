//! irqfabric carries an interrupt from a virtual device's wire or message to a guest CPU's vector.

#![deny(unsafe_code)]

pub mod chip;
pub mod msg;
