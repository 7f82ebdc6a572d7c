//! Our chips against the kernel's own: the same random program of a guest on both, answer by answer and state by state.
//!
//! A program is a list of operations that is known before it runs. What the two are known to differ in stands, with the
//! reason, in a test of its own that says what each does; random programs keep away from exactly that, and have to
//! come out the same.
//!
//! `IRQFABRIC_SEEDS=17..18` runs the programs of other seeds than 0 to 49.

mod guest;
mod ioapic;
mod pic;

use guest::Access;
use irqfabric::line::Level;
use std::fmt::Debug;
use std::ops::Range;

/// Operations of one random program.
const LENGTH: usize = 5_000;

/// How many accesses of the guest are made before the states are compared.
const BATCH: usize = 8;

/// One step of a program.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Guest(Access),
    Line(u8, Level),
    /// The processor takes an interrupt, if there is one.
    Acknowledge,
}

/// A machine with a chip under test.
trait Side {
    /// What two machines of one kind have in common, chip and local APIC.
    type State: PartialEq + Debug;
    fn perform(&mut self, accesses: &[Access]) -> Vec<u32>;
    fn set(&mut self, line: u8, level: Level);
    fn acknowledge(&mut self) -> Option<u8>;
    fn state(&mut self) -> Self::State;
}

/// The first operation after which the two are not the same, and what each then is.
struct Difference {
    operation: usize,
    kernel: String,
    ours: String,
}

/// Runs a program on both; the states are compared after each operation of the host, and after `batch` of the guest's at
/// the latest.
fn compare<K: Side>(
    program: &[Operation],
    batch: usize,
    kernel: &mut K,
    ours: &mut impl Side<State = K::State>,
) -> Result<(), Difference> {
    let mut next = 0;
    while let Some(operation) = program.get(next) {
        let first = next;
        let [on_kernel, on_ours] = match operation {
            Operation::Guest(_) => {
                let accesses: Vec<_> = program[first..].iter().map_while(access).take(batch).collect();
                next += accesses.len();
                [kernel.perform(&accesses), ours.perform(&accesses)]
            }
            Operation::Line(line, level) => {
                next += 1;
                kernel.set(*line, *level);
                ours.set(*line, *level);
                [vec![], vec![]]
            }
            Operation::Acknowledge => {
                next += 1;
                let answer = |vector: Option<u8>| vec![vector.map_or(guest::NOTHING, u32::from)];
                [answer(kernel.acknowledge()), answer(ours.acknowledge())]
            }
        };
        if let Some(at) = on_kernel.iter().zip(&on_ours).position(|(kernel, ours)| kernel != ours) {
            let answer = |answers: &[u32]| format!("answers {:#x}", answers[at]);
            return Err(Difference { operation: first + at, kernel: answer(&on_kernel), ours: answer(&on_ours) });
        }
        let (in_kernel, in_ours) = (kernel.state(), ours.state());
        if in_kernel != in_ours {
            let [kernel, ours] = [in_kernel, in_ours].map(|state| format!("{state:x?}"));
            return Err(Difference { operation: next - 1, kernel, ours });
        }
    }
    Ok(())
}

fn access(operation: &Operation) -> Option<Access> {
    if let Operation::Guest(access) = operation { Some(*access) } else { None }
}

/// Runs the random programs of all seeds, each on two new machines. A program that differs is run once more, one
/// operation at a time, for the exact place.
fn compare_all<K: Side, O: Side<State = K::State>>(
    generate: impl Fn(&mut fastrand::Rng) -> Vec<Operation>,
    machines: impl Fn() -> (K, O),
) {
    for seed in seeds() {
        let program = generate(&mut fastrand::Rng::with_seed(seed));
        let run = |batch| {
            let (mut kernel, mut ours) = machines();
            compare(&program, batch, &mut kernel, &mut ours)
        };
        if let Err(difference) = run(BATCH) {
            let Difference { operation, kernel, ours } = run(1).err().unwrap_or(difference);
            let before = &program[operation.saturating_sub(12)..operation];
            let before: String = before.iter().map(|operation| format!("  {operation:x?}\n")).collect();
            panic!(
                "seed {seed}, operation {operation}:\n{before}> {:x?}\nkernel: {kernel}\nours:   {ours}",
                program[operation]
            );
        }
    }
}

fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("IRQFABRIC_SEEDS") else { return 0..50 };
    let bounds = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    bounds.unwrap_or_else(|| panic!("IRQFABRIC_SEEDS is a range such as 0..50, not {text}"))
}
