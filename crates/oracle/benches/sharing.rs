//! What maps cost when much is read at once, or when threads and processes share them, side by side with the live kernel and
//! plain Rust.
//!
//! `cargo bench -p oracle --bench sharing` prints one table; `-- --quick` a rough one.

#![allow(
    clippy::expect_used,
    reason = "a benchmark that cannot run has nothing better to do than stop"
)]

use std::hint::black_box;
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bpfarray::attr::{Creator, MapAttr, MapType};
use bpfarray::{Array, HandleMode, Lane, Map, Object, PercpuArray};
use bpfarray_core::helper_id;
use bpfarray_core::insn::{Insn, Reg, jmp, pseudo, size};
use bpfarray_vm::{Context, ProgType, Program};
use oracle::measure::{Rounds, line};
use oracle::{Kernel, MapCreate};

const ENTRIES: u32 = 1 << 20;

fn attr(map_type: MapType, value_size: u32, max_entries: u32) -> MapAttr {
    MapAttr { map_type, key_size: 4, value_size, max_entries, ..MapAttr::default() }
}

fn batches(rounds: &Rounds, live: bool) {
    let map = Map::create(&attr(MapType::ARRAY, 8, ENTRIES)).expect("map");
    let mut keys: Vec<u32> = (0..ENTRIES).collect();
    let mut values = vec![1_u8; 8 * keys.len()];
    map.update_batch(&keys, &values, 0).expect("update_batch");
    let (from_keys, from) = (keys.clone(), values.clone());
    let (mut to_keys, mut to) = (keys.clone(), values.clone());
    let [ours, memcpy] = rounds.compare([
        &mut |n| {
            for _ in 0..n {
                map.lookup_batch(None, black_box(&mut keys), black_box(&mut values), 0)
                    .expect("lookup_batch");
            }
        },
        &mut |n| {
            for _ in 0..n {
                black_box(&mut to).copy_from_slice(black_box(&from));
                black_box(&mut to_keys).copy_from_slice(black_box(&from_keys));
            }
        },
    ]);
    let each = f64::from(ENTRIES);
    line(
        "lookup_batch of 1 M u64, an element",
        ours / each,
        "of memcpy",
        ours / memcpy,
        "(at most 1.5)",
    );
    if live {
        let kernel = oracle::Map::create(&MapCreate::array(2, 8, ENTRIES)).expect("create");
        let [ours, theirs] = rounds.compare([
            &mut |n| {
                for _ in 0..n {
                    map.lookup_batch(None, &mut keys, &mut values, 0).expect("lookup_batch");
                }
            },
            &mut |n| {
                for _ in 0..n {
                    kernel.lookup_batch(&mut to_keys, &mut to).expect("LOOKUP_BATCH");
                }
            },
        ]);
        let what = "slower: the kernel's LOOKUP_BATCH";
        line("", theirs / each, what, theirs / ours, "(at least 100)");
    }
}

/// Nanoseconds that `count` calls take on each of `threads` threads, which run at the same time.
fn on_threads(threads: usize, count: u64, add: &(dyn Fn(u64) + Sync)) -> f64 {
    let start = Barrier::new(threads);
    thread::scope(|scope| {
        let run = || {
            start.wait();
            let begin = Instant::now();
            add(count);
            begin.elapsed()
        };
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        let times = all.into_iter().map(|thread| thread.join().expect("thread"));
        times.max().unwrap_or_default().as_nanos() as f64 / count as f64
    })
}

fn counters(rounds: &Rounds) {
    /// Packets that a service takes from its queue at once, say.
    const BURST: u64 = 64;
    let count = rounds.time().as_nanos() as u64 / 10 / BURST * BURST;
    let percpu = PercpuArray::<u64>::new(16).expect("array");
    let atomic = AtomicU64::new(0);
    let local = |n| {
        for _ in 0..n / BURST {
            let lane = Lane::enter();
            for _ in 0..BURST {
                percpu.update(&lane, black_box(7), |count| count + 1).expect("update");
            }
        }
    };
    let shared = |n| {
        for _ in 0..n {
            black_box(&atomic).fetch_add(1, Ordering::Relaxed);
        }
    };
    let (mut alone, mut together, mut contended) = (f64::INFINITY, f64::INFINITY, f64::INFINITY);
    for _ in 0..rounds.count() {
        alone = alone.min(on_threads(1, count, &local));
        together = together.min(on_threads(2, count, &local));
        contended = contended.min(on_threads(2, count, &shared));
    }
    let of_one = 2.0 * alone / together;
    line(
        "a per-CPU counter on two threads",
        together,
        "the throughput of one",
        of_one,
        "(at least 1.9)",
    );
    let than = "slower: two threads on one AtomicU64";
    line("", contended, than, contended / together, "(at least 5)");
}

/// A program that finds map 1 of an ARRAY_OF_MAPS, and counts in element 3 of it.
fn count_in_inner_map(outer: &Map) -> Program {
    let lookup = Insn::call(helper_id::MAP_LOOKUP_ELEM);
    let key = |key| {
        [
            Insn::st_mem(size::W, Reg::R10, -4, key),
            Insn::mov64_reg(Reg::R2, Reg::R10),
            Insn::alu64_imm(bpfarray_core::insn::alu::ADD, Reg::R2, -4),
        ]
    };
    let insns = [
        &Insn::ld_imm64(Reg::R1, Reg::new(pseudo::MAP_IDX), 0)[..],
        &key(0),
        &[lookup, Insn::jmp_imm(jmp::JEQ, Reg::R0, 0, 9), Insn::mov64_reg(Reg::R1, Reg::R0)],
        &key(3),
        &[lookup, Insn::jmp_imm(jmp::JEQ, Reg::R0, 0, 3)],
        &[Insn::ldx_mem(size::DW, Reg::R1, Reg::R0, 0)],
        &[Insn::alu64_imm(bpfarray_core::insn::alu::ADD, Reg::R1, 1)],
        &[Insn::stx_mem(size::DW, Reg::R0, Reg::R1, 0)],
        &[Insn::mov64_imm(Reg::R0, 0), Insn::exit()],
    ]
    .concat();
    Program::from_insns(ProgType::SYSCALL, &insns, std::slice::from_ref(outer)).expect("program")
}

/// Runs that two threads make in a while, and the times that replacing the inner map took meanwhile, if asked for.
fn readers(duration: Duration, every: Option<Duration>) -> (u64, Vec<Duration>) {
    let inner = || Map::create(&attr(MapType::ARRAY, 8, 16)).expect("map");
    let maps = [inner(), inner()].map(|map| Object::Map(map.to_ref()));
    let outer = attr(MapType::ARRAY_OF_MAPS, 4, 1);
    let outer = Map::create_with(&outer, &Creator::default(), Some(&*inner())).expect("map");
    outer.update_object(0, &maps[0], 0).expect("update");
    let program = count_in_inner_map(&outer);
    let (done, runs) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut times = Vec::new();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut context = Context::new(ProgType::SYSCALL, &[], None).expect("context");
                let mut count = 0;
                while !done.load(Ordering::Relaxed) {
                    program.run(&mut context).expect("run");
                    count += 1;
                }
                runs.fetch_add(count, Ordering::Relaxed);
            });
        }
        let start = Instant::now();
        for map in maps.iter().cycle() {
            thread::sleep(every.unwrap_or(duration));
            if every.is_some() {
                let begin = Instant::now();
                outer.update_object(0, map, 0).expect("update");
                times.push(begin.elapsed());
            }
            if start.elapsed() >= duration {
                break;
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    (runs.into_inner(), times)
}

fn inner_maps(rounds: &Rounds, live: bool) {
    let duration = rounds.time() * 10;
    let mut shares = Vec::new();
    let mut times = Vec::new();
    for _ in 0..rounds.count() {
        let (alone, _) = readers(duration, None);
        let (disturbed, updates) = readers(duration, Some(Duration::from_millis(10)));
        shares.push(disturbed as f64 / alone as f64);
        times.extend(updates);
    }
    shares.sort_by(f64::total_cmp);
    times.sort();
    let median = times.get(times.len() / 2).map_or(0.0, |time| time.as_nanos() as f64);
    let share = shares.get(shares.len() / 2).copied().unwrap_or_default();
    let of = "of the runs of two threads without";
    line("an inner map replaced every 10 ms", median, of, share, "(at least 0.95, under 1 ms)");
    if live {
        let inner = oracle::Map::create(&MapCreate::array(2, 8, 16)).expect("create");
        let outer = MapCreate::array(MapCreate::ARRAY_OF_MAPS, 4, 1);
        let outer = oracle::Map::create_with(&outer, Some(&inner)).expect("create");
        let fd = std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(&inner));
        let [update] = Rounds::compare(
            rounds,
            [&mut |n| {
                for _ in 0..n {
                    outer.update(&[0; 4], &fd.to_ne_bytes(), 0).expect("update");
                }
            }],
        );
        line("", update, "slower: the kernel's update", update / median, "");
    }
}

/// Nanoseconds of a get and an add in a map file.
fn use_file(rounds: &Rounds, path: &str) -> f64 {
    let map = Map::open_file(path, HandleMode::ReadWrite).expect("map file");
    let array = Array::<u64>::from_map(map).expect("array");
    let [each] = rounds.compare([&mut |n| {
        for i in 0..n {
            array.set(black_box(i as u32 % 16), i).expect("set");
            black_box(array.get(black_box(i as u32 % 16)));
        }
    }]);
    each
}

fn processes(rounds: &Rounds) {
    let path = format!("/dev/shm/bpfarray-bench-{}", std::process::id());
    let file = Map::create_file(&path, &attr(MapType::ARRAY, 8, 16)).expect("map file");
    let first = use_file(rounds, &path);
    let exe = std::env::current_exe().expect("path");
    let args: Vec<_> = std::env::args().skip(1).collect();
    let child = Command::new(exe).args(args).env("BPFARRAY_BENCH_FILE", &path).output();
    let said = child.expect("second process").stdout;
    let second: f64 = String::from_utf8_lossy(&said).trim().parse().expect("a figure");
    drop(file);
    std::fs::remove_file(path).expect("remove");
    line(
        "set and get in a second process",
        second,
        "of the same in the first",
        second / first,
        "(about 1)",
    );
}

fn main() {
    let rounds = Rounds::from_args();
    if let Ok(path) = std::env::var("BPFARRAY_BENCH_FILE") {
        println!("{}", use_file(&rounds, &path));
        return;
    }
    let kernel = Kernel::available();
    if let Err(why) = &kernel {
        println!("no live kernel to compare with: {why}");
    }
    batches(&rounds, kernel.is_ok());
    counters(&rounds);
    inner_maps(&rounds, kernel.is_ok());
    processes(&rounds);
}
