//! Programs and inner maps that are replaced while machine code runs in them, and hold what they must not see freed.
//!
//! A few seconds each; `BPFARRAY_STRESS_SECONDS` makes it longer.

#![allow(clippy::unwrap_used, reason = "tests, and what they share, fail by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bpfarray::attr::{Creator, MapAttr, MapType};
use bpfarray::{Map, Object, rcu};
use bpfarray_core::helper_id;
use bpfarray_core::insn::{Insn, Reg, X, alu, atomic, class, jmp, pseudo, size};
use bpfarray_vm::{Context, Engine, HelperSet, LoadOptions, ProgType, Program};

const SLOTS: u32 = 3;
/// Threads that run programs, and those that replace what they run into.
const RUNNERS: u64 = 2;
const WRITERS: u64 = 2;
/// The number of a host's helper, past Linux's.
const STAMP: u32 = 5000;
/// What the program returns where it finds a slot empty, and where it finds two numbers that should be one.
const EMPTY: u64 = 1;
const BROKEN: u64 = 2;
/// Stamps are above.
const FIRST: u64 = 1 << 20;

fn duration() -> Duration {
    let seconds = std::env::var("BPFARRAY_STRESS_SECONDS").ok().and_then(|text| text.parse().ok());
    seconds.map_or(Duration::from_millis(1500), Duration::from_secs)
}

fn attr(map_type: MapType, value_size: u32, max_entries: u32) -> MapAttr {
    MapAttr { map_type, key_size: 4, value_size, max_entries, ..MapAttr::default() }
}

fn map_address(dst: Reg, index: u64) -> [Insn; 2] {
    Insn::ld_imm64(dst, Reg::new(pseudo::MAP_IDX), index)
}

/// What one writer has put into one slot: the stamps from the last that was there for sure to the one that may be there.
#[derive(Default)]
struct Slot {
    there: AtomicU64,
    coming: AtomicU64,
}

/// Puts things with rising stamps into slots, and takes some out, until the time is over. Each writer has every
/// second slot for itself, in turn.
fn write(
    slots: &[Slot],
    writer: u64,
    done: &AtomicBool,
    put: impl Fn(u32, u64),
    take_out: impl Fn(u32),
) -> u64 {
    let (mut rounds, mut replaced) = (0, 0);
    while !done.load(Ordering::Relaxed) {
        for slot in (0..SLOTS).filter(|slot| u64::from(*slot) % WRITERS == writer) {
            let state = &slots[slot as usize];
            let stamp = state.coming.load(Ordering::SeqCst).max(FIRST) + 1;
            state.coming.store(stamp, Ordering::SeqCst);
            put(slot, stamp);
            state.there.store(stamp, Ordering::SeqCst);
            replaced += 1;
            if rounds % 5 == 4 {
                take_out(slot);
            }
        }
        rounds += 1;
    }
    replaced
}

/// Runs programs that `run` makes a result of for a slot, and checks each against what may be there. Gives how often
/// there was something.
fn look(slots: &[Slot], done: &AtomicBool, mut run: impl FnMut(u32) -> u64) -> u64 {
    let mut found = 0;
    while !done.load(Ordering::Relaxed) {
        for (slot, state) in (0..).zip(slots) {
            let least = state.there.load(Ordering::SeqCst);
            let result = run(slot);
            let most = state.coming.load(Ordering::SeqCst);
            assert_ne!(result, BROKEN, "slot {slot}");
            if result != EMPTY {
                assert!(least <= result && result <= most, "{slot}: {least} {result} {most}");
                found += 1;
            }
        }
    }
    found
}

/// Threads that run and threads that replace; gives how often they did.
fn both(
    look: impl Fn(&AtomicBool) -> u64 + Sync,
    write: impl Fn(u64, &AtomicBool) -> u64 + Sync,
) -> (u64, u64) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let runners: Vec<_> = (0..RUNNERS).map(|_| scope.spawn(|| look(&done))).collect();
        let (write, done_ref) = (&write, &done);
        let writers: Vec<_> =
            (0..WRITERS).map(|writer| scope.spawn(move || write(writer, done_ref))).collect();
        let start = Instant::now();
        // Who fails ends early, and the others with it.
        while start.elapsed() < duration() && !runners.iter().any(|runner| runner.is_finished()) {
            thread::sleep(Duration::from_millis(10));
        }
        done.store(true, Ordering::Relaxed);
        let sum = |threads: Vec<thread::ScopedJoinHandle<'_, u64>>| {
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        };
        (sum(runners), sum(writers))
    })
}

/// Something that is counted as long as it is there.
struct Counted(&'static AtomicU64);

impl Counted {
    fn new(count: &'static AtomicU64) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A program of its own map and its own helper, both of which know its stamp, and which dies with both.
fn target(stamp: u64, programs: &Map, live: &'static AtomicU64) -> Program {
    let own = Map::create(&attr(MapType::ARRAY, 8, 1)).unwrap();
    own.update_elem(0, &stamp.to_ne_bytes(), 0).unwrap();
    let mut helpers = HelperSet::linux();
    let counted = Counted::new(live);
    helpers.register(STAMP, "stamp", move |_, _| {
        // All of it belongs to the helper, and goes with it.
        let counted: &Counted = &counted;
        assert!(counted.0.load(Ordering::SeqCst) > 0);
        Ok(stamp)
    });
    let mut insns = vec![
        Insn::st_mem(size::W, Reg::R10, -4, 0),
        Insn::mov64_reg(Reg::R2, Reg::R10),
        Insn::alu64_imm(alu::ADD, Reg::R2, -4),
    ];
    insns.extend(map_address(Reg::R1, 0));
    insns.extend([
        Insn::call(helper_id::MAP_LOOKUP_ELEM),
        Insn::mov64_imm(Reg::R6, 0),
        Insn::jmp_imm(jmp::JEQ, Reg::R0, 0, 1),
        Insn::ldx_mem(size::DW, Reg::R6, Reg::R0, 0),
        Insn::call(STAMP),
        Insn::new(class::JMP | jmp::JEQ | X, Reg::R0, Reg::R6, 1, 0),
        Insn::mov64_imm(Reg::R0, BROKEN as i32),
        Insn::exit(),
    ]);
    // It holds the map that holds it, as programs do that call each other.
    let maps = [own, programs.clone()];
    let options = LoadOptions { helpers, ..LoadOptions::default() };
    Program::with_options(ProgType::SYSCALL, &insns, &maps, &options).unwrap()
}

/// Calls what is in the slot that the context names; a called function does it, for the frame of which the target goes.
fn dispatcher(programs: &Map) -> Program {
    let mut insns = vec![
        Insn::new(class::JMP | jmp::CALL, Reg::R0, Reg::new(pseudo::CALL), 0, 1),
        Insn::exit(),
        Insn::ldx_mem(size::W, Reg::R3, Reg::R1, 0),
    ];
    insns.extend(map_address(Reg::R2, 0));
    insns.push(Insn::call(helper_id::TAIL_CALL));
    insns.extend([Insn::mov64_imm(Reg::R0, EMPTY as i32), Insn::exit()]);
    Program::from_insns(ProgType::SYSCALL, &insns, std::slice::from_ref(programs)).unwrap()
}

fn run(program: &Program, context: &mut Context, slot: u32) -> u64 {
    context.reset(&[], Some(&slot.to_ne_bytes())).unwrap();
    program.run(context).unwrap().r0
}

fn context() -> Context {
    Context::new(ProgType::SYSCALL, &[], Some(&[0; 4])).unwrap()
}

#[test]
fn a_program_that_is_replaced_while_it_runs_lives_until_it_has_returned() {
    static LIVE: AtomicU64 = AtomicU64::new(0);
    let programs = Map::create(&attr(MapType::PROG_ARRAY, 4, SLOTS)).unwrap();
    let dispatcher = dispatcher(&programs);
    assert_eq!(dispatcher.engine(), Engine::default());
    let slots: [Slot; SLOTS as usize] = Default::default();
    let put = |slot, stamp| {
        let program = Object::Program(Arc::new(target(stamp, &programs, &LIVE)));
        programs.update_object(slot, &program, 0).unwrap();
    };
    let take_out = |slot| programs.delete_elem(slot).unwrap();
    let (found, replaced) = both(
        |done| {
            let mut context = context();
            look(&slots, done, |slot| run(&dispatcher, &mut context, slot))
        },
        |writer, done| write(&slots, writer, done, put, take_out),
    );
    println!("{found} runs found one of {replaced} programs");
    assert!(found > 100 && replaced > 10, "{found} {replaced}");

    rcu::barrier().unwrap();
    let there = (0..SLOTS).filter(|slot| run(&dispatcher, &mut context(), *slot) != EMPTY).count();
    assert_eq!(LIVE.load(Ordering::SeqCst), there as u64, "programs that are in no slot");
    // The programs are no users of the map that they are in.
    drop(programs);
    rcu::barrier().unwrap();
    assert_eq!(LIVE.load(Ordering::SeqCst), 0);
}

/// Words of an inner map's value, all of them its stamp; and elements, the others to be counted in.
const WORDS: u32 = 512;
const ELEMENTS: u32 = 256;

fn inner(stamp: u64) -> Map {
    let map = Map::create(&attr(MapType::ARRAY, 8 * WORDS, ELEMENTS)).unwrap();
    let value: Vec<u8> = (0..WORDS).flat_map(|_| stamp.to_ne_bytes()).collect();
    for index in 0..ELEMENTS {
        map.update_elem(index, &value, 0).unwrap();
    }
    map
}

/// Looks up the inner map in the slot that the context names, and reads all of one of its elements again and again.
fn reader(outer: &Map) -> Program {
    let look_up = [
        Insn::mov64_reg(Reg::R2, Reg::R10),
        Insn::alu64_imm(alu::ADD, Reg::R2, -4),
        Insn::call(helper_id::MAP_LOOKUP_ELEM),
    ];
    let mut insns = vec![
        Insn::mov64_imm(Reg::R7, EMPTY as i32),
        Insn::ldx_mem(size::W, Reg::R6, Reg::R1, 0),
        Insn::stx_mem(size::W, Reg::R10, Reg::R6, -4),
    ];
    insns.extend(map_address(Reg::R1, 0));
    insns.extend(look_up);
    let no_map = insns.len();
    insns.extend([
        Insn::jmp_imm(jmp::JEQ, Reg::R0, 0, 0),
        Insn::mov64_reg(Reg::R1, Reg::R0),
        Insn::st_mem(size::W, Reg::R10, -4, ELEMENTS as i32 - 1),
    ]);
    insns.extend(look_up);
    let no_element = insns.len();
    insns.extend([
        Insn::jmp_imm(jmp::JEQ, Reg::R0, 0, 0),
        Insn::ldx_mem(size::DW, Reg::R7, Reg::R0, 0),
        Insn::mov64_imm(Reg::R6, 0),
    ]);
    let start = insns.len();
    insns.extend([
        Insn::mov64_reg(Reg::R3, Reg::R6),
        Insn::alu64_imm(alu::AND, Reg::R3, WORDS as i32 - 1),
        Insn::alu64_imm(alu::LSH, Reg::R3, 3),
        Insn::mov64_reg(Reg::R2, Reg::R0),
        Insn::alu64_reg(alu::ADD, Reg::R2, Reg::R3),
        Insn::ldx_mem(size::DW, Reg::R4, Reg::R2, 0),
        Insn::mov64_imm(Reg::R5, 0),
        // Changes nothing, but for a map that is there no more.
        Insn::atomic(size::DW, atomic::ADD, Reg::R2, Reg::R5, 0),
        Insn::new(class::JMP | jmp::JEQ | X, Reg::R4, Reg::R7, 2, 0),
        Insn::mov64_imm(Reg::R7, BROKEN as i32),
        Insn::ja(2),
        Insn::alu64_imm(alu::ADD, Reg::R6, 1),
    ]);
    let back = start as i64 - insns.len() as i64 - 1;
    insns.push(Insn::jmp_imm(jmp::JLT, Reg::R6, 2 * WORDS as i32, back as i16));
    for at in [no_map, no_element] {
        insns[at].off = (insns.len() - at - 1) as i16;
    }
    insns.extend([Insn::mov64_reg(Reg::R0, Reg::R7), Insn::exit()]);
    Program::from_insns(ProgType::SYSCALL, &insns, std::slice::from_ref(outer)).unwrap()
}

/// Bytes of memory that the process has.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    4096 * statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap()
}

#[test]
fn an_inner_map_that_is_replaced_while_a_program_reads_it_stays_until_the_run_is_over() {
    let size = u64::from(ELEMENTS * WORDS * 8);
    let outer = attr(MapType::ARRAY_OF_MAPS, 4, SLOTS);
    let outer = Map::create_with(&outer, &Creator::default(), Some(&*inner(0))).unwrap();
    let reader = reader(&outer);
    let slots: [Slot; SLOTS as usize] = Default::default();
    let put = |slot, stamp| {
        outer.update_object(slot, &Object::Map(inner(stamp).to_ref()), 0).unwrap();
    };
    (0..SLOTS).for_each(|slot| put(slot, FIRST));
    slots.iter().for_each(|slot| slot.there.store(FIRST, Ordering::SeqCst));
    slots.iter().for_each(|slot| slot.coming.store(FIRST, Ordering::SeqCst));
    let before = resident();
    let (found, replaced) = both(
        |done| {
            let mut context = context();
            look(&slots, done, |slot| run(&reader, &mut context, slot))
        },
        |writer, done| write(&slots, writer, done, put, |slot| outer.delete_elem(slot).unwrap()),
    );
    println!("{found} runs found one of {replaced} inner maps");
    // A busy machine does far less than a free one.
    assert!(found > 100 && replaced > 10, "{found} {replaced}");
    rcu::barrier().unwrap();
    let grown = resident().saturating_sub(before);
    let all = replaced * size;
    assert!(grown < 8 * size, "{grown} bytes more than before, of {all} in all that were replaced");
}
