//! The context of socket filters and classifiers: a socket buffer as `BPF_PROG_TEST_RUN` makes it.

use std::ops::Range;

use bpfarray_core::Errno;

use super::convert::{SK_BUFF, sk_buff};
use super::{Buffer, ContextError, ETH_HLEN, read, u32_at, user_struct, write};

/// Headroom in front of the Ethernet header: `NET_SKB_PAD`.
const HEADROOM: usize = 64;
/// Longest packet: what is left of a page behind the headroom and before the kernel's `struct skb_shared_info`.
pub(super) const MAX_LEN: usize = 4096 - HEADROOM - 320;
/// Where the Ethernet header is in the memory.
const MAC_HEADER: usize = Buffer::packet_start(sk_buff::SIZE) + HEADROOM;
const NETWORK_HEADER: usize = MAC_HEADER + ETH_HLEN;

/// Longest packet that a caller may say was on the wire.
const MAX_WIRE_LEN: u32 = 65536;
/// Most segments of an offloaded packet.
const MAX_GSO_SEGS: u32 = 65535;

/// What the caller of a test run may set, and gets back, as offsets in `struct __sk_buff`.
const SETTABLE: [Range<usize>; 6] = [
    sk_buff::MARK..sk_buff::QUEUE_MAPPING,
    sk_buff::PRIORITY..sk_buff::TC_INDEX,
    sk_buff::CB,
    sk_buff::TSTAMP..168,
    sk_buff::GSO_SIZE..180,
    sk_buff::HWTSTAMP..sk_buff::USER_SIZE,
];

/// What a classifier may write.
const CLASSIFIER_WRITES: &[Range<usize>] = &[
    sk_buff::MARK..sk_buff::PROTOCOL,
    sk_buff::PRIORITY..sk_buff::INGRESS_IFINDEX,
    sk_buff::TC_INDEX..sk_buff::HASH,
    sk_buff::TC_CLASSID..76,
    sk_buff::TSTAMP..sk_buff::WIRE_LEN,
];

/// Offsets of legacy loads from which on they count from a header instead of the packet's start.
const SKF_NET_OFF: i32 = -0x10_0000;
const SKF_LL_OFF: i32 = -0x20_0000;

/// Where a socket buffer's packet is. Offsets count from the start of the context's memory.
///
/// # Kernel
/// `struct sk_buff`
#[derive(Debug)]
pub(crate) struct Skb {
    /// Whether the program sees the packet from its Ethernet header on, and in memory; a socket filter does not.
    classifier: bool,
    data: usize,
    end: usize,
    /// How many checksums behind the first are known to be right; `None` if none is.
    ///
    /// # Kernel
    /// `skb->csum_level`, where `skb->ip_summed` is `CHECKSUM_UNNECESSARY`
    pub(crate) csum_level: Option<u8>,
}

/// Where `bpf_skb_load_bytes_relative` counts from.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum HeaderStart {
    Mac,
    Network,
}

impl Skb {
    pub(super) fn new(classifier: bool) -> Self {
        let data = if classifier { MAC_HEADER } else { NETWORK_HEADER };
        Self { classifier, data, end: data, csum_level: None }
    }

    pub(super) fn buffer(classifier: bool) -> Result<Buffer, Errno> {
        let filter_writes: &[Range<usize>] = const { &[sk_buff::CB] };
        let writable = if classifier { CLASSIFIER_WRITES } else { filter_writes };
        Buffer::new(sk_buff::SIZE, HEADROOM + MAX_LEN, writable, SK_BUFF)
    }

    pub(super) fn reset(
        &mut self,
        buffer: &mut Buffer,
        packet: &[u8],
        ctx_in: Option<&[u8]>,
    ) -> Result<(), ContextError> {
        let ctx: Option<[u8; sk_buff::USER_SIZE]> = user_struct(ctx_in)?;
        if let Some(at) = ctx.and_then(|ctx| unsettable(&ctx)) {
            return Err(ContextError::CtxByte(at));
        }
        if packet.len() > MAX_LEN {
            return Err(ContextError::PacketTooLong { len: packet.len(), max: MAX_LEN });
        }
        let min = headers_len(packet);
        if packet.len() < min {
            return Err(ContextError::PacketTooShort { len: packet.len(), min });
        }
        self.end = MAC_HEADER + packet.len();
        self.csum_level = None;
        let len = (self.end - self.data) as u32;

        let mut native = [0; sk_buff::SIZE];
        if let Some(ctx) = ctx {
            native[..sk_buff::USER_SIZE].copy_from_slice(&ctx);
            let wire_len = u32_at(&ctx, sk_buff::WIRE_LEN);
            if wire_len != 0 && !(len..=MAX_WIRE_LEN).contains(&wire_len) {
                return Err(ContextError::CtxField("wire_len"));
            }
            put(&mut native, sk_buff::WIRE_LEN, if wire_len == 0 { len } else { wire_len });
            if u32_at(&ctx, sk_buff::GSO_SEGS) > MAX_GSO_SEGS {
                return Err(ContextError::CtxField("gso_segs"));
            }
        }
        put(&mut native, sk_buff::LEN, len);
        put(&mut native, sk_buff::PKT_TYPE, pkt_type(packet));
        put(&mut native, sk_buff::PROTOCOL, protocol(packet));
        if u32_at(&native, sk_buff::IFINDEX) == 0 {
            put(&mut native, sk_buff::IFINDEX, 1);
        }
        let pointers = [
            (sk_buff::NATIVE_DATA, self.data),
            (sk_buff::NATIVE_DATA_END, self.end),
            (sk_buff::NATIVE_DATA_META, self.data),
        ];
        for (at, offset) in pointers {
            let addr = buffer.ctx_addr() + offset as u64;
            native[at..at + 8].copy_from_slice(&addr.to_ne_bytes());
        }
        write(buffer, 0, &native);
        write(buffer, MAC_HEADER, packet);
        buffer.set_packet(if self.classifier { self.data..self.end } else { 0..0 });
        Ok(())
    }

    /// The packet. Where the program did not see the Ethernet header, zeroes stand for it.
    pub(super) fn packet(&self, buffer: &Buffer) -> Vec<u8> {
        let mut packet = vec![0; self.data - MAC_HEADER];
        packet.extend(read(buffer, self.data, self.end - self.data));
        packet
    }

    /// `struct __sk_buff` as `BPF_PROG_TEST_RUN` hands it back.
    pub(super) fn sk_buff(buffer: &Buffer) -> Vec<u8> {
        let native = read(buffer, 0, sk_buff::USER_SIZE);
        let mut user = vec![0; sk_buff::USER_SIZE];
        for range in SETTABLE {
            user[range.clone()].copy_from_slice(&native[range]);
        }
        user
    }

    /// Copies `len` bytes at `offset` of the packet.
    pub(crate) fn load_bytes(&self, buffer: &Buffer, offset: usize, len: usize) -> Option<Vec<u8>> {
        self.load_from(buffer, self.data, offset, len)
    }

    /// Copies `len` bytes at `offset` from the start of a header.
    pub(crate) fn load_relative(
        &self,
        buffer: &Buffer,
        start: HeaderStart,
        offset: usize,
        len: usize,
    ) -> Option<Vec<u8>> {
        let start = match start {
            HeaderStart::Mac => MAC_HEADER,
            HeaderStart::Network => NETWORK_HEADER,
        };
        self.load_from(buffer, start, offset, len)
    }

    fn load_from(
        &self,
        buffer: &Buffer,
        start: usize,
        offset: usize,
        len: usize,
    ) -> Option<Vec<u8>> {
        let at = start.checked_add(offset).filter(|at| *at <= self.end)?;
        (len <= self.end - at).then(|| read(buffer, at, len))
    }

    /// Overwrites bytes at `offset` of the packet.
    pub(crate) fn store_bytes(&self, buffer: &Buffer, offset: usize, bytes: &[u8]) -> Option<()> {
        let at = self.data.checked_add(offset).filter(|at| *at <= self.end)?;
        (bytes.len() <= self.end - at).then(|| write(buffer, at, bytes))
    }

    /// A number in network order, as legacy packet loads find it.
    ///
    /// # Kernel
    /// `bpf_skb_load_helper_32`, `bpf_internal_load_pointer_neg_helper`
    #[doc(alias = "bpf_internal_load_pointer_neg_helper")]
    pub(crate) fn legacy_load(&self, buffer: &Buffer, offset: i32, size: usize) -> Option<u64> {
        let (start, offset) = if offset >= 0 {
            (self.data, offset)
        } else if offset >= SKF_NET_OFF {
            (NETWORK_HEADER, offset - SKF_NET_OFF)
        } else if offset >= SKF_LL_OFF {
            (MAC_HEADER, offset - SKF_LL_OFF)
        } else {
            return None;
        };
        let bytes = self.load_from(buffer, start, usize::try_from(offset).ok()?, size)?;
        Some(bytes.into_iter().fold(0, |number, byte| number << 8 | u64::from(byte)))
    }

    pub(crate) fn is_classifier(&self) -> bool {
        self.classifier
    }

    /// Sets the packet's hash; 0 is none.
    ///
    /// # Kernel
    /// `skb->hash`
    pub(crate) fn set_hash(&self, buffer: &Buffer, hash: u32) {
        write(buffer, sk_buff::HASH, &hash.to_ne_bytes());
    }

    /// Bytes of the packet, as the program sees it.
    pub(crate) fn len(&self) -> usize {
        self.end - self.data
    }
}

/// The first byte that is set although the caller may not set it.
fn unsettable(ctx: &[u8]) -> Option<usize> {
    let is_settable = |at: &usize| SETTABLE.iter().any(|range| range.contains(at));
    (0..ctx.len()).find(|at| ctx[*at] != 0 && !is_settable(at))
}

fn put(native: &mut [u8], at: usize, value: u32) {
    native[at..at + 4].copy_from_slice(&value.to_ne_bytes());
}

fn ethertype(packet: &[u8]) -> u16 {
    match packet {
        [_, _, _, _, _, _, _, _, _, _, _, _, high, low, ..] => u16::from_be_bytes([*high, *low]),
        _ => 0,
    }
}

/// Bytes that the headers of a packet take at least.
fn headers_len(packet: &[u8]) -> usize {
    match ethertype(packet) {
        0x0800 => ETH_HLEN + 20,
        0x86dd => ETH_HLEN + 40,
        _ => ETH_HLEN,
    }
}

/// `skb->protocol`, in network order.
///
/// # Kernel
/// `eth_type_trans`
fn protocol(packet: &[u8]) -> u32 {
    const SMALLEST_ETHERTYPE: u16 = 0x0600;
    const RAW_802_3: u16 = 0x0001;
    const LLC_802_2: u16 = 0x0004;
    let protocol = match ethertype(packet) {
        ethertype if ethertype >= SMALLEST_ETHERTYPE => ethertype,
        _ if packet[ETH_HLEN..].starts_with(&[0xff, 0xff]) => RAW_802_3,
        _ => LLC_802_2,
    };
    protocol.to_be().into()
}

/// `skb->pkt_type` on a device whose addresses are all zeroes, as the loopback device's are.
fn pkt_type(packet: &[u8]) -> u32 {
    const HOST: u32 = 0;
    const MULTICAST: u32 = 2;
    const OTHER_HOST: u32 = 3;
    match packet {
        [0, 0, 0, 0, 0, 0, ..] => HOST,
        [first, ..] if first & 1 != 0 => MULTICAST,
        _ => OTHER_HOST,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Context;
    use crate::prog_type::ProgType;

    /// 50 bytes of IPv4 behind an Ethernet header.
    fn ipv4() -> Vec<u8> {
        let mut packet = [[2; 6], [4; 6]].concat();
        packet.extend([8, 0, 0x45, 0, 0, 50, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        packet.extend(0..30);
        packet
    }

    fn field(ctx: &Context, at: usize) -> u64 {
        ctx.buffer().load(ctx.buffer().ctx_addr() + at as u64, 4).unwrap().unwrap()
    }

    #[test]
    fn fields_start_with_the_kernels_values() {
        for (prog_type, len) in [(ProgType::SOCKET_FILTER, 50), (ProgType::SCHED_CLS, 64)] {
            let ctx = Context::new(prog_type, &ipv4(), None).unwrap();
            let set: Vec<(usize, u64)> = (0..192)
                .step_by(4)
                .filter(|at| !matches!(at, 76 | 80 | 140))
                .map(|at| (at, field(&ctx, at)))
                .filter(|(_, value)| *value != 0)
                .collect();
            assert_eq!(set, [(0, len), (4, 3), (16, 8), (40, 1)]);
        }
    }

    #[test]
    fn a_pointer_is_whole_even_where_translation_did_not_see_it() {
        let ctx = Context::new(ProgType::SCHED_CLS, &ipv4(), None).unwrap();
        let (data, data_end) = (field(&ctx, 76), field(&ctx, 80));
        assert_eq!(data_end - data, 64);
        assert_eq!(ctx.buffer().load(data_end - 1, 1), Some(Ok(29)));
        assert!(ctx.buffer().load(data_end, 1).unwrap().is_err());
    }

    #[test]
    fn link_layer_fields_are_those_of_the_loopback_device() {
        let kind = |first: [u8; 6], ethertype: [u8; 2]| {
            let packet = [&first[..], &[4; 6], &ethertype, &[0xff; 50]].concat();
            let ctx = Context::new(ProgType::SCHED_CLS, &packet, None).unwrap();
            (field(&ctx, 4), field(&ctx, 16))
        };
        assert_eq!(kind([0xff; 6], [6, 0]), (2, 0x6));
        assert_eq!(kind([0; 6], [0x81, 0]), (0, 0x81));
        assert_eq!(kind([2; 6], [5, 0xdc]), (3, 0x100));
        let packet = [&[2; 12][..], &[5, 0xdc, 0, 0]].concat();
        let ctx = Context::new(ProgType::SCHED_CLS, &packet, None).unwrap();
        assert_eq!(field(&ctx, 16), 0x400);
    }

    #[test]
    fn packets_need_their_headers() {
        let errno = |packet: &[u8]| {
            Context::new(ProgType::SCHED_CLS, packet, None).map_err(|error| error.errno()).err()
        };
        assert_eq!(errno(&[0; 13]), Some(Errno::EINVAL));
        assert_eq!(errno(&[0; 14]), None);
        assert_eq!(errno(&ipv4()[..33]), Some(Errno::EINVAL));
        assert_eq!(errno(&ipv4()[..34]), None);
        assert_eq!(errno(&[0; 3712]), None);
        assert_eq!(errno(&[0; 3713]), Some(Errno::EINVAL));
    }

    #[test]
    fn what_a_caller_sets_is_what_the_kernel_lets_it_set() {
        let errno = |at: usize, value: u32| {
            let mut ctx = [0; 192];
            put(&mut ctx, at, value);
            let made = Context::new(ProgType::SCHED_CLS, &ipv4(), Some(&ctx));
            made.map(|made| made.ctx_out()[at]).map_err(|error| error.errno())
        };
        for at in [8, 32, 36, 40, 48, 52, 56, 60, 64, 152, 156, 164, 176, 184, 188] {
            assert_eq!(errno(at, 2), Ok(2), "{at}");
        }
        for at in [0, 4, 12, 16, 20, 44, 68, 72, 76, 84, 88, 140, 144, 168, 180] {
            assert_eq!(errno(at, 2), Err(Errno::EINVAL), "{at}");
        }
        assert_eq!(errno(160, 63), Err(Errno::EINVAL));
        assert_eq!(errno(160, 65), Ok(65));
        assert_eq!(errno(160, 65537), Err(Errno::EINVAL));
        assert_eq!(errno(164, 65536), Err(Errno::EINVAL));
    }

    #[test]
    fn a_socket_filters_packet_comes_back_without_its_ethernet_header() {
        let ctx = Context::new(ProgType::SOCKET_FILTER, &ipv4(), None).unwrap();
        assert_eq!(ctx.packet(), [&[0; 14][..], &ipv4()[14..]].concat());
    }

    #[test]
    fn legacy_loads_count_from_headers() {
        for (prog_type, at_0) in [(ProgType::SOCKET_FILTER, 0x4500), (ProgType::SCHED_CLS, 0x202)] {
            let mut ctx = Context::new(prog_type, &ipv4(), None).unwrap();
            let (skb, buffer) = ctx.skb().unwrap();
            let load = |offset, size| skb.legacy_load(buffer, offset, size);
            assert_eq!(load(0, 2), Some(at_0));
            assert_eq!(load(SKF_LL_OFF + 12, 4), Some(0x0800_4500));
            assert_eq!(load(SKF_NET_OFF + 9, 1), Some(17));
            assert_eq!(load(SKF_NET_OFF + 49, 1), Some(0x1d));
            assert_eq!(load(SKF_NET_OFF + 49, 2), None);
            assert_eq!(
                (load(-1, 1), load(SKF_LL_OFF - 1, 1), load(i32::MAX, 1)),
                (None, None, None)
            );
        }
    }
}
