//! Statistics that programs keep per CPU and the host adds up.
//!
//! `cargo run --release -p bpfarray-vm --example percpu_stats`
//!
//! Several threads run the same XDP program at once. It counts without atomic instructions, for each run has
//! its CPU's counters to itself; nothing is lost.

use bpfarray::zerocopy::{FromBytes, Immutable, IntoBytes};
use bpfarray::{PercpuArray, possible_cpus};
use bpfarray_vm::{Context, LoadOptions, Object, ProgType};

const THREADS: u64 = 4;
const PACKETS: u64 = 100_000;

/// `struct traffic` of examples/packet_count.bpf.c.
#[derive(Copy, Clone, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[zerocopy(crate = "bpfarray::zerocopy")]
#[repr(C)]
struct Traffic {
    packets: u64,
    bytes: u64,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let object = Object::parse(include_bytes!("packet_count.bpf.o"))?;
    let loaded = object.load(&LoadOptions::default())?;
    let program = loaded.program("count_packets")?;
    let map = loaded.map("packets_by_protocol").ok_or("no such map")?;
    let traffic = PercpuArray::<Traffic>::from_map(map.clone())?;

    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| -> Result<(), String> {
                    let packet = [0; 64]; // of no known protocol
                    let mut context = Context::new(ProgType::XDP, &packet, None)
                        .map_err(|error| error.to_string())?;
                    for _ in 0..PACKETS {
                        program.run(&mut context).map_err(|fault| fault.to_string())?;
                    }
                    Ok(())
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_| "a worker panicked".to_owned())?)
    })?;

    const OTHER: u32 = 6; // PROTOCOL_OTHER
    let mut sum = Traffic::default();
    for cpu in 0..possible_cpus() {
        let here = traffic.get(OTHER, cpu).unwrap_or_default();
        println!("CPU {cpu}: {:7} packets, {:9} bytes", here.packets, here.bytes);
        sum = Traffic { packets: sum.packets + here.packets, bytes: sum.bytes + here.bytes };
    }
    println!("sum:   {:7} packets, {:9} bytes", sum.packets, sum.bytes);
    assert_eq!(sum.packets, THREADS * PACKETS);
    assert_eq!(sum.bytes, 64 * sum.packets);
    Ok(())
}
