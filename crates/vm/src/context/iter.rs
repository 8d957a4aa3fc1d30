//! The context of a program that is called for each element of a map, and the text it writes.

use bpfarray_core::Errno;

use super::buffer::Buffer;
use super::write;

/// Offsets in the memory of the context: `struct bpf_iter__bpf_map_elem`, zeroes up to the length that contexts of
/// tracing programs have, and behind what the first and third field point to.
mod layout {
    pub(super) const META: usize = 0;
    pub(super) const MAP: usize = 8;
    pub(super) const KEY: usize = 16;
    pub(super) const VALUE: usize = 24;
    /// `struct bpf_iter_meta`: the address of the output, an id and a number.
    pub(super) const THE_META: usize = 96;
    pub(super) const THE_KEY: usize = 120;
    pub(super) const SIZE: usize = 128;
}

/// What a program is called for.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Element {
    /// An element: its index, and the address of its value, unless that is copied.
    At(u32, Option<u64>),
    /// The end: there is none.
    End,
}

/// Text that a program has written and nobody has read.
///
/// # Kernel
/// `struct seq_file`
#[derive(Debug, Default)]
pub(crate) struct Seq {
    /// The text.
    pub(crate) text: Vec<u8>,
    overflowed: bool,
}

impl Seq {
    /// Bytes of text that can wait for a reader.
    ///
    /// # Kernel
    /// `bpf_seq_read`: `PAGE_SIZE << 3`
    const SIZE: usize = 32 << 10;

    /// Appends text, or takes note that there was no room for it.
    pub(crate) fn write(&mut self, text: &[u8]) -> Result<(), Errno> {
        if self.text.len() + text.len() >= Self::SIZE {
            self.overflowed = true;
            return Err(Errno::EOVERFLOW);
        }
        self.text.extend_from_slice(text);
        Ok(())
    }

    /// Whether text was lost since the last call.
    pub(crate) fn take_overflow(&mut self) -> bool {
        std::mem::take(&mut self.overflowed)
    }
}

/// The context of `iter/bpf_map_elem` programs.
#[derive(Debug, Default)]
pub(crate) struct MapElem {
    pub(crate) seq: Seq,
}

impl MapElem {
    /// Memory for the context, and for a copy of a value of `copy_len` bytes, which may be written.
    pub(super) fn buffer(map_addr: u64, session: u64, copy_len: usize) -> Result<Buffer, Errno> {
        let mut buffer = Buffer::new(layout::SIZE, copy_len, &[], &[])?;
        let copy = Buffer::packet_start(layout::SIZE);
        buffer.set_packet(copy..copy + copy_len);
        let meta = buffer.ctx_addr() + layout::THE_META as u64;
        store(&buffer, layout::META, meta);
        store(&buffer, layout::MAP, map_addr);
        // Programs hand the address of the output on and cannot look behind it: any will do.
        store(&buffer, layout::THE_META, Self::seq_addr(&buffer));
        store(&buffer, layout::THE_META + 8, session);
        Ok(buffer)
    }

    /// By which address programs know their output.
    pub(crate) fn seq_addr(buffer: &Buffer) -> u64 {
        buffer.ctx_addr() + layout::THE_META as u64
    }

    /// Where a value is copied to.
    pub(crate) fn copy_at() -> usize {
        Buffer::packet_start(layout::SIZE)
    }

    /// Puts an element into the context. `number` counts the elements before.
    pub(super) fn set(buffer: &Buffer, element: Element, number: u64) {
        let copy = buffer.memory().addr() + Self::copy_at() as u64;
        let (key, value) = match element {
            Element::At(index, addr) => {
                write(buffer, layout::THE_KEY, &index.to_ne_bytes());
                (buffer.ctx_addr() + layout::THE_KEY as u64, addr.unwrap_or(copy))
            }
            Element::End => (0, 0),
        };
        store(buffer, layout::KEY, key);
        store(buffer, layout::VALUE, value);
        store(buffer, layout::THE_META + 16, number);
    }
}

fn store(buffer: &Buffer, at: usize, number: u64) {
    write(buffer, at, &number.to_ne_bytes());
}
