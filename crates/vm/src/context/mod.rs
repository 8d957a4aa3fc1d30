//! What a program is called with: a packet, the arguments of a tracepoint, plain bytes.

mod buffer;
mod convert;
mod iter;
mod skb;
mod xdp;

use std::mem::offset_of;

use bpfarray_core::Errno;

pub(crate) use buffer::Buffer;
pub(crate) use convert::min_len;
pub use convert::{CtxAccess, convert_ctx_access};
pub(crate) use iter::{Element, MapElem, Seq};
pub(crate) use skb::{HeaderStart, Skb};
pub(crate) use xdp::Xdp;

use crate::interp::KeptStack;
use crate::prog_type::ProgType;
use crate::program::Program;

/// Bytes of an Ethernet header, the shortest packet.
const ETH_HLEN: usize = 14;

/// The context of a program: its memory and what the host knows about it.
///
/// Memory is set aside once; [`Context::reset`] makes it ready for the next packet.
///
/// ```
/// use bpfarray_vm::context::Context;
/// use bpfarray_vm::prog_type::ProgType;
/// let mut ctx = Context::new(ProgType::XDP, &[0; 64], None)?;
/// assert_eq!(ctx.packet().len(), 64);
/// ctx.reset(&[1; 100], None)?;
/// assert_eq!(ctx.packet(), [1; 100]);
/// # Ok::<(), bpfarray_vm::context::ContextError>(())
/// ```
#[derive(Debug)]
pub struct Context {
    buffer: Buffer,
    kind: Kind,
    prog_type: ProgType,
    /// What programs run with that get this context.
    stack: KeptStack,
    /// A program that was gone to by a tail call, and is worth better code when the run is over.
    hot: Option<Program>,
}

#[derive(Debug)]
enum Kind {
    Bytes,
    Xdp(Xdp),
    Skb(Skb),
    MapElem(MapElem),
}

/// Why there is no such context. The variants stand in the order in which they are checked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContextError {
    /// Programs of this type cannot be run.
    #[error("programs of type {0} cannot be run")]
    ProgType(ProgType),
    /// There is no memory.
    #[error("no memory for the context: {0}")]
    Memory(Errno),
    /// The context structure is shorter than its type.
    #[error("a context of {len} bytes, where the type has {size}")]
    CtxTooShort {
        /// Bytes given.
        len: usize,
        /// Bytes of the structure.
        size: usize,
    },
    /// The context structure is longer than its type, and what is behind is not zero.
    #[error("a context of more than {0} bytes")]
    CtxTooLong(usize),
    /// A field of the context structure with a value it cannot have.
    #[error("context field {0} has a value that cannot be set")]
    CtxField(&'static str),
    /// A byte of the context structure that is not for the caller to set.
    #[error("the byte at offset {0} of the context cannot be set")]
    CtxByte(usize),
    /// A packet where none is taken.
    #[error("programs of type {0} take no packet")]
    NoPacket(ProgType),
    /// The packet has no complete header.
    #[error("a packet of {len} bytes, which is shorter than its headers ({min})")]
    PacketTooShort {
        /// Bytes given.
        len: usize,
        /// Least bytes.
        min: usize,
    },
    /// The packet is longer than a program of this type gets.
    #[error("a packet of {len} bytes; the longest that can be run has {max}")]
    PacketTooLong {
        /// Bytes given.
        len: usize,
        /// Most bytes.
        max: usize,
    },
}

impl ContextError {
    /// The error number of `BPF_PROG_TEST_RUN`.
    pub fn errno(&self) -> Errno {
        match self {
            Self::ProgType(_) => Errno::ENOTSUPP,
            Self::Memory(errno) => *errno,
            Self::CtxTooShort { .. } => Errno::ENOSPC,
            Self::CtxTooLong(_) => Errno::E2BIG,
            Self::PacketTooLong { max, .. } if *max > skb::MAX_LEN => Errno::ENOMEM,
            _ => Errno::EINVAL,
        }
    }
}

impl Context {
    /// Where generated code finds the buffer's address and the packet in it.
    pub(crate) const BASE: usize = offset_of!(Self, buffer) + Buffer::BASE;
    pub(crate) const PACKET_START: usize = offset_of!(Self, buffer) + Buffer::PACKET_START;
    pub(crate) const PACKET_END: usize = offset_of!(Self, buffer) + Buffer::PACKET_END;

    /// The context that `BPF_PROG_TEST_RUN` makes for a program of this type from a packet and a context
    /// structure, either of which may be missing.
    ///
    /// XDP takes a packet and a `struct xdp_md`, socket filters and classifiers a packet and a
    /// `struct __sk_buff`; `syscall` programs take bytes they may write, tracing programs bytes they
    /// may read, to which zeroes are added.
    ///
    /// # Errors
    /// The variants of [`ContextError`] in their order.
    ///
    /// # Kernel
    /// `bpf_prog_test_run_xdp`, `bpf_prog_test_run_skb`, `bpf_prog_test_run_raw_tp`, `bpf_prog_test_run_syscall`
    #[doc(alias = "bpf_prog_test_run_xdp")]
    #[doc(alias = "bpf_prog_test_run_skb")]
    pub fn new(
        prog_type: ProgType,
        packet: &[u8],
        ctx_in: Option<&[u8]>,
    ) -> Result<Self, ContextError> {
        let ctx_len = ctx_in.map_or(0, <[u8]>::len);
        let (buffer, kind) = match prog_type {
            ProgType::XDP => (Xdp::buffer(), Kind::Xdp(Xdp::default())),
            ProgType::SOCKET_FILTER => (Skb::buffer(false), Kind::Skb(Skb::new(false))),
            ProgType::SCHED_CLS | ProgType::SCHED_ACT => {
                (Skb::buffer(true), Kind::Skb(Skb::new(true)))
            }
            ProgType::SYSCALL if ctx_len > usize::from(u16::MAX) => {
                return Err(ContextError::CtxTooLong(u16::MAX.into()));
            }
            ProgType::SYSCALL => (Buffer::new(ctx_len, 0, buffer::EVERYTHING, &[]), Kind::Bytes),
            _ => {
                let len = convert::bytes_ctx_len(prog_type);
                let len = len.ok_or(ContextError::ProgType(prog_type))?;
                (Buffer::new(len, 0, &[], &[]), Kind::Bytes)
            }
        };
        let (buffer, stack) = (buffer.map_err(ContextError::Memory)?, KeptStack::default());
        let mut context = Self { buffer, kind, prog_type, stack, hot: None };
        context.reset(packet, ctx_in)?;
        Ok(context)
    }

    /// Fills the context anew, as [`Context::new`] does, in the same memory.
    ///
    /// # Errors
    /// The variants of [`ContextError`] in their order. For a `syscall` program the structure must
    /// have the length it had.
    pub fn reset(&mut self, packet: &[u8], ctx_in: Option<&[u8]>) -> Result<(), ContextError> {
        match &mut self.kind {
            Kind::Xdp(xdp) => xdp.reset(&mut self.buffer, packet, ctx_in),
            Kind::Skb(skb) => skb.reset(&mut self.buffer, packet, ctx_in),
            Kind::MapElem(_) => Err(ContextError::ProgType(ProgType::TRACING)),
            Kind::Bytes => {
                if !packet.is_empty() {
                    return Err(ContextError::NoPacket(self.prog_type));
                }
                let size = self.buffer.ctx_len();
                let ctx = ctx_in.unwrap_or(&[]);
                if ctx.len() > size {
                    return Err(ContextError::CtxTooLong(size));
                }
                if self.prog_type == ProgType::SYSCALL && ctx.len() < size {
                    return Err(ContextError::CtxTooShort { len: ctx.len(), size });
                }
                let mut bytes = vec![0; size];
                bytes[..ctx.len()].copy_from_slice(ctx);
                write(&self.buffer, 0, &bytes);
                Ok(())
            }
        }
    }

    /// The packet as the program left it; empty where there is none.
    pub fn packet(&self) -> Vec<u8> {
        match &self.kind {
            Kind::Xdp(xdp) => xdp.packet(&self.buffer),
            Kind::Skb(skb) => skb.packet(&self.buffer),
            Kind::MapElem(_) | Kind::Bytes => Vec::new(),
        }
    }

    /// The context structure as the program left it and users see it.
    pub fn ctx_out(&self) -> Vec<u8> {
        match &self.kind {
            Kind::Xdp(xdp) => xdp.xdp_md(),
            Kind::Skb(_) => Skb::sk_buff(&self.buffer),
            Kind::MapElem(_) | Kind::Bytes => read(&self.buffer, 0, self.buffer.ctx_len()),
        }
    }

    /// The context of a program that is called for each element of a map. Values are copied if
    /// `copy_len` is not 0, or used where they are.
    pub(crate) fn map_elem(map_addr: u64, session: u64, copy_len: usize) -> Result<Self, Errno> {
        let buffer = MapElem::buffer(map_addr, session, copy_len)?;
        let (kind, stack) = (Kind::MapElem(MapElem::default()), KeptStack::default());
        Ok(Self { buffer, kind, prog_type: ProgType::TRACING, stack, hot: None })
    }

    /// Puts an element into such a context, the one after `number` others.
    pub(crate) fn set_element(&mut self, element: Element, copy: &[u8], number: u64) {
        if matches!(self.kind, Kind::MapElem(_)) {
            MapElem::set(&self.buffer, element, number);
            write(&self.buffer, MapElem::copy_at(), copy);
        }
    }

    /// What a program writes that is called for elements, and by which address it knows it.
    pub(crate) fn seq(&mut self) -> Option<(&mut Seq, u64)> {
        match &mut self.kind {
            Kind::MapElem(elem) => Some((&mut elem.seq, MapElem::seq_addr(&self.buffer))),
            _ => None,
        }
    }

    /// Whether programs of this type can be called with it.
    #[inline]
    pub(crate) fn is_for(&self, prog_type: ProgType) -> bool {
        let both = [self.prog_type, prog_type];
        let are_classifiers =
            || both.iter().all(|own| matches!(*own, ProgType::SCHED_CLS | ProgType::SCHED_ACT));
        self.prog_type == prog_type || are_classifiers()
    }

    #[inline]
    pub(crate) fn stack(&mut self) -> &mut KeptStack {
        &mut self.stack
    }

    #[inline]
    pub(crate) fn hot(&mut self) -> &mut Option<Program> {
        &mut self.hot
    }

    #[inline]
    pub(crate) fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    pub(crate) fn xdp(&mut self) -> Option<(&mut Xdp, &mut Buffer)> {
        match &mut self.kind {
            Kind::Xdp(xdp) => Some((xdp, &mut self.buffer)),
            _ => None,
        }
    }

    pub(crate) fn skb(&mut self) -> Option<(&mut Skb, &mut Buffer)> {
        match &mut self.kind {
            Kind::Skb(skb) => Some((skb, &mut self.buffer)),
            _ => None,
        }
    }

    /// The socket buffer of a classifier, which may do more with it than a socket filter.
    pub(crate) fn classifier(&mut self) -> Option<(&mut Skb, &mut Buffer)> {
        self.skb().filter(|(skb, _)| skb.is_classifier())
    }
}

/// Copies bytes at an offset that this module computed. Were it wrong, nothing would be copied.
fn write(buffer: &Buffer, offset: usize, bytes: &[u8]) {
    debug_assert!(buffer.memory().len().checked_sub(bytes.len()).is_some_and(|max| offset <= max));
    let _ = buffer.memory().write(offset, bytes);
}

/// As [`write`], the other way; zeroes where the offset were wrong.
fn read(buffer: &Buffer, offset: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let _ = buffer.memory().read(offset, &mut bytes);
    bytes
}

/// The context structure somebody passed, cut or checked to `N` bytes as `bpf(2)` does.
fn user_struct<const N: usize>(ctx_in: Option<&[u8]>) -> Result<Option<[u8; N]>, ContextError> {
    let Some(ctx) = ctx_in else { return Ok(None) };
    let Some((head, tail)) = ctx.split_first_chunk::<N>() else {
        return Err(ContextError::CtxTooShort { len: ctx.len(), size: N });
    };
    if tail.iter().any(|byte| *byte != 0) {
        return Err(ContextError::CtxTooLong(N));
    }
    Ok(Some(*head))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |field| u32::from_ne_bytes(*field))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syscall_programs_get_the_bytes_they_are_given() {
        let mut ctx = Context::new(ProgType::SYSCALL, &[], Some(&[1, 2, 3])).unwrap();
        let addr = ctx.buffer().ctx_addr();
        assert_eq!(ctx.buffer().locate(addr + 2, 1, true), Some(Ok(2)));
        assert_eq!(
            ctx.buffer().locate(addr + 2, 2, false),
            Some(Err(crate::fault::AccessReason::Context))
        );
        assert_eq!(ctx.ctx_out(), [1, 2, 3]);
        let short = ContextError::CtxTooShort { len: 2, size: 3 };
        assert_eq!(ctx.reset(&[], Some(&[1, 2])), Err(short));
    }

    #[test]
    fn tracing_programs_read_zeroes_behind_their_arguments() {
        let ctx = Context::new(ProgType::RAW_TRACEPOINT, &[], Some(&[7; 8])).unwrap();
        let addr = ctx.buffer().ctx_addr();
        assert_eq!(ctx.buffer().load(addr, 8), Some(Ok(0x0707_0707_0707_0707)));
        assert_eq!(ctx.buffer().load(addr + 88, 8), Some(Ok(0)));
        assert!(ctx.buffer().load(addr + 96, 8).unwrap().is_err());
        assert!(ctx.buffer().locate(addr, 8, true).unwrap().is_err());
    }

    #[test]
    fn types_without_a_context_are_named() {
        let error = Context::new(ProgType::STRUCT_OPS, &[], None).unwrap_err();
        assert_eq!(error.to_string(), "programs of type struct_ops cannot be run");
        assert_eq!(error.errno(), Errno::ENOTSUPP);
    }
}
