//! Calls that make and use maps.

use super::call::{Call, Slot};
use super::{BATCH_MAX, CURSOR, INFO, KEYS, VALUE_MAX, VALUES};
use crate::rng::Rng;

pub(super) const PROG_ARRAY: u32 = 3;
pub(super) const PERF_EVENT_ARRAY: u32 = 4;
pub(super) const CGROUP_ARRAY: u32 = 8;
pub(super) const ARRAY_OF_MAPS: u32 = 12;

/// Map types whose slots hold objects.
pub(super) const OBJECT_MAPS: [u32; 4] =
    [PROG_ARRAY, PERF_EVENT_ARRAY, CGROUP_ARRAY, ARRAY_OF_MAPS];

/// What a map was made from: type, sizes and flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Made {
    pub(super) shape: [u32; 5],
    /// The map that was named as the inner one.
    pub(super) inner: Option<usize>,
}

impl Made {
    pub(super) fn of(call: &Call) -> Self {
        let word = |at: usize| {
            call.block[at..].first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes))
        };
        let inner = call.slots.iter().find_map(|(at, slot)| match slot {
            Slot::Fd(map) if *at == 20 => Some(*map),
            _ => None,
        });
        // Without the flags of a descriptor.
        Self { shape: [word(0), word(4), word(8), word(12), word(16) & !0x18], inner }
    }

    pub(super) fn holds_objects(&self) -> bool {
        OBJECT_MAPS.contains(&self.shape[0])
    }
}

impl Call {
    pub(super) fn create(rng: &mut Rng, maps: usize) -> Self {
        let mut call = Self::new(0, 92);
        let map_type = rng.pick(&[2, 2, 2, 2, 6, 6, 6, 12, 12, 12, 8, 3, 4, 0, 34, 200, u32::MAX]);
        call.u32(0, map_type);
        if map_type == 12 {
            call.map_fd(rng, 20, maps);
        }
        call.u32(4, if rng.percent(95) { 4 } else { rng.pick(&[0, 1, 8]) });
        call.u32(
            8,
            if rng.percent(93) {
                match OBJECT_MAPS.contains(&map_type) {
                    true => 4,
                    // Few sizes, so that maps are alike.
                    false => rng.pick(&[4, 4, 8, 3, 12, 17, VALUE_MAX]),
                }
            } else {
                rng.pick(&[0, 1 << 31, u32::MAX])
            },
        );
        call.u32(12, if rng.percent(95) { rng.pick(&[1, 3, 4, 4, 4, 13, 20]) } else { 0 });
        if rng.percent(30) {
            // Bit 2 needs a node, and bit 16 a token.
            call.u32(
                16,
                rng.pick(&[
                    0x4,
                    8,
                    8,
                    0x10,
                    0x10,
                    0x18,
                    0x80,
                    0x100,
                    0x180,
                    0x400,
                    0x1000,
                    0x800,
                    1,
                    2,
                    0x20,
                    1 << 31,
                ]),
            );
        }
        if rng.percent(10) {
            call.u32(24, rng.pick(&[0, 1, 7, u32::MAX]));
        }
        if rng.percent(40) {
            let name = rng.pick(&[
                &b"counters"[..],
                b"a.b_C9",
                b"has space",
                b"no-dash",
                b"sixteen_bytes_xx",
                b"x\0y",
                b"\xe9",
            ]);
            call.block[28..28 + name.len()].copy_from_slice(name);
        }
        if rng.percent(5) {
            let at = rng.pick(&[20, 48, 52, 56, 60, 64, 72, 76]);
            call.u32(at, rng.pick(&[1, 9999]));
        }
        call.damage(rng, 92);
        call
    }

    pub(super) fn random(rng: &mut Rng, made: &[Made]) -> Self {
        let maps = made.len();
        let cmd = rng
            .pick(&[1, 1, 1, 2, 2, 2, 3, 4, 4, 15, 14, 12, 21, 22, 24, 24, 25, 26, 26, 27, 38, 99]);
        let end = match cmd {
            1 | 2 | 21 => 32,
            3 | 15 => 16,
            4 => 24,
            14 => 12,
            12 => 8,
            22 => 4,
            24..=27 => 56,
            _ => 8,
        };
        let mut call = Self::new(cmd, end);
        call.seed = rng.next_u64();
        let count = rng.below(BATCH_MAX + 1);
        call.keys = (0..BATCH_MAX + 2)
            .map(|_| rng.pick(&[0, 1, 2, 3, 4, 5, 7, 9, 12, 19, 20, 77, u32::MAX]))
            .collect();
        match cmd {
            1 | 2 | 3 | 4 | 21 => {
                call.map_fd(rng, 0, maps);
                call.pointer(rng, 8, KEYS);
                if cmd != 3 {
                    call.pointer(rng, 16, VALUES);
                }
                if cmd != 3 && cmd != 4 && rng.percent(25) {
                    let flags = [1, 2, 3, 4, 5, 8, 0x10, 1 << 32, 1 << 63];
                    call.u64(24, rng.pick(&flags));
                }
            }
            // A map that is frozen has little left to compare.
            22 if rng.percent(80) => call.u32(0, u32::MAX),
            22 => call.map_fd(rng, 0, maps),
            15 => {
                call.map_fd(rng, 0, maps);
                call.u32(4, rng.pick(&[104, 104, 104, 80, 88, 0, 4, 112, 200, 4097]));
                call.pointer(rng, 8, INFO);
            }
            14 => {
                match rng.below(4) {
                    0 => call.u32(0, rng.pick(&[0, u32::MAX, i32::MAX as u32])),
                    _ => call.slot(0, Slot::Id(rng.below(maps as u32) as usize)),
                }
                call.u32(8, rng.pick(&[0, 0, 8, 0x10, 0x18, 1, 0x4000]));
            }
            12 => call.u32(0, rng.pick(&[i32::MAX as u32, u32::MAX, i32::MAX as u32 - 1])),
            24..=27 => {
                if rng.percent(60) {
                    call.pointer(rng, 0, CURSOR);
                }
                call.pointer(rng, 8, CURSOR + 64);
                call.pointer(rng, 16, KEYS);
                call.pointer(rng, 24, VALUES);
                call.u32(32, count);
                call.map_fd(rng, 36, maps);
                if rng.percent(15) {
                    call.u64(40, rng.pick(&[1, 2, 4, 8, 1 << 32]));
                }
                if rng.percent(10) {
                    call.u64(48, 3);
                }
            }
            _ => {}
        }
        call.damage(rng, end);
        let map = call.map(made).filter(|map| map.holds_objects());
        if let Some(map) = map {
            if matches!(cmd, 2 | 26) {
                call.values = (0..BATCH_MAX + 2).map(|_| Slot::value(rng, map, made)).collect();
            }
            // Often a slot that may have been filled.
            if rng.percent(80) {
                let most = map.shape[3].saturating_sub(1);
                call.keys.iter_mut().for_each(|key| *key = (*key).min(most));
            }
        }
        call
    }
}

impl Slot {
    /// A descriptor to put into a map of objects, most often one that it takes.
    pub(super) fn value(rng: &mut Rng, map: &Made, made: &[Made]) -> Self {
        let any = rng.below(made.len() as u32) as usize;
        match (rng.below(16), map.shape[0]) {
            (0, _) => Self::OtherFd,
            (1, _) => Self::Closed,
            (2, _) => Self::Cgroup,
            (3, _) => Self::PerfEvent,
            (4.., CGROUP_ARRAY) => Self::Cgroup,
            (4.., PERF_EVENT_ARRAY) => Self::PerfEvent,
            (4.., PROG_ARRAY) => Self::Program(rng.below(2) as usize),
            (4, _) => Self::Program(0),
            (5.., ARRAY_OF_MAPS) => {
                let template = map.inner.and_then(|inner| made.get(inner));
                let fits =
                    |at: &usize| template.is_some_and(|inner| inner.shape == made[*at].shape);
                Self::Fd((any..made.len()).chain(0..any).find(fits).unwrap_or(any))
            }
            _ => Self::Fd(any),
        }
    }
}
