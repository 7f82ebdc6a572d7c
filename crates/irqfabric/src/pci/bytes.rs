//! Accesses of any size at any offset to registers that stand side by side.

/// Reads `registers` from `offset` on. Bytes beyond their end are zero.
pub(super) fn read(registers: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let from = usize::try_from(offset).ok().and_then(|offset| registers.get(offset..)).unwrap_or_default();
    for (to, from) in data.iter_mut().zip(from) {
        *to = *from;
    }
}

/// Writes to `registers` from `offset` on the bits that are set in `writable`. Bytes beyond the end are lost.
pub(super) fn merge(registers: &mut [u8], writable: &[u8], offset: u64, data: &[u8]) {
    let Ok(offset) = usize::try_from(offset) else { return };
    for ((to, writable), from) in registers.iter_mut().zip(writable).skip(offset).zip(data) {
        *to = *to & !writable | from & writable;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_across_the_end_is_filled_with_zeros() {
        let mut data = [0xff; 4];
        read(&[1, 2, 3], 1, &mut data);
        assert_eq!(data, [2, 3, 0, 0]);
        for offset in [3, 4, u64::MAX] {
            let mut data = [0xff; 4];
            read(&[1, 2, 3], offset, &mut data);
            assert_eq!(data, [0; 4]);
        }
    }

    #[test]
    fn a_write_reaches_writable_bits_only_and_ends_with_the_registers() {
        let mut registers = [0x11, 0x22, 0x33];
        merge(&mut registers, &[0xff, 0xf0, 0x0f], 1, &[0xaa, 0xbb, 0xcc]);
        assert_eq!(registers, [0x11, 0xa2, 0x3b]);
        merge(&mut registers, &[0xff; 3], u64::MAX, &[0; 8]);
        assert_eq!(registers, [0x11, 0xa2, 0x3b]);
    }
}
