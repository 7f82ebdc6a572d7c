//! The common configuration structure (virtio 1.2, 4.1.4.3).
//!
//! A read has any size and takes what lies there. A write counts if it is a field, or one half of a field of 64 bits: the
//! specification has no other.

use super::signals::{Signals, Source};
use crate::devices::virtio::device::Device;
use virtio_queue::{Queue, QueueT};

/// How many bytes it takes.
pub const SIZE: usize = 56;

pub fn read(device: &Device, signals: &Signals, offset: u64, data: &mut [u8]) {
    let image = image(device, signals);
    let from = usize::try_from(offset).ok().and_then(|offset| image.get(offset..)).unwrap_or_default();
    data.fill(0);
    for (to, from) in data.iter_mut().zip(from) {
        *to = *from;
    }
}

/// All of it as it reads now.
fn image(device: &Device, signals: &Signals) -> [u8; SIZE] {
    let selected = device.selected();
    let queue = |look: fn(&Queue) -> u64| device.queue(&selected, look).unwrap_or(0);
    let vector = |source| signals.vector_of(source);
    let notify = if selected.queue < device.queues().into() { selected.queue } else { 0 };
    let mut image = [0; SIZE];
    let mut put =
        |at: usize, size: usize, value: u64| image[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
    put(0, 4, selected.device_features.into());
    put(4, 4, device.features(&selected).into());
    put(8, 4, selected.driver_features.into());
    put(12, 4, Device::accepted(&selected).into());
    put(16, 2, vector(Source::Configuration).into());
    put(18, 2, device.queues().into());
    put(20, 1, device.status().into());
    // The configuration space never changes, and so neither does its generation (byte 21).
    put(22, 2, selected.queue.into());
    put(24, 2, queue(|queue| queue.size().into()));
    put(26, 2, vector(Source::Queue(selected.queue as u16)).into());
    put(28, 2, queue(|queue| queue.ready().into()));
    put(30, 2, notify.into());
    put(32, 8, queue(Queue::desc_table));
    put(40, 8, queue(Queue::avail_ring));
    put(48, 8, queue(Queue::used_ring));
    image
}

pub fn write(device: &Device, signals: &Signals, offset: u64, data: &[u8]) {
    let mut selected = device.selected();
    let mut bytes = [0; 8];
    let Some(low) = bytes.get_mut(..data.len()) else { return };
    low.copy_from_slice(data);
    let value = u64::from_le_bytes(bytes);
    let half = value as u32;
    match (offset, data.len()) {
        (0, 4) => selected.device_features = half,
        (8, 4) => selected.driver_features = half,
        (12, 4) => device.accept(&mut selected, half),
        (16, 2) => signals.choose(Source::Configuration, half as u16),
        (20, 1) => device.set_status(&mut selected, half),
        (22, 2) => selected.queue = half,
        (26, 2) => signals.choose(Source::Queue(selected.queue as u16), half as u16),
        // Nothing but a reset takes it back (4.1.4.3.2).
        (28, 2) if half == 1 => device.set_ready(&selected, true),
        _ => device.set_up(&selected, |queue| match (offset, data.len()) {
            // Sizes that cannot be are refused by the queue, which then keeps its old one.
            (24, 2) => queue.set_size(half as u16),
            (32, 4) => queue.set_desc_table_address(Some(half), None),
            (36, 4) => queue.set_desc_table_address(None, Some(half)),
            (32, 8) => queue.set_desc_table_address(Some(half), Some((value >> 32) as u32)),
            (40, 4) => queue.set_avail_ring_address(Some(half), None),
            (44, 4) => queue.set_avail_ring_address(None, Some(half)),
            (40, 8) => queue.set_avail_ring_address(Some(half), Some((value >> 32) as u32)),
            (48, 4) => queue.set_used_ring_address(Some(half), None),
            (52, 4) => queue.set_used_ring_address(None, Some(half)),
            (48, 8) => queue.set_used_ring_address(Some(half), Some((value >> 32) as u32)),
            _ => {}
        }),
    }
}
