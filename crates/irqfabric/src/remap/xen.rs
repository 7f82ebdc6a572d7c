//! Xen's event channels in messages: a guest that wants an event, not a vector, programs vector 0 and the number of a PIRQ.
//!
//! Bits 7:0 of the PIRQ stand where a destination's do, in address bits 19:12, the others in address bits 63:40, so that
//! such an address is outside the interrupt window as others know it. Linux writes the data with a reserved delivery
//! mode (`arch/x86/pci/xen.c`, xen_msi_compose_msg). PIRQ 0 is none. Xen looks at the vector and the PIRQ only
//! (`xen/arch/x86/hvm/irq.c`, hvm_inject_msi), and knows the PIRQ of a pin by its GSI, never by a message.

use super::{Cookie, Event, Fault, Refusal, Remapper, Target, Translation};
use crate::msg::{Interrupt, Message, WINDOW_END, WINDOW_START};

/// Turns messages that name a PIRQ into events, by number, for a callback; leaves all others to another remapper.
///
/// An event's [`Cookie`] is its PIRQ. A PIRQ that is bound to no event channel is the callback's to drop.
///
/// ```
/// use irqfabric::{fabric::Fabric, hv::Sim, msg::RequesterId};
/// use irqfabric::remap::{Untranslated, XenPirq};
/// use std::sync::mpsc;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (raise, raised) = mpsc::channel();
/// let xen = XenPirq::new(Untranslated, move |pirq| drop(raise.send(pirq)));
/// let fabric = Fabric::builder(Sim::new(1)).remapper(xen).build()?;
/// let vectors = fabric.msi_vectors(RequesterId::new(0, 3, 0), 1);
/// // As Linux composes it for PIRQ 0x123.
/// vectors.program(0, 0x0000_0100_fee2_3000, 0x4300)?;
/// vectors[0].signal();
/// assert_eq!(raised.try_recv(), Ok(0x123));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct XenPirq<R, F> {
    inner: R,
    raise: F,
}

impl<R: Remapper, F: Fn(u32) + Send + Sync> XenPirq<R, F> {
    /// Puts itself around `inner`. `raise` is called with the PIRQ, with no lock held, on the thread of whoever signalled.
    pub const fn new(inner: R, raise: F) -> Self {
        Self { inner, raise }
    }
}

impl<R: Remapper, F: Fn(u32) + Send + Sync> Remapper for XenPirq<R, F> {
    fn translate(&self, message: &Message) -> Result<Translation, Refusal> {
        match pirq(message) {
            Some(pirq) => Ok(Translation { target: Target::Event(Event(pirq)), cookie: Some(Cookie(pirq)) }),
            None => self.inner.translate(message),
        }
    }

    fn record(&self, message: &Message, fault: Fault, send: &dyn Fn(&Interrupt)) {
        self.inner.record(message, fault, send);
    }

    fn raise(&self, Event(pirq): Event) {
        (self.raise)(pirq);
    }

    fn is_fixed(&self) -> bool {
        self.inner.is_fixed()
    }
}

/// The PIRQ that a message names, if it names one.
fn pirq(message: &Message) -> Option<u32> {
    let low = message.address & 0xffff_ffff;
    let vector = message.data & 0xff;
    let pirq = (low >> 12 & 0xff) as u32 | (message.address >> 32) as u32 & !0xff;
    let names_one = (WINDOW_START..WINDOW_END).contains(&low) && vector == 0 && pirq != 0;
    names_one.then_some(pirq)
}

#[cfg(test)]
mod tests {
    use super::super::{ExtDest, Untranslated};
    use super::*;
    use crate::msg::RequesterId;
    use std::sync::Mutex;

    fn message(address: u64, data: u32) -> Message {
        Message { address, data, requester: RequesterId(8) }
    }

    #[test]
    fn a_pirq_is_spread_over_both_halves_of_the_address() {
        let xen = XenPirq::new(Untranslated, drop::<u32>);
        for (address, named) in [
            (0x0000_0000_fee0_1000, 1),
            (0x0000_0000_feef_f000, 0xff),
            (0x0000_0100_fee0_0000, 0x100),
            (0xffff_ff00_feef_f000, u32::MAX),
            // Bits that Xen does not look at.
            (0x0000_01ff_fee2_3ffc, 0x123),
        ] {
            let event = Translation { target: Target::Event(Event(named)), cookie: Some(Cookie(named)) };
            assert_eq!(xen.translate(&message(address, 0x4300)), Ok(event), "{address:#x}");
        }
    }

    #[test]
    fn what_names_no_pirq_is_left_to_the_other_remapper() {
        let xen = XenPirq::new(ExtDest, |pirq| panic!("{pirq:#x}"));
        for (address, data) in [
            // A vector; PIRQ 0; not in the window.
            (0xfee0_1020, 0x31),
            (0x0000_0100_fee0_1000, 0x31),
            (0xfee0_0000, 0x4300),
            (0x1000, 0x4300),
            (0x0000_0100_0000_1000, 0),
        ] {
            let message = message(address, data);
            assert_eq!(xen.translate(&message), ExtDest.translate(&message), "{address:#x}");
        }
    }

    #[test]
    fn an_event_is_raised_by_its_number() {
        let raised = Mutex::new(Vec::new());
        let xen = XenPirq::new(Untranslated, |pirq| raised.lock().unwrap().push(pirq));
        xen.raise(Event(7));
        assert_eq!(*raised.lock().unwrap(), [7]);
    }
}
