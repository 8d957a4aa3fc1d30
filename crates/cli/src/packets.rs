//! The packets that programs run on: those of a capture, or one from a file.
//!
//! A capture is read from end to end before the first packet is used, so that a damaged one leaves
//! nothing half counted.

use pcap_file::pcap::PcapParser;
use pcap_file::pcapng::{Block, PcapNgParser};
use pcap_file::{DataLink, PcapError};

/// Why a file is no usable capture. Packets are counted from 1, as capture tools do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaptureError {
    #[error("neither a pcap nor a pcapng file")]
    Format,
    #[error("the file is cut off in its header")]
    CutHeader,
    #[error("the header of the file is damaged: {0}")]
    Header(PcapError),
    #[error("packets of link type {0:?} cannot be used, only of ETHERNET")]
    LinkType(DataLink),
    #[error("packet {packet} is of link type {link_type:?}, only ETHERNET can be used")]
    PacketLinkType { packet: usize, link_type: DataLink },
    #[error("packet {packet} came in on interface {interface}, which the file does not describe")]
    Interface { packet: usize, interface: u32 },
    #[error("the file is cut off in packet {packet}")]
    Cut { packet: usize },
    #[error("the file is damaged at packet {packet}: {error}")]
    Damaged { packet: usize, error: PcapError },
}

/// Packets as they were captured, in order.
#[derive(Debug, Default)]
pub(crate) struct Packets {
    bytes: Vec<u8>,
    /// Where in `bytes` each packet ends and the next one begins.
    ends: Vec<usize>,
}

impl Packets {
    /// A single packet.
    pub(crate) fn single(packet: &[u8]) -> Self {
        let mut packets = Self::default();
        packets.push(packet);
        packets
    }

    /// The packets of a pcap or pcapng file.
    ///
    /// # Errors
    /// [`CaptureError`] for the first thing that is wrong in the file.
    pub(crate) fn capture(file: &[u8]) -> Result<Self, CaptureError> {
        match file.first_chunk() {
            Some([0x0a, 0x0d, 0x0d, 0x0a]) => Self::pcapng(file),
            Some([0xd4, 0xc3, 0xb2, 0xa1] | [0xa1, 0xb2, 0xc3, 0xd4]) => Self::pcap(file),
            Some([0x4d, 0x3c, 0xb2, 0xa1] | [0xa1, 0xb2, 0x3c, 0x4d]) => Self::pcap(file),
            _ => Err(CaptureError::Format),
        }
    }

    fn pcap(file: &[u8]) -> Result<Self, CaptureError> {
        let (mut rest, parser) = PcapParser::new(file).map_err(header_error)?;
        match parser.header().datalink {
            DataLink::ETHERNET => {}
            other => return Err(CaptureError::LinkType(other)),
        }
        let mut packets = Self::default();
        while !rest.is_empty() {
            // Raw, for the lengths and times that the other call refuses do occur in good captures.
            let read = parser.next_raw_packet(rest);
            let (after, packet) = read.map_err(|error| packets.error(error))?;
            packets.push(&packet.data);
            rest = after;
        }
        Ok(packets)
    }

    fn pcapng(file: &[u8]) -> Result<Self, CaptureError> {
        let (mut rest, mut parser) = PcapNgParser::new(file).map_err(header_error)?;
        let mut packets = Self::default();
        while !rest.is_empty() {
            let read = parser.next_block(rest);
            let (after, block) = read.map_err(|error| packets.error(error))?;
            rest = after;
            let (interface, captured) = match &block {
                Block::EnhancedPacket(packet) => (packet.interface_id, &packet.data[..]),
                Block::Packet(packet) => (packet.interface_id.into(), &packet.data[..]),
                Block::SimplePacket(packet) => (0, &packet.data[..]),
                _ => continue,
            };
            let number = packets.len() + 1;
            let Some(from) = parser.interfaces().get(interface as usize) else {
                return Err(CaptureError::Interface { packet: number, interface });
            };
            if from.linktype != DataLink::ETHERNET {
                let link_type = from.linktype;
                return Err(CaptureError::PacketLinkType { packet: number, link_type });
            }
            match &block {
                // This block does not say how many of its bytes are packet and how many padding.
                Block::SimplePacket(packet) => {
                    let snaplen = if from.snaplen == 0 { u32::MAX } else { from.snaplen };
                    let len = packet.original_len.min(snaplen) as usize;
                    packets.push(captured.get(..len).unwrap_or(captured));
                }
                _ => packets.push(captured),
            }
        }
        Ok(packets)
    }

    fn error(&self, error: PcapError) -> CaptureError {
        let packet = self.len() + 1;
        match error {
            PcapError::IncompleteBuffer => CaptureError::Cut { packet },
            error => CaptureError::Damaged { packet, error },
        }
    }

    fn push(&mut self, packet: &[u8]) {
        self.bytes.extend_from_slice(packet);
        self.ends.push(self.bytes.len());
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.bytes[..];
        let mut start = 0;
        self.ends.iter().map_while(move |end| {
            let (packet, after) = rest.split_at_checked(end - start)?;
            (rest, start) = (after, *end);
            Some(packet)
        })
    }
}

fn header_error(error: PcapError) -> CaptureError {
    match error {
        PcapError::IncompleteBuffer => CaptureError::CutHeader,
        error => CaptureError::Header(error),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
    use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
    use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionBlock;
    use pcap_file::pcapng::blocks::simple_packet::SimplePacketBlock;
    use pcap_file::pcapng::{PcapNgBlock, PcapNgWriter};

    use super::*;

    const SENT: [&[u8]; 3] = [&[1; 60], &[2; 15], &[]];

    fn pcap(datalink: DataLink) -> Vec<u8> {
        let header = PcapHeader { datalink, ..PcapHeader::default() };
        let mut writer = PcapWriter::with_header(Vec::new(), header).unwrap();
        for data in SENT {
            // More bytes on the wire than were captured.
            writer.write_packet(&PcapPacket::new(Duration::ZERO, 1500, data)).unwrap();
        }
        writer.into_writer()
    }

    fn pcapng(linktype: DataLink) -> Vec<u8> {
        let mut writer = PcapNgWriter::new(Vec::new()).unwrap();
        let interface = InterfaceDescriptionBlock { linktype, snaplen: 60, options: vec![] };
        writer.write_block(&interface.into_block()).unwrap();
        let long = SimplePacketBlock { original_len: 1500, data: SENT[0].into() };
        writer.write_block(&long.into_block()).unwrap();
        let short = SimplePacketBlock { original_len: 15, data: SENT[1].into() };
        writer.write_block(&short.into_block()).unwrap();
        let empty = EnhancedPacketBlock {
            interface_id: 0,
            timestamp: Duration::ZERO,
            original_len: 0,
            data: SENT[2].into(),
            options: vec![],
        };
        writer.write_block(&empty.into_block()).unwrap();
        writer.into_inner()
    }

    #[test]
    fn both_formats_give_the_captured_bytes() {
        for file in [pcap(DataLink::ETHERNET), pcapng(DataLink::ETHERNET)] {
            let packets = Packets::capture(&file).unwrap();
            assert_eq!(packets.iter().collect::<Vec<_>>(), SENT);
            assert_eq!(packets.len(), 3);
        }
    }

    #[test]
    fn other_link_types_are_refused_by_name() {
        for file in [pcap(DataLink::LINUX_SLL), pcapng(DataLink::LINUX_SLL)] {
            let error = Packets::capture(&file).unwrap_err().to_string();
            assert!(error.contains("LINUX_SLL"), "{error}");
        }
    }

    #[test]
    fn a_cut_file_names_the_packet() {
        let file = pcap(DataLink::ETHERNET);
        let cut = |len| Packets::capture(&file[..len]).unwrap_err().to_string();
        assert_eq!(cut(23), "the file is cut off in its header");
        assert_eq!(cut(24 + 16 + 59), "the file is cut off in packet 1");
        assert_eq!(cut(24 + 16 + 60 + 3), "the file is cut off in packet 2");
    }

    #[test]
    fn a_file_cut_or_damaged_anywhere_gives_whole_packets_or_an_error() {
        for file in [pcap(DataLink::ETHERNET), pcapng(DataLink::ETHERNET)] {
            for len in 0..file.len() {
                if let Ok(packets) = Packets::capture(&file[..len]) {
                    let whole = packets.iter().zip(SENT).all(|(packet, sent)| packet == sent);
                    assert!(whole && packets.len() < SENT.len(), "cut to {len} bytes");
                }
                for bit in 0..8 {
                    let mut damaged = file.clone();
                    damaged[len] ^= 1 << bit;
                    let count = Packets::capture(&damaged).map_or(0, |packets| packets.len());
                    assert!(count <= file.len() / 16, "{count} packets");
                }
            }
        }
    }
}
