//! Events that a program writes for each packet and the host reads.
//!
//! `cargo run --release -p bpfarray-vm --example perf_buffer`
//!
//! `tell` of examples/perf_buffer.bpf.c writes to the ring of the CPU it runs on. The host reads on another thread,
//! at its leisure: what it is too slow for is lost and counted, and the program never waits.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bpfarray::perf::{PerfBuffer, Record};
use bpfarray::zerocopy::FromBytes;
use bpfarray_vm::{Context, LoadOptions, Object, ProgType};

const PACKETS: u64 = 20_000;
const PAGES_PER_CPU: u32 = 64;

/// `struct event` of examples/perf_buffer.bpf.c, and what the helper puts behind it.
#[derive(Debug, FromBytes)]
#[zerocopy(crate = "bpfarray::zerocopy")]
#[repr(C)]
struct Event {
    number: u32,
    len: u32,
    destination: [u8; 6],
    source: [u8; 6],
    ether_type: [u8; 2],
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let object = Object::parse(include_bytes!("perf_buffer.bpf.o"))?;
    let loaded = object.load(&LoadOptions::default())?;
    let program = loaded.program("tell")?;
    let mut events = PerfBuffer::new(loaded.map("events").ok_or("no such map")?, PAGES_PER_CPU)?;

    let done = AtomicBool::new(false);
    let (read, lost) = std::thread::scope(|scope| -> Result<_, Box<dyn std::error::Error>> {
        let host = scope.spawn(|| {
            let (mut read, mut is_last) = (0, false);
            loop {
                for record in events.records() {
                    match record {
                        Record::Sample { cpu, data } => {
                            if read < 5
                                && let Ok((event, _)) = Event::read_from_prefix(&data)
                            {
                                println!("CPU {cpu}: {event:?}");
                            }
                            read += 1;
                        }
                        Record::Lost { cpu, count } => println!("CPU {cpu}: {count} were lost"),
                    }
                }
                if is_last {
                    return (read, events.lost_samples());
                }
                is_last = done.load(Ordering::Acquire);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let mut packet = [0; 64];
        packet[12..14].copy_from_slice(&0x0800_u16.to_be_bytes());
        let mut context = Context::new(ProgType::XDP, &packet, None)?;
        for _ in 0..PACKETS {
            program.run(&mut context)?;
        }
        done.store(true, Ordering::Release);
        host.join().map_err(|_| "the reader panicked".into())
    })?;
    println!("{read} events were read, {lost} were lost");
    assert_eq!(read + lost, PACKETS);
    Ok(())
}
