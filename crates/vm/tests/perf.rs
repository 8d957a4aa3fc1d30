//! Programs that tell the host something through the rings of a PERF_EVENT_ARRAY.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use bpfarray::perf::{PerfBuffer, Record};
use bpfarray_vm::{Context, LoadOptions, Object, ProgType};

const OBJECT: &[u8] = include_bytes!("../../../examples/perf_buffer.bpf.o");

#[test]
fn programs_on_many_threads_tell_everything_once_or_it_counts_as_lost() {
    const THREADS: usize = 4;
    const RUNS: usize = 5_000;
    let loaded = Object::parse(OBJECT).unwrap().load(&LoadOptions::default()).unwrap();
    let program = loaded.program("tell").unwrap();
    let mut events = PerfBuffer::new(loaded.map("events").unwrap(), 1).unwrap();
    let done = AtomicBool::new(false);
    let (numbers, lost) = std::thread::scope(|scope| {
        let host = scope.spawn(|| {
            let (mut numbers, mut reported) = (HashSet::new(), 0);
            loop {
                let was_done = done.load(Ordering::Acquire);
                for record in events.records() {
                    match record {
                        Record::Sample { data, .. } => {
                            let (number, rest) = data.split_first_chunk().unwrap();
                            assert!(numbers.insert(u32::from_ne_bytes(*number)));
                            // The length, the packet's header, and padding.
                            let expected = [&60_u32.to_ne_bytes()[..], &[7; 14], &[0; 6]].concat();
                            assert_eq!(rest, expected);
                        }
                        Record::Lost { count, .. } => reported += count,
                    }
                }
                if was_done {
                    assert!(reported <= events.lost_samples());
                    return (numbers, events.lost_samples());
                }
            }
        });
        let workers: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    let mut context = Context::new(ProgType::XDP, &[7; 60], None).unwrap();
                    for _ in 0..RUNS {
                        program.run(&mut context).unwrap();
                    }
                })
            })
            .collect();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        done.store(true, Ordering::Release);
        host.join().unwrap()
    });
    assert_eq!(numbers.len() as u64 + lost, (THREADS * RUNS) as u64);
    assert!(numbers.len() > 90, "only {} were read", numbers.len());
}

#[test]
fn rings_stay_while_their_buffer_does_even_without_the_object() {
    let loaded = Object::parse(OBJECT).unwrap().load(&LoadOptions::default()).unwrap();
    let program = loaded.program("tell").unwrap();
    let mut events = PerfBuffer::new(loaded.map("events").unwrap(), 1).unwrap();
    drop(loaded);
    let mut context = Context::new(ProgType::XDP, &[7; 60], None).unwrap();
    program.run(&mut context).unwrap();
    assert_eq!(events.records().count(), 1);
    drop(events);
    // The program goes on, and nobody hears it.
    assert_eq!(program.run(&mut context).unwrap().retval(), 2);
}
