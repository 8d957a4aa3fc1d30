//! A program called for each element of a map, and the text it makes of them.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use bpfarray::{Errno, HandleMode, Kind, Lane, Map, MapRef, possible_cpus};

use crate::context::{Context, Element};
use crate::fault::Fault;
use crate::prog_type::{AttachType, ProgType};
use crate::program::Program;
use crate::verify::IterAccess;

/// Why a program cannot be called for the elements of a map. The variants stand in the order in which they
/// are checked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IterError {
    /// The program is no iterator.
    #[error("program '{0}' is no iterator; its section would begin with iter/")]
    Program(String),
    /// The map is for one program only, and not for iterators.
    #[error("an exclusive map has no iterators")]
    Exclusive,
    /// The map's elements are objects.
    #[error("maps of type {} have no elements that programs can be called for", .0.map_type())]
    MapType(Kind),
    /// The program reaches past keys or values. In the default mode, where it is only then known when it does so, that is a fault.
    #[error("the program needs {needed} bytes of each {what}, which has {size}")]
    Access {
        /// Whether it is the key or the value.
        what: &'static str,
        /// How far the program reaches.
        needed: u32,
        /// Bytes that there are.
        size: usize,
    },
    /// There is no memory for the context.
    #[error("no memory for the context: {0}")]
    Memory(Errno),
}

impl IterError {
    /// The error number of `BPF_LINK_CREATE` and `BPF_ITER_CREATE`.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Program(_) | Self::MapType(_) => Errno::EINVAL,
            Self::Exclusive => Errno::EPERM,
            Self::Access { .. } => Errno::EACCES,
            Self::Memory(errno) => *errno,
        }
    }
}

/// The text that an `iter/bpf_map_elem` program writes when it is called for each element of an ARRAY or
/// PERCPU_ARRAY in turn, and once more without one.
///
/// Reading runs the program, as reading an iterator's file does in the kernel: elements are visited when their text
/// is asked for. A read gives no more than the text of whole elements that begin in it; what does not fit waits for the
/// next one. Values of an ARRAY are the map's own, which the program may change if the map lets programs;
/// values of a PERCPU_ARRAY are a copy, those of all CPUs one after the other, each padded to 8 bytes.
///
/// ```
/// use std::io::Read;
/// use bpfarray_vm::{LoadOptions, MapElemIter, Object};
///
/// let object = Object::parse(&std::fs::read("../../testdata/progs/map_elem_iter.bpf.o")?)?;
/// let loaded = object.load(&LoadOptions::default())?;
/// let map = loaded.map("numbers").ok_or("no such map")?;
/// map.update_elem(1, &7_u64.to_ne_bytes(), 0)?;
/// let mut text = String::new();
/// MapElemIter::new(&loaded.program("show")?, map)?.read_to_string(&mut text)?;
/// assert_eq!(text, "0: 0\n1: 7\n2: 0\n3 elements\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Of a read, when it has nothing else to give: EAGAIN when the program returns other than 0, and after a million
/// elements without text; E2BIG when the text of one element is 32 KiB or more. A later read tries the
/// same element again. A [`Fault`] is an error of kind [`io::ErrorKind::Other`].
///
/// # Kernel
/// `bpf_seq_read`, `iter_seq_info` of `array_map_ops`
#[doc(alias = "bpf_seq_read")]
#[doc(alias = "BPF_ITER_CREATE")]
#[derive(Debug)]
pub struct MapElemIter {
    program: Program,
    /// A user of the map.
    map: Map,
    context: Context,
    /// The next element.
    index: u32,
    /// Whether the program was called for the end.
    ended: bool,
    /// Bytes of the text that have been read.
    read: usize,
    copy: Vec<u8>,
}

/// Elements that are visited in one read for want of text.
///
/// # Kernel
/// `MAX_ITER_OBJECTS`
const MAX_VISITS: u32 = 1_000_000;

impl MapElemIter {
    /// Sets out to call `program` for the elements of `map`, which it need not refer to itself.
    ///
    /// # Errors
    /// The variants of [`IterError`] in their order.
    ///
    /// # Kernel
    /// `bpf_iter_new_fd`
    pub fn new(program: &Program, map: &MapRef) -> Result<Self, IterError> {
        static LAST_SESSION: AtomicU64 = AtomicU64::new(0);
        let copy_len = Self::copy_len(program, map)?;
        let session = LAST_SESSION.fetch_add(1, Ordering::Relaxed);
        let context =
            Context::map_elem(map.addr(), session, copy_len).map_err(IterError::Memory)?;
        Ok(Self {
            program: program.clone().with_map(map.clone()),
            map: map.with_mode(HandleMode::ReadWrite),
            context,
            index: 0,
            ended: false,
            read: 0,
            copy: vec![0; copy_len],
        })
    }

    /// Whether `program` can be called for the elements of `map`: what [`MapElemIter::new`] asks first.
    ///
    /// # Errors
    /// The variants of [`IterError`] in their order, but for [`IterError::Memory`].
    ///
    /// # Kernel
    /// `bpf_iter_attach_map`
    #[doc(alias = "bpf_iter_attach_map")]
    pub fn check(program: &Program, map: &MapRef) -> Result<(), IterError> {
        Self::copy_len(program, map).map(drop)
    }

    /// The element whose turn it is: so many were visited.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Bytes of the copy that is made of each value.
    fn copy_len(program: &Program, map: &MapRef) -> Result<usize, IterError> {
        let attach_type = program.expected_attach_type();
        if (program.prog_type(), attach_type) != (ProgType::TRACING, AttachType::TRACE_ITER) {
            return Err(IterError::Program(program.name().to_owned()));
        }
        if map.layout().is_exclusive() {
            return Err(IterError::Exclusive);
        }
        let value_size = map.value_size();
        let (value_len, copy_len) = match map.layout().kind() {
            Kind::Array => (value_size as usize, 0),
            Kind::PercpuArray => {
                let len = value_size.next_multiple_of(8) as usize * possible_cpus() as usize;
                (len, len)
            }
            kind @ (Kind::ProgArray
            | Kind::PerfEventArray
            | Kind::CgroupArray
            | Kind::ArrayOfMaps) => return Err(IterError::MapType(kind)),
        };
        let IterAccess { key, value } = program.iter_access();
        let key_len = map.key_size() as usize;
        for (what, needed, size) in [("key", key, key_len), ("value", value, value_len)] {
            if needed as usize > size {
                return Err(IterError::Access { what, needed, size });
            }
        }
        Ok(copy_len)
    }

    /// Visits elements until there are `wanted` bytes of text, or no more elements.
    fn visit(&mut self, wanted: usize) -> Result<(), VisitError> {
        for _ in 0..MAX_VISITS {
            let at_end = self.index >= self.map.max_entries();
            let before = self.text().len();
            if at_end && self.ended || !at_end && before >= wanted && before != 0 {
                return Ok(());
            }
            if let Err(error) = self.call(at_end) {
                // The next read tries the same element again. What there is comes first.
                self.text().truncate(before);
                return if before == 0 { Err(error) } else { Ok(()) };
            }
            self.ended = at_end;
            self.index += u32::from(!at_end);
        }
        if self.text().is_empty() { Err(Errno::EAGAIN.into()) } else { Ok(()) }
    }

    /// Calls the program for the next element, or for the end.
    fn call(&mut self, at_end: bool) -> Result<(), VisitError> {
        let value = if !self.copy.is_empty() && !at_end {
            // The handle may read, and the index is below the bound.
            let _ = self.map.lookup_elem(self.index, &mut self.copy, 0);
            None
        } else {
            self.map.prog_lookup_elem(&Lane::enter(), self.index)
        };
        let element = if at_end { Element::End } else { Element::At(self.index, value) };
        // The end has the number of the last element.
        let number = self.index.saturating_sub(u32::from(at_end));
        self.context.set_element(element, &self.copy, number.into());
        let outcome = self.program.run(&mut self.context)?;
        let overflowed = self.context.seq().is_some_and(|(seq, _)| seq.take_overflow());
        if outcome.retval() != 0 && !at_end {
            return Err(Errno::EAGAIN.into());
        }
        if overflowed { Err(Errno::E2BIG.into()) } else { Ok(()) }
    }

    /// Text that nobody has read, or that is being read.
    fn text(&mut self) -> &mut Vec<u8> {
        match self.context.seq() {
            Some((seq, _)) => &mut seq.text,
            None => &mut self.copy,
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum VisitError {
    #[error(transparent)]
    Errno(#[from] Errno),
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl From<VisitError> for io::Error {
    fn from(error: VisitError) -> Self {
        match error {
            VisitError::Errno(errno) => Self::from_raw_os_error(errno.raw()),
            VisitError::Fault(fault) => Self::other(fault),
        }
    }
}

impl io::Read for MapElemIter {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.read == self.text().len() {
            self.text().clear();
            self.read = 0;
            self.visit(buf.len())?;
        }
        let from = self.read;
        let read = self.text().get(from..).unwrap_or_default().read(buf)?;
        self.read += read;
        Ok(read)
    }
}
