//! irqfabric
