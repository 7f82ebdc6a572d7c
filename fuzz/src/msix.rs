//! MSI-X: capability, table and PBA. The oracle is an array of bytes for each, with a mask of what can be written.

use crate::{Data, steps};
use arbitrary::{Arbitrary, Unstructured};
use irqfabric::msg::Masking;
use irqfabric::pci::VectorConfig;
use irqfabric::pci::msix::{Location, Msix};

#[derive(Arbitrary, Debug)]
enum Step {
    Capability(u8, Data),
    Table(u16, Data),
    Entry { vector: u8, register: u8, value: u32 },
    Bar(u8, u32, Data),
    Read(u8, u32, u8),
    Pending(u64),
    Reset,
    SaveAndRestore,
}

/// A target.
pub fn run(input: &[u8]) {
    let mut input = Unstructured::new(input);
    let vectors = input.int_in_range(1..=70u16).unwrap_or(1);
    let place = |input: &mut Unstructured| Location {
        bar: input.int_in_range(0..=6).unwrap_or(0),
        offset: input.int_in_range(0..=0x400).unwrap_or(0) * 4,
    };
    let (table_at, pba_at) = (place(&mut input), place(&mut input));
    // What cannot be is refused, and nothing comes of it.
    let Ok(mut msix) = Msix::with_layout(vectors, table_at, pba_at) else { return };
    let table_size = usize::from(vectors) * 16;
    let pba_size = usize::from(vectors).div_ceil(64) * 8;
    let reset: Vec<u8> = [[0; 12].as_slice(), &[1, 0, 0, 0]].concat().repeat(vectors.into());
    let mut table = reset.clone();
    let mut control = 0u8;
    let mut pending = 0u64;

    for step in steps(input) {
        let all = 0..vectors + 2;
        let before: Vec<VectorConfig> = all.clone().map(|vector| msix.vector(vector)).collect();
        let mut changed = Vec::new();
        match step {
            Step::Capability(offset, data) => {
                changed.extend(msix.write(offset.into(), data.as_slice()));
                let place = 3usize.checked_sub(offset.into());
                if let Some(&byte) = place.and_then(|place| data.as_slice().get(place)) {
                    control = byte & 0xc0;
                }
            }
            Step::Table(offset, data) => {
                write(&mut table, offset.into(), data.as_slice());
                changed.extend(msix.write_table(offset.into(), data.as_slice()));
            }
            Step::Entry { vector, register, value } => {
                let offset = u64::from(vector) * 16 + u64::from(register % 4) * 4;
                write(&mut table, offset, &value.to_le_bytes());
                changed.extend(msix.write_table(offset, &value.to_le_bytes()));
            }
            Step::Bar(bar, offset, data) => {
                changed.extend(msix.write_bar(bar, offset.into(), data.as_slice()));
                if bar == table_at.bar {
                    for (place, &byte) in (u64::from(offset)..).zip(data.as_slice()) {
                        if let Some(place) = place.checked_sub(table_at.offset.into()) {
                            write(&mut table, place, &[byte]);
                        }
                    }
                }
            }
            Step::Read(bar, offset, size) => {
                let mut data = vec![0xaa; (size % 17).into()];
                msix.read_bar(bar, offset.into(), &mut data, |vector| pending >> (vector % 64) & 1 != 0);
                for (place, byte) in (u64::from(offset)..).zip(data) {
                    let within = |at: Location, size: usize| {
                        let place = usize::try_from(place.checked_sub(at.offset.into())?).ok()?;
                        (at.bar == bar && place < size).then_some(place)
                    };
                    let bit = |vector: usize| {
                        u8::from(vector < vectors.into() && pending >> (vector % 64) & 1 != 0) << (vector % 8)
                    };
                    let expected = match (within(table_at, table_size), within(pba_at, pba_size)) {
                        (Some(place), _) => table[place],
                        (None, Some(place)) => (place * 8..place * 8 + 8).map(bit).sum(),
                        (None, None) => 0,
                    };
                    assert_eq!(byte, expected, "BAR {bar} at {place:#x}");
                }
            }
            Step::Pending(bits) => pending = bits,
            Step::Reset => {
                table.clone_from(&reset);
                control = 0;
                changed.extend(msix.reset());
            }
            Step::SaveAndRestore => {
                let state = msix.save();
                changed.extend(msix.restore(&state).expect("its own state"));
                assert_eq!(msix.save(), state);
            }
        }
        let mut capability = [0; 12];
        msix.read(0, &mut capability);
        assert_eq!(u16::from_le_bytes([capability[2], capability[3] & !0xc0]), vectors - 1);
        assert_eq!(capability[3] & 0xc0, control);
        for (vector, before) in all.zip(before) {
            let config = msix.vector(vector);
            assert!(config == before || changed.contains(&vector), "vector {vector} has changed in silence");
            let Some(entry) = table.chunks_exact(16).nth(vector.into()) else {
                assert_eq!(config, VectorConfig::NONE);
                continue;
            };
            let word = |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
            let masking = match (control, word(12)) {
                (0 | 0x40, _) => Masking::Disabled,
                (0x80, 0) => Masking::Unmasked,
                _ => Masking::Masked,
            };
            let address = u64::from(word(4)) << 32 | u64::from(word(0));
            assert_eq!(config, VectorConfig { address, data: word(8), masking });
        }
        assert!(changed.iter().all(|&vector| vector < vectors));
    }
}

/// Writes what can be written of a table.
fn write(table: &mut [u8], offset: u64, data: &[u8]) {
    for (place, &byte) in (offset..=u64::MAX).zip(data) {
        let Some(to) = usize::try_from(place).ok().and_then(|place| table.get_mut(place)) else { break };
        *to = match place % 16 {
            0 => byte & !3,
            12 => byte & 1,
            13..16 => 0,
            _ => byte,
        };
    }
}
