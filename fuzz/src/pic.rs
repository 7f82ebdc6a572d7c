//! The PIC: any accesses, levels, pulses and acknowledgements. The oracle is a second pair of 8259As, written from the data
//! sheet in lists of inputs where the first one has bits, which must answer every access and acknowledgement the same.

use crate::{Data, steps};
use arbitrary::{Arbitrary, Unstructured};
use irqfabric::chip::pic::{Acknowledged, PORTS, Pic};
use irqfabric::line::Level;
use std::collections::VecDeque;

#[derive(Arbitrary, Debug)]
enum Step {
    /// Any access.
    Write(u16, Data),
    Read(u16, u8),
    /// A word to one of the ports that there are.
    Word {
        port: u8,
        value: u8,
    },
    /// ICW1 to ICW4, as many as are asked for.
    Initialize {
        slave: bool,
        icw1: u8,
        icw4: u8,
    },
    Unmask {
        slave: bool,
        mask: u8,
    },
    End {
        slave: bool,
        word: u8,
    },
    /// OCW3 and the read that it is for.
    Select {
        slave: bool,
        word: u8,
    },
    Set(u8, bool),
    Pulse(u8),
    Acknowledge,
    SaveAndRestore,
}

/// What the data port waits for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Awaited {
    Icw2,
    Icw3,
    Icw4,
}

/// One 8259A.
#[derive(Clone, Debug, Default)]
struct Chip {
    is_master: bool,
    lines: [bool; 8],
    latches: [bool; 8],
    serving: [bool; 8],
    masked: [bool; 8],
    is_level: [bool; 8],
    base: u8,
    /// The inputs, the one of the highest priority first.
    order: VecDeque<usize>,
    awaited: VecDeque<Awaited>,
    single: bool,
    auto_eoi: bool,
    rotates: bool,
    special_fully_nested: bool,
    special_mask: bool,
    shows_service: bool,
    polled: bool,
    int: bool,
}

fn bits(inputs: &[bool; 8]) -> u8 {
    inputs.iter().rev().fold(0, |all, &input| all << 1 | u8::from(input))
}

fn inputs(bits: u8) -> [bool; 8] {
    std::array::from_fn(|input| bits >> input & 1 != 0)
}

impl Chip {
    fn new(is_master: bool) -> Self {
        Self { is_master, order: (0..8).collect(), ..Self::default() }
    }

    fn drive(&mut self, input: usize, high: bool) {
        let before = std::mem::replace(&mut self.lines[input], high);
        match (before, high) {
            (false, true) => self.latches[input] |= !self.is_level[input],
            (true, false) => self.latches[input] = false,
            _ => {}
        }
    }

    fn requests(&self) -> [bool; 8] {
        std::array::from_fn(|input| if self.is_level[input] { self.lines[input] } else { self.latches[input] })
    }

    /// How high the best is that is in service and counts.
    fn served(&self) -> Option<usize> {
        self.order.iter().position(|&input| self.serving[input] && !(self.special_mask && self.masked[input]))
    }

    fn winner(&self) -> Option<usize> {
        let requests = self.requests();
        let rank = self.order.iter().position(|&input| requests[input] && !self.masked[input])?;
        let input = self.order[rank];
        let again = self.special_fully_nested && self.answers_for_slave(input);
        match self.served() {
            Some(served) if rank > served || rank == served && !again => None,
            _ => Some(input),
        }
    }

    fn answers_for_slave(&self, input: usize) -> bool {
        self.is_master && !self.single && input == 2
    }

    fn first_to(&mut self, input: usize) {
        while self.order[0] != input {
            self.order.rotate_left(1);
        }
    }

    fn end(&mut self, input: usize, rotate: bool) {
        self.serving[input] = false;
        if rotate {
            self.first_to((input + 1) % 8);
        }
    }

    fn acknowledge(&mut self) -> Option<usize> {
        self.int = false;
        let input = self.winner()?;
        self.latches[input] = false;
        self.serving[input] = true;
        if self.auto_eoi {
            self.end(input, self.rotates);
        }
        Some(input)
    }

    fn vector(&self, input: Option<usize>) -> u8 {
        self.base + input.unwrap_or(7) as u8
    }

    fn command(&mut self, word: u8) {
        let (level, rotate) = (usize::from(word & 7), word & 0x80 != 0);
        match word >> 3 & 3 {
            // ICW1.
            2 | 3 => {
                let (icw4, single) = (word & 1 != 0, word & 2 != 0);
                let old = std::mem::replace(self, Self::new(self.is_master));
                (self.lines, self.is_level, self.base) = (old.lines, old.is_level, old.base);
                (self.rotates, self.single) = (old.rotates, single);
                if icw4 {
                    (self.auto_eoi, self.special_fully_nested) = (old.auto_eoi, old.special_fully_nested);
                }
                self.awaited.push_back(Awaited::Icw2);
                self.awaited.extend((!single).then_some(Awaited::Icw3));
                self.awaited.extend(icw4.then_some(Awaited::Icw4));
            }
            // OCW3.
            1 => {
                match word >> 5 & 3 {
                    2 => self.special_mask = false,
                    3 => self.special_mask = true,
                    _ => {}
                }
                match word & 3 {
                    2 => self.shows_service = false,
                    3 => self.shows_service = true,
                    _ => {}
                }
                self.polled |= word & 4 != 0;
            }
            // OCW2.
            _ => match word >> 5 & 3 {
                1 => {
                    if let Some(rank) = self.served() {
                        self.end(self.order[rank], rotate);
                    }
                }
                3 => self.end(level, rotate),
                2 if rotate => self.first_to((level + 1) % 8),
                0 => self.rotates = rotate,
                _ => {}
            },
        }
    }

    fn data(&mut self, word: u8) {
        match self.awaited.pop_front() {
            None => self.masked = inputs(word),
            Some(Awaited::Icw2) => self.base = word / 8 * 8,
            Some(Awaited::Icw3) => {}
            Some(Awaited::Icw4) => (self.auto_eoi, self.special_fully_nested) = (word & 2 != 0, word & 0x10 != 0),
        }
    }

    fn elcr(&mut self, word: u8) {
        let always_edge: &[usize] = if self.is_master { &[0, 1, 2] } else { &[0, 5] };
        for input in (0..8).filter(|input| !always_edge.contains(input)) {
            let level = word >> input & 1 != 0;
            self.latches[input] &= self.is_level[input] == level;
            self.is_level[input] = level;
        }
    }
}

/// The two with the wire between them.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    master: Chip,
    slave: Chip,
}

impl Default for Pair {
    fn default() -> Self {
        Self { master: Chip::new(true), slave: Chip::new(false) }
    }
}

impl Pair {
    pub(crate) fn intr(&self) -> bool {
        self.master.int
    }

    pub(crate) fn in_service(&self) -> u16 {
        u16::from_le_bytes([bits(&self.master.serving), bits(&self.slave.serving)])
    }

    /// Whether the next read is an acknowledgement.
    pub(crate) fn is_polled(&self, slave: bool) -> bool {
        if slave { self.slave.polled } else { self.master.polled }
    }

    fn chip(&mut self, slave: bool) -> &mut Chip {
        if slave { &mut self.slave } else { &mut self.master }
    }

    fn cascade(&mut self) {
        self.master.drive(2, self.slave.int);
    }

    /// A line changed: INT may rise, and falls for nobody.
    fn requested(&mut self) {
        self.slave.int |= self.slave.winner().is_some();
        self.cascade();
        self.master.int |= self.master.winner().is_some();
    }

    /// A chip's register was written, or its interrupt acknowledged.
    fn settle(&mut self, slave: bool) {
        if slave {
            self.cascade();
            self.slave.int = self.slave.winner().is_some();
            self.cascade();
        }
        self.master.int = self.master.winner().is_some();
    }

    pub(crate) fn set(&mut self, input: u8, high: bool) {
        if input < 16 && input != 2 {
            self.chip(input >= 8).drive(usize::from(input % 8), high);
            self.requested();
        }
    }

    pub(crate) fn pulse(&mut self, input: u8) {
        if input < 16 && input != 2 {
            let chip = self.chip(input >= 8);
            let input = usize::from(input % 8);
            chip.latches[input] |= !chip.lines[input] && !chip.is_level[input];
            self.requested();
        }
    }

    pub(crate) fn acknowledge(&mut self) -> Acknowledged {
        let taken = self.master.acknowledge();
        let by_slave = taken.is_some_and(|input| self.master.answers_for_slave(input));
        let answer = if by_slave {
            let taken = self.slave.acknowledge();
            Acknowledged { vector: self.slave.vector(taken), input: taken.map(|input| 8 + input as u8) }
        } else {
            // What comes in at the cascade is no line's.
            let line = taken.map(|input| input as u8).filter(|input| *input != 2);
            Acknowledged { vector: self.master.vector(taken), input: line }
        };
        self.settle(by_slave);
        answer
    }

    /// An automatic end of interrupt leaves the input's line so.
    pub(crate) fn ended(&mut self, input: u8, high: bool) {
        let slave = input >= 8;
        self.chip(slave).drive(usize::from(input % 8), high);
        self.settle(slave);
    }

    pub(crate) fn write(&mut self, port: u16, word: u8) {
        let slave = match port {
            0x20 | 0x21 | 0x4d0 => false,
            0xa0 | 0xa1 | 0x4d1 => true,
            _ => return,
        };
        let chip = self.chip(slave);
        match port {
            0x20 | 0xa0 => chip.command(word),
            0x21 | 0xa1 => chip.data(word),
            _ => chip.elcr(word),
        }
        self.settle(slave);
    }

    pub(crate) fn read(&mut self, port: u16) -> u8 {
        let slave = match port {
            0x20 | 0x21 => false,
            0xa0 | 0xa1 => true,
            0x4d0 => return bits(&self.master.is_level),
            0x4d1 => return bits(&self.slave.is_level),
            _ => return 0xff,
        };
        let chip = self.chip(slave);
        if std::mem::take(&mut chip.polled) {
            let answer = chip.acknowledge().map_or(7, |input| 0x80 + input as u8);
            self.settle(slave);
            return answer;
        }
        match port & 1 {
            1 => bits(&chip.masked),
            _ if chip.shows_service => bits(&chip.serving),
            _ => bits(&chip.requests()),
        }
    }
}

struct World {
    pic: Pic,
    pair: Pair,
}

/// A target.
pub fn run(input: &[u8]) {
    let mut input = Unstructured::new(input);
    let mut world = World { pic: Pic::default(), pair: Pair::default() };
    if input.ratio(7u8, 8).unwrap_or(true) {
        // As Linux leaves it, everything unmasked.
        world.step(&Step::Initialize { slave: false, icw1: 0x11, icw4: 0x01 });
        world.step(&Step::Initialize { slave: true, icw1: 0x11, icw4: 0x01 });
    }
    for step in steps(input) {
        world.step(&step);
        world.check();
    }
}

impl World {
    fn step(&mut self, step: &Step) {
        let port = |slave: bool| if slave { 0xa0 } else { 0x20 };
        match *step {
            Step::Write(near, data) => self.write(near_port(near), data.as_slice()),
            Step::Read(near, size) => self.read(near_port(near), usize::from(size % 9)),
            Step::Word { port, value } => self.write(PORTS[usize::from(port) % PORTS.len()], &[value]),
            Step::Initialize { slave, icw1, icw4 } => {
                self.write(port(slave), &[icw1 | 0x10]);
                let base = if slave { 0x38 } else { 0x30 };
                let words = 1 + usize::from(icw1 & 2 == 0) + usize::from(icw1 & 1);
                let rest = if icw1 & 2 == 0 { [base, 0x04, icw4] } else { [base, icw4, 0] };
                rest[..words].iter().for_each(|&word| self.write(port(slave) + 1, &[word]));
            }
            Step::Unmask { slave, mask } => self.write(port(slave) + 1, &[mask]),
            Step::End { slave, word } => self.write(port(slave), &[0x20 | word & 0xe7]),
            Step::Select { slave, word } => {
                self.write(port(slave), &[word & 0xef | 0x08]);
                self.read(port(slave), 1);
            }
            Step::Set(input, high) => {
                self.pic.set(input % 18, if high { Level::High } else { Level::Low });
                self.pair.set(input % 18, high);
            }
            Step::Pulse(input) => {
                self.pic.pulse(input % 18);
                self.pair.pulse(input % 18);
            }
            Step::Acknowledge => {
                let expected = self.pair.acknowledge();
                assert_eq!(self.pic.acknowledge_input(), expected);
            }
            Step::SaveAndRestore => {
                let restored = Pic::restore(&self.pic.save());
                assert_eq!(restored, self.pic, "a snapshot is the pair");
                self.pic = restored;
            }
        }
    }

    fn write(&mut self, port: u16, data: &[u8]) {
        self.pic.write(port, data);
        (port..=u16::MAX).zip(data).for_each(|(port, &word)| self.pair.write(port, word));
    }

    fn read(&mut self, port: u16, size: usize) {
        let mut data = vec![0; size];
        self.pic.read(port, &mut data);
        for (place, found) in data.into_iter().enumerate() {
            let expected = u16::try_from(place).ok().and_then(|place| port.checked_add(place));
            assert_eq!(found, expected.map_or(0xff, |port| self.pair.read(port)), "byte {place} from port {port:#x}");
        }
    }

    fn check(&self) {
        assert_eq!(self.pic.output() == Level::High, self.pair.intr(), "INTR");
        assert_eq!(self.pic.in_service(), self.pair.in_service());
        // What reading would give, and what would be acknowledged.
        let mut probe = Self { pic: self.pic.clone(), pair: self.pair.clone() };
        for port in PORTS {
            probe.read(port, 1);
        }
        let expected = probe.pair.acknowledge();
        assert_eq!(probe.pic.acknowledge_input(), expected);
        // By itself: the INTR wire is there for somebody, or for one who has just left.
        let state = self.pic.save();
        for (chip, always_edge) in [(state.master, 0x07), (state.slave, 0x21)] {
            assert_eq!((chip.elcr & always_edge, chip.edges & chip.elcr, chip.vectors & 7), (0, 0, 0));
        }
        if self.pic.output() == Level::Low {
            assert_eq!(self.pic.clone().acknowledge_input().input, None, "a request without INTR");
        }
    }
}

/// Mostly one of the pair's ports, or the one before.
fn near_port(port: u16) -> u16 {
    match port {
        0..0xe000 => PORTS[usize::from(port) % PORTS.len()] - (port >> 12 & 1),
        any => any,
    }
}
