//! The hypervisor's table of GSI routes: what should be in it, and how it gets there.

mod table;

pub(crate) use table::{GsiTable, Since};
