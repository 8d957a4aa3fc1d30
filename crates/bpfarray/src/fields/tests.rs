use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bpfarray_core::attr::elem_flags::{EXIST, F_LOCK, NOEXIST};
use bpfarray_core::attr::{CreateError, Creator, MapAttr, MapFlags, MapType};
use bpfarray_core::btf::CheckBtfError;

use super::*;
use crate::map::Map;
use crate::map::testing::{ARRAY, attr_of, create, fields_btf, with_fields};
use crate::{Errno, Lane, Object, TimerCallback, rcu};

fn create_with(change: impl FnOnce(MapAttr) -> MapAttr, name: &str) -> Result<Map, CreateError> {
    let btf = fields_btf();
    let creator = Creator { btf: Some(&btf), ..Creator::default() };
    Map::create_as(&change(attr_of(&btf, name, 2)), &creator)
}

#[test]
fn types_are_judged_after_the_name() {
    let errno = |change: fn(MapAttr) -> MapAttr, name| {
        create_with(change, name).map(drop).map_err(CreateError::errno)
    };
    assert_eq!(
        errno(|attr| MapAttr { map_name: [b'-'; 16], ..attr }, "locked"),
        Err(Errno::EINVAL)
    );
    let bad = create_with(|attr| MapAttr { map_name: [b'-'; 16], value_size: 8, ..attr }, "locked");
    assert_eq!(bad.unwrap_err(), CreateError::Name);
    assert_eq!(errno(|attr| MapAttr { value_size: 8, ..attr }, "locked"), Err(Errno::EINVAL));
    let rdonly = |attr| MapAttr { map_flags: MapFlags::RDONLY_PROG, ..attr };
    assert_eq!(errno(rdonly, "locked"), Err(Errno::EACCES));
    assert_eq!(errno(rdonly, "plain"), Ok(()));
    let percpu = |attr| MapAttr { map_type: MapType::PERCPU_ARRAY, ..attr };
    for (name, expected) in [
        ("locked", Err(Errno::EOPNOTSUPP)),
        ("timed", Err(Errno::EOPNOTSUPP)),
        ("worker", Err(Errno::EOPNOTSUPP)),
        ("counted", Ok(())),
        ("holder", Ok(())),
    ] {
        assert_eq!(errno(percpu, name), expected, "{name}");
    }
    let keyless = |attr| MapAttr { btf_key_type_id: 0, ..attr };
    assert_eq!(
        create_with(keyless, "plain").unwrap_err(),
        CreateError::Btf(CheckBtfError::Keyless)
    );
}

#[test]
fn type_ids_without_types_are_ebadf() {
    let attr = MapAttr { btf_value_type_id: 3, ..ARRAY };
    assert_eq!(Map::create(&attr).unwrap_err().errno(), Errno::EBADF);
}

#[test]
fn updates_skip_special_fields_and_lookups_blank_them() {
    let map = with_fields("locked_timer", 3);
    let payload = map.inner.area.payload();
    payload.fill(24, 24, 0x77).unwrap();
    map.update_elem(1, &[0xff; 24], 0).unwrap();
    let mut stored = [0; 24];
    payload.read(24, &mut stored).unwrap();
    assert_eq!(stored, [[0x77; 20].as_slice(), &[0xff; 4]].concat()[..]);
    let mut value = [1; 24];
    map.lookup_elem(1, &mut value, 0).unwrap();
    assert_eq!(value, [[0; 20].as_slice(), &[0xff; 4]].concat()[..]);
    let lane = Lane::enter();
    map.prog_update_elem(&lane, 1, &[0xee; 24], 0).unwrap();
    payload.read(24, &mut stored).unwrap();
    assert_eq!(stored, [[0x77; 20].as_slice(), &[0xee; 4]].concat()[..]);
}

#[test]
fn a_reference_count_reads_as_one_on_every_cpu() {
    let percpu = |attr| MapAttr { map_type: MapType::PERCPU_ARRAY, ..attr };
    for map in [with_fields("counted", 2), create_with(percpu, "counted").unwrap()] {
        let size = map.user_size() as usize;
        map.update_elem(1, &vec![0xff; size], 0).unwrap();
        let mut value = vec![0; size];
        map.lookup_elem(1, &mut value, 0).unwrap();
        assert_eq!(value, [1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff].repeat(size / 8));
    }
}

#[test]
fn batches_treat_each_element_so() {
    let map = with_fields("late_lock", 4);
    let values: Vec<u8> = (0..64).map(|at| at as u8 | 0x80).collect();
    for flags in [0, F_LOCK] {
        assert_eq!(map.update_batch(&[0, 1, 2, 3], &values, flags), Ok(4));
        let (mut keys, mut read) = ([0; 4], vec![0; 64]);
        assert_eq!(map.lookup_batch(None, &mut keys, &mut read, flags).unwrap().count, 4);
        for (at, byte) in read.iter().enumerate() {
            let expected = if at % 16 >= 12 { 0 } else { values[at] };
            assert_eq!(*byte, expected, "byte {at}");
        }
    }
}

#[test]
fn a_map_with_special_fields_is_neither_frozen_nor_mapped() {
    for name in ["locked", "timed", "counted", "holder", "worker"] {
        let mmapable = |attr| MapAttr { map_flags: MapFlags::MMAPABLE, ..attr };
        let map = create_with(mmapable, name).unwrap();
        assert_eq!(map.freeze().unwrap_err().errno(), Errno::ENOTSUPP);
        assert_eq!(map.mmap(0, 4096, true).unwrap_err().errno(), Errno::ENOTSUPP);
        assert_eq!(map.mmap(1, 4096, true).unwrap_err().errno(), Errno::EINVAL);
    }
}

#[test]
fn a_map_with_special_fields_is_no_typed_array() {
    for (name, field) in [("locked", "bpf_spin_lock"), ("holder", "kptr")] {
        let error = crate::Array::<[u64; 2]>::from_map(with_fields(name, 2)).unwrap_err();
        assert_eq!(error, crate::ShapeError::SpecialField(field));
    }
}

#[test]
fn lock_flags_are_judged_in_the_kernels_order() {
    let (map, plain) = (with_fields("locked", 2), create(ARRAY));
    let errno = |result: Result<(), crate::UpdateError>| result.map_err(crate::UpdateError::errno);
    for flags in [F_LOCK, F_LOCK | EXIST] {
        assert_eq!(errno(map.update_elem(1, &[0; 16], flags)), Ok(()));
        assert_eq!(errno(map.update_elem(2, &[0; 16], flags)), Err(Errno::E2BIG));
        assert_eq!(errno(plain.update_elem(9, &[0; 12], flags)), Err(Errno::EINVAL));
    }
    assert_eq!(errno(map.update_elem(1, &[0; 16], F_LOCK | NOEXIST)), Err(Errno::EEXIST));
    assert_eq!(errno(map.update_elem(2, &[0; 16], F_LOCK | NOEXIST)), Err(Errno::E2BIG));
    assert_eq!(map.lookup_elem(1, &mut [0; 16], F_LOCK), Ok(()));
    let lane = Lane::enter();
    let prog =
        |map: &Map, size, flags| errno(map.prog_update_elem(&lane, 1, &vec![0; size], flags));
    assert_eq!(prog(&map, 16, F_LOCK), Ok(()));
    assert_eq!(prog(&plain, 12, F_LOCK), Err(Errno::EINVAL));
    assert_eq!(prog(&plain, 12, F_LOCK | NOEXIST), Err(Errno::EEXIST));
}

#[test]
fn inner_maps_have_the_special_fields_of_the_template() {
    let template = with_fields("locked", 2);
    let attr = MapAttr { map_type: MapType::ARRAY_OF_MAPS, value_size: 4, ..ARRAY };
    let outer = Map::create_with(&attr, &Creator::default(), Some(&template)).unwrap();
    let errno = |map: &Map| {
        outer.update_object(0, &Object::Map(map.to_ref()), 0).map_err(crate::UpdateError::errno)
    };
    assert_eq!(errno(&with_fields("locked", 2)), Ok(()));
    assert_eq!(errno(&with_fields("late_lock", 2)), Err(Errno::EINVAL));
    assert_eq!(
        errno(&create(MapAttr { value_size: 16, max_entries: 2, ..ARRAY })),
        Err(Errno::EINVAL)
    );
    let plain = create(MapAttr { value_size: 16, max_entries: 2, ..ARRAY });
    let outer = Map::create_with(&attr, &Creator::default(), Some(&plain)).unwrap();
    let put = |map: &Map| outer.update_object(0, &Object::Map(map.to_ref()), 0).is_ok();
    assert!(put(&with_fields("plain", 2)) && !put(&with_fields("locked", 2)));
}

#[test]
fn updates_under_the_lock_are_seen_whole() {
    const ROUNDS: u64 = 20_000;
    let map = with_fields("locked", 1);
    let torn = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..2_u64 {
            let map = &map;
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let number = (round * 2 + thread) as u32;
                    let mut value = [0; 16];
                    value[..4].copy_from_slice(&number.to_ne_bytes());
                    value[8..].copy_from_slice(&u64::from(number).to_ne_bytes());
                    map.update_elem(0, &value, F_LOCK).unwrap();
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..ROUNDS {
                let mut value = [0; 16];
                map.lookup_elem(0, &mut value, F_LOCK).unwrap();
                let before = u32::from_ne_bytes(value[..4].try_into().unwrap());
                let after = u64::from_ne_bytes(value[8..].try_into().unwrap());
                torn.fetch_add(u64::from(u64::from(before) != after), Ordering::Relaxed);
            }
        });
    });
    assert_eq!(torn.into_inner(), 0);
}

#[test]
fn a_lock_excludes_others_until_it_is_dropped() {
    let map = with_fields("locked", 2);
    let held = map.try_lock(0).unwrap();
    assert_eq!(held.addr(), map.addr() + 4096 + 4);
    assert!(map.try_lock(0).is_none() && map.try_lock(1).is_some() && map.try_lock(2).is_none());
    let panicked = std::thread::spawn({
        let map = map.clone();
        move || {
            let _held = map.try_lock(1).unwrap();
            panic!("with a lock");
        }
    });
    assert!(panicked.join().is_err());
    assert!(map.try_lock(1).is_some());
    drop(held);
    assert!(map.try_lock(0).is_some());
    assert!(create(ARRAY).try_lock(0).is_none());
}

/// Notes when it was called, and with what.
#[derive(Default)]
struct Calls(Mutex<Vec<(u32, u64, u32)>>);

impl TimerCallback for Calls {
    fn call(&self, lane: &Lane, _map: &MapRef, index: u32, value: u64) {
        self.0.lock().unwrap().push((index, value, lane.cpu()));
    }
}

impl Calls {
    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn wait_for(&self, len: usize) {
        let begin = Instant::now();
        while self.len() < len {
            assert!(begin.elapsed() < Duration::from_secs(20), "{} of {len} calls", self.len());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

const MONOTONIC: u64 = 1;
const LONG: TimerStart = TimerStart { nsecs: 1 << 50, flags: 0 };

/// A map of two, the address of the timer in the second, and what that calls.
fn timed() -> (Map, u64, Arc<Calls>) {
    let map = with_fields("timed", 2);
    let timer = map.addr() + 4096 + 32 + 8;
    (map, timer, Arc::default())
}

#[test]
fn a_timer_calls_back_once_and_can_be_started_again() {
    let (map, timer, calls) = timed();
    let lane = Lane::enter();
    map.timer_init(timer, MONOTONIC).unwrap();
    map.timer_set_callback(timer, calls.clone()).unwrap();
    map.timer_start(&lane, timer, TimerStart { nsecs: 0, flags: 0 }).unwrap();
    let cpu = lane.cpu();
    drop(lane);
    calls.wait_for(1);
    assert_eq!(map.timer_cancel(timer), Ok(false));
    map.timer_set_callback(timer, calls.clone()).unwrap();
    // A time that is past, on the CPU of this lane.
    let start = TimerStart { nsecs: 1, flags: 3 };
    map.timer_start(&Lane::enter_on(cpu), timer, start).unwrap();
    calls.wait_for(2);
    std::thread::sleep(Duration::from_millis(5));
    let calls = calls.0.lock().unwrap();
    assert_eq!(calls[0].0, 1);
    assert_eq!(calls[1], (1, timer - 8, cpu));
    assert_eq!(calls.len(), 2);
}

#[test]
fn timers_answer_as_the_kernels_do() {
    let (map, timer, calls) = timed();
    let lane = Lane::enter();
    let errno = |result: Result<(), TimerError>| result.map_err(TimerError::errno);
    assert_eq!(errno(map.timer_init(timer - 8, MONOTONIC)), Err(Errno::EINVAL));
    assert_eq!(errno(map.timer_init(timer, 4)), Err(Errno::EINVAL));
    assert_eq!(errno(map.timer_set_callback(timer, calls.clone())), Err(Errno::EINVAL));
    assert_eq!(map.timer_cancel(timer).map_err(TimerError::errno), Err(Errno::EINVAL));
    assert_eq!(errno(map.timer_init(timer, 7)), Ok(()));
    assert_eq!(errno(map.timer_init(timer, 7)), Err(Errno::EBUSY));
    assert_eq!(errno(map.timer_start(&lane, timer, LONG)), Err(Errno::EINVAL));
    assert_eq!(errno(map.timer_set_callback(timer, calls.clone())), Ok(()));
    let bad = TimerStart { flags: 4, ..LONG };
    assert_eq!(errno(map.timer_start(&lane, timer, bad)), Err(Errno::EINVAL));
    assert_eq!(errno(map.timer_start(&lane, timer, LONG)), Ok(()));
    assert_eq!(map.timer_cancel(timer), Ok(true));
    assert_eq!(map.timer_cancel(timer), Ok(false));
    assert_eq!(errno(map.timer_start(&lane, timer, LONG)), Err(Errno::EINVAL));
    assert_eq!(calls.len(), 0);
}

#[test]
fn an_update_cancels_the_elements_timer_and_lets_its_callback_go() {
    let (map, timer, calls) = timed();
    let lane = Lane::enter();
    map.timer_init(timer, MONOTONIC).unwrap();
    map.timer_set_callback(timer, calls.clone()).unwrap();
    map.timer_start(&lane, timer, LONG).unwrap();
    map.update_elem(0, &[1; 32], 0).unwrap();
    assert_eq!(Arc::strong_count(&calls), 2);
    map.update_elem(1, &[1; 32], 0).unwrap();
    assert_eq!(Arc::strong_count(&calls), 1);
    assert_eq!(map.timer_init(timer, MONOTONIC), Ok(()));
}

#[test]
fn the_last_user_takes_the_timers_with_it() {
    let (map, timer, calls) = timed();
    let lane = Lane::enter();
    map.timer_init(timer, MONOTONIC).unwrap();
    map.timer_set_callback(timer, calls.clone()).unwrap();
    map.timer_start(&lane, timer, LONG).unwrap();
    let (other, kept) = (map.clone(), map.to_ref());
    drop(map);
    assert_eq!(Arc::strong_count(&calls), 2);
    drop(other);
    assert_eq!(Arc::strong_count(&calls), 1);
    assert_eq!(kept.timer_init(timer, MONOTONIC), Err(TimerError::NoUser));
    let start = kept.timer_start(&lane, timer, LONG);
    assert_eq!(start.map_err(TimerError::errno), Err(Errno::EINVAL));
    let revived = kept.with_mode(crate::HandleMode::ReadWrite);
    assert_eq!(revived.timer_init(timer, MONOTONIC), Ok(()));
}

/// Cancels its own timer.
struct CancelsItself(u64, Mutex<Option<Result<bool, TimerError>>>);

impl TimerCallback for CancelsItself {
    fn call(&self, _lane: &Lane, map: &MapRef, _index: u32, _value: u64) {
        *self.1.lock().unwrap() = Some(map.timer_cancel(self.0));
    }
}

#[test]
fn a_callback_that_cancels_its_own_timer_is_told_so() {
    let (map, timer, _) = timed();
    let callback = Arc::new(CancelsItself(timer, Mutex::new(None)));
    map.timer_init(timer, MONOTONIC).unwrap();
    map.timer_set_callback(timer, callback.clone()).unwrap();
    map.timer_start(&Lane::enter(), timer, TimerStart { nsecs: 0, flags: 0 }).unwrap();
    let begin = Instant::now();
    while callback.1.lock().unwrap().is_none() && begin.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(*callback.1.lock().unwrap(), Some(Err(TimerError::Deadlock)));
}

/// Takes its time.
struct Slow(AtomicU64, AtomicU64);

impl TimerCallback for Slow {
    fn call(&self, _lane: &Lane, _map: &MapRef, _index: u32, _value: u64) {
        self.0.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(30));
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn cancelling_waits_for_a_callback_that_runs() {
    let (map, timer, _) = timed();
    let callback = Arc::new(Slow(AtomicU64::new(0), AtomicU64::new(0)));
    map.timer_init(timer, MONOTONIC).unwrap();
    map.timer_set_callback(timer, callback.clone()).unwrap();
    map.timer_start(&Lane::enter(), timer, TimerStart { nsecs: 0, flags: 0 }).unwrap();
    while callback.0.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    assert_eq!(map.timer_cancel(timer), Ok(false));
    assert_eq!(callback.1.load(Ordering::SeqCst), 1);
}

/// Panics.
struct Panics(AtomicU64);

impl TimerCallback for Panics {
    fn call(&self, _lane: &Lane, _map: &MapRef, _index: u32, _value: u64) {
        self.0.fetch_add(1, Ordering::SeqCst);
        panic!("a helper of the host");
    }
}

#[test]
fn a_callback_that_panics_stops_no_other_timer() {
    let (map, timer, calls) = timed();
    let panics = Arc::new(Panics(AtomicU64::new(0)));
    let now = TimerStart { nsecs: 0, flags: 0 };
    map.timer_init(timer, MONOTONIC).unwrap();
    map.timer_set_callback(timer, panics.clone()).unwrap();
    map.timer_start(&Lane::enter(), timer, now).unwrap();
    while panics.0.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    assert_eq!(map.timer_cancel(timer), Ok(false));
    map.timer_set_callback(timer, calls.clone()).unwrap();
    map.timer_start(&Lane::enter(), timer, now).unwrap();
    calls.wait_for(1);
}

#[test]
fn an_object_stays_in_its_kptr_until_it_is_taken_out_or_overwritten() {
    const SESSION: u32 = 8;
    let percpu = |attr| MapAttr { map_type: MapType::PERCPU_ARRAY, ..attr };
    for map in [with_fields("holder", 2), create_with(percpu, "holder").unwrap()] {
        let object = Arc::new("session");
        let kptr = Kptr::new(object.clone());
        let handle = kptr.handle();
        let lane = Lane::enter();
        assert!(map.swap_kptr(1, SESSION, Some(kptr)).unwrap().is_none());
        let slot = map.prog_lookup_elem(&lane, 1).unwrap() + u64::from(SESSION);
        assert_eq!((map.prog_load_kptr(slot), map.prog_load_kptr(slot - 8)), (Some(handle), None));
        let taken = map.swap_kptr(1, SESSION, None).unwrap().unwrap();
        let session = taken.object().downcast_ref::<&str>();
        assert_eq!((taken.handle(), session), (handle, Some(&"session")));
        assert_eq!(map.swap_kptr(2, SESSION, None).unwrap_err().errno(), Errno::E2BIG);
        assert_eq!(map.swap_kptr(1, 0, None).unwrap_err().errno(), Errno::EINVAL);

        map.swap_kptr(1, SESSION, Some(taken)).unwrap();
        map.update_elem(1, &vec![0xff; map.user_size() as usize], 0).unwrap();
        assert_eq!(map.prog_load_kptr(slot), Some(0));
        assert_eq!(Arc::strong_count(&object), 2, "until the lane is left");
        drop(lane);
        rcu::barrier().unwrap();
        assert_eq!(Arc::strong_count(&object), 1);
        map.swap_kptr(0, SESSION, Some(Kptr::new(object.clone()))).unwrap();
        drop(map);
        assert_eq!(Arc::strong_count(&object), 1);
    }
}

#[test]
fn values_in_files_have_locks_but_no_timers() {
    let btf = fields_btf();
    let path = std::env::temp_dir().join(format!("bpfarray-fields-{}", std::process::id()));
    let create = |name| Map::create_file_with_btf(&path, &attr_of(&btf, name, 2), &btf.to_bytes());
    for (name, field) in [("timed", "bpf_timer"), ("holder", "kptr"), ("worker", "bpf_wq")] {
        let error = create(name).unwrap_err();
        assert_eq!(error.errno(), Errno::EOPNOTSUPP);
        let end = format!("values with {field} cannot be in a file");
        assert!(error.to_string().ends_with(&end), "{error}");
    }
    let map = create("locked").unwrap();
    let reader = Map::open_file(&path, crate::HandleMode::ReadOnly).unwrap();
    map.update_elem(1, &[0xff; 16], F_LOCK).unwrap();
    let held = map.try_lock(1).unwrap();
    assert_eq!(held.addr(), map.addr() + 4096 + 16 + 4);
    assert!(map.try_lock(1).is_none() && map.try_lock(0).is_some());
    // An opening of its own, as another process has one.
    assert!(reader.try_lock(1).is_none() && reader.try_lock(0).is_some());
    drop(held);
    let mut value = [0; 16];
    reader.lookup_elem(1, &mut value, F_LOCK).unwrap();
    assert_eq!(value, [[0xff; 4], [0; 4], [0xff; 4], [0xff; 4]].concat()[..]);
    assert!(map.try_lock(1).is_some());
    assert_eq!(map.freeze().unwrap_err().errno(), Errno::ENOTSUPP);
    std::fs::remove_file(&path).unwrap();
}
