use super::*;
use crate::msg::{Message, RequesterId};
use proptest::collection::vec;
use proptest::prelude::*;
use std::cell::RefCell;

const MESSAGE_CONTROL: u64 = 2;
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;

const ADDRESS: u64 = 0x0;
const UPPER_ADDRESS: u64 = 0x4;
const DATA: u64 = 0x8;
const VECTOR_CONTROL: u64 = 0xc;

fn control(msix: &mut Msix, value: u16) -> Changed {
    msix.write(MESSAGE_CONTROL, &value.to_le_bytes())
}

fn write(msix: &mut Msix, vector: u64, register: u64, value: u32) -> Changed {
    msix.write_table(vector * 16 + register, &value.to_le_bytes())
}

fn read(msix: &Msix, vector: u64, register: u64) -> u32 {
    let mut data = [0xff; 4];
    msix.read_table(vector * 16 + register, &mut data);
    u32::from_le_bytes(data)
}

fn capability(msix: &Msix) -> [u8; 12] {
    let mut data = [0xff; 12];
    msix.read(0, &mut data);
    data
}

/// Three vectors, enabled, vector `v` at data 0x30 + `v`, none masked.
fn programmed() -> Msix {
    let mut msix = Msix::new(3, 1).unwrap();
    for (vector, data) in (0..3).zip(0x30..) {
        let _ = write(&mut msix, vector, ADDRESS, 0xfee0_0000);
        let _ = write(&mut msix, vector, DATA, data);
        let _ = write(&mut msix, vector, VECTOR_CONTROL, 0);
    }
    let _ = control(&mut msix, ENABLE);
    msix
}

fn maskings(msix: &Msix) -> Vec<Masking> {
    (0..msix.vectors()).map(|vector| msix.vector(vector).masking).collect()
}

#[test]
fn after_reset_the_function_is_disabled_and_every_vector_masked() {
    let msix = Msix::new(3, 1).unwrap();
    assert!(!msix.is_enabled());
    for vector in 0..3 {
        assert_eq!(msix.vector(vector), VectorConfig { address: 0, data: 0, masking: Masking::Disabled });
        assert_eq!(msix.vector(vector).message(RequesterId::default()), None);
        assert_eq!(read(&msix, vector.into(), VECTOR_CONTROL), 1);
    }
    let mut used = programmed();
    assert!(used.reset().eq(0..3));
    assert_eq!(used, msix);
}

#[test]
fn the_capability_tells_the_table_size_and_where_table_and_pba_lie() {
    let (table_at, pba_at) = (Location { bar: 2, offset: 0x2000 }, Location { bar: 4, offset: 0x0ff8 });
    let msix = Msix::with_layout(2048, table_at, pba_at).unwrap().with_next(0x60);
    assert_eq!(capability(&msix), [0x11, 0x60, 0xff, 0x07, 2, 0x20, 0, 0, 0xfc, 0x0f, 0, 0]);
    assert_eq!(msix.size(), capability(&msix).len());
}

#[test]
fn enable_and_function_mask_are_all_that_can_be_written_of_the_capability() {
    let mut msix = Msix::new(3, 1).unwrap();
    let before = capability(&msix);
    let _ = msix.write(0, &[0xff; 16]);
    let mut expected = before;
    expected[3] = 0xc0;
    assert_eq!(capability(&msix), expected);
    let _ = msix.write(0, &[0; 16]);
    assert_eq!(capability(&msix), before);
}

#[test]
fn accesses_beyond_the_capability_read_zero_and_change_nothing() {
    let mut msix = programmed();
    let before = msix.clone();
    for offset in [10, 12, 0x100, u64::MAX - 1, u64::MAX] {
        assert!(msix.write(offset, &[0xff; 8]).is_nothing());
        let mut data = [0xff; 8];
        msix.read(offset, &mut data);
        assert_eq!(data[2..], [0; 6]);
    }
    assert_eq!(msix, before);
}

#[test]
fn a_layout_that_the_capability_cannot_express_is_refused() {
    let at = |bar, offset| Location { bar, offset };
    for vectors in [0, 2049, u16::MAX] {
        assert_eq!(Msix::new(vectors, 0), Err(LayoutError::Vectors(vectors)));
    }
    assert!(Msix::new(1, 5).is_ok());
    assert_eq!(Msix::new(1, 6), Err(LayoutError::Bar(6)));
    assert_eq!(Msix::with_layout(1, at(0, 0), at(7, 0)), Err(LayoutError::Bar(7)));
    assert_eq!(Msix::with_layout(1, at(0, 4), at(1, 0)), Err(LayoutError::Offset(4)));
    // Three vectors take 0x30 bytes, their pending bits 8.
    for (table, pba) in [(0, 0), (0, 0x28), (8, 0), (8, 0x30)] {
        let overlapping = Msix::with_layout(3, at(0, table), at(0, pba));
        assert_eq!(overlapping.is_err(), !matches!((table, pba), (8, 0)), "{table:#x} {pba:#x}");
    }
    assert!(Msix::with_layout(3, at(0, 0), at(0, 0x30)).is_ok());
    assert!(Msix::with_layout(3, at(0, 0xffff_fff8), at(0, 0xffff_ff00)).is_ok());
    assert_eq!(LayoutError::Vectors(0).to_string(), "a function has 1 to 2048 MSI-X vectors, not 0");
}

#[test]
fn a_bar_is_large_enough_for_what_lies_in_it() {
    assert_eq!(Msix::new(3, 1).unwrap().bar_size(1), 0x2000);
    assert_eq!(Msix::new(2048, 1).unwrap().bar_size(1), 0x10000);
    assert_eq!(Msix::new(2048, 1).unwrap().bar_size(0), 0);
    let apart = Msix::with_layout(3, Location { bar: 0, offset: 0x40 }, Location { bar: 1, offset: 0 }).unwrap();
    assert_eq!((apart.bar_size(0), apart.bar_size(1)), (0x80, 8));
}

#[test]
fn a_vector_is_masked_by_its_own_bit_and_by_the_function_mask() {
    use Masking::{Disabled, Masked, Unmasked};
    let mut msix = programmed();
    assert!(write(&mut msix, 1, VECTOR_CONTROL, 1).eq([1]));
    assert_eq!(maskings(&msix), [Unmasked, Masked, Unmasked]);
    assert!(control(&mut msix, ENABLE | FUNCTION_MASK).eq(0..3));
    assert_eq!(maskings(&msix), [Masked; 3]);
    assert!(write(&mut msix, 1, VECTOR_CONTROL, 0).is_nothing(), "the function mask still holds it");
    assert!(msix.is_enabled());
    assert!(control(&mut msix, FUNCTION_MASK).eq(0..3));
    assert!(!msix.is_enabled());
    assert_eq!(maskings(&msix), [Disabled; 3]);
    assert!(control(&mut msix, 0).is_nothing(), "a function mask of a disabled function");
    assert!(control(&mut msix, ENABLE).eq(0..3));
    assert_eq!(maskings(&msix), [Unmasked; 3]);
}

#[test]
fn a_function_mask_of_2048_vectors_is_one_effect() {
    let mut msix = Msix::new(MAX_VECTORS, 0).unwrap();
    let _ = control(&mut msix, ENABLE);
    let changed = control(&mut msix, ENABLE | FUNCTION_MASK);
    assert_eq!((changed.len(), changed.last()), (2048, Some(2047)));
}

#[test]
fn a_write_to_an_unmasked_entry_takes_effect_at_once() {
    let mut msix = programmed();
    assert!(write(&mut msix, 1, DATA, 0x77).eq([1]));
    let config = VectorConfig { address: 0xfee0_0000, data: 0x77, masking: Masking::Unmasked };
    assert_eq!(msix.vector(1), config);
    assert!(write(&mut msix, 1, DATA, 0x77).is_nothing(), "the same again");
    let requester = RequesterId::new(0, 2, 0);
    let message = Message { address: 0xfee0_0000, data: 0x77, requester };
    assert_eq!(config.message(requester), Some(message));
}

#[test]
fn an_address_has_64_bits_of_which_the_lowest_two_are_zero() {
    let mut msix = programmed();
    let _ = msix.write_table(16, &u64::MAX.to_le_bytes());
    assert_eq!(msix.vector(1).address, !3);
    let _ = write(&mut msix, 1, UPPER_ADDRESS, 0x1234);
    assert_eq!(msix.vector(1).address, 0x1234_ffff_fffc);
}

#[test]
fn reserved_bits_of_vector_control_are_zero() {
    let mut msix = programmed();
    assert!(write(&mut msix, 0, VECTOR_CONTROL, u32::MAX - 1).is_nothing());
    assert!(write(&mut msix, 0, VECTOR_CONTROL, u32::MAX).eq([0]));
    assert_eq!(read(&msix, 0, VECTOR_CONTROL), 1);
}

#[test]
fn half_entries_and_single_bytes_are_merged() {
    let mut msix = programmed();
    assert!(msix.write_table(16 + DATA + 1, &[0xab]).eq([1]));
    assert!(msix.write_table(16 + ADDRESS + 3, &[0x12, 0x34]).eq([1]));
    let VectorConfig { address, data, .. } = msix.vector(1);
    assert_eq!((address, data), (0x34_12e0_0000, 0xab31));
}

#[test]
fn an_access_across_entries_reaches_both() {
    let mut msix = programmed();
    let bytes = [1, 0, 0, 0, 0xf0, 0xde, 0xbc, 0x9a];
    assert!(msix.write_table(VECTOR_CONTROL, &bytes).eq([0, 1]));
    assert_eq!(msix.vector(0).masking, Masking::Masked);
    assert_eq!(msix.vector(1).address, 0x9abc_def0);
    let mut data = [0; 8];
    msix.read_table(VECTOR_CONTROL, &mut data);
    assert_eq!(data, bytes);
}

#[test]
fn vectors_beyond_the_table_read_zero_and_ignore_writes() {
    let mut msix = programmed();
    let before = msix.clone();
    for offset in [0x30, 0x34, 0x8000, u64::MAX - 7, u64::MAX - 3, u64::MAX] {
        assert!(msix.write_table(offset, &[0xff; 8]).is_nothing());
        let mut data = [0xff; 8];
        msix.read_table(offset, &mut data);
        assert_eq!(data, [0; 8]);
    }
    assert_eq!(msix, before);
    assert_eq!(msix.vector(3), VectorConfig::NONE);
    assert!(msix.write_table(0x28, &[0xff; 0x1000]).eq([2]), "what falls into the last entry counts");
}

#[test]
fn the_pending_bits_are_asked_for_and_only_those_that_are_read() {
    let msix = Msix::new(70, 0).unwrap();
    let read_pba = |offset, size| {
        let asked = RefCell::new(Vec::new());
        let mut data = vec![0xff; size];
        msix.read_pba(offset, &mut data, |vector| {
            asked.borrow_mut().push(vector);
            [0, 9, 63, 64, 69].contains(&vector)
        });
        (data, asked.into_inner())
    };
    assert_eq!(read_pba(0, 8), (vec![1, 2, 0, 0, 0, 0, 0, 0x80], (0..64).collect()));
    assert_eq!(read_pba(8, 8), (vec![0x21, 0, 0, 0, 0, 0, 0, 0], (64..70).collect()));
    assert_eq!(read_pba(1, 1), (vec![2], (8..16).collect()));
    for offset in [9, 16, 0x1fff, 0x2000, u64::MAX - 3, u64::MAX] {
        assert_eq!(read_pba(offset, 8), (vec![0; 8], vec![]));
    }
}

#[test]
fn a_bar_access_reaches_what_lies_there_and_nothing_else() {
    // The PBA lies right in front of the table.
    let (table_at, pba_at) = (Location { bar: 1, offset: 0x18 }, Location { bar: 1, offset: 0x10 });
    let mut msix = Msix::with_layout(3, table_at, pba_at).unwrap();
    assert!(msix.write_bar(0, 0, &[0xff; 0x100]).is_nothing(), "another BAR");
    assert!(msix.write_bar(1, 0, &[0xff; 0x18]).is_nothing(), "the PBA is read-only");
    assert!(msix.write_bar(1, 0x48, &[0xff; 0x18]).is_nothing(), "behind the table");
    assert!(msix.write_bar(1, 0x14, &[0xf0; 8]).eq([0]));
    assert_eq!(msix.vector(0).address, 0xf0f0_f0f0);
    let mut data = [0xff; 0x14];
    msix.read_bar(1, 0x0c, &mut data, |vector| vector == 1);
    assert_eq!(data, [0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0xf0, 0xf0, 0xf0, 0xf0, 0, 0, 0, 0]);
    msix.read_bar(2, 0x0c, &mut data, |_| true);
    assert_eq!(data, [0; 0x14]);
}

#[test]
fn bits_that_no_function_has_are_dropped_from_a_state() {
    let mut msix = programmed();
    let mut state = msix.save();
    state.message_control |= 0x3800;
    state.table[1] = EntryState { address: u64::MAX, data: u32::MAX, vector_control: u32::MAX };
    assert!(msix.restore(&state).unwrap().eq(0..3));
    assert_eq!(msix.save().message_control, ENABLE | 2);
    assert_eq!(msix.save().table[1], EntryState { address: !3, data: u32::MAX, vector_control: 1 });
}

#[test]
fn a_state_that_is_not_this_functions_is_refused_and_changes_nothing() {
    let mut msix = programmed();
    let (before, state) = (msix.clone(), programmed().save());
    let refused = [
        (MsixState { table: vec![], ..state.clone() }, RestoreError::Vectors { has: 3, found: 0 }),
        (Msix::new(4, 1).unwrap().save(), RestoreError::Vectors { has: 3, found: 4 }),
        (MsixState { message_control: 0x8003, ..state.clone() }, RestoreError::MessageControl(0x8003)),
        (MsixState { pba_at: Location { bar: 1, offset: 0 }, ..state.clone() }, RestoreError::Layout),
        (Msix::new(3, 2).unwrap().save(), RestoreError::Layout),
    ];
    for (state, why) in refused {
        assert_eq!(msix.restore(&state), Err(why));
        assert_eq!(msix, before);
    }
}

#[cfg(feature = "serde")]
#[test]
fn a_state_survives_serialization() {
    let state = programmed().save();
    let json = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<MsixState>(&json).unwrap(), state);
}

// Any accesses, against bytes.

const VECTORS: u16 = 5;

/// The registers as bytes, and which of their bits can be written.
struct Model {
    capability: Vec<u8>,
    table: Vec<u8>,
}

impl Model {
    const CAPABILITY_WRITABLE: [u8; 12] = [0, 0, 0, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0];
    const ENTRY_WRITABLE: [u8; 16] = [0xfc, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0, 0, 0];

    fn new() -> Self {
        let entry = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
        Self {
            capability: vec![0x11, 0, VECTORS as u8 - 1, 0, 1, 0, 0, 0, 1, 0x10, 0, 0],
            table: entry.repeat(VECTORS.into()),
        }
    }

    fn write(registers: &mut [u8], writable: &[u8], offset: u64, data: &[u8]) {
        for (index, byte) in data.iter().enumerate() {
            let at = offset as u128 + index as u128;
            if at < registers.len() as u128 {
                let writable = writable[at as usize % writable.len()];
                registers[at as usize] = registers[at as usize] & !writable | byte & writable;
            }
        }
    }

    fn config(&self, vector: u16) -> VectorConfig {
        let entry: [u8; 16] = self.table[usize::from(vector) * 16..][..16].try_into().unwrap();
        let entry = u128::from_le_bytes(entry);
        let masking = match (self.capability[3] & 0x80, self.capability[3] & 0x40, entry >> 96 & 1) {
            (0, ..) => Masking::Disabled,
            (_, 0, 0) => Masking::Unmasked,
            _ => Masking::Masked,
        };
        VectorConfig { address: entry as u64, data: (entry >> 64) as u32, masking }
    }

    fn configs(&self) -> Vec<VectorConfig> {
        (0..VECTORS).map(|vector| self.config(vector)).collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Capability { offset: u64, data: Vec<u8> },
    Table { offset: u64, data: Vec<u8> },
    Bar { offset: u64, data: Vec<u8> },
    Restore,
}

fn access(end: u64) -> impl Strategy<Value = (u64, Vec<u8>)> {
    let offset = prop_oneof![8 => 0..end, 1 => any::<u64>(), 1 => (u64::MAX - 8)..=u64::MAX];
    let byte = prop_oneof![Just(0), Just(0xff), any::<u8>()];
    let data = prop_oneof![
        vec(byte.clone(), 1),
        vec(byte.clone(), 2),
        vec(byte.clone(), 4),
        vec(byte.clone(), 8),
        vec(byte, 0..40)
    ];
    (offset, data)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => access(14).prop_map(|(offset, data)| Step::Capability { offset, data }),
        8 => access(0x58).prop_map(|(offset, data)| Step::Table { offset, data }),
        2 => access(0x1010).prop_map(|(offset, data)| Step::Bar { offset, data }),
        1 => Just(Step::Restore),
    ]
}

fn check(msix: &Msix, model: &Model, offset: u64, size: usize) {
    let byte = |registers: &[u8], index: usize| {
        let at = usize::try_from(offset).ok().and_then(|offset| offset.checked_add(index));
        at.and_then(|at| registers.get(at).copied()).unwrap_or(0)
    };
    let expected = |registers: &[u8]| (0..size).map(|index| byte(registers, index)).collect::<Vec<_>>();
    let mut data = vec![0x5a; size];
    msix.read(offset, &mut data);
    assert_eq!(data, expected(&model.capability));
    msix.read_table(offset, &mut data);
    assert_eq!(data, expected(&model.table));
    let mut bar = model.table.clone();
    bar.resize(0x1000, 0);
    bar.extend([0b10110, 0, 0, 0, 0, 0, 0, 0]);
    msix.read_bar(1, offset, &mut data, |vector| [1, 2, 4].contains(&vector));
    assert_eq!(data, expected(&bar));
    let configs = (0..VECTORS).map(|vector| msix.vector(vector)).collect::<Vec<_>>();
    assert_eq!(configs, model.configs());
}

proptest! {
    #[test]
    fn any_accesses_leave_what_their_bytes_say_and_report_what_changed(steps in vec(step(), 1..60)) {
        let (mut msix, mut model) = (Msix::new(VECTORS, 1).unwrap(), Model::new());
        for step in steps {
            let before = model.configs();
            let (changed, offset, size) = match step {
                Step::Capability { offset, data } => {
                    Model::write(&mut model.capability, &Model::CAPABILITY_WRITABLE, offset, &data);
                    (msix.write(offset, &data), offset, data.len())
                }
                Step::Table { offset, data } => {
                    Model::write(&mut model.table, &Model::ENTRY_WRITABLE, offset, &data);
                    (msix.write_table(offset, &data), offset, data.len())
                }
                Step::Bar { offset, data } => {
                    Model::write(&mut model.table, &Model::ENTRY_WRITABLE, offset, &data);
                    (msix.write_bar(1, offset, &data), offset, data.len())
                }
                Step::Restore => {
                    let mut restored = Msix::new(VECTORS, 1).unwrap();
                    prop_assert!(restored.restore(&msix.save()).unwrap().eq(0..VECTORS));
                    prop_assert_eq!(&restored, &msix);
                    msix = restored;
                    continue;
                }
            };
            check(&msix, &model, offset, size);
            let after = model.configs();
            let differing = (0..).zip(before.iter().zip(&after)).filter(|(_, (before, after))| before != after);
            let differing = differing.map(|(vector, _)| vector).collect::<Vec<u16>>();
            if differing.is_empty() {
                prop_assert!(changed.is_nothing() || matches!(changed.len(), 5), "{changed:?}");
            }
            let changed = changed.collect::<Vec<_>>();
            prop_assert!(differing.iter().all(|vector| changed.contains(vector)), "{changed:?}, not {differing:?}");
            prop_assert!(changed.iter().all(|vector| *vector < VECTORS));
        }
    }

    #[test]
    fn a_state_of_any_content_is_refused_or_restored_to_what_can_be(
        message_control: u16,
        entries in vec((any::<u64>(), any::<u32>(), any::<u32>()), 3..6),
    ) {
        let mut msix = Msix::new(VECTORS, 1).unwrap();
        let entry = |(address, data, vector_control)| EntryState { address, data, vector_control };
        let table = entries.into_iter().map(entry).collect();
        let message_control = if message_control & 1 == 0 { message_control & 0xf800 | 4 } else { message_control };
        let state = MsixState { message_control, table, ..msix.save() };
        if msix.restore(&state).is_ok() {
            let saved = msix.save();
            let mut again = Msix::new(VECTORS, 1).unwrap();
            let _ = again.restore(&saved).unwrap();
            prop_assert_eq!(again.save(), saved);
        } else {
            prop_assert_eq!(msix, Msix::new(VECTORS, 1).unwrap());
        }
    }
}
