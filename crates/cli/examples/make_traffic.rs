//! Writes the capture that `examples/packet_count.bpf.c` is shown on: some thousand Ethernet frames
//! in a mix as on a real network, with the rare, the overlong and the broken ones made frequent.
//!
//! The same bytes come out every time:
//! `cargo run -p bpfarray-cli --example make_traffic -- examples/traffic.pcap`

use std::error::Error;
use std::ops::Range;
use std::process::ExitCode;
use std::time::Duration;

use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Ethernet2Header, IpFragOffset, IpHeaders,
    IpNumber, Ipv4Header, Ipv4Options, Ipv6Extensions, Ipv6FragmentHeader, Ipv6Header,
    Ipv6RawExtHeader, PacketBuilder, PacketBuilderStep, TcpHeader, VlanId,
};
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::{DataLink, Endianness, TsResolution};

const SEED: u64 = 0x5eed_0f7a_ff1c;
const FRAMES: usize = 4_000;
/// The first frame is of 2024-01-01 00:00:00 UTC.
const START: Duration = Duration::from_secs(1_704_067_200);

const SHORTEST_FRAME: usize = 60;
const ETHERNET: usize = 14;
const IPV4: usize = ETHERNET + 20;

const SERVICES_TCP: [u16; 8] = [443, 443, 443, 80, 22, 25, 5432, 8080];
const SERVICES_UDP: [u16; 6] = [53, 53, 443, 123, 5353, 51820];
const FIRST_EPHEMERAL: u16 = 32_768;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("usage: make_traffic FILE");
        return ExitCode::from(2);
    };
    match capture().and_then(|bytes| Ok(std::fs::write(path, bytes)?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("make_traffic: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The whole file. Its byte order is fixed, unlike the pcap writer's default.
fn capture() -> Result<Vec<u8>> {
    let header = PcapHeader {
        snaplen: 65_535,
        datalink: DataLink::ETHERNET,
        ts_resolution: TsResolution::MicroSecond,
        endianness: Endianness::Little,
        ..PcapHeader::default()
    };
    let mut writer = PcapWriter::with_header(Vec::new(), header)?;
    let mut random = Random(SEED);
    let mut time = START;
    for _ in 0..FRAMES {
        let frame = frame(&mut random)?;
        time += Duration::from_micros(random.within(20..20_000) as u64);
        writer.write_packet(&PcapPacket::new(time, u32::try_from(frame.len())?, &frame))?;
    }
    Ok(writer.into_writer())
}

/// One frame, padded or not: captures have outgoing frames as the host built them, and incoming
/// ones as the wire needs them.
fn frame(random: &mut Random) -> Result<Vec<u8>> {
    let mut frame = match random.within(0..1000) {
        0..500 => tcp(random)?,
        500..740 => udp(random)?,
        740..820 => icmp(random)?,
        820..850 => arp(random)?,
        850..875 => not_ip(random)?,
        875..910 => other_ip(random)?,
        910..945 => later_fragment(random)?,
        945..957 => jumbo(random)?,
        _ => return broken(random),
    };
    if frame.len() < SHORTEST_FRAME && random.one_in(2) {
        frame.resize(SHORTEST_FRAME, 0);
    }
    Ok(frame)
}

fn tcp(random: &mut Random) -> Result<Vec<u8>> {
    let (source, destination) = ports(random, &SERVICES_TCP);
    let mut header = TcpHeader::new(source, destination, random.next() as u32, 64_240);
    header.acknowledgment_number = random.next() as u32;
    let opening = random.one_in(8);
    header.syn = opening;
    header.ack = !opening;
    if opening {
        // Maximum segment size, no-op, window scale.
        header.set_options_raw(&[2, 4, 5, 180, 1, 3, 3, 7])?;
    }
    let size = if opening { 0 } else { payload_size(random) };
    finish(|bytes| Ok(network(random)?.tcp_header(header).write_to_vec(bytes, &payload(size))?))
}

fn udp(random: &mut Random) -> Result<Vec<u8>> {
    let (source, destination) = ports(random, &SERVICES_UDP);
    let size = payload_size(random);
    finish(|bytes| {
        Ok(network(random)?.udp(source, destination).write_to_vec(bytes, &payload(size))?)
    })
}

fn icmp(random: &mut Random) -> Result<Vec<u8>> {
    let (id, sequence) = (random.next() as u16, random.within(1..100) as u16);
    let size = random.within(32..65);
    finish(|bytes| {
        let payload = payload(size);
        match ip(random)? {
            ip @ IpHeaders::Ipv4(..) => Ok(tagged(random, ip)?
                .icmpv4_echo_request(id, sequence)
                .write_to_vec(bytes, &payload)?),
            ip @ IpHeaders::Ipv6(..) => Ok(tagged(random, ip)?
                .icmpv6_echo_reply(id, sequence)
                .write_to_vec(bytes, &payload)?),
        }
    })
}

fn arp(random: &mut Random) -> Result<Vec<u8>> {
    let (own, other) = (host(random), host(random));
    let request = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        ArpOperation::REQUEST,
        &mac(own),
        &ipv4_address(own),
        &[0; 6],
        &ipv4_address(other),
    )?;
    finish(|bytes| {
        Ok(PacketBuilder::ethernet2(mac(own), [0xff; 6]).arp(request).write_to_vec(bytes)?)
    })
}

/// Link layer discovery, a spanning tree message with a length for a type, MPLS.
fn not_ip(random: &mut Random) -> Result<Vec<u8>> {
    let header = Ethernet2Header {
        source: mac(host(random)),
        destination: [0x01, 0x80, 0xc2, 0x00, 0x00, 0x0e],
        ether_type: EtherType(*random.pick(&[0x88cc, 0x0026, 0x8847])),
    };
    let mut frame = header.to_bytes().to_vec();
    frame.extend(payload(random.within(38..120)));
    Ok(frame)
}

fn other_ip(random: &mut Random) -> Result<Vec<u8>> {
    let number =
        *random.pick(&[IpNumber::GRE, IpNumber::ENCAPSULATING_SECURITY_PAYLOAD, IpNumber::SCTP]);
    let size = payload_size(random);
    finish(|bytes| Ok(network(random)?.write_to_vec(bytes, number, &payload(size))?))
}

/// A fragment that does not begin its datagram, and so has no ports.
fn later_fragment(random: &mut Random) -> Result<Vec<u8>> {
    let fragment_offset = IpFragOffset::try_new(random.within(1..160) as u16)?;
    let more_fragments = random.one_in(2);
    let ip = match ip(random)? {
        IpHeaders::Ipv4(header, extensions) => IpHeaders::Ipv4(
            Ipv4Header { fragment_offset, more_fragments, dont_fragment: false, ..header },
            extensions,
        ),
        IpHeaders::Ipv6(header, extensions) => {
            let fragment = Ipv6FragmentHeader::new(
                IpNumber::UDP,
                fragment_offset,
                more_fragments,
                random.next() as u32,
            );
            IpHeaders::Ipv6(header, Ipv6Extensions { fragment: Some(fragment), ..extensions })
        }
    };
    let size = payload_size(random);
    finish(|bytes| Ok(tagged(random, ip)?.write_to_vec(bytes, IpNumber::UDP, &payload(size))?))
}

/// Longer than the example lets through.
fn jumbo(random: &mut Random) -> Result<Vec<u8>> {
    let (source, destination) = ports(random, &SERVICES_TCP);
    let size = random.within(1_500..3_400);
    finish(|bytes| {
        Ok(network(random)?
            .tcp(source, destination, 1, 64_240)
            .write_to_vec(bytes, &payload(size))?)
    })
}

/// A frame cut short or with one field that cannot be true. Never shorter than an Ethernet header:
/// the kernel runs no program on less.
fn broken(random: &mut Random) -> Result<Vec<u8>> {
    let link = PacketBuilder::ethernet2(mac(host(random)), mac(host(random)));
    let ip = link.ipv4(ipv4_address(host(random)), ipv4_address(host(random)), 64);
    let mut frame = Vec::new();
    let defect = random.within(0..8);
    if defect == 7 {
        ip.udp(FIRST_EPHEMERAL, 53).write_to_vec(&mut frame, &payload(24))?;
    } else {
        ip.tcp(FIRST_EPHEMERAL, 80, 1, 64_240).write_to_vec(&mut frame, &payload(24))?;
    }
    match defect {
        0 => frame.truncate(random.within(ETHERNET..IPV4)),
        1 => frame.truncate(random.within(IPV4..IPV4 + 20)),
        // Version 5, then a header of 12 bytes.
        2 => frame[ETHERNET] = 0x55,
        3 => frame[ETHERNET] = 0x43,
        // A total length of more than the frame has, and of less than the header.
        4 => frame[ETHERNET + 2] = 0xff,
        5 => frame[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&[0, 12]),
        // TCP's header of 8 bytes, UDP's length of 3.
        6 => frame[IPV4 + 12] = 0x20,
        _ => frame[IPV4 + 4..IPV4 + 6].copy_from_slice(&[0, 3]),
    }
    Ok(frame)
}

fn finish(write: impl FnOnce(&mut Vec<u8>) -> Result<()>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    write(&mut bytes)?;
    Ok(bytes)
}

fn network(random: &mut Random) -> Result<PacketBuilderStep<IpHeaders>> {
    let ip = ip(random)?;
    tagged(random, ip)
}

/// An Ethernet header and sometimes one or two VLAN tags before an IP header.
fn tagged(random: &mut Random, ip: IpHeaders) -> Result<PacketBuilderStep<IpHeaders>> {
    let link = PacketBuilder::ethernet2(mac(host(random)), mac(host(random)));
    let vlan = VlanId::try_new(random.within(1..200) as u16)?;
    Ok(match random.within(0..100) {
        0..12 => link.single_vlan(vlan).ip(ip),
        12..16 => link.double_vlan(VlanId::try_new(1_000)?, vlan).ip(ip),
        _ => link.ip(ip),
    })
}

/// An IP header, some with options or extension headers. The builder fills in lengths and checksums.
fn ip(random: &mut Random) -> Result<IpHeaders> {
    let (source, destination) = (host(random), host(random));
    if random.one_in(3) {
        let header = Ipv6Header {
            source: ipv6_address(source),
            destination: ipv6_address(destination),
            hop_limit: 64,
            ..Ipv6Header::default()
        };
        let mut extensions = Ipv6Extensions::default();
        if random.one_in(8) {
            let padding = [1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            let option = Ipv6RawExtHeader::new_raw(IpNumber::UDP, &padding)?;
            if random.one_in(2) {
                extensions.hop_by_hop_options = Some(option.clone());
            }
            extensions.destination_options = Some(option);
        }
        return Ok(IpHeaders::Ipv6(header, extensions));
    }
    let mut header = Ipv4Header {
        source: ipv4_address(source),
        destination: ipv4_address(destination),
        identification: random.next() as u16,
        dont_fragment: true,
        time_to_live: *random.pick(&[64, 64, 128, 57, 1]),
        ..Ipv4Header::default()
    };
    if random.one_in(20) {
        // Router alert.
        header.options = Ipv4Options::from([148, 4, 0, 0]);
    }
    Ok(IpHeaders::Ipv4(header, Default::default()))
}

/// The ports of a packet to a service or of its answer.
fn ports(random: &mut Random, services: &[u16]) -> (u16, u16) {
    let service = *random.pick(services);
    let client = FIRST_EPHEMERAL + random.within(0..28_000) as u16;
    if random.one_in(2) { (service, client) } else { (client, service) }
}

/// Mostly small, now and then as much as fits the usual 1500 bytes.
fn payload_size(random: &mut Random) -> usize {
    match random.within(0..100) {
        0..60 => random.within(0..64),
        60..95 => random.within(64..300),
        _ => random.within(1_200..1_400),
    }
}

/// What `ping` fills its packets with, which compresses well.
fn payload(size: usize) -> Vec<u8> {
    (0..=u8::MAX).cycle().take(size).collect()
}

fn host(random: &mut Random) -> u8 {
    random.within(1..40) as u8
}

fn mac(host: u8) -> [u8; 6] {
    [0x02, 0, 0, 0, 0, host]
}

fn ipv4_address(host: u8) -> [u8; 4] {
    [192, 0, 2, host]
}

fn ipv6_address(host: u8) -> [u8; 16] {
    let mut address = [0; 16];
    address[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    address[15] = host;
    address
}

/// SplitMix64: of our own, so that the capture does not change with a crate's version.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn within(&mut self, range: Range<usize>) -> usize {
        range.start + (self.next() % range.len() as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.within(0..n) == 0
    }

    fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.within(0..choices.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capture_in_the_repository_is_what_this_program_writes() {
        let kept = include_bytes!("../../../examples/traffic.pcap");
        assert!(capture().unwrap() == kept, "run this program again: see its documentation");
    }
}
