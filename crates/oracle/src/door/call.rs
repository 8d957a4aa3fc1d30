//! A call: what is in its block and in the memory that the block names.

use std::fmt;

use super::BLOCK;
use super::maps::Made;
use crate::rng::Rng;

/// What stands in a block for something that differs from side to side.
#[derive(Clone, Copy, Debug)]
pub(super) enum Slot {
    /// A map's descriptor.
    Fd(usize),
    /// A map's id.
    Id(usize),
    /// An open descriptor of something else.
    OtherFd,
    /// A number that no descriptor has.
    Closed,
    /// A directory of control groups, if there is one here.
    Cgroup,
    /// A perf event.
    PerfEvent,
    /// A program's descriptor.
    Program(usize),
    /// A program's id.
    ProgramId(usize),
    /// Types of functions.
    Btf,
    /// A place in the arena.
    At(usize),
}

/// A call.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) cmd: u32,
    pub(super) block: Vec<u8>,
    pub(super) size: u32,
    pub(super) slots: Vec<(usize, Slot)>,
    /// What the arena holds before, from the keys on.
    pub(super) keys: Vec<u32>,
    /// What else it holds.
    pub(super) bytes: Vec<(usize, Vec<u8>)>,
    /// Slots in the arena.
    pub(super) places: Vec<(usize, Slot)>,
    /// Descriptors that are values in the arena.
    pub(super) values: Vec<Slot>,
    pub(super) seed: u64,
}

/// Words of the block that are not zero, and what else makes the call.
impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self.block.as_chunks::<4>().0.iter().map(|word| u32::from_ne_bytes(*word));
        let words: Vec<_> = words.enumerate().filter(|(_, word)| *word != 0).collect();
        let words: Vec<_> = words.iter().map(|(at, word)| (at * 4, *word)).collect();
        writeln!(f, "command {}, size {}, words {words:x?}", self.cmd, self.size)?;
        writeln!(f, "slots {:?}", self.slots)?;
        writeln!(f, "keys {:?}, values {:?}, places {:?}", self.keys, self.values, self.places)?;
        self.bytes.iter().try_for_each(|(at, bytes)| {
            let len = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            writeln!(f, "at {at}: {:x?}", &bytes[..len])
        })
    }
}

impl Call {
    pub(super) fn new(cmd: u32, end: usize) -> Self {
        let (block, size) = (vec![0; BLOCK], end as u32);
        let (slots, keys, values) = (Vec::new(), Vec::new(), Vec::new());
        let (bytes, places) = (Vec::new(), Vec::new());
        Self { cmd, block, size, slots, keys, bytes, places, values, seed: 0 }
    }

    /// Whether the map is one of objects, and so the values are descriptors or ids.
    pub(super) fn is_on_objects(&self, made: &[Made]) -> bool {
        self.map(made).is_some_and(Made::holds_objects)
    }

    /// The map that the call is about.
    pub(super) fn map<'a>(&self, made: &'a [Made]) -> Option<&'a Made> {
        self.slots.iter().find_map(|(_, slot)| match slot {
            Slot::Fd(map) => made.get(*map),
            _ => None,
        })
    }

    pub(super) fn u32(&mut self, at: usize, value: u32) {
        self.block[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }

    pub(super) fn u64(&mut self, at: usize, value: u64) {
        self.block[at..at + 8].copy_from_slice(&value.to_ne_bytes());
    }

    pub(super) fn slot(&mut self, at: usize, slot: Slot) {
        self.slots.push((at, slot));
    }

    /// A pointer into the arena, or now and then one to nothing.
    pub(super) fn pointer(&mut self, rng: &mut Rng, at: usize, to: usize) {
        match rng.below(20) {
            0 => {}
            1 => self.u64(at, rng.pick(&[1, 4095, 1 << 47, 1 << 63, u64::MAX - 3])),
            _ => self.slot(at, Slot::At(to)),
        }
    }

    pub(super) fn map_fd(&mut self, rng: &mut Rng, at: usize, maps: usize) {
        match rng.below(20) {
            0 => self.u32(at, rng.pick(&[u32::MAX, 9999, 0x7fff_ffff])),
            _ if maps == 0 => {}
            1 => self.slot(at, Slot::OtherFd),
            _ => self.slot(at, Slot::Fd(rng.below(maps as u32) as usize)),
        }
    }

    /// Another size than that of the fields, or something behind them.
    pub(super) fn damage(&mut self, rng: &mut Rng, end: usize) {
        match rng.below(12) {
            0 => {
                self.size = rng.pick(&[0, 4, 8, 12, 16, 24, 32, 168, 169, 176, 255, 4097, u32::MAX])
            }
            1 => {
                let at = end + rng.below((BLOCK - end) as u32) as usize;
                self.block[at] = 1;
                self.size = rng.within(end as u32, BLOCK as u32);
            }
            2 => self.size = rng.within(end as u32, 168),
            _ => {}
        }
        // What lies past the block would differ.
        if self.size > BLOCK as u32 && self.size <= 4096 {
            self.size = BLOCK as u32;
        }
    }
}
