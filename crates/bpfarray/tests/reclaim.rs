//! What programs and writers let go is freed, all of it: counted after threads have replaced programs and
//! inner maps under each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use bpfarray::attr::{Creator, MapAttr, MapType};
use bpfarray::{Lane, Map, MapRef, Object, Owner, ProgramObject, rcu};

const ROUNDS: u32 = 1000;
const SLOTS: u32 = 4;
/// Bytes of an inner map, so many that leaked ones show in the memory of the process.
const INNER_SIZE: u32 = 1 << 20;

/// How many programs there are.
static LIVE: AtomicU32 = AtomicU32::new(0);

/// A program that holds the map in whose slot it is.
struct Program {
    id: u32,
    map: MapRef,
}

impl Program {
    fn object(id: u32, map: &Map) -> Object {
        LIVE.fetch_add(1, Ordering::SeqCst);
        Object::Program(Arc::new(Self { id, map: map.to_ref() }))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        LIVE.fetch_sub(1, Ordering::SeqCst);
    }
}

impl ProgramObject for Program {
    fn id(&self) -> u32 {
        self.id
    }

    fn owner(&self) -> Owner {
        Owner { prog_type: 6, jited: false, xdp_has_frags: false, expected_attach_type: 0 }
    }
}

fn attr(map_type: MapType, value_size: u32, max_entries: u32) -> MapAttr {
    MapAttr { map_type, key_size: 4, value_size, max_entries, ..MapAttr::default() }
}

/// A map that has taken up all its memory.
fn inner() -> Result<Map, Box<dyn std::error::Error>> {
    let map = Map::create(&attr(MapType::ARRAY, INNER_SIZE, 1))?;
    map.regions()[0].memory.fill(0, INNER_SIZE as usize, 1)?;
    Ok(map)
}

/// Bytes of memory that the process has.
fn resident() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(4096 * statm.split(' ').nth(1)?.parse::<u64>().ok()?)
}

#[test]
fn nothing_is_left_of_what_was_replaced() {
    let programs = Map::create(&attr(MapType::PROG_ARRAY, 4, SLOTS)).unwrap();
    let outer = attr(MapType::ARRAY_OF_MAPS, 4, SLOTS);
    let outer = Map::create_with(&outer, &Creator::default(), Some(&*inner().unwrap())).unwrap();
    programs.update_object(0, &Program::object(0, &programs), 0).unwrap();
    outer.update_object(0, &Object::Map(inner().unwrap().to_ref()), 0).unwrap();

    let done = AtomicBool::new(false);
    let before = thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut visits = 0;
                while !done.load(Ordering::Relaxed) {
                    let lane = Lane::enter();
                    for slot in 0..SLOTS {
                        if let Some(program) = programs.tail_call(&lane, u64::from(slot), 0) {
                            let program = program.downcast_ref::<Program>().unwrap();
                            assert_eq!(program.map.id(), programs.id());
                            visits += 1;
                        }
                        if let Some(addr) = outer.prog_lookup_elem(&lane, slot) {
                            let map = outer.inner_map_at(&lane, addr).unwrap();
                            assert!(map.prog_lookup_elem(&lane, 0).is_some());
                        }
                    }
                }
                assert!(visits > 0);
            });
        }
        let before = resident().unwrap();
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let (programs, outer) = (&programs, &outer);
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let slot = (round + writer) % SLOTS;
                        programs.update_object(slot, &Program::object(round, programs), 0).unwrap();
                        if round % 10 == 0 {
                            outer
                                .update_object(slot, &Object::Map(inner().unwrap().to_ref()), 0)
                                .unwrap();
                        }
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        done.store(true, Ordering::Relaxed);
        before
    });

    rcu::barrier().unwrap();
    assert_eq!(LIVE.load(Ordering::SeqCst), SLOTS, "one program in each slot");
    let grown = resident().unwrap().saturating_sub(before);
    assert!(grown < u64::from(10 * SLOTS * INNER_SIZE), "{grown} bytes more than before");

    // The programs hold their map, and the map its programs, until the last handle goes.
    drop((programs, outer));
    rcu::barrier().unwrap();
    assert_eq!(LIVE.load(Ordering::SeqCst), 0);
}
