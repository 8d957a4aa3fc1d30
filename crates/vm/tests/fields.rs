//! Programs and the special fields of values: what they may do, and what is left when they may not.

#![allow(clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bpfarray::attr::elem_flags::F_LOCK;
use bpfarray::attr::{Creator, MapAttr, MapFlags, MapType};
use bpfarray::btf::{Btf, Kind};
use bpfarray::{Kptr, Lane, Map, Object as Slot, rcu};
use bpfarray_core::helper_id;
use bpfarray_core::insn::{Insn, Reg, alu, atomic, class, pseudo, size};
use bpfarray_vm::fault::{Fault, FaultKind, HelperError};
use bpfarray_vm::helper::HelperSet;
use bpfarray_vm::{Context, Engine, LoadOptions, Object, ProgType, Program};

const VALUE: Reg = Reg::R6;

fn btf() -> Btf {
    Btf::parse(include_bytes!("../../../testdata/btf/fields.btf")).unwrap()
}

/// An ARRAY of structs with special fields.
fn map(name: &str, max_entries: u32) -> Map {
    let btf = btf();
    let value = btf.find_by_name(name, Kind::Struct).unwrap();
    let attr = MapAttr {
        map_type: MapType::ARRAY,
        key_size: 4,
        value_size: btf.size_of(value).unwrap(),
        max_entries,
        map_name: MapAttr::name_field("values"),
        btf_key_type_id: btf.find_by_name("int", Kind::Int).unwrap(),
        btf_value_type_id: value,
        ..MapAttr::default()
    };
    Map::create_as(&attr, &Creator { btf: Some(&btf), ..Creator::default() }).unwrap()
}

/// r6 = address of the only value of the map with this index.
fn value_of(map: u64) -> Vec<Insn> {
    Insn::ld_imm64(VALUE, Reg::new(pseudo::MAP_IDX_VALUE), map).to_vec()
}

/// Calls a helper with the address of a field in r1.
fn call(helper: u32, offset: i32) -> [Insn; 3] {
    let at = Insn::alu64_imm(alu::ADD, Reg::R1, offset);
    [Insn::mov64_reg(Reg::R1, VALUE), at, Insn::call(helper)]
}

const LOCK: i32 = 4;

fn lock() -> [Insn; 3] {
    call(helper_id::SPIN_LOCK, LOCK)
}

fn unlock() -> [Insn; 3] {
    call(helper_id::SPIN_UNLOCK, LOCK)
}

fn end() -> [Insn; 2] {
    [Insn::mov64_imm(Reg::R0, 0), Insn::exit()]
}

fn program(maps: &[&Map], parts: &[&[Insn]]) -> Program {
    let insns = [&value_of(0), &parts.concat()[..]].concat();
    let maps: Vec<Map> = maps.iter().map(|map| (*map).clone()).collect();
    Program::from_insns(ProgType::SYSCALL, &insns, &maps).unwrap()
}

fn run(program: &Program) -> Result<u64, Fault> {
    let mut context = Context::new(ProgType::SYSCALL, &[], None).unwrap();
    program.run(&mut context).map(|outcome| outcome.r0)
}

fn fault(map: &Map, parts: &[&[Insn]]) -> FaultKind {
    run(&program(&[map], parts)).unwrap_err().kind
}

#[test]
fn a_lock_that_is_misused_ends_the_run_and_is_left_released() {
    let map = map("locked", 1);
    let locked = |what: &str| FaultKind::Locked(what.into());
    assert_eq!(run(&program(&[&map], &[&lock(), &unlock(), &end()])), Ok(0));
    assert_eq!(fault(&map, &[&lock(), &end()]), locked("exit"));
    let helper = Insn::call(helper_id::KTIME_GET_NS);
    assert_eq!(fault(&map, &[&lock(), &[helper], &unlock(), &end()]), locked("bpf_ktime_get_ns"));
    let misuse = |parts: &[&[Insn]]| match fault(&map, parts) {
        FaultKind::Helper { error, .. } => error,
        other => panic!("{other}"),
    };
    assert_eq!(misuse(&[&lock(), &lock(), &end()]), HelperError::SecondLock);
    let addr = map.addr() + 4096;
    assert_eq!(misuse(&[&unlock(), &end()]), HelperError::NotLocked(addr + 4));
    let beside = call(helper_id::SPIN_LOCK, 0);
    let no_lock = HelperError::NoField { addr, name: "bpf_spin_lock" };
    assert_eq!(misuse(&[&beside, &end()]), no_lock);
    assert!(map.try_lock(0).is_some(), "released by every one of them");
}

#[test]
fn a_tail_call_under_a_lock_ends_the_run() {
    let map = map("locked", 1);
    let attr = MapAttr { map_type: MapType::PROG_ARRAY, key_size: 4, value_size: 4, ..ONE };
    let table = Map::create(&attr).unwrap();
    let target = Program::from_insns(ProgType::SYSCALL, &end(), &[]).unwrap();
    table.update_object(0, &Slot::Program(Arc::new(target)), 0).unwrap();
    let [lo, hi] = Insn::ld_imm64(Reg::R2, Reg::new(pseudo::MAP_IDX), 1);
    let tail_call = [
        Insn::mov64_reg(Reg::R1, Reg::R7),
        lo,
        hi,
        Insn::mov64_imm(Reg::R3, 0),
        Insn::call(helper_id::TAIL_CALL),
    ];
    let insns = [&[Insn::mov64_reg(Reg::R7, Reg::R1)], &value_of(0)[..], &lock(), &tail_call];
    let insns = [&insns.concat()[..], &end()].concat();
    let maps = [map.clone(), table];
    let program = Program::from_insns(ProgType::SYSCALL, &insns, &maps).unwrap();
    assert_eq!(run(&program).unwrap_err().kind, FaultKind::Locked("bpf_tail_call".into()));
    assert!(map.try_lock(0).is_some());
}

const ONE: MapAttr = MapAttr {
    map_type: MapType::ARRAY,
    key_size: 4,
    value_size: 8,
    max_entries: 1,
    map_flags: MapFlags::empty(),
    numa_node: 0,
    map_name: [0; 16],
    map_ifindex: 0,
    btf_key_type_id: 0,
    btf_value_type_id: 0,
    btf_vmlinux_value_type_id: 0,
    map_extra: 0,
    excl_prog_hash: None,
};

#[test]
fn a_lock_that_an_inlined_loop_leaves_ends_the_run_at_the_next_one_or_at_the_end() {
    let map = map("locked", 1);
    let [lo, hi] = Insn::ld_imm64(Reg::R2, Reg::new(pseudo::FUNC), 8);
    let main = |rounds| {
        [
            Insn::mov64_imm(Reg::R1, rounds),
            lo,
            hi,
            Insn::mov64_reg(Reg::R3, VALUE),
            Insn::mov64_imm(Reg::R4, 0),
            Insn::call(helper_id::LOOP),
            Insn::mov64_imm(Reg::R0, 0),
            Insn::exit(),
            Insn::mov64_imm(Reg::R0, 0),
            Insn::exit(),
        ]
    };
    let callback = [Insn::mov64_reg(VALUE, Reg::R2)];
    for (rounds, why) in
        [(1, "exit while a bpf_spin_lock is held"), (3, "a bpf_spin_lock is held already")]
    {
        let program = program(&[&map], &[&main(rounds), &callback, &lock(), &end()]);
        let message = run(&program).unwrap_err().to_string();
        assert!(message.ends_with(why), "{message}");
        assert!(map.try_lock(0).is_some());
    }
}

#[test]
fn strict_mode_sees_a_lock_that_a_callback_leaves_held() {
    let map = map("locked", 1);
    let judge = |callback: &[Insn]| {
        let [lo, hi] = Insn::ld_imm64(Reg::R2, Reg::new(pseudo::FUNC), 6);
        let call = [
            Insn::mov64_imm(Reg::R1, 2),
            lo,
            hi,
            Insn::mov64_imm(Reg::R3, 0),
            Insn::mov64_imm(Reg::R4, 0),
            Insn::call(helper_id::LOOP),
        ];
        let insns = [&value_of(0)[..], &call, &end(), &value_of(0), callback, &end()].concat();
        let options = LoadOptions { strict: true, ..LoadOptions::default() };
        Program::with_options(ProgType::SCHED_CLS, &insns, std::slice::from_ref(&map), &options)
    };
    let kept = judge(&[lock(), unlock()].concat());
    assert!(kept.is_ok(), "{:?}", kept.map_err(|error| error.to_string()));
    let error = judge(&lock()).unwrap_err().to_string();
    assert!(error.contains("function calls are not allowed while holding a lock"), "{error}");
}

#[test]
fn a_program_that_runs_out_of_fuel_or_faults_under_a_lock_leaves_it_released() {
    let map = map("locked", 1);
    let endless = program(&[&map], &[&lock(), &[Insn::ja(-1)]]).with_fuel(10_000);
    assert_eq!(run(&endless).unwrap_err().kind, FaultKind::OutOfFuel);
    assert!(map.try_lock(0).is_some());
    let null = [Insn::mov64_imm(Reg::R1, 0), Insn::ldx_mem(size::W, Reg::R0, Reg::R1, 0)];
    assert!(matches!(fault(&map, &[&lock(), &null, &end()]), FaultKind::Access(_)));
    assert!(map.try_lock(0).is_some());
}

#[test]
fn waiting_for_a_lock_that_never_comes_takes_the_fuel() {
    let map = map("locked", 1);
    let held = map.try_lock(0).unwrap();
    let program = program(&[&map], &[&lock(), &unlock(), &end()]).with_fuel(10_000_000);
    assert_eq!(run(&program).unwrap_err().kind, FaultKind::OutOfFuel);
    drop(held);
    assert_eq!(run(&program), Ok(0));
}

#[test]
fn special_fields_are_touched_by_helpers_only() {
    let touches = |map: &Map, insns: &[Insn], name: &str| {
        let message = run(&program(&[map], &[insns, &end()])).unwrap_err().to_string();
        assert!(message.contains(&format!("touches the {name} in a map's value")), "{message}");
    };
    let load = |size, offset| Insn::ldx_mem(size, Reg::R0, VALUE, offset);
    let store = |size, offset| Insn::st_mem(size, VALUE, offset, 1);
    let locked = map("locked", 1);
    touches(&locked, &[load(size::W, 4)], "bpf_spin_lock");
    touches(&locked, &[load(size::DW, 0)], "bpf_spin_lock");
    touches(&locked, &[store(size::B, 7)], "bpf_spin_lock");
    let add = Insn::new(class::STX | 0xc0 | size::W, VALUE, Reg::R0, 4, atomic::ADD);
    touches(&locked, &[Insn::mov64_imm(Reg::R0, 1), add], "bpf_spin_lock");
    let buffer = [
        Insn::mov64_reg(Reg::R1, VALUE),
        Insn::mov64_imm(Reg::R2, 16),
        Insn::call(helper_id::GET_CURRENT_COMM),
    ];
    touches(&locked, &buffer, "bpf_spin_lock");
    let around = [load(size::W, 0), store(size::DW, 8), store(size::H, 2)];
    assert_eq!(run(&program(&[&locked], &[&around, &end()])), Ok(0));
    touches(&map("timed", 1), &[load(size::DW, 16)], "bpf_timer");
    touches(&map("counted", 1), &[load(size::W, 0)], "bpf_refcount");
    let holder = map("holder", 1);
    touches(&holder, &[store(size::DW, 8)], "kptr");
    touches(&holder, &[load(size::W, 8)], "kptr");
    touches(&holder, &[load(size::DW, 5)], "kptr");
    assert_eq!(run(&program(&[&holder], &[&[load(size::DW, 8)], &end()])), Ok(0));
}

#[test]
fn the_fields_of_inner_maps_are_out_of_reach_too() {
    let inner = map("locked", 1);
    let attr = MapAttr { map_type: MapType::ARRAY_OF_MAPS, value_size: 4, ..ONE };
    let outer = Map::create_with(&attr, &Creator::default(), Some(&inner)).unwrap();
    outer.update_object(0, &Slot::Map(inner.to_ref()), 0).unwrap();
    let lookup = |offset: i32| {
        let [lo, hi] = Insn::ld_imm64(Reg::R1, Reg::new(pseudo::MAP_IDX), 0);
        let key = [
            Insn::st_mem(size::W, Reg::R10, -4, 0),
            Insn::mov64_reg(Reg::R2, Reg::R10),
            Insn::alu64_imm(alu::ADD, Reg::R2, -4),
        ];
        let find = Insn::call(helper_id::MAP_LOOKUP_ELEM);
        let second = [&[find, Insn::mov64_reg(Reg::R1, Reg::R0)], &key[1..], &[find]].concat();
        let load = [
            Insn::mov64_reg(VALUE, Reg::R0),
            Insn::ldx_mem(size::W, Reg::R1, VALUE, offset as i16),
        ];
        let insns = [&[lo, hi], &key[..], &second, &load, &lock(), &unlock(), &end()].concat();
        let program =
            Program::from_insns(ProgType::SYSCALL, &insns, std::slice::from_ref(&outer)).unwrap();
        run(&program).map_err(|fault| fault.to_string())
    };
    assert_eq!(lookup(0), Ok(0));
    assert!(lookup(4).unwrap_err().contains("touches the bpf_spin_lock"));
}

#[test]
fn programs_and_hosts_exclude_each_other() {
    const ROUNDS: u32 = 3_000;
    let map = map("locked", 1);
    let add = |offset| {
        [
            Insn::ldx_mem(size::W, Reg::R1, VALUE, offset),
            Insn::alu64_imm(alu::ADD, Reg::R1, 1),
            Insn::stx_mem(size::W, VALUE, Reg::R1, offset),
        ]
    };
    let program = program(&[&map], &[&lock(), &add(0), &add(8), &unlock(), &end()]);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| (0..ROUNDS).for_each(|_| assert_eq!(run(&program), Ok(0))));
        }
        scope.spawn(|| {
            for _ in 0..ROUNDS {
                let mut value = [0; 16];
                map.lookup_elem(0, &mut value, F_LOCK).unwrap();
                assert_eq!(value[..4], value[8..12]);
            }
        });
    });
    let mut value = [0; 16];
    map.lookup_elem(0, &mut value, 0).unwrap();
    assert_eq!(value[..4], (3 * ROUNDS).to_ne_bytes());
}

const SLOT: i32 = 8;

/// `bpf_kptr_xchg` of a register, whose result is then in r7.
fn xchg(new: Reg) -> Vec<Insn> {
    let at = Insn::alu64_imm(alu::ADD, Reg::R1, SLOT);
    let call = Insn::call(helper_id::KPTR_XCHG);
    [Insn::mov64_reg(Reg::R2, new), Insn::mov64_reg(Reg::R1, VALUE), at, call]
        .into_iter()
        .chain([Insn::mov64_reg(Reg::R7, Reg::R0)])
        .collect()
}

#[test]
fn a_program_moves_objects_between_values() {
    let (from, to) = (map("holder", 1), map("holder", 1));
    let object = Arc::new("session");
    from.swap_kptr(0, 8, Some(Kptr::new(object.clone()))).unwrap();
    let none = [Insn::mov64_imm(Reg::R8, 0)];
    let parts = [&none, &xchg(Reg::R8)[..], &value_of(1), &xchg(Reg::R7), &end()];
    let program = program(&[&from, &to], &parts);
    assert_eq!(run(&program), Ok(0));
    assert!(from.swap_kptr(0, 8, None).unwrap().is_none());
    let moved = to.swap_kptr(0, 8, None).unwrap().unwrap();
    assert_eq!(moved.object().downcast_ref::<&str>(), Some(&"session"));
    drop(moved);
    assert_eq!(Arc::strong_count(&object), 1);
}

#[test]
fn an_object_that_is_not_put_back_goes_with_the_run() {
    let map = map("holder", 1);
    let object = Arc::new("session");
    let none = [Insn::mov64_imm(Reg::R8, 0)];
    map.swap_kptr(0, 8, Some(Kptr::new(object.clone()))).unwrap();
    assert_eq!(run(&program(&[&map], &[&none, &xchg(Reg::R8), &end()])), Ok(0));
    rcu::barrier().unwrap();
    assert_eq!(Arc::strong_count(&object), 1);
}

#[test]
fn a_panic_of_a_helper_reaches_the_host_and_leaves_nothing_behind() {
    const HELPER: u32 = 5000;
    let map = map("holder", 1);
    let object = Arc::new("session");
    let fails = Arc::new(AtomicBool::new(true));
    let mut helpers = HelperSet::linux();
    helpers.register(HELPER, "host_helper", {
        let fails = Arc::clone(&fails);
        move |_, _| match fails.load(Ordering::Relaxed) {
            true => resume_unwind(Box::new("of the helper")),
            false => Ok(7),
        }
    });
    // Takes the object out, writes to a stack that is all zeroes, and gives what was there before.
    let insns = [
        &value_of(0)[..],
        &[Insn::mov64_imm(Reg::R8, 0)],
        &xchg(Reg::R8),
        &[
            Insn::ldx_mem(size::DW, Reg::R9, Reg::R10, -8),
            Insn::st_mem(size::DW, Reg::R10, -8, -1),
            Insn::mov64_reg(Reg::R1, Reg::R10),
            Insn::call(HELPER),
            Insn::mov64_reg(Reg::R0, Reg::R9),
            Insn::exit(),
        ],
    ]
    .concat();
    for engine in [Engine::Interp, Engine::default()] {
        let options = LoadOptions { helpers: helpers.clone(), engine, ..LoadOptions::default() };
        let maps = std::slice::from_ref(&map);
        let program = Program::with_options(ProgType::SYSCALL, &insns, maps, &options).unwrap();
        let mut context = Context::new(ProgType::SYSCALL, &[], None).unwrap();
        for is_failing in [true, false, true, false] {
            map.swap_kptr(0, 8, Some(Kptr::new(object.clone()))).unwrap();
            fails.store(is_failing, Ordering::Relaxed);
            let run = catch_unwind(AssertUnwindSafe(|| program.run(&mut context)));
            match run {
                Ok(outcome) => assert_eq!((outcome.unwrap().r0, is_failing), (0, false)),
                Err(panic) => {
                    assert_eq!(panic.downcast_ref::<&str>(), Some(&"of the helper"));
                    assert!(is_failing);
                }
            }
            // Would be refused to who is in a lane.
            rcu::barrier().unwrap();
            assert_eq!(Arc::strong_count(&object), 1, "{engine}");
        }
    }
}

#[test]
fn a_program_cannot_look_into_an_object_nor_make_one() {
    let map = map("holder", 1);
    let kptr = Kptr::new(Arc::new("session"));
    let handle = kptr.handle();
    map.swap_kptr(0, 8, Some(kptr)).unwrap();
    let load = Insn::ldx_mem(size::DW, Reg::R7, VALUE, 8);
    let look = [load, Insn::ldx_mem(size::B, Reg::R0, Reg::R7, 0)];
    assert!(matches!(fault(&map, &[&look, &end()]), FaultKind::Access(_)));
    // Loaded, but not taken out.
    match fault(&map, &[&[load], &xchg(Reg::R7), &end()]) {
        FaultKind::Helper { error, .. } => assert_eq!(error, HelperError::NotOwned(handle)),
        other => panic!("{other}"),
    }
    assert_eq!(map.swap_kptr(0, 8, None).unwrap().unwrap().handle(), handle);
}

fn timers(options: &LoadOptions) -> bpfarray_vm::Loaded {
    let bytes = include_bytes!("../../../testdata/progs/timers.bpf.o");
    Object::parse(bytes).unwrap().load(options).unwrap()
}

/// Runs a program of `timers.bpf.c` with key, flags and delay.
fn run_timers(program: &Program, request: [u64; 3]) -> u32 {
    let packet = request.map(u64::to_ne_bytes).concat();
    let mut context = Context::new(ProgType::XDP, &packet, None).unwrap();
    program.run(&mut context).unwrap().retval()
}

fn calls(map: &Map) -> u64 {
    let mut value = [0; 32];
    map.lookup_elem(1, &mut value, 0).unwrap();
    u64::from_ne_bytes(value[..8].try_into().unwrap())
}

fn wait_until(mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(20), "waited for too long");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Helpers of a host, among them one nobody calls that is kept as long as a program that could.
fn watched() -> (LoadOptions, Arc<()>) {
    let kept = Arc::new(());
    let mut options = LoadOptions::default();
    let keeper = Arc::clone(&kept);
    options.helpers.register(100_000, "kept", move |_, _| Ok(Arc::strong_count(&keeper) as u64));
    (options, kept)
}

#[test]
fn a_timer_keeps_its_program_until_the_last_user_of_the_map_goes() {
    let (options, kept) = watched();
    let loaded = timers(&options);
    drop(options);
    let program = loaded.program("fire").unwrap();
    let map = loaded.map("timed").unwrap().clone();
    assert_eq!(run_timers(&program, [1, 0, 30_000_000]), 0);
    drop(program);
    drop(loaded);
    assert_eq!(Arc::strong_count(&kept), 2, "kept by the timer");
    wait_until(|| calls(&map) == 1);
    assert_eq!(Arc::strong_count(&kept), 2, "it could be started again");
    let reference = map.to_ref();
    drop(map);
    // The callback may just be returning.
    wait_until(|| Arc::strong_count(&kept) == 1);
    drop(reference);
}

#[test]
fn without_users_of_the_map_timers_are_neither_made_nor_started() {
    let loaded = timers(&LoadOptions::default());
    let (init, start) = (loaded.program("init").unwrap(), loaded.program("start").unwrap());
    let out = loaded.map(".bss").unwrap().clone();
    assert_eq!(run_timers(&init, [2, 1, 0]), 0);
    drop(loaded);
    let returned = |errno: i32| errno.cast_unsigned();
    assert_eq!(run_timers(&init, [2, 1, 0]), returned(-1));
    assert_eq!(run_timers(&init, [3, 1, 0]), returned(-1));
    run_timers(&start, [2, 0, 0]);
    let mut values = [0; 128];
    out.lookup_elem(0, &mut values, 0).unwrap();
    let first: [u8; 8] = values[..8].try_into().unwrap();
    assert_eq!(i64::from_ne_bytes(first), -22);
}

#[test]
fn programs_and_maps_with_timers_leave_nothing_behind() {
    let kept: Vec<_> = (0..20)
        .map(|round| {
            let (options, kept) = watched();
            let loaded = timers(&options);
            let name =
                ["fire", "fire_again", "fire_cancels_itself", "fire_updates_itself"][round % 4];
            let program = loaded.program(name).unwrap();
            run_timers(&program, [1, 0, if round % 2 == 0 { 0 } else { 1 << 50 }]);
            kept
        })
        .collect();
    for kept in kept {
        wait_until(|| Arc::strong_count(&kept) == 1);
    }
}

#[test]
fn the_timer_of_an_inner_map_calls_back_also_when_the_map_has_left_its_slot() {
    let loaded = timers(&LoadOptions::default());
    let program = loaded.program("inner_map").unwrap();
    let (outer, held) = (loaded.map("outer").unwrap(), loaded.map("held").unwrap());
    assert_eq!(run_timers(&program, [0, 0, 20_000_000]), 0);
    outer.delete_elem(0).unwrap();
    wait_until(|| calls(held) == 1);
}

#[test]
fn timers_are_used_from_many_threads_at_once() {
    let (options, kept) = watched();
    let loaded = timers(&options);
    drop(options);
    let program = |name| loaded.program(name).unwrap();
    let programs = ["fire_again", "update_cancels", "start", "fire_cancels_itself"].map(program);
    let map = loaded.map("timed").unwrap().clone();
    let until = Instant::now() + Duration::from_millis(300);
    std::thread::scope(|scope| {
        for (thread, program) in programs.iter().enumerate() {
            scope.spawn(move || {
                for round in 0.. {
                    // One element for all of them, and one of its own.
                    let key = if round % 2 == 0 { 1 } else { thread as u64 & 3 };
                    run_timers(program, [key, 0, round % 50_000]);
                    if Instant::now() > until {
                        break;
                    }
                }
            });
        }
        scope.spawn(|| {
            while Instant::now() < until {
                map.update_elem(1, &[0; 32], 0).unwrap();
            }
        });
    });
    drop((programs, loaded, map));
    wait_until(|| Arc::strong_count(&kept) == 1);
}

#[test]
fn a_fault_of_a_callback_goes_to_the_trace() {
    let map = map("timed", 1);
    let (said, hears) = std::sync::mpsc::channel();
    let said = std::sync::Mutex::new(said);
    let mut helpers = HelperSet::linux();
    helpers.set_trace(move |text| said.lock().unwrap().send(text.to_owned()).unwrap());
    let at = |offset| [Insn::mov64_reg(Reg::R1, VALUE), Insn::alu64_imm(alu::ADD, Reg::R1, offset)];
    let [map_lo, map_hi] = Insn::ld_imm64(Reg::R2, Reg::new(pseudo::MAP_IDX), 0);
    let init = [map_lo, map_hi, Insn::mov64_imm(Reg::R3, 1), Insn::call(helper_id::TIMER_INIT)];
    let [func_lo, func_hi] = Insn::ld_imm64(Reg::R2, Reg::new(pseudo::FUNC), 9);
    let set = [func_lo, func_hi, Insn::call(helper_id::TIMER_SET_CALLBACK)];
    let start = [
        Insn::mov64_imm(Reg::R2, 0),
        Insn::mov64_imm(Reg::R3, 0),
        Insn::call(helper_id::TIMER_START),
    ];
    let callback = [Insn::ldx_mem(size::DW, Reg::R0, Reg::R3, 8), Insn::exit()];
    let parts =
        [&value_of(0)[..], &at(8), &init, &at(8), &set, &at(8), &start, &end(), &callback].concat();
    let program = Program::with_helpers(
        ProgType::SYSCALL,
        &parts,
        std::slice::from_ref(&map),
        &Arc::new(helpers),
    )
    .unwrap();
    assert_eq!(run(&program), Ok(0));
    let text = hears.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(text.starts_with("program '', timer: instruction"), "{text}");
    assert!(text.ends_with("touches the bpf_timer in a map's value\n"), "{text}");
}

#[test]
fn a_timer_of_another_map_is_refused() {
    let (map, other) = (map("timed", 1), map("timed", 1));
    let [lo, hi] = Insn::ld_imm64(Reg::R2, Reg::new(pseudo::MAP_IDX), 1);
    let init =
        [&[lo, hi, Insn::mov64_imm(Reg::R3, 1)], &call(helper_id::TIMER_INIT, 8)[..]].concat();
    let message = run(&program(&[&map, &other], &[&init, &end()])).unwrap_err().to_string();
    assert!(message.contains("is not the map that the timer is in"), "{message}");
}

#[test]
fn maps_are_refused_by_the_name_of_their_field() {
    let load = |prog_type, map: &Map| {
        let insns = [&value_of(0)[..], &end()].concat();
        let program = Program::from_insns(prog_type, &insns, std::slice::from_ref(map));
        program.map(drop).map_err(|error| error.to_string())
    };
    let worker = load(ProgType::XDP, &map("worker", 1)).unwrap_err();
    assert!(worker.contains("map 'values' has bpf_wq in its values, which is not available here"));
    let (locked, timed) = (map("locked", 1), map("timed", 1));
    for (prog_type, map, refused) in [
        (ProgType::SOCKET_FILTER, &locked, Some("bpf_spin_lock")),
        (ProgType::SOCKET_FILTER, &timed, None),
        (ProgType::RAW_TRACEPOINT, &locked, Some("bpf_spin_lock")),
        (ProgType::RAW_TRACEPOINT, &timed, Some("bpf_timer")),
        (ProgType::XDP, &locked, None),
        (ProgType::SYSCALL, &timed, None),
    ] {
        match (load(prog_type, map), refused) {
            (Ok(()), None) => {}
            (Err(error), Some(field)) => {
                assert!(error.ends_with(&format!("have {field}")), "{error}")
            }
            (result, _) => panic!("{prog_type}: {result:?}"),
        }
    }
}

#[test]
fn an_object_is_loaded_with_the_types_of_its_maps() {
    let loaded = timers(&LoadOptions::default());
    let map = |name| loaded.map(name).unwrap();
    assert_eq!(map("timed").special_fields().timer(), Some(8));
    assert_eq!(map("both").special_fields().spin_lock(), Some(0));
    assert_eq!(map("outer").inner_fields().unwrap().timer(), Some(8));
    assert_eq!(map("outer").info().btf_value_type_id, 0);
    assert!(map(".bss").info().btf_value_type_id != 0);
    assert!(map(".bss").special_fields().is_empty());
    let lane = Lane::enter();
    let inner = map("outer").prog_lookup_elem(&lane, 0);
    assert_eq!(inner, Some(map("held").addr()));
}

#[test]
fn a_map_whose_types_do_not_fit_is_loaded_without_them() {
    let bytes = include_bytes!("../../../testdata/elf/map_types.bpf.o");
    let loaded = Object::parse(bytes).unwrap().load(&LoadOptions::default()).unwrap();
    for (name, fits) in [("percpu_timer", false), ("enum_key", false), ("fitting", true)] {
        let map = loaded.map(name).unwrap();
        assert_eq!(map.info().btf_value_type_id != 0, fits, "{name}");
        assert_eq!(map.special_fields().is_empty(), !fits, "{name}");
    }
}
