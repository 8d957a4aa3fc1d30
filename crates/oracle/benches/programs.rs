//! Whole programs on a packet, here and in the live kernel.
//!
//! `cargo bench -p oracle --bench programs` prints one table; `-- --quick` a rough one.

use std::path::Path;

use bpfarray_vm::Engine;
use bpfarray_vm::elf::Object;
use oracle::Kernel;
use oracle::measure::{Rounds, line};
use oracle::race::Race;

type Error = Box<dyn std::error::Error>;

/// A UDP packet to port 53.
fn packet() -> Vec<u8> {
    let mut packet = vec![0; 64];
    packet[12..14].copy_from_slice(&[0x08, 0x00]);
    packet[14..34].copy_from_slice(&[
        0x45, 0, 0, 50, 0, 7, 0, 0, 64, 17, 0x66, 0xad, 10, 0, 0, 1, 10, 0, 0, 2,
    ]);
    packet[34..40].copy_from_slice(&[0xd4, 0x31, 0, 53, 0, 30]);
    packet
}

/// Fills the maps of a program.
type Fill = fn(&Race) -> Result<(), String>;

/// Programs, what they do, and what they return for the packet.
const PROGRAMS: [(&str, &str, &str, u32, Fill); 4] = [
    ("examples/packet_count", "count_packets", "counts packets by protocol", 2, |_| Ok(())),
    ("testdata/progs/network", "rate_limit", "a token bucket for each source", 2, |_| Ok(())),
    ("testdata/progs/network", "balance", "rewrites the packet for a backend", 3, |race| {
        (0..4096).try_for_each(|slot| race.update("ring", slot, &(slot % 64).to_ne_bytes()))?;
        (0..64).try_for_each(|index| race.update("backends", index, &[10; 12]))
    }),
    ("testdata/progs/network", "chain", "a parser of four tail calls", 3, |_| Ok(())),
];

fn main() -> Result<(), Error> {
    let rounds = Rounds::from_args();
    let kernel = Kernel::available();
    if let Err(why) = &kernel {
        println!("no live kernel to compare with: {why}");
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut product = 1.0;
    for (object, program, what, expected, fill) in PROGRAMS {
        let mut object = Object::parse(&std::fs::read(root.join(format!("{object}.bpf.o")))?)?;
        if program == "rate_limit" {
            // A packet every nanosecond, so that all pass and take the longer way.
            object.set_global("interval", &1_u64.to_ne_bytes())?;
        }
        let mut race = Race::new(
            Engine::default(),
            kernel.as_ref().ok().copied(),
            &object,
            program,
            &packet(),
        )?;
        fill(&race)?;
        let check = |retval| match retval {
            _ if retval == expected => Ok(()),
            _ => Err(format!("{program} returned {retval}, not {expected}")),
        };
        check(race.run(1)?)?;
        let [ours] = rounds.compare([&mut |n| drop(race.run(n))]);
        let mut theirs = f64::INFINITY;
        for _ in 0..rounds.count() {
            let times = rounds.time().as_nanos() as u32 / 100;
            let Some((retval, ns)) = race.run_in_kernel(times)? else { break };
            check(retval)?;
            theirs = theirs.min(ns.into());
        }
        product *= theirs / ours;
        line(
            &format!("{program}: {what}"),
            ours,
            "the speed of the kernel's JIT",
            theirs / ours,
            "",
        );
    }
    if kernel.is_ok() {
        let mean = f64::powf(product, 1.0 / PROGRAMS.len() as f64);
        println!("geometric mean: {mean:.2} times the speed of the kernel's JIT (at least 1.2)");
    }
    Ok(())
}
