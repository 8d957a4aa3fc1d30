//! What is in the memory of this process, as the system tells it: nothing of what is watched is asked.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Bytes of a page.
pub(super) const PAGE: usize = 4096;

/// The memory of this process.
pub(super) struct Memory(File);

impl Memory {
    pub(super) fn open() -> io::Result<Self> {
        File::open("/proc/self/mem").map(Self)
    }

    fn read(&self, addr: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(bytes, addr)
    }
}

/// A range of addresses, most of which nobody may write.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    name: String,
    addr: u64,
    /// Where what is changed may be, as offsets, ascending.
    may_change: Vec<Range<usize>>,
    /// What was there before a run.
    before: Vec<u8>,
    /// What is there now.
    pub(super) now: Vec<u8>,
}

impl Watched {
    pub(super) fn new(name: &str, addr: u64, len: usize, may_change: Vec<Range<usize>>) -> Self {
        let (before, now) = (vec![0; len], vec![0; len]);
        Self { name: name.to_owned(), addr, may_change, before, now }
    }

    /// Remembers what is there.
    pub(super) fn remember(&mut self, memory: &Memory) -> io::Result<()> {
        memory.read(self.addr, &mut self.before)
    }

    /// Reads what is there after a run, and tells where it is not what it was before: besides where it may change, and
    /// besides `also`.
    pub(super) fn look(
        &mut self,
        memory: &Memory,
        also: &[Range<usize>],
    ) -> io::Result<Option<String>> {
        memory.read(self.addr, &mut self.now)?;
        if self.now == self.before {
            return Ok(None);
        }
        let mut from = 0;
        for allowed in self.may_change.iter().chain([&(self.now.len()..self.now.len())]) {
            let until = allowed.start.min(self.now.len());
            let changed = |at: &usize| {
                self.now[*at] != self.before[*at] && !also.iter().any(|range| range.contains(at))
            };
            if let Some(at) = (from..until).find(changed) {
                let (name, before, now) = (&self.name, self.before[at], self.now[at]);
                return Ok(Some(format!("{name}: byte {at} was {before:#x} and is {now:#x}")));
            }
            from = allowed.end.max(from);
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::*;

    #[test]
    fn a_byte_that_changes_is_seen_unless_it_may_change() {
        let bytes: Vec<AtomicU8> = (0..64).map(AtomicU8::new).collect();
        let memory = Memory::open().unwrap();
        let addr = bytes.as_ptr().expose_provenance() as u64;
        let mut watched = Watched::new("bytes", addr, 64, vec![8..16, 40..42]);
        watched.remember(&memory).unwrap();
        let mut look = |also: &[Range<usize>]| watched.look(&memory, also).unwrap();
        for at in [8, 15, 40, 41] {
            bytes[at].store(0xff, Ordering::Relaxed);
            assert_eq!(look(&[]), None, "{at}");
        }
        for at in [0, 7, 16, 39, 42, 63] {
            bytes[at].store(0xff, Ordering::Relaxed);
            let found = look(&[]).unwrap();
            assert_eq!(found, format!("bytes: byte {at} was {at:#x} and is 0xff"));
            assert_eq!(look(&[at..at + 1, 0..0]), None);
            bytes[at].store(at as u8, Ordering::Relaxed);
        }
    }
}
