//! A loader on aya: reads the object of `examples/`, sets a global, loads, runs, and looks at maps from all sides. What it prints does
//! not depend on who answers its bpf(2) calls.
//!
//! `cargo run --manifest-path aya-client/Cargo.toml -- examples/packet_count.bpf.o` as root with a bpffs, or what that built under
//! `bpfarray exec`

use std::error::Error;
use std::path::Path;

use aya::maps::{
    Array, Map, MapData, MapType, PerCpuArray, PerCpuValues, ProgramArray, loaded_maps,
};

use aya::programs::{
    ProgramFd, ProgramInfo, ProgramType, TestRun, TestRunOptions, Xdp, loaded_programs,
};
use aya::sys::{is_map_supported, is_program_supported};
use aya::util::nr_cpus;
use aya::{Ebpf, EbpfLoader, Pod, VerifierLogLevel};
use aya_obj::programs::XdpAttachType;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Packets and bytes, as the object counts them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
struct Traffic {
    packets: u64,
    bytes: u64,
}

// SAFETY: two numbers without padding.
unsafe impl Pod for Traffic {}

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let object = arguments.next().ok_or("which object?")?;
    probes()?;
    count(object.as_ref())
}

/// What aya finds out about a kernel by asking it to load this and that.
fn probes() -> Result<()> {
    let features = aya::features();
    // Not what it asks about links, and about maps of other kinds.
    println!(
        "names {}, probe_read_kernel {}, global data {}, cookies {}",
        features.bpf_name(),
        features.bpf_probe_read_kernel(),
        features.bpf_global_data(),
        features.bpf_cookie()
    );
    println!("{:#?}", features.btf());
    for map_type in [MapType::Array, MapType::PerCpuArray, MapType::ProgramArray] {
        println!("{map_type:?} {}", is_map_supported(map_type)?);
    }
    for map_type in [MapType::PerfEventArray, MapType::CgroupArray] {
        println!("{map_type:?} {}", is_map_supported(map_type)?);
    }
    for prog_type in [ProgramType::Xdp, ProgramType::SocketFilter, ProgramType::SchedClassifier] {
        println!("{prog_type:?} {}", is_program_supported(prog_type)?);
    }
    Ok(())
}

/// A UDP packet of this length to this port, in an Ethernet frame.
fn packet(len: usize, port: u16) -> Vec<u8> {
    let mut packet = vec![0; len];
    packet[12..14].copy_from_slice(&[0x08, 0x00]);
    packet[14] = 0x45;
    packet[16..18].copy_from_slice(&((len - 14) as u16).to_be_bytes());
    packet[23] = 17;
    packet[36..38].copy_from_slice(&port.to_be_bytes());
    packet[38..40].copy_from_slice(&((len - 34) as u16).to_be_bytes());
    packet
}

fn run(program: &mut Xdp, packet: &[u8], repeat: u32) -> Result<()> {
    let mut out = vec![0xa5; packet.len() + 8];
    let options = TestRunOptions {
        data_in: Some(packet),
        data_out: Some(&mut out),
        repeat,
        ..TestRunOptions::new()
    };
    let ran = program.test_run(options)?;
    let is_same = out.starts_with(packet) && out.ends_with(&[0xa5; 8]);
    println!("ran: {}, {} bytes, the same: {is_same}", ran.return_value, ran.data_size_out);
    Ok(())
}

fn map<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Map> {
    ebpf.map_mut(name).ok_or_else(|| format!("no map {name}").into())
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(ebpf.program_mut(name).ok_or("no such program")?.try_into()?)
}

fn count(object: &Path) -> Result<()> {
    let first_registered_port = 100_u16;
    let mut ebpf = EbpfLoader::new()
        .override_global("first_registered_port", &first_registered_port, true)
        .override_global("max_frame_bytes", &1000_u32, true)
        .verifier_log_level(VerifierLogLevel::STATS)
        .load_file(object)?;
    let mut names: Vec<_> = ebpf.maps().map(|(name, _)| name.to_owned()).collect();
    names.sort();
    println!("maps: {names:?}");

    let program = xdp(&mut ebpf, "count_packets")?;
    println!("before it is loaded: {}", program.test_run(TestRunOptions::new()).is_err());
    program.load()?;
    println!("again: {}", program.load().is_err());
    about(&program.info()?)?;
    for (len, port) in [(60, 53), (60, 101), (600, 60_000), (1001, 53)] {
        run(program, &packet(len, port), 3)?;
    }
    println!("nothing: {:?}", failure(program.test_run(TestRunOptions::new())));

    let mut ports: Array<_, u64> = map(&mut ebpf, "packets_by_port_class")?.try_into()?;
    println!(
        "ports: {:?}, {} of them",
        ports.iter().collect::<std::result::Result<Vec<_>, _>>()?,
        ports.len()
    );
    ports.set(1, 77, 0)?;
    println!("set: {}", ports.get(&1, 0)?);
    println!("refused: {:?} {:?}", failure(ports.set(3, 0, 0)), failure(ports.set(0, 0, 1)));
    println!("none: {:?} {:?}", failure(ports.get(&3, 0)), failure(ports.get(&0, 8)));

    let mut protocols: PerCpuArray<_, Traffic> =
        map(&mut ebpf, "packets_by_protocol")?.try_into()?;
    let sum = |values: &PerCpuValues<Traffic>| {
        values
            .iter()
            .fold((0, 0), |(packets, bytes), value| (packets + value.packets, bytes + value.bytes))
    };
    for index in 0..protocols.len() {
        println!("protocol {index}: {:?}", sum(&protocols.get(&index, 0)?));
    }
    let cpus = nr_cpus().map_err(|(what, error)| format!("{what}: {error}"))?;
    let values: Vec<_> =
        (0..cpus as u64).map(|cpu| Traffic { packets: cpu + 1, bytes: 2 }).collect();
    protocols.set(3, PerCpuValues::try_from(values.clone())?, 0)?;
    println!("on every CPU: {}", protocols.get(&3, 0)?.iter().eq(values.iter()));

    let mut dropped: Array<_, [u64; 2]> = map(&mut ebpf, ".bss")?.try_into()?;
    println!("dropped: {:?}", dropped.get(&0, 0)?);
    dropped.set(0, [9, 9], 0)?;
    // Constants are frozen.
    let mut constants: Array<_, [u16; 2]> = map(&mut ebpf, ".rodata")?.try_into()?;
    println!("constants: {:?}, {:?}", constants.get(&0, 0)?, failure(constants.set(0, [0; 2], 0)));
    let mut limit: Array<_, u32> = map(&mut ebpf, ".data")?.try_into()?;
    limit.set(0, 2000, 0)?;
    let program = xdp(&mut ebpf, "count_packets")?;
    run(program, &packet(1001, 53), 1)?;
    table(program.fd()?)?;
    pins(ebpf)
}

/// Pins outlive the loader.
fn pins(mut ebpf: Ebpf) -> Result<()> {
    let paths = ["/sys/fs/bpf/aya_program", "/sys/fs/bpf/aya_ports"];
    let program = xdp(&mut ebpf, "count_packets")?;
    program.pin(paths[0])?;
    println!("taken: {}", program.pin(paths[0]).is_err());
    map(&mut ebpf, "packets_by_port_class")?.pin(paths[1])?;
    let ours = program_id(&mut ebpf)?;
    println!("listed: {}", loaded_programs().any(|info| info.is_ok_and(|info| info.id() == ours)));
    drop(ebpf);

    let mut program = Xdp::from_pin(paths[0], XdpAttachType::Interface)?;
    about(&program.info()?)?;
    run(&mut program, &packet(60, 53), 1)?;
    let mut ports = Array::<_, u64>::try_from(Map::from_map_data(MapData::from_pin(paths[1])?)?)?;
    println!("pinned: {:?}", ports.iter().collect::<std::result::Result<Vec<_>, _>>()?);
    ports.set(2, 5, 2)?;
    println!("written: {}", ports.get(&2, 0)?);
    let held = program.info()?.map_ids()?.unwrap_or_default();
    let mut held: Vec<_> = loaded_maps()
        .filter_map(|info| info.ok().filter(|info| held.contains(&info.id())))
        .map(|info| {
            format!(
                "{:?} {:?} {} {} {}",
                info.name_as_str(),
                info.map_type().ok(),
                info.key_size(),
                info.value_size(),
                info.max_entries()
            )
        })
        .collect();
    held.sort();
    println!("held: {held:#?}");
    for path in paths {
        std::fs::remove_file(path)?;
    }
    println!("gone: {:?}", failure(MapData::from_pin(paths[1])));
    Ok(())
}

fn program_id(ebpf: &mut Ebpf) -> Result<u32> {
    Ok(xdp(ebpf, "count_packets")?.info()?.id())
}

/// What an error says in the end: the system's words.
fn failure<T>(result: std::result::Result<T, impl Error + 'static>) -> Option<String> {
    let error = result.err()?;
    let mut last: &dyn Error = &error;
    while let Some(source) = last.source() {
        last = source;
    }
    Some(last.to_string())
}

fn about(info: &ProgramInfo) -> Result<()> {
    println!(
        "{:?} {:?} {:x} gpl {:?}, {:?} maps, BTF {}, {:?} translated, {:?} verified",
        info.name_as_str(),
        info.program_type(),
        info.tag(),
        info.gpl_compatible(),
        info.map_ids()?.map(|ids| ids.len()),
        info.btf_id().is_some(),
        info.size_translated().map(|size| size > 0),
        info.verified_instruction_count().map(|count| count > 0),
    );
    Ok(())
}

/// A table of programs.
fn table(program: &ProgramFd) -> Result<()> {
    let shape = aya_obj::Map::new_from_params(MapType::ProgramArray as u32, 4, 4, 3, 0);
    let map = Map::from_map_data(MapData::create(shape, "table", None)?)?;
    let mut table = ProgramArray::try_from(map)?;
    println!(
        "put: {:?} {:?}",
        failure(table.set(1, program, 0)),
        failure(table.set(3, program, 0))
    );
    println!("refused: {:?}", failure(table.set(1, program, 1)));
    println!("indices: {:?}", table.indices().collect::<std::result::Result<Vec<_>, _>>()?);
    println!("cleared: {:?} {:?}", failure(table.clear_index(&1)), failure(table.clear_index(&1)));
    Ok(())
}
