//! Which fields a context has for the users of a program type, and where they are natively.

use crate::prog_type::ProgType;

/// A native access that stands for a users' one.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct CtxAccess {
    /// Byte offset in the native structure.
    pub native_off: usize,
    /// Bytes.
    pub native_size: usize,
}

/// A 4-byte field for users that has another place or width natively.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Field {
    pub(super) offset: u16,
    pub(super) native_offset: u16,
    pub(super) native_size: u8,
}

const fn field(offset: u16, native_offset: u16, native_size: u8) -> Field {
    Field { offset, native_offset, native_size }
}

/// The native structure of an XDP context. The first three fields are those of the kernel.
///
/// # Kernel
/// `struct xdp_buff`
pub(super) mod xdp_buff {
    pub(in crate::context) const DATA: usize = 0;
    pub(in crate::context) const DATA_END: usize = 8;
    pub(in crate::context) const DATA_META: usize = 16;
    pub(in crate::context) const INGRESS_IFINDEX: usize = 32;
    pub(in crate::context) const RX_QUEUE_INDEX: usize = 36;
    pub(in crate::context) const EGRESS_IFINDEX: usize = 40;
    pub(in crate::context) const SIZE: usize = 56;
}

/// The fields of `struct xdp_md`, in its order.
pub(super) const XDP_MD: &[Field] = &[
    field(0, xdp_buff::DATA as u16, 8),
    field(4, xdp_buff::DATA_END as u16, 8),
    field(8, xdp_buff::DATA_META as u16, 8),
    field(12, xdp_buff::INGRESS_IFINDEX as u16, 4),
    field(16, xdp_buff::RX_QUEUE_INDEX as u16, 4),
    field(20, xdp_buff::EGRESS_IFINDEX as u16, 4),
];

/// Offsets in `struct __sk_buff`. The native structure has its fields in the same places, and the
/// packet's pointers, which are wider natively, behind.
pub(super) mod sk_buff {
    use std::ops::Range;

    pub(in crate::context) const LEN: usize = 0;
    pub(in crate::context) const PKT_TYPE: usize = 4;
    pub(in crate::context) const MARK: usize = 8;
    pub(in crate::context) const QUEUE_MAPPING: usize = 12;
    pub(in crate::context) const PROTOCOL: usize = 16;
    pub(in crate::context) const PRIORITY: usize = 32;
    pub(in crate::context) const INGRESS_IFINDEX: usize = 36;
    pub(in crate::context) const IFINDEX: usize = 40;
    pub(in crate::context) const TC_INDEX: usize = 44;
    pub(in crate::context) const CB: Range<usize> = 48..68;
    pub(in crate::context) const HASH: usize = 68;
    pub(in crate::context) const TC_CLASSID: usize = 72;
    pub(in crate::context) const NAPI_ID: usize = 84;
    pub(in crate::context) const TSTAMP: usize = 152;
    pub(in crate::context) const WIRE_LEN: usize = 160;
    pub(in crate::context) const GSO_SEGS: usize = 164;
    pub(in crate::context) const GSO_SIZE: usize = 176;
    pub(in crate::context) const TSTAMP_TYPE: usize = 180;
    pub(in crate::context) const HWTSTAMP: usize = 184;
    /// Bytes of `struct __sk_buff`.
    pub(in crate::context) const USER_SIZE: usize = 192;
    pub(in crate::context) const NATIVE_DATA: usize = 192;
    pub(in crate::context) const NATIVE_DATA_END: usize = 200;
    pub(in crate::context) const NATIVE_DATA_META: usize = 208;
    pub(in crate::context) const SIZE: usize = 216;
}

/// The fields of `struct __sk_buff` that are elsewhere natively.
pub(super) const SK_BUFF: &[Field] = &[
    field(76, sk_buff::NATIVE_DATA as u16, 8),
    field(80, sk_buff::NATIVE_DATA_END as u16, 8),
    field(140, sk_buff::NATIVE_DATA_META as u16, 8),
];

/// What a user's access of `size` bytes at `off` in the context of a program becomes; `None` where the
/// program type does not allow it.
///
/// ```
/// use bpfarray_vm::context::{CtxAccess, convert_ctx_access};
/// use bpfarray_vm::prog_type::ProgType;
/// // data_end is a pointer that users see in 32 bits.
/// let data_end = convert_ctx_access(ProgType::XDP, 4, 4, false);
/// assert_eq!(data_end, Some(CtxAccess { native_off: 8, native_size: 8 }));
/// assert_eq!(convert_ctx_access(ProgType::XDP, 4, 4, true), None);
/// ```
///
/// # Kernel
/// `is_valid_access` and `convert_ctx_access` of `struct bpf_verifier_ops`
#[doc(alias = "xdp_is_valid_access")]
#[doc(alias = "bpf_skb_is_valid_access")]
pub fn convert_ctx_access(
    prog_type: ProgType,
    off: usize,
    size: usize,
    write: bool,
) -> Option<CtxAccess> {
    if !matches!(size, 1 | 2 | 4 | 8) || !off.is_multiple_of(size) {
        return None;
    }
    let same = CtxAccess { native_off: off, native_size: size };
    match prog_type {
        ProgType::XDP if size == 4 && !write => elsewhere(XDP_MD, off),
        ProgType::XDP => None,
        ProgType::SOCKET_FILTER => sk_buff_access(off, size, write, false),
        ProgType::SCHED_CLS | ProgType::SCHED_ACT => {
            let pointer = elsewhere(SK_BUFF, off).filter(|_| size == 4 && !write);
            pointer.or_else(|| sk_buff_access(off, size, write, true))
        }
        ProgType::SYSCALL => (off + size <= usize::from(u16::MAX)).then_some(same),
        _ => (!write && off + size <= bytes_ctx_len(prog_type)?).then_some(same),
    }
}

fn elsewhere(fields: &[Field], off: usize) -> Option<CtxAccess> {
    let field = fields.iter().find(|field| usize::from(field.offset) == off)?;
    Some(CtxAccess {
        native_off: field.native_offset.into(),
        native_size: field.native_size.into(),
    })
}

/// Bytes that the native structure of a program of this type has at least; `None` where it depends on the run.
pub(crate) fn min_len(prog_type: ProgType) -> Option<usize> {
    match prog_type {
        ProgType::XDP => Some(xdp_buff::SIZE),
        ProgType::SOCKET_FILTER | ProgType::SCHED_CLS | ProgType::SCHED_ACT => Some(sk_buff::SIZE),
        ProgType::TRACING => None,
        _ => bytes_ctx_len(prog_type),
    }
}

/// Bytes of a context that programs of this type may only read, or `None` for any other type.
pub(super) fn bytes_ctx_len(prog_type: ProgType) -> Option<usize> {
    const PT_REGS: usize = 168;
    match prog_type {
        ProgType::KPROBE => Some(PT_REGS),
        // The longest record that perf takes.
        ProgType::TRACEPOINT => Some(8192),
        ProgType::PERF_EVENT => Some(PT_REGS + 16),
        // Twelve arguments.
        ProgType::RAW_TRACEPOINT | ProgType::RAW_TRACEPOINT_WRITABLE | ProgType::TRACING => {
            Some(96)
        }
        _ => None,
    }
}

fn sk_buff_access(off: usize, size: usize, write: bool, tc: bool) -> Option<CtxAccess> {
    use sk_buff::*;
    let in_field = off / 4 * 4;
    let narrow = size <= 4 && !write;
    let allowed = match in_field {
        _ if CB.contains(&off) => off + size <= CB.end,
        TSTAMP if size == 8 => tc,
        HWTSTAMP if size == 8 => tc && !write,
        TSTAMP_TYPE => tc && !write && size == 1 && off == TSTAMP_TYPE,
        MARK | QUEUE_MAPPING | PRIORITY | TC_INDEX => narrow || tc && size == 4,
        TC_CLASSID => tc && (narrow || size == 4),
        WIRE_LEN => tc && narrow,
        LEN | PKT_TYPE | HASH | NAPI_ID | GSO_SEGS | GSO_SIZE | INGRESS_IFINDEX | IFINDEX => narrow,
        PROTOCOL..PRIORITY => narrow,
        _ => false,
    };
    // The kernel keeps these in 16 bits.
    let truncated = write && matches!(off, QUEUE_MAPPING | TC_INDEX | TC_CLASSID);
    let native_size = if truncated { 2 } else { size };
    allowed.then_some(CtxAccess { native_off: off, native_size })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offsets of the 4-byte fields where an access of this kind was allowed by Linux 6.18.
    fn fields(prog_type: ProgType, size: usize, write: bool) -> Vec<usize> {
        let allowed = |off: &usize| convert_ctx_access(prog_type, *off, size, write).is_some();
        (0..192).step_by(4).filter(allowed).collect()
    }

    #[test]
    fn socket_filters_have_the_kernels_fields() {
        let common =
            [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60, 64, 68, 84, 164, 176];
        for size in [1, 2, 4] {
            assert_eq!(fields(ProgType::SOCKET_FILTER, size, false), common);
            assert_eq!(fields(ProgType::SOCKET_FILTER, size, true), [48, 52, 56, 60, 64]);
        }
        assert_eq!(fields(ProgType::SOCKET_FILTER, 8, false), [48, 56]);
    }

    #[test]
    fn classifiers_have_the_kernels_fields() {
        let narrow = [
            0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60, 64, 68, 72, 84, 160, 164,
            176,
        ];
        assert_eq!(fields(ProgType::SCHED_CLS, 2, false), narrow);
        let mut words = narrow.to_vec();
        words.extend([76, 80, 140]);
        words.sort_unstable();
        assert_eq!(fields(ProgType::SCHED_CLS, 4, false), words);
        let writable = [8, 12, 32, 44, 48, 52, 56, 60, 64, 72];
        assert_eq!(fields(ProgType::SCHED_ACT, 4, true), writable);
        assert_eq!(fields(ProgType::SCHED_ACT, 8, false), [48, 56, 152, 184]);
        assert_eq!(fields(ProgType::SCHED_ACT, 8, true), [48, 56, 152]);
        assert!(convert_ctx_access(ProgType::SCHED_CLS, 180, 1, false).is_some());
    }

    #[test]
    fn xdp_fields_are_read_whole() {
        assert_eq!(fields(ProgType::XDP, 4, false), [0, 4, 8, 12, 16, 20]);
        for size in [1, 2, 8] {
            assert!(fields(ProgType::XDP, size, false).is_empty());
        }
        assert!(fields(ProgType::XDP, 4, true).is_empty());
    }

    #[test]
    fn no_field_of_a_user_shadows_a_native_one() {
        // A native field of 4 bytes at a place users know would be mistaken for theirs.
        for field in XDP_MD.iter().chain(SK_BUFF) {
            let native = |f: &&Field| f.native_offset == field.offset && f.native_size == 4;
            assert_eq!(XDP_MD.iter().chain(SK_BUFF).find(native), None);
        }
    }
}
