//! No remapping table: a message says itself what it asks for, in one of two formats (see [`msg`](crate::msg)).

use super::{Refusal, Remapper, Target, Translation};
use crate::msg::{DestinationFormat, Message};

/// Destinations of 8 bits, in address bits 19:12: every PC's messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Untranslated;

/// Destinations of 15 bits: address bits 11:5 on top. The VMM tells the guest of it, by KVM_FEATURE_MSI_EXT_DEST_ID
/// (CPUID 0x4000_0001 EAX bit 15).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExtDest;

impl Remapper for Untranslated {
    fn translate(&self, message: &Message) -> Result<Translation, Refusal> {
        decode(message, DestinationFormat::Eight)
    }

    fn is_fixed(&self) -> bool {
        true
    }
}

impl Remapper for ExtDest {
    fn translate(&self, message: &Message) -> Result<Translation, Refusal> {
        decode(message, DestinationFormat::Fifteen)
    }

    fn is_fixed(&self) -> bool {
        true
    }
}

#[inline]
fn decode(message: &Message, format: DestinationFormat) -> Result<Translation, Refusal> {
    Ok(Translation { target: Target::Interrupt(message.decode(format)?), cookie: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::msg::{Interrupt, NotAnInterrupt, RequesterId};

    fn destination(remapper: &dyn Remapper, address: u64) -> u32 {
        let message = Message { address, data: 0x31, requester: RequesterId(8) };
        match remapper.translate(&message).unwrap() {
            Translation { target: Target::Interrupt(Interrupt { destination, .. }), cookie: None } => destination,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_extended_destination_is_seven_bits_on_top_of_the_eight() {
        for (address, eight, fifteen) in [
            (0xfee0_0000, 0, 0),
            (0xfeef_f000, 0xff, 0xff),
            (0xfee0_0020, 0, 0x100),
            (0xfeef_ffe0, 0xff, 0x7fff),
            (0xfee2_c020, 0x2c, 0x12c),
        ] {
            assert_eq!(destination(&Untranslated, address), eight, "{address:#x}");
            assert_eq!(destination(&ExtDest, address), fifteen, "{address:#x}");
        }
    }

    #[test]
    fn a_write_to_memory_stays_one() {
        let message = Message { address: 0x1000, data: 0x31, requester: RequesterId(8) };
        let refused = Refusal::NotAnInterrupt(NotAnInterrupt::Memory(0x1000));
        assert_eq!(Untranslated.translate(&message), Err(refused));
        assert_eq!(ExtDest.translate(&message), Err(refused));
    }
}
