//! Snapshots: any state, as a file may hold it, is refused or gives a part that keeps its rules. What was restored, saved
//! and restored again is the same, and accesses afterwards are as harmless as ever.

use crate::{Data, steps};
use arbitrary::{Arbitrary, Result, Unstructured};
use irqfabric::chip::ioapic::{Ioapic, IoapicState, PinState, Version};
use irqfabric::chip::lapic::{Lapic, LapicState};
use irqfabric::line::Level;
use irqfabric::memory::{Memory, OutsideMemory};
use irqfabric::msg::{Message, RequesterId};
use irqfabric::pci::msi::{Msi, MsiState};
use irqfabric::pci::msix::{EntryState, Location, Msix, MsixState};
use irqfabric::remap::vtd::{
    CommandState, EventState, Faults, FaultsState, QueueState, Refused, UnderwayState, Vtd, VtdState,
};

/// An access to whatever was restored.
#[derive(Arbitrary, Debug)]
struct Access {
    write: bool,
    offset: u16,
    data: Data,
    event: u8,
}

/// A target.
pub fn run(input: &[u8]) {
    // Too few bytes are no input.
    _ = restore(Unstructured::new(input));
}

fn restore(mut input: Unstructured) -> Result<()> {
    match input.int_in_range(0..=4)? {
        0 => ioapic(input),
        1 => lapic(input),
        2 => msi(input),
        3 => msix(input),
        _ => vtd(input),
    }
}

fn ioapic(mut input: Unstructured) -> Result<()> {
    let version = if input.arbitrary()? { Version::V11 } else { Version::V20 };
    let pins: usize = input.int_in_range(0..=130)?;
    let pin = |input: &mut Unstructured| {
        let level = if input.arbitrary()? { Level::High } else { Level::Low };
        Ok(PinState { entry: input.arbitrary()?, level, edge: input.arbitrary()? })
    };
    let state = IoapicState {
        version,
        requester: RequesterId(input.arbitrary()?),
        id: input.arbitrary()?,
        select: input.arbitrary()?,
        pins: (0..pins).map(|_| pin(&mut input)).collect::<Result<_>>()?,
    };
    let restored = Ioapic::restore(&state);
    assert_eq!(restored.is_ok(), state.id < 16 && (1..=120).contains(&pins));
    let Ok(mut chip) = restored else { return Ok(()) };
    crate::ioapic::check(&chip, &chip.save());
    for Access { write, offset, mut data, event } in steps(input) {
        if write {
            _ = chip.write(offset.into(), data.as_slice());
            _ = chip.set(event, if offset & 1 == 0 { Level::High } else { Level::Low });
        } else {
            chip.read(offset.into(), &mut data.bytes);
            _ = chip.end_of_interrupt(event);
        }
        crate::ioapic::check(&chip, &chip.save());
    }
    Ok(())
}

fn lapic(mut input: Unstructured) -> Result<()> {
    let id = input.arbitrary()?;
    let state = LapicState {
        id,
        apic_base: input.arbitrary()?,
        tpr: input.arbitrary()?,
        ldr: input.arbitrary()?,
        dfr: input.arbitrary()?,
        svr: input.arbitrary()?,
        isr: input.arbitrary()?,
        tmr: input.arbitrary()?,
        irr: input.arbitrary()?,
        esr: input.arbitrary()?,
        errors: input.arbitrary()?,
        icr: input.arbitrary()?,
        lvt: input.arbitrary()?,
        initial_count: input.arbitrary()?,
        divide_configuration: input.arbitrary()?,
        nmi: input.arbitrary()?,
        smi: input.arbitrary()?,
        init: input.arbitrary()?,
        start_up: input.arbitrary()?,
        waiting_for_start_up: input.arbitrary()?,
    };
    // Most bases are reserved: often one that is not.
    let modes = [0xfee0_0000, 0xfee0_0800, 0xfee0_0c00, 0xfee0_0900];
    let state = if input.arbitrary()? { LapicState { apic_base: *input.choose(&modes)?, ..state } } else { state };
    let reserved = |words: [u64; 4]| [words[0] & !0xffff, words[1], words[2], words[3]];
    let state = if input.arbitrary()? {
        LapicState { irr: reserved(state.irr), isr: reserved(state.isr), ..state }
    } else {
        state
    };
    let mut lapic = Lapic::new(id);
    if lapic.restore(&state).is_err() {
        assert_eq!(lapic, Lapic::new(id), "what is refused changes nothing");
        return Ok(());
    }
    crate::lapic::check(&mut lapic);
    for Access { write, offset, mut data, event } in steps(input) {
        let msr = 0x800 + u32::from(event);
        if write {
            _ = lapic.write(offset.into(), data.as_slice());
            _ = lapic.write_msr(msr, u64::from(offset));
        } else {
            lapic.read(offset.into(), &mut data.bytes);
            _ = lapic.read_msr(msr);
            _ = lapic.acknowledge();
        }
        crate::lapic::check(&mut lapic);
    }
    Ok(())
}

fn msi(mut input: Unstructured) -> Result<()> {
    let log = input.int_in_range(0..=5u8)?;
    let mut msi = Msi::new(1 << log).expect("a power of two");
    if input.arbitrary()? {
        msi = msi.with_32_bit_address();
    }
    if input.arbitrary()? {
        msi = msi.without_masking();
    }
    let own = msi.save().message_control;
    let flags: u16 = input.arbitrary()?;
    let state = MsiState {
        // Often what can be: the function's own, enabled or not, however much is allotted.
        message_control: if input.arbitrary()? { own | flags & 0x71 } else { flags },
        address: input.arbitrary()?,
        data: input.arbitrary()?,
        mask: input.arbitrary()?,
    };
    let before = msi.clone();
    if msi.restore(&state).is_err() {
        assert_eq!(msi, before);
        return Ok(());
    }
    for Access { write, offset, mut data, event: _ } in steps(input) {
        if write {
            _ = msi.write(offset.into(), data.as_slice()).count();
        } else {
            msi.read(offset.into(), &mut data.bytes, |vector| vector & 1 == 0);
        }
        assert!(msi.allotted() <= msi.vectors() && msi.vectors() == 1 << log);
        let mut other = before.clone();
        assert!(other.restore(&msi.save()).is_ok());
        assert_eq!(other, msi, "a snapshot is the function");
    }
    Ok(())
}

fn msix(mut input: Unstructured) -> Result<()> {
    let vectors = input.int_in_range(1..=40u16)?;
    let mut msix = Msix::new(vectors, 1).expect("a layout that fits");
    let before = msix.clone();
    let own = msix.save();
    let sane: [bool; 3] = input.arbitrary()?;
    let entries = if sane[0] { vectors.into() } else { input.int_in_range(0..=50)? };
    let entry = |input: &mut Unstructured| {
        Ok(EntryState { address: input.arbitrary()?, data: input.arbitrary()?, vector_control: input.arbitrary()? })
    };
    let control: u16 = input.arbitrary()?;
    let state = MsixState {
        message_control: if sane[1] { own.message_control | control & 0xc000 } else { control },
        table_at: if sane[2] { own.table_at } else { Location { bar: input.arbitrary()?, offset: input.arbitrary()? } },
        pba_at: own.pba_at,
        table: (0..entries).map(|_| entry(&mut input)).collect::<Result<_>>()?,
    };
    if msix.restore(&state).is_err() {
        assert_eq!(msix, before);
        return Ok(());
    }
    for Access { write, offset, mut data, event } in steps(input) {
        if write {
            _ = msix.write(event.into(), data.as_slice()).count();
            _ = msix.write_bar(1, offset.into(), data.as_slice()).count();
        } else {
            msix.read_bar(1, offset.into(), &mut data.bytes, |vector| vector & 1 == 0);
        }
        assert_eq!(msix.vectors(), vectors);
        for vector in 0..vectors {
            assert_eq!(msix.vector(vector).address & 3, 0);
        }
        let mut other = before.clone();
        assert!(other.restore(&msix.save()).is_ok());
        assert_eq!(other, msix, "a snapshot is the function");
    }
    Ok(())
}

/// 64 KiB that repeat themselves for ever, so that whatever a state points to is something.
struct Echo(Vec<u8>);

impl Memory for Echo {
    fn read(&self, address: u64, data: &mut [u8]) -> std::result::Result<(), OutsideMemory> {
        if address >> 63 != 0 {
            return Err(OutsideMemory { address, length: data.len() });
        }
        for (place, byte) in (address..).zip(data) {
            *byte = self.0[place as usize % self.0.len()];
        }
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> std::result::Result<(), OutsideMemory> {
        Ok(())
    }
}

fn vtd(mut input: Unstructured) -> Result<()> {
    let event = |input: &mut Unstructured| {
        Ok(EventState { control: input.arbitrary()?, data: input.arbitrary()?, address: input.arbitrary()? })
    };
    let command = |input: &mut Unstructured| {
        Ok(CommandState { global_status: input.arbitrary()?, remapping_table: input.arbitrary()? })
    };
    let offset = |input: &mut Unstructured| {
        let offset: u32 = input.arbitrary()?;
        // Often one that is.
        Ok(if input.ratio(7u8, 8)? { offset & 0x7_fff0 } else { offset })
    };
    let state = VtdState {
        global_status: input.arbitrary()?,
        root_table: input.arbitrary()?,
        remapping_table: input.arbitrary()?,
        remapping_table_in_force: input.arbitrary()?,
        command: if input.arbitrary()? { Some(command(&mut input)?) } else { None },
        queue: QueueState {
            address: input.arbitrary()?,
            head: offset(&mut input)?,
            tail: offset(&mut input)?,
            completion_status: input.arbitrary()?,
            event: event(&mut input)?,
        },
        underway: match input.int_in_range(0..=2)? {
            0 => None,
            1 => Some(UnderwayState::Command(command(&mut input)?)),
            _ => Some(UnderwayState::Queue { head: offset(&mut input)?, interrupt: input.arbitrary()? }),
        },
    };
    let number = |input: &mut Unstructured| Ok(input.arbitrary::<u8>()? & if input.ratio(7u8, 8)? { 7 } else { 0xff });
    let status: u32 = input.arbitrary()?;
    let faults_state = FaultsState {
        status: status & !0xff00 | u32::from(number(&mut input)?) << 8,
        records: input.arbitrary()?,
        next: number(&mut input)?,
        event: event(&mut input)?,
    };
    let (Ok(mut vtd), Ok(mut faults)) = (Vtd::restore(&state), Faults::restore(&faults_state)) else { return Ok(()) };
    let memory = Echo(input.bytes(input.len().min(256))?.iter().copied().chain([0; 16]).collect());
    for Access { write, offset, mut data, event } in steps(input) {
        assert_eq!(Vtd::restore(&vtd.save()).as_ref(), Ok(&vtd), "a snapshot is the unit");
        assert_eq!(Faults::restore(&faults.save()).as_ref(), Ok(&faults), "a snapshot is the faults");
        if write {
            vtd.write(&mut faults, offset.into(), data.as_slice());
        } else {
            vtd.read(&faults, offset.into(), &mut data.bytes);
        }
        for _ in 0..event {
            if vtd.next(&mut faults, &memory).is_none() {
                break;
            }
        }
        let address = 0xfee0_0010 | u64::from(offset) << 4;
        let message = Message { address, data: event.into(), requester: RequesterId(offset) };
        if let Err(Refused::Fault(fault)) = vtd.tables().translate(&message, &memory) {
            _ = faults.record(&fault);
        }
        let mut status = [0; 4];
        vtd.read(&faults, 0x34, &mut status);
        let mut pending = [0; 128];
        vtd.read(&faults, 0x220, &mut pending);
        let any = pending.chunks_exact(16).any(|record| record[15] & 0x80 != 0);
        assert_eq!(status[0] & 2 != 0, any);
    }
    Ok(())
}
