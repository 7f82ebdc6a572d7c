//! Whatever a guest does: any steps in any order.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Read { offset: u64, size: usize },
    Write { offset: u64, data: Vec<u8> },
    ReadMsr(u32),
    WriteMsr { msr: u32, value: u64 },
    Accept(Interrupt),
    AcceptStartUp(u8),
    Acknowledge,
    EndOfInterrupt,
    Take,
}

fn interrupts() -> impl Strategy<Value = Interrupt> {
    let modes = prop_oneof![
        12 => Just(DeliveryMode::Fixed),
        2 => Just(DeliveryMode::LowestPriority),
        3 => (0..8_u8).prop_filter_map("reserved", DeliveryMode::from_bits),
    ];
    let vectors = prop_oneof![Just(0x31), Just(0x41), 0x30..0x50_u8, any::<u8>()];
    (modes, vectors, any::<bool>()).prop_map(|(delivery_mode, vector, level)| Interrupt {
        delivery_mode,
        vector,
        trigger: if level { Trigger::Level } else { Trigger::Edge },
        ..Interrupt::default()
    })
}

fn steps() -> impl Strategy<Value = Step> {
    let offsets = || prop_oneof![(0..0x40_u64).prop_map(|number| number << 4), 0..0x410_u64, any::<u64>()];
    let bytes = prop_oneof![any::<u32>().prop_map(|value| value.to_le_bytes().to_vec()), vec(any::<u8>(), 0..20)];
    let msrs = || prop_oneof![0x800..0x840_u32, 0x7ff..0x901_u32, Just(IA32_APIC_BASE), any::<u32>()];
    let values = prop_oneof![0..0x400_u64, any::<u32>().prop_map(u64::from), any::<u64>()];
    let bases = prop_oneof![Just(0), Just(EN), Just(EN | EXTD), Just(EXTD), any::<u64>()];
    prop_oneof![
        2 => (offsets(), 0..20_usize).prop_map(|(offset, size)| Step::Read { offset, size }),
        4 => (offsets(), bytes).prop_map(|(offset, data)| Step::Write { offset, data }),
        2 => msrs().prop_map(Step::ReadMsr),
        4 => (msrs(), values).prop_map(|(msr, value)| Step::WriteMsr { msr, value }),
        1 => bases.prop_map(|bits| Step::WriteMsr { msr: IA32_APIC_BASE, value: PAGE | bits }),
        2 => Just(Step::Write { offset: SVR, data: vec![0xff, 1, 0, 0] }),
        1 => Just(Step::WriteMsr { msr: 0x80f, value: 0x1ff }),
        2 => Just(Step::Write { offset: TPR, data: vec![0; 4] }),
        12 => interrupts().prop_map(Step::Accept),
        1 => any::<u8>().prop_map(Step::AcceptStartUp),
        8 => Just(Step::Acknowledge),
        6 => Just(Step::EndOfInterrupt),
        1 => Just(Step::Take),
    ]
}

/// All that a step can tell its caller.
#[derive(Debug, PartialEq)]
enum Answer {
    Read(Vec<u8>),
    Effect(Option<Effect>),
    Value(Result<u64, GeneralProtection>),
    Written(Result<Option<Effect>, GeneralProtection>),
    Accepted(Acceptance),
    Vector(Option<u8>),
    Taken([bool; 3], Option<u8>),
}

impl Step {
    fn perform(&self, lapic: &mut Lapic) -> Answer {
        match self {
            Self::Read { offset, size } => {
                let mut data = vec![0xee; *size];
                lapic.read(*offset, &mut data);
                Answer::Read(data)
            }
            Self::Write { offset, data } => Answer::Effect(lapic.write(*offset, data)),
            Self::ReadMsr(msr) => Answer::Value(lapic.read_msr(*msr)),
            Self::WriteMsr { msr, value } => Answer::Written(lapic.write_msr(*msr, *value)),
            Self::Accept(interrupt) => Answer::Accepted(lapic.accept(interrupt)),
            Self::AcceptStartUp(vector) => Answer::Accepted(lapic.accept_start_up(*vector)),
            Self::Acknowledge => Answer::Vector(lapic.acknowledge()),
            Self::EndOfInterrupt if lapic.mode() == Mode::X2apic => Answer::Written(lapic.write_msr(0x80b, 0)),
            Self::EndOfInterrupt => Answer::Effect(lapic.write(EOI, &[0; 4])),
            Self::Take => {
                let taken = [lapic.take_nmi(), lapic.take_smi(), lapic.take_init()];
                Answer::Taken(taken, lapic.take_start_up())
            }
        }
    }
}

fn highest_of(words: [u64; 4]) -> Option<u8> {
    (0..=255).rev().find(|&vector: &u8| words[usize::from(vector >> 6)] >> (vector & 63) & 1 != 0)
}

/// What holds whatever was done.
fn check_state(lapic: &Lapic) {
    let state = lapic.save();
    assert_eq!((state.irr[0] | state.isr[0] | state.tmr[0]) & 0xffff, 0, "a reserved vector");
    let class = (state.tpr >> 4).max(highest_of(state.isr).unwrap_or(0) >> 4);
    assert_eq!(lapic.processor_priority() >> 4, class);
    assert_eq!(lapic.pending(), highest_of(state.irr).filter(|vector| vector >> 4 > class));
    if lapic.mode() == Mode::Disabled {
        assert_eq!(lapic.pending(), None);
    }
}

proptest! {
    #[test]
    fn whatever_a_guest_does_the_rules_hold(id in prop_oneof![0..4_u32, any::<u32>()], steps in vec(steps(), 1..200)) {
        let mut lapic = Lapic::new(id);
        let mut last_trigger = [Trigger::Edge; 256];
        for step in steps {
            let before = lapic.save();
            let mut restored = Lapic::new(id);
            restored.restore(&before).unwrap();
            prop_assert_eq!(&restored, &lapic);

            let answer = step.perform(&mut lapic);

            prop_assert_eq!(&step.perform(&mut restored), &answer);
            prop_assert_eq!(&restored, &lapic);
            check_state(&lapic);
            match (&step, &answer) {
                (Step::Accept(interrupt), Answer::Accepted(Acceptance::Accepted)) if interrupt.delivery_mode.has_vector() => {
                    last_trigger[usize::from(interrupt.vector)] = interrupt.trigger;
                    prop_assert!(interrupt.vector >= 16);
                }
                (_, Answer::Vector(Some(vector))) => {
                    prop_assert!(*vector >= 16);
                    prop_assert_eq!(highest_of(lapic.save().isr), Some(*vector));
                }
                (_, Answer::Effect(Some(Effect::EndOfInterrupt(vector))))
                | (_, Answer::Written(Ok(Some(Effect::EndOfInterrupt(vector))))) => {
                    prop_assert_eq!(last_trigger[usize::from(*vector)], Trigger::Level);
                    prop_assert_eq!(highest_of(before.isr), Some(*vector));
                }
                (_, Answer::Written(Err(GeneralProtection))) => prop_assert_eq!(lapic.save(), before),
                (Step::EndOfInterrupt, _) if before.apic_base & EN != 0 => {
                    let ended = highest_of(before.isr).map(|vector| before.tmr[usize::from(vector >> 6)] >> (vector & 63) & 1);
                    prop_assert_ne!(ended, Some(1), "an end of interrupt is lost");
                }
                _ => {}
            }
        }
    }

    #[test]
    fn whatever_a_snapshot_holds_the_rules_hold(
        words in any::<([u64; 4], [u64; 4], [u64; 4], [u32; 6], u64, u64)>(),
        registers in any::<(u8, u32, u32, u32, u32, u32, u32, u32)>(),
        flags in any::<(bool, bool, bool, Option<u8>, bool)>(),
        legal in any::<bool>(),
        mode in prop_oneof![Just(0), Just(EN), Just(EN | EXTD)],
        steps in vec(steps(), 0..30),
    ) {
        let (mut isr, mut tmr, mut irr, lvt, icr, mut apic_base) = words;
        if legal {
            for set in [&mut isr, &mut tmr, &mut irr] {
                set[0] &= !0xffff;
            }
            apic_base = PAGE | mode;
        }
        let (tpr, ldr, dfr, svr, esr, errors, initial_count, divide_configuration) = registers;
        let (nmi, smi, init, start_up, waiting_for_start_up) = flags;
        let state = LapicState {
            id: 1, apic_base, tpr, ldr, dfr, svr, isr, tmr, irr, esr, errors, icr, lvt, initial_count,
            divide_configuration, nmi, smi, init, start_up, waiting_for_start_up,
        };
        let mut lapic = Lapic::new(1);
        let result = lapic.restore(&state);
        prop_assert!(result.is_ok() || !legal);

        let again = lapic.save();
        let mut restored = Lapic::new(1);
        prop_assert_eq!(restored.restore(&again), Ok(()));
        prop_assert_eq!(&restored, &lapic);
        for step in steps {
            check_state(&lapic);
            step.perform(&mut lapic);
        }
    }
}
