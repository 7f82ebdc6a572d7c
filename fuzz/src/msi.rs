//! The MSI capability. The oracle is an array of bytes with a mask of what can be written.

use crate::{Data, steps};
use arbitrary::{Arbitrary, Unstructured};
use irqfabric::msg::Masking;
use irqfabric::pci::msi::Msi;

#[derive(Arbitrary, Debug)]
enum Step {
    Write(u8, Data),
    FarWrite(u64, Data),
    Pending(u32),
    Reset,
    SaveAndRestore,
}

/// The capability's bytes, as the guest last wrote them.
struct Bytes {
    bytes: Vec<u8>,
    writable: Vec<u8>,
}

/// A target.
pub fn run(input: &[u8]) {
    let mut input = Unstructured::new(input);
    let log = input.int_in_range(0..=5u8).unwrap_or(0);
    let [wide, masking] = input.arbitrary().unwrap_or([true; 2]);
    let mut msi = Msi::new(1 << log).expect("a power of two");
    if !wide {
        msi = msi.with_32_bit_address();
    }
    if !masking {
        msi = msi.without_masking();
    }
    let size = msi.size();
    let data_at = if wide { 12 } else { 8 };
    let mask_at = data_at + 4;
    let mut writable = vec![0; size];
    writable[2] = 0x71;
    writable[4..8].copy_from_slice(&[0xfc, 0xff, 0xff, 0xff]);
    writable[8..data_at].fill(0xff);
    writable[data_at..data_at + 2].fill(0xff);
    if masking {
        let messages = u32::MAX >> (32 - (1 << log));
        writable[mask_at..mask_at + 4].copy_from_slice(&messages.to_le_bytes());
    }
    let mut bytes = vec![0; size];
    msi.read(0, &mut bytes, |_| false);
    let reset = bytes.clone();
    let mut model = Bytes { bytes, writable };

    for step in steps(input) {
        let vectors = 0..msi.vectors() + 2;
        let before: Vec<_> = vectors.clone().map(|vector| msi.vector(vector)).collect();
        let mut pending = 0;
        let mut changed = Vec::new();
        match step {
            Step::Write(offset, data) => {
                model.write(offset.into(), data.as_slice());
                changed.extend(msi.write(offset.into(), data.as_slice()));
            }
            Step::FarWrite(offset, data) => {
                model.write(offset, data.as_slice());
                changed.extend(msi.write(offset, data.as_slice()));
            }
            Step::Pending(bits) => pending = bits,
            Step::Reset => {
                model.bytes.clone_from(&reset);
                changed.extend(msi.reset());
            }
            Step::SaveAndRestore => {
                let state = msi.save();
                changed.extend(msi.restore(&state).expect("its own state"));
                assert_eq!(msi.save(), state);
            }
        }
        // What may be allotted at the most.
        let control = model.bytes[2];
        model.bytes[2] = control & !0x70 | (control >> 4 & 7).min(log) << 4;

        let enabled = model.bytes[2] & 1 != 0;
        assert_eq!(msi.is_enabled(), enabled);
        let allotted = 1u32 << (model.bytes[2] >> 4 & 7);
        let mask = if masking { model.word(mask_at) } else { 0 };
        let high = if wide { u64::from(model.word(8)) << 32 } else { 0 };
        for (vector, before) in vectors.zip(before) {
            let config = msi.vector(vector);
            assert!(config == before || changed.contains(&vector), "vector {vector} has changed in silence");
            if vector >= msi.vectors() {
                assert_eq!(config.masking, Masking::Disabled);
                continue;
            }
            let message = u32::from(vector) % allotted;
            let data = model.word(data_at) & 0xffff & !(allotted - 1) | message;
            assert_eq!((config.address, config.data), (high | u64::from(model.word(4)), data));
            let masked = mask >> message & 1 != 0;
            let expected = match (enabled, masked) {
                (false, _) => Masking::Disabled,
                (true, true) => Masking::Masked,
                (true, false) => Masking::Unmasked,
            };
            assert_eq!(config.masking, expected);
        }
        assert!(changed.iter().all(|&vector| vector < msi.vectors()));

        let mut read = vec![0xaa; size + 8];
        msi.read(0, &mut read, |vector| pending >> vector & 1 != 0);
        let mut expected = model.bytes.clone();
        if masking {
            let bits = (0..u32::from(msi.vectors())).filter(|vector| pending >> vector & 1 != 0);
            let bits = bits.fold(0u32, |bits, vector| bits | 1 << (vector % allotted));
            expected[mask_at + 4..].copy_from_slice(&bits.to_le_bytes());
        }
        expected.resize(size + 8, 0);
        // 10 and 14 bytes of registers stand in whole double words.
        assert_eq!(read, expected);
    }
}

impl Bytes {
    fn write(&mut self, offset: u64, data: &[u8]) {
        for (place, &byte) in (offset..=u64::MAX).zip(data) {
            let Some(place) = usize::try_from(place).ok().filter(|&place| place < self.bytes.len()) else { break };
            let writable = self.writable[place];
            self.bytes[place] = self.bytes[place] & !writable | byte & writable;
        }
    }

    fn word(&self, at: usize) -> u32 {
        let mut word = [0; 4];
        for (to, from) in word.iter_mut().zip(&self.bytes[at..]) {
            *to = *from;
        }
        u32::from_le_bytes(word)
    }
}
