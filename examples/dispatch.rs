//! Dispatch through a table of programs that is changed at run time.
//!
//! `cargo run --release -p bpfarray-vm --example dispatch`
//!
//! `dispatch` of examples/dispatch.bpf.c jumps to the program that its table names for a packet. The object
//! fills the table at first; the host exchanges a program while another thread runs packets.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bpfarray::{Array, Object as SlotObject};
use bpfarray_vm::{Context, LoadOptions, Object, ProgType};

/// `KIND_IPV4` and `KIND_OTHER`.
const IPV4: u32 = 0;
const OTHER: u32 = 2;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let object = Object::parse(include_bytes!("dispatch.bpf.o"))?;
    let loaded = object.load(&LoadOptions::default())?;
    let dispatch = loaded.program("dispatch")?;
    let reject = loaded.program("reject")?;
    let handlers = loaded.map("handlers").ok_or("no such map")?;
    // accepted, rejected, nobody
    let handled = Array::<[u64; 3]>::from_map(loaded.map(".bss").ok_or("no .bss")?.clone())?;

    let mut packet = [0; 64];
    packet[12..14].copy_from_slice(&0x0800_u16.to_be_bytes());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<(), Box<dyn std::error::Error>> {
        let worker = scope.spawn(|| -> Result<u64, String> {
            let mut context =
                Context::new(ProgType::XDP, &packet, None).map_err(|error| error.to_string())?;
            let mut runs = 0;
            while !done.load(Ordering::Relaxed) {
                dispatch.run(&mut context).map_err(|fault| fault.to_string())?;
                runs += 1;
            }
            Ok(runs)
        });
        let step = |what: &str| {
            let before = handled.get(0).unwrap_or_default();
            std::thread::sleep(Duration::from_millis(50));
            let [accepted, rejected, nobody] = handled.get(0).unwrap_or_default();
            println!(
                "{what:<22} {:7} accepted {:7} rejected {:7} nobody's",
                accepted - before[0],
                rejected - before[1],
                nobody - before[2]
            );
        };
        step("as the object says:");
        handlers.update_object(IPV4, &SlotObject::Program(Arc::new(reject.clone())), 0)?;
        step("after an exchange:");
        handlers.delete_elem(IPV4)?;
        step("after a delete:");
        handlers.update_object(OTHER, &SlotObject::Program(Arc::new(reject)), 0)?;
        done.store(true, Ordering::Relaxed);
        let runs = worker.join().map_err(|_| "the worker panicked")??;
        assert_eq!(handled.get(0).map(|counts| counts.iter().sum()), Some(runs));
        Ok(())
    })
}
