//! The context of an XDP program: a frame of one page with room in front and behind, and what of a long
//! packet is not in it.

use bpfarray_core::Errno;

use super::convert::{XDP_MD, xdp_buff};
use super::{Buffer, ContextError, ETH_HLEN, read, u32_at, user_struct, write};

const FRAME_SIZE: usize = 4096;
/// Where the frame begins in the memory.
const HARD_START: usize = Buffer::packet_start(xdp_buff::SIZE);
const HEADROOM: usize = 256;
/// What the kernel keeps at the front of the headroom: `struct xdp_frame`.
const XDP_FRAME_SIZE: usize = 40;
/// What the kernel keeps at the end of the frame: `struct skb_shared_info`, aligned.
const TAILROOM: usize = 320;
const HARD_END: usize = HARD_START + FRAME_SIZE - TAILROOM;
/// Longest metadata in front of a packet.
const MAX_META: usize = 252;
/// Longest metadata that fits the headroom.
const MAX_META_IN: usize = HEADROOM - XDP_FRAME_SIZE;
const FRAG_SIZE: usize = 4096;
const MAX_FRAGS: usize = 17;

/// Where an XDP packet is. Offsets count from the start of the context's memory.
///
/// # Kernel
/// `struct xdp_buff`
#[derive(Debug, Default)]
pub(crate) struct Xdp {
    data_meta: usize,
    data: usize,
    data_end: usize,
    /// What does not fit the frame, in pieces of [`FRAG_SIZE`].
    frags: Vec<u8>,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    /// The interface number as it was asked for: 0 for the default.
    ifindex_in: u32,
}

impl Xdp {
    pub(super) fn buffer() -> Result<Buffer, Errno> {
        Buffer::new(xdp_buff::SIZE, FRAME_SIZE, &[], XDP_MD)
    }

    pub(super) fn reset(
        &mut self,
        buffer: &mut Buffer,
        packet: &[u8],
        ctx_in: Option<&[u8]>,
    ) -> Result<(), ContextError> {
        let md: Option<[u8; 24]> = user_struct(ctx_in)?;
        let field = |at| md.map_or(0, |md| u32_at(&md, at));
        let meta = field(0) as usize;
        let data_end = md.map_or(packet.len(), |md| u32_at(&md, 4) as usize);
        if field(8) != 0 {
            return Err(ContextError::CtxField("data_meta"));
        }
        if data_end > packet.len() {
            return Err(ContextError::CtxField("data_end"));
        }
        if meta > data_end || meta > MAX_META_IN || !meta.is_multiple_of(4) {
            return Err(ContextError::CtxField("data"));
        }
        let min = meta + ETH_HLEN;
        if packet.len() < min {
            return Err(ContextError::PacketTooShort { len: packet.len(), min });
        }
        let room = FRAME_SIZE - TAILROOM - HEADROOM + meta;
        let linear = data_end.min(room);
        let max = linear + MAX_FRAGS * FRAG_SIZE;
        self.ifindex_in = field(12);
        self.ingress_ifindex = if self.ifindex_in == 0 { 1 } else { self.ifindex_in };
        self.rx_queue_index = field(16);
        if self.ifindex_in == 0 && self.rx_queue_index != 0 {
            return Err(ContextError::CtxField("rx_queue_index"));
        }
        if field(20) != 0 {
            return Err(ContextError::CtxField("egress_ifindex"));
        }
        if packet.len() > max {
            return Err(ContextError::PacketTooLong { len: packet.len(), max });
        }
        self.data = HARD_START + HEADROOM;
        self.data_meta = self.data - meta;
        self.data_end = self.data_meta + linear;
        self.clear_outside(buffer);
        write(buffer, self.data_meta, &packet[..linear]);
        self.frags.clear();
        self.frags.extend_from_slice(&packet[linear..]);
        write(buffer, xdp_buff::INGRESS_IFINDEX, &self.ingress_ifindex.to_ne_bytes());
        write(buffer, xdp_buff::RX_QUEUE_INDEX, &self.rx_queue_index.to_ne_bytes());
        self.publish(buffer);
        Ok(())
    }

    /// Zeroes the headroom, which an earlier packet may have grown into. The tailroom is zeroed when
    /// a packet grows.
    fn clear_outside(&self, buffer: &Buffer) {
        let _ = buffer.memory().fill(HARD_START, self.data_meta - HARD_START, 0);
    }

    /// Lets the program see where its packet is.
    fn publish(&self, buffer: &mut Buffer) {
        let base = buffer.ctx_addr();
        let pointers = [
            (xdp_buff::DATA, self.data),
            (xdp_buff::DATA_END, self.data_end),
            (xdp_buff::DATA_META, self.data_meta),
        ];
        for (at, offset) in pointers {
            write(buffer, at, &(base + offset as u64).to_ne_bytes());
        }
        buffer.set_packet(self.data_meta..self.data_end);
    }

    pub(super) fn packet(&self, buffer: &Buffer) -> Vec<u8> {
        let mut packet = read(buffer, self.data_meta, self.data_end - self.data_meta);
        packet.extend_from_slice(&self.frags);
        packet
    }

    /// `struct xdp_md` as `BPF_PROG_TEST_RUN` hands it back.
    pub(super) fn xdp_md(&self) -> Vec<u8> {
        let data = (self.data - self.data_meta) as u32;
        let data_end = (self.data_end - self.data_meta) as u32;
        let fields = [data, data_end, 0, self.ifindex_in, self.rx_queue_index, 0];
        fields.into_iter().flat_map(u32::to_ne_bytes).collect()
    }

    /// Bytes of the packet, with those outside the frame.
    pub(crate) fn len(&self) -> usize {
        self.data_end - self.data + self.frags.len()
    }

    /// Moves the start of the packet, and metadata with it, by `delta` bytes.
    ///
    /// # Kernel
    /// `bpf_xdp_adjust_head`
    pub(crate) fn adjust_head(&mut self, buffer: &mut Buffer, delta: i32) -> Result<(), Errno> {
        let meta = self.data - self.data_meta;
        let data = moved(self.data, delta)?;
        let too_far = data + ETH_HLEN > self.data_end;
        if data < HARD_START + XDP_FRAME_SIZE + meta || too_far {
            return Err(Errno::EINVAL);
        }
        let metadata = read(buffer, self.data_meta, meta);
        (self.data, self.data_meta) = (data, data - meta);
        write(buffer, self.data_meta, &metadata);
        self.publish(buffer);
        Ok(())
    }

    /// Moves the start of the metadata by `delta` bytes.
    ///
    /// # Kernel
    /// `bpf_xdp_adjust_meta`
    pub(crate) fn adjust_meta(&mut self, buffer: &mut Buffer, delta: i32) -> Result<(), Errno> {
        let data_meta = moved(self.data_meta, delta)?;
        if data_meta < HARD_START + XDP_FRAME_SIZE || data_meta > self.data {
            return Err(Errno::EINVAL);
        }
        let len = self.data - data_meta;
        if !len.is_multiple_of(4) || len > MAX_META {
            return Err(Errno::EACCES);
        }
        self.data_meta = data_meta;
        self.publish(buffer);
        Ok(())
    }

    /// Moves the end of the packet by `delta` bytes; new bytes are zero.
    ///
    /// # Kernel
    /// `bpf_xdp_adjust_tail`
    pub(crate) fn adjust_tail(&mut self, buffer: &mut Buffer, delta: i32) -> Result<(), Errno> {
        if !self.frags.is_empty() {
            self.adjust_frags(delta)?;
        } else {
            let end = moved(self.data_end, delta)?;
            if end > HARD_END || end < self.data + ETH_HLEN {
                return Err(Errno::EINVAL);
            }
            if end > self.data_end {
                let _ = buffer.memory().fill(self.data_end, end - self.data_end, 0);
            }
            self.data_end = end;
        }
        self.publish(buffer);
        Ok(())
    }

    fn adjust_frags(&mut self, delta: i32) -> Result<(), Errno> {
        let len = moved(self.len(), delta)?;
        let last = (self.frags.len() - 1) % FRAG_SIZE + 1;
        let too_long = delta > 0 && last + delta as usize > FRAG_SIZE;
        if len < ETH_HLEN || too_long {
            return Err(Errno::EINVAL);
        }
        let linear = self.data_end - self.data;
        self.frags.resize(len.saturating_sub(linear), 0);
        self.data_end = self.data + linear.min(len);
        Ok(())
    }

    /// Splits the bytes `offset..offset + len` of the packet into those in the frame, by their
    /// offset in memory, and those outside, by their offset there.
    fn split(&self, offset: usize, len: usize) -> Result<Split, Errno> {
        let end = offset.checked_add(len).filter(|end| *end <= self.len()).ok_or(Errno::EINVAL)?;
        let linear = self.data_end - self.data;
        let (from, to) = (offset.min(linear), end.min(linear));
        let frags = offset.saturating_sub(linear)..end.saturating_sub(linear);
        Ok(Split { start: self.data + from, linear: to - from, frags })
    }

    /// Copies bytes of the packet, wherever they are.
    pub(crate) fn load_bytes(
        &self,
        buffer: &Buffer,
        offset: usize,
        len: usize,
    ) -> Result<Vec<u8>, Errno> {
        let split = self.split(offset, len)?;
        let mut bytes = read(buffer, split.start, split.linear);
        bytes.extend_from_slice(&self.frags[split.frags]);
        Ok(bytes)
    }

    /// Overwrites bytes of the packet, wherever they are.
    pub(crate) fn store_bytes(
        &mut self,
        buffer: &Buffer,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), Errno> {
        let split = self.split(offset, bytes.len())?;
        let (linear, rest) = bytes.split_at(split.linear);
        write(buffer, split.start, linear);
        self.frags[split.frags].copy_from_slice(rest);
        Ok(())
    }
}

struct Split {
    start: usize,
    linear: usize,
    frags: std::ops::Range<usize>,
}

fn moved(offset: usize, delta: i32) -> Result<usize, Errno> {
    offset.checked_add_signed(delta as isize).ok_or(Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    use crate::context::{Context, ContextError};
    use crate::prog_type::ProgType;
    use bpfarray_core::Errno;

    fn xdp(len: usize, md: Option<[u32; 6]>) -> Result<Context, ContextError> {
        let packet: Vec<u8> = (0..len).map(|i| i as u8).collect();
        let md = md.map(|md| md.map(u32::to_ne_bytes).concat());
        Context::new(ProgType::XDP, &packet, md.as_deref())
    }

    fn adjust(
        ctx: &mut Context,
        by: impl FnOnce(&mut super::Xdp, &mut crate::context::Buffer) -> Result<(), Errno>,
    ) -> i32 {
        let (xdp, buffer) = ctx.xdp().unwrap();
        by(xdp, buffer).map_or_else(|errno| -errno.raw(), |()| 0)
    }

    #[test]
    fn contexts_are_refused_where_the_kernel_refuses_them() {
        let errno = |len, md| xdp(len, md).map_err(|error| error.errno()).err();
        assert_eq!(errno(13, None), Some(Errno::EINVAL));
        assert_eq!(errno(14, None), None);
        assert_eq!(errno(73152, None), None);
        assert_eq!(errno(73153, None), Some(Errno::ENOMEM));
        for (len, md, ok) in [
            (64, [0, 64, 0, 0, 0, 0], true),
            (64, [0, 0, 0, 0, 0, 0], true),
            (64, [48, 64, 0, 0, 0, 0], true),
            (64, [52, 64, 0, 0, 0, 0], false),
            (64, [6, 64, 0, 0, 0, 0], false),
            (64, [8, 64, 8, 0, 0, 0], false),
            (64, [0, 65, 0, 0, 0, 0], false),
            (64, [0, 64, 0, 0, 1, 0], false),
            (64, [0, 64, 0, 0, 0, 1], false),
            (400, [216, 400, 0, 0, 0, 0], true),
            (400, [220, 400, 0, 0, 0, 0], false),
        ] {
            assert_eq!(errno(len, Some(md)), (!ok).then_some(Errno::EINVAL), "{len} {md:?}");
        }
    }

    #[test]
    fn head_moves_between_the_frame_header_and_the_last_ethernet_header() {
        for (delta, expected) in
            [(0, 0), (-216, 0), (-217, -22), (50, 0), (51, -22), (i32::MIN, -22), (i32::MAX, -22)]
        {
            let mut ctx = xdp(64, None).unwrap();
            assert_eq!(adjust(&mut ctx, |xdp, b| xdp.adjust_head(b, delta)), expected, "{delta}");
        }
        let mut ctx = xdp(64, Some([8, 64, 0, 0, 0, 0])).unwrap();
        assert_eq!(adjust(&mut ctx, |xdp, b| xdp.adjust_head(b, 4)), 0);
        assert_eq!(ctx.packet()[..12], [0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 14, 15]);
        assert_eq!(adjust(&mut ctx, |xdp, b| xdp.adjust_head(b, -213)), -22);
    }

    #[test]
    fn metadata_is_aligned_and_inside_the_headroom() {
        for (delta, expected) in
            [(0, 0), (4, -22), (-4, 0), (-5, -13), (-128, 0), (-216, 0), (-220, -22), (-252, -22)]
        {
            let mut ctx = xdp(64, None).unwrap();
            assert_eq!(adjust(&mut ctx, |xdp, b| xdp.adjust_meta(b, delta)), expected, "{delta}");
        }
    }

    #[test]
    fn a_grown_tail_is_zero() {
        for (delta, expected) in
            [(3456, 0), (3457, -22), (-50, 0), (-51, -22), (i32::MIN, -22), (i32::MAX, -22)]
        {
            let mut ctx = xdp(64, None).unwrap();
            assert_eq!(adjust(&mut ctx, |xdp, b| xdp.adjust_tail(b, delta)), expected, "{delta}");
        }
        let mut ctx = xdp(64, None).unwrap();
        assert_eq!(adjust(&mut ctx, |xdp, b| xdp.adjust_tail(b, -8)), 0);
        assert_eq!(adjust(&mut ctx, |xdp, b| xdp.adjust_tail(b, 16)), 0);
        assert_eq!(ctx.packet()[54..], [54, 55, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_long_packet_continues_outside_the_frame() {
        let mut ctx = xdp(5000, None).unwrap();
        assert_eq!(ctx.packet().len(), 5000);
        let (long, buffer) = ctx.xdp().unwrap();
        assert_eq!((long.len(), long.data_end - long.data), (5000, 3520));
        let bytes: Vec<u8> = (3518..3522).map(|i| i as u8).collect();
        assert_eq!(long.load_bytes(buffer, 3518, 4), Ok(bytes));
        assert_eq!(long.store_bytes(buffer, 3518, &[9; 4]), Ok(()));
        assert_eq!(long.load_bytes(buffer, 3517, 6), Ok(vec![189, 9, 9, 9, 9, 194]));
        assert_eq!(long.load_bytes(buffer, 4999, 2), Err(Errno::EINVAL));
        for (len, delta, expected) in [
            (5000, 2000, 7000),
            (5000, 4000, 5000),
            (5000, -3000, 2000),
            (9000, -5480, 3520),
            (5000, -4986, 14),
            (5000, -4987, 5000),
            (7616, 1, 7616),
        ] {
            let mut ctx = xdp(len, None).unwrap();
            let _ = adjust(&mut ctx, |xdp, b| xdp.adjust_tail(b, delta));
            assert_eq!(ctx.xdp().unwrap().0.len(), expected, "{len} {delta}");
        }
    }

    #[test]
    fn a_reset_leaves_nothing_of_the_last_packet() {
        let mut ctx = xdp(64, None).unwrap();
        assert_eq!(adjust(&mut ctx, |xdp, b| xdp.adjust_head(b, -100)), 0);
        let (xdp, buffer) = ctx.xdp().unwrap();
        xdp.store_bytes(buffer, 0, &[0xff; 100]).unwrap();
        ctx.reset(&[1; 20], None).unwrap();
        assert_eq!(adjust(&mut ctx, |xdp, b| xdp.adjust_head(b, -200)), 0);
        assert_eq!(ctx.packet()[..200], [0; 200]);
    }

    #[test]
    fn the_context_comes_back_as_users_see_it() {
        let mut ctx = xdp(64, Some([8, 64, 0, 2, 0, 0])).unwrap();
        assert_eq!(adjust(&mut ctx, |xdp, b| xdp.adjust_meta(b, -8)), 0);
        let md: Vec<u8> = [16_u32, 72, 0, 2, 0, 0].map(u32::to_ne_bytes).concat();
        assert_eq!(ctx.ctx_out(), md);
    }
}
