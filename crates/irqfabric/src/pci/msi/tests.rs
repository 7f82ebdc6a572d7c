use super::*;
use crate::msg::RequesterId;
use proptest::collection::vec;
use proptest::prelude::*;
use std::cell::RefCell;

const MESSAGE_CONTROL: u64 = 2;
const ENABLE: u16 = 1;

// The registers of a capability with 64-bit addresses.
const ADDRESS: u64 = 0x4;
const UPPER_ADDRESS: u64 = 0x8;
const DATA: u64 = 0xc;
const MASK: u64 = 0x10;
const PENDING: u64 = 0x14;

fn control(msi: &mut Msi, value: u16) -> Changed {
    msi.write(MESSAGE_CONTROL, &value.to_le_bytes())
}

fn write(msi: &mut Msi, register: u64, value: u32) -> Changed {
    msi.write(register, &value.to_le_bytes())
}

fn read(msi: &Msi, register: u64) -> u32 {
    let mut data = [0xff; 4];
    msi.read(register, &mut data, |_| false);
    u32::from_le_bytes(data)
}

/// Message control of a function that the guest has allotted `1 << log` messages.
const fn allot(log: u16) -> u16 {
    ENABLE | log << 4
}

/// Four messages, all allotted, data 0x40 to 0x43.
fn programmed() -> Msi {
    let mut msi = Msi::new(4).unwrap();
    let _ = write(&mut msi, ADDRESS, 0xfee0_0000);
    let _ = write(&mut msi, DATA, 0x40);
    let _ = control(&mut msi, allot(2));
    msi
}

fn data(msi: &Msi) -> Vec<u32> {
    (0..msi.vectors()).map(|vector| msi.vector(vector).data).collect()
}

fn maskings(msi: &Msi) -> Vec<Masking> {
    (0..msi.vectors()).map(|vector| msi.vector(vector).masking).collect()
}

#[test]
fn after_reset_the_function_is_disabled_and_nothing_is_masked() {
    let msi = Msi::new(4).unwrap();
    assert!(!msi.is_enabled());
    assert_eq!(maskings(&msi), [Masking::Disabled; 4]);
    assert_eq!((read(&msi, MASK), msi.vector(0).message(RequesterId::default())), (0, None));
    let mut used = programmed();
    let _ = write(&mut used, MASK, 2);
    assert!(used.reset().eq(0..4));
    assert_eq!(used, msi);
}

#[test]
fn the_capability_tells_what_the_function_has() {
    for (log, messages) in [1, 2, 4, 8, 16, 32].into_iter().enumerate() {
        let full = Msi::new(messages).unwrap().with_next(0x80);
        let short = full.clone().with_32_bit_address();
        let plain = full.clone().without_masking();
        let least = short.clone().without_masking();
        for (msi, flags, size) in [(full, 0x180, 24), (short, 0x100, 20), (plain, 0x80, 14), (least, 0, 10)] {
            let header = (flags | (log as u32) << 1) << 16 | 0x8005;
            assert_eq!((read(&msi, 0), msi.size(), msi.vectors()), (header, size, messages.into()));
        }
    }
}

#[test]
fn a_number_of_messages_is_a_power_of_two_up_to_32() {
    for messages in (0..=255_u8).filter(|messages| ![1, 2, 4, 8, 16, 32].contains(messages)) {
        assert_eq!(Msi::new(messages), Err(MessageCountError(messages)));
    }
    assert_eq!(MessageCountError(3).to_string(), "a function has 1, 2, 4, 8, 16 or 32 MSI messages, not 3");
}

#[test]
fn each_vector_has_its_number_in_the_low_bits_of_its_data() {
    let mut msi = programmed();
    assert_eq!(data(&msi), [0x40, 0x41, 0x42, 0x43]);
    // The low bits are the function's, whatever the guest writes there.
    let _ = write(&mut msi, DATA, 0x47);
    assert_eq!(data(&msi), [0x44, 0x45, 0x46, 0x47]);
    assert_eq!(read(&msi, DATA), 0x47);
}

#[test]
fn vectors_share_messages_where_fewer_were_allotted() {
    let mut msi = programmed();
    let _ = control(&mut msi, allot(1));
    assert_eq!((data(&msi), msi.allotted()), (vec![0x40, 0x41, 0x40, 0x41], 2));
    // And with the message its mask bit.
    assert!(write(&mut msi, MASK, 2).eq(1..4));
    assert_eq!(maskings(&msi), [Masking::Unmasked, Masking::Masked, Masking::Unmasked, Masking::Masked]);
    assert!(write(&mut msi, MASK, 2 | 8).is_nothing(), "a message that was not allotted");
    let _ = control(&mut msi, allot(0));
    let _ = write(&mut msi, DATA, 0x47);
    assert_eq!(data(&msi), [0x47; 4]);
}

#[test]
fn no_more_messages_are_allotted_than_there_are() {
    let mut msi = programmed();
    for log in [3, 5, 6, 7] {
        let _ = control(&mut msi, allot(log));
        assert_eq!((msi.allotted(), read(&msi, 0) >> 20 & 7), (4, 2));
    }
}

#[test]
fn a_message_is_masked_by_its_bit() {
    let mut msi = programmed();
    assert!(write(&mut msi, MASK, 4).eq([2]));
    assert_eq!(maskings(&msi), [Masking::Unmasked, Masking::Unmasked, Masking::Masked, Masking::Unmasked]);
    assert!(write(&mut msi, MASK, 1).eq([0, 1, 2]), "a run from the first to the last that changed");
    assert!(control(&mut msi, 0).eq(0..4));
    assert_eq!(maskings(&msi), [Masking::Disabled; 4]);
}

#[test]
fn mask_and_pending_bits_beyond_the_capability_are_zero() {
    let mut msi = Msi::new(4).unwrap();
    let _ = write(&mut msi, MASK, u32::MAX);
    assert_eq!(read(&msi, MASK), 0xf);
    let mut most = Msi::new(32).unwrap();
    let _ = write(&mut most, MASK, u32::MAX);
    assert_eq!(read(&most, MASK), u32::MAX);
    let mut plain = Msi::new(4).unwrap().without_masking();
    let _ = write(&mut plain, MASK, u32::MAX);
    assert_eq!(plain, Msi::new(4).unwrap().without_masking());
}

#[test]
fn the_pending_bits_are_asked_for_when_they_are_read() {
    let mut msi = programmed();
    let pending = |msi: &Msi, offset, size| {
        let asked = RefCell::new(Vec::new());
        let mut data = vec![0xff; size];
        msi.read(offset, &mut data, |vector| {
            asked.borrow_mut().push(vector);
            vector == 3
        });
        (data, asked.into_inner())
    };
    assert_eq!(pending(&msi, PENDING, 4), (vec![8, 0, 0, 0], vec![0, 1, 2, 3]));
    assert_eq!(pending(&msi, PENDING - 1, 2), (vec![0, 8], vec![0, 1, 2, 3]));
    assert_eq!(pending(&msi, PENDING + 3, 4), (vec![0; 4], vec![0, 1, 2, 3]));
    for offset in [MASK, PENDING + 4, 0x100, u64::MAX - 1] {
        assert_eq!(pending(&msi, offset, 4), (vec![0; 4], vec![]));
    }
    // Vector 3 sends message 1 now.
    let _ = control(&mut msi, allot(1));
    assert_eq!(pending(&msi, PENDING, 1).0, [2]);
    let short = programmed().with_32_bit_address();
    assert_eq!(pending(&short, PENDING - 4, 4).0, [8, 0, 0, 0]);
    let plain = Msi::new(4).unwrap().without_masking();
    assert!(pending(&plain, 0, 24).1.is_empty());
}

#[test]
fn an_address_is_a_multiple_of_four_and_as_wide_as_the_capability_says() {
    let mut msi = programmed();
    let _ = msi.write(ADDRESS, &[0xff; 8]);
    assert_eq!((msi.vector(0).address, read(&msi, UPPER_ADDRESS)), (!3, u32::MAX));
    let mut short = Msi::new(4).unwrap().with_32_bit_address();
    let _ = short.write(ADDRESS, &[0xff; 8]);
    let VectorConfig { address, data, .. } = short.vector(0);
    assert_eq!((address, data), (0xffff_fffc, 0xffff));
}

#[test]
fn a_register_that_is_left_out_takes_along_what_it_held() {
    let mut msi = programmed();
    let _ = msi.write(ADDRESS, &0x1_fee0_0000_u64.to_le_bytes());
    let _ = write(&mut msi, MASK, 0xf);
    assert_eq!(msi.clone().with_32_bit_address().vector(0).address, 0xfee0_0000);
    assert_eq!(maskings(&msi.without_masking()), [Masking::Unmasked; 4]);
}

#[test]
fn message_data_has_16_bits() {
    let mut msi = programmed();
    let _ = write(&mut msi, DATA, 0xffff_ffff);
    assert_eq!((read(&msi, DATA), msi.vector(3).data), (0xffff, 0xffff));
}

#[test]
fn every_write_is_reported_with_the_vectors_that_it_changes() {
    let mut msi = programmed();
    assert!(write(&mut msi, ADDRESS, 0xfee0_1000).eq(0..4));
    assert!(write(&mut msi, ADDRESS, 0xfee0_1000).is_nothing());
    assert!(write(&mut msi, DATA, 0x43).is_nothing(), "the low bits are the function's");
    assert!(write(&mut msi, DATA, 0x50).eq(0..4));
    assert!(msi.write(0, &[0xff, 0xff]).is_nothing());
    assert!(control(&mut msi, 0).eq(0..4));
}

#[test]
fn bits_that_no_function_has_are_dropped_from_a_state() {
    let mut msi = programmed().with_32_bit_address();
    let control = msi.save().message_control | 0xfe70;
    let state = MsiState { message_control: control, address: u64::MAX, data: 0x40, mask: u32::MAX };
    assert!(msi.restore(&state).unwrap().eq(0..4));
    let expected = MsiState { message_control: 0x0125, address: 0xffff_fffc, data: 0x40, mask: 0xf };
    assert_eq!(msi.save(), expected);
}

#[test]
fn a_state_that_is_not_this_functions_is_refused_and_changes_nothing() {
    let mut msi = programmed();
    let before = msi.clone();
    for other in [Msi::new(8).unwrap(), programmed().without_masking(), programmed().with_32_bit_address()] {
        let found = other.save().message_control;
        assert_eq!(msi.restore(&other.save()), Err(RestoreError { has: 0x01a5, found }));
        assert_eq!(msi, before);
    }
}

#[cfg(feature = "serde")]
#[test]
fn a_state_survives_serialization() {
    let state = programmed().save();
    let json = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<MsiState>(&json).unwrap(), state);
}

// Any accesses, against bytes.

/// The capability as bytes, those it has not left out.
#[derive(Clone, Debug)]
struct Model {
    registers: Vec<u8>,
    writable: Vec<u8>,
    log: u8,
    wide: bool,
    masking: bool,
}

impl Model {
    fn new(log: u8, wide: bool, masking: bool) -> Self {
        let mask = (u32::MAX >> (32 - (1 << log))).to_le_bytes();
        let mut registers = vec![5, 0, log << 1 | u8::from(wide) << 7, u8::from(masking), 0, 0, 0, 0, 0, 0];
        let mut writable = vec![0, 0, 0x71, 0, 0xfc, 0xff, 0xff, 0xff, 0xff, 0xff];
        if wide {
            registers.extend([0; 4]);
            writable.extend([0xff; 4]);
        }
        if masking {
            registers.extend([0; 10]);
            writable.extend([0, 0]);
            writable.extend(mask);
            writable.extend([0; 4]);
        }
        Self { registers, writable, log, wide, masking }
    }

    fn machine(&self) -> Msi {
        let msi = Msi::new(1 << self.log).unwrap();
        let msi = if self.wide { msi } else { msi.with_32_bit_address() };
        if self.masking { msi } else { msi.without_masking() }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (index, byte) in data.iter().enumerate() {
            let at = offset as u128 + index as u128;
            if at < self.registers.len() as u128 {
                let writable = self.writable[at as usize];
                let register = &mut self.registers[at as usize];
                *register = *register & !writable | byte & writable;
            }
        }
        if self.enabled_log() > self.log {
            self.registers[2] = self.registers[2] & !0x70 | self.log << 4;
        }
    }

    fn enabled_log(&self) -> u8 {
        self.registers[2] >> 4 & 7
    }

    fn number(&self, at: usize, size: usize) -> u64 {
        (0..size).map(|index| u64::from(self.registers[at + index]) << (8 * index)).sum()
    }

    fn config(&self, vector: u16) -> VectorConfig {
        let (address_size, data_at) = if self.wide { (8, 12) } else { (4, 8) };
        let allotted = 1_u32 << self.enabled_log();
        let message = u32::from(vector) % allotted;
        let mask = if self.masking { self.number(data_at + 4, 4) } else { 0 };
        let masking = match (self.registers[2] & 1, mask >> message & 1) {
            (0, _) => Masking::Disabled,
            (_, 0) => Masking::Unmasked,
            _ => Masking::Masked,
        };
        let data = self.number(data_at, 2) as u32 / allotted * allotted + message;
        VectorConfig { address: self.number(4, address_size), data, masking }
    }

    fn configs(&self) -> Vec<VectorConfig> {
        (0..1 << self.log).map(|vector| self.config(vector)).collect()
    }
}

fn model() -> impl Strategy<Value = Model> {
    (0..=5_u8, any::<bool>(), any::<bool>()).prop_map(|(log, wide, masking)| Model::new(log, wide, masking))
}

/// An access, or none: save and restore.
fn step() -> impl Strategy<Value = Option<(u64, Vec<u8>)>> {
    let offset = prop_oneof![8 => 0..26_u64, 1 => any::<u64>(), 1 => (u64::MAX - 8)..=u64::MAX];
    let byte = prop_oneof![Just(0), Just(0xff), any::<u8>()];
    let data = prop_oneof![vec(byte.clone(), 1), vec(byte.clone(), 2), vec(byte.clone(), 4), vec(byte, 0..30)];
    prop_oneof![9 => (offset, data).prop_map(Some), 1 => Just(None)]
}

proptest! {
    #[test]
    fn any_accesses_leave_what_their_bytes_say_and_report_what_changed(
        mut model in model(),
        steps in vec(step(), 1..60),
        pending: u32,
    ) {
        let mut msi = model.machine();
        for step in steps {
            let Some((offset, data)) = step else {
                let mut restored = model.machine();
                prop_assert!(restored.restore(&msi.save()).unwrap().eq(0..msi.vectors()));
                prop_assert_eq!(&restored, &msi);
                msi = restored;
                continue;
            };
            let before = model.configs();
            model.write(offset, &data);
            let changed = msi.write(offset, &data);

            let configs = (0..msi.vectors()).map(|vector| msi.vector(vector)).collect::<Vec<_>>();
            prop_assert_eq!(&configs, &model.configs());
            let mut expected = (0..).zip(before.iter().zip(&configs)).filter(|(_, (before, after))| before != after);
            let first = expected.next().map(|(vector, _)| vector);
            let last = expected.last().map(|(vector, _)| vector).or(first);
            let expected = first.zip(last).map_or(Changed::NOTHING, |(first, last)| Changed(first..last + 1));
            prop_assert_eq!(changed, expected);

            let mut registers = model.registers.clone();
            if model.masking {
                let allotted = 1_u32 << model.enabled_log();
                let vectors = (0..1_u32 << model.log).filter(|vector| pending >> vector & 1 != 0);
                let bits = vectors.fold(0_u32, |bits, vector| bits | 1 << (vector % allotted));
                let at = registers.len() - 4;
                registers[at..].copy_from_slice(&bits.to_le_bytes());
            }
            let expected = (0..data.len()).map(|index| {
                let at = usize::try_from(offset).ok().and_then(|offset| offset.checked_add(index));
                at.and_then(|at| registers.get(at).copied()).unwrap_or(0)
            });
            let mut read = vec![0x5a; data.len()];
            msi.read(offset, &mut read, |vector| pending >> vector & 1 != 0);
            prop_assert_eq!(read, expected.collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_state_of_any_content_is_refused_or_restored_to_what_can_be(
        model in model(),
        message_control: u16,
        address: u64,
        data: u16,
        mask: u32,
        fits: bool,
    ) {
        let mut msi = model.machine();
        let fixed = msi.save().message_control;
        let message_control = if fits { message_control & !0x18e | fixed } else { message_control };
        if msi.restore(&MsiState { message_control, address, data, mask }).is_ok() {
            let mut again = model.machine();
            let _ = again.restore(&msi.save()).unwrap();
            prop_assert_eq!(again.save(), msi.save());
            prop_assert!(msi.allotted() <= msi.vectors());
        } else {
            prop_assert!(!fits);
            prop_assert_eq!(msi, model.machine());
        }
    }
}
