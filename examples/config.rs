//! Configuration that is changed while programs read it.
//!
//! `cargo run --release -p bpfarray-vm --example config`
//!
//! A thread runs an XDP program on packets. The limit it goes by is a global variable of the program, which
//! is an element of the array map `.data`; the host changes it without stopping anything.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bpfarray::Array;
use bpfarray_vm::{Context, LoadOptions, Object, ProgType};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut object = Object::parse(include_bytes!("packet_count.bpf.o"))?;
    // Before loading, variables have names; constants can be set too.
    object.set_global("max_frame_bytes", &1522_u32.to_le_bytes())?;
    let loaded = object.load(&LoadOptions::default())?;
    let program = loaded.program("count_packets")?;

    // Afterwards, the section is a map like any other. It has one variable, of 4 bytes.
    let max_frame_bytes = Array::<u32>::from_map(loaded.map(".data").ok_or("no .data")?.clone())?;

    let (done, passed, dropped) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| -> Result<(), String> {
            let packet = [0; 1000];
            let mut context =
                Context::new(ProgType::XDP, &packet, None).map_err(|error| error.to_string())?;
            while !done.load(Ordering::Relaxed) {
                let outcome = program.run(&mut context).map_err(|fault| fault.to_string())?;
                let verdict = if outcome.retval() == 2 { &passed } else { &dropped };
                verdict.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        for limit in [1522, 500, 9000] {
            let changed = max_frame_bytes.set(0, limit);
            let before = (passed.load(Ordering::Relaxed), dropped.load(Ordering::Relaxed));
            std::thread::sleep(Duration::from_millis(50));
            println!(
                "at most {limit} bytes: {} packets passed, {} dropped ({changed:?})",
                passed.load(Ordering::Relaxed) - before.0,
                dropped.load(Ordering::Relaxed) - before.1,
            );
        }
        done.store(true, Ordering::Relaxed);
        worker.join().map_err(|_| "the worker panicked".to_owned())?
    })?;
    assert!(passed.into_inner() > 0 && dropped.into_inner() > 0);
    Ok(())
}
