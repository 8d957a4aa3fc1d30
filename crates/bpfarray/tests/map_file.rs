//! Map files in one process: what is created is found again, and what lies is refused.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests, and what they share, fail by panicking"
)]

mod common;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt};

use bpfarray::attr::{MapAttr, MapFlags, MapType};
use bpfarray::{
    Array, FileError, FreezeError, HandleMode, HeaderError, Lane, Map, PercpuArray, SharedLanes,
    UpdateError, possible_cpus,
};
use common::{TempDir, attr};

const TYPES: [MapType; 2] = [MapType::ARRAY, MapType::PERCPU_ARRAY];

#[test]
fn a_file_is_opened_as_the_map_that_was_created() {
    let dir = TempDir::new();
    for map_type in TYPES {
        let path = dir.join(map_type.name().unwrap());
        let attr = MapAttr { map_flags: MapFlags::RDONLY_PROG, ..attr(map_type, 12, 5) };
        let map = Map::create_file(&path, &attr).unwrap();
        let value: Vec<u8> = (1..=map.user_size() as u8).collect();
        map.update_elem(3, &value, 0).unwrap();
        let id = map.id();
        drop(map);

        let map = Map::open_file(&path, HandleMode::ReadWrite).unwrap();
        assert_ne!(map.id(), id, "ids are of this process");
        assert_eq!((map.map_type(), map.name()), (map_type, "counters"));
        assert_eq!((map.value_size(), map.max_entries()), (12, 5));
        assert_eq!(map.map_flags(), MapFlags::RDONLY_PROG);
        assert_eq!(map.mode(), HandleMode::ReadWrite);
        assert!(!map.is_frozen() && !map.has_lost_pages());
        let mut found = vec![0; value.len()];
        map.lookup_elem(3, &mut found, 0).unwrap();
        assert_eq!(found, value);
        map.lookup_elem(4, &mut found, 0).unwrap();
        assert!(found.iter().all(|&byte| byte == 0));
    }
}

#[test]
fn a_file_says_which_program_an_exclusive_map_is_for() {
    let dir = TempDir::new();
    let path = dir.join("exclusive");
    let attr = MapAttr { excl_prog_hash: Some([7; 32]), ..attr(MapType::ARRAY, 8, 2) };
    let created = Map::create_file(&path, &attr).unwrap();
    let judge = |map: &Map| [[7; 32], [8; 32]].map(|hash| map.may_be_used_by(&hash));
    assert_eq!(judge(&created), [true, false]);
    drop(created);
    assert_eq!(judge(&Map::open_file(&path, HandleMode::ReadWrite).unwrap()), [true, false]);
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[8; 32], 192).unwrap();
    let error = Map::open_file(&path, HandleMode::ReadWrite).unwrap_err();
    assert!(error.to_string().contains("checksum"), "{error}");
}

#[test]
fn values_lie_in_the_file_where_the_format_says() {
    let dir = TempDir::new();
    let path = dir.join("array");
    let array =
        Array::<u64>::from_map(Map::create_file(&path, &attr(MapType::ARRAY, 8, 100)).unwrap())
            .unwrap();
    array.set(7, 0x1234).unwrap();
    let file = File::open(&path).unwrap();
    let number = |offset| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, offset).unwrap();
        u64::from_le_bytes(bytes)
    };
    assert_eq!(number(4096 + 7 * 8), 0x1234);

    let path = dir.join("percpu");
    let map = Map::create_file(&path, &attr(MapType::PERCPU_ARRAY, 8, 1000)).unwrap();
    let percpu = PercpuArray::<u64>::from_map(map).unwrap();
    let file = File::open(&path).unwrap();
    for cpu in 0..possible_cpus() {
        percpu.set(999, cpu, 100 + u64::from(cpu)).unwrap();
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, 4096 + u64::from(cpu) * 8192 + 999 * 8).unwrap();
        assert_eq!(u64::from_le_bytes(bytes), 100 + u64::from(cpu));
    }
}

#[test]
fn an_untouched_file_uses_next_to_no_space() {
    use std::os::unix::fs::MetadataExt;
    let dir = TempDir::new();
    let path = dir.join("large");
    let _map = Map::create_file(&path, &attr(MapType::PERCPU_ARRAY, 4096, 1 << 16)).unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    assert!(metadata.len() > u64::from(possible_cpus()) << 28);
    assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_file_opened_twice_is_one_map() {
    let dir = TempDir::new();
    let path = dir.join("map");
    let first = Map::create_file(&path, &attr(MapType::PERCPU_ARRAY, 8, 1)).unwrap();
    let second = Map::open_file(&path, HandleMode::WriteOnly).unwrap();
    assert_eq!((first.id(), first.addr()), (second.id(), second.addr()));
    assert_eq!(second.mode(), HandleMode::WriteOnly);
    // Would wait for itself if these were two.
    let lane = Lane::enter();
    let both = SharedLanes::of([&first.to_ref(), &second.to_ref()]);
    let update = || second.prog_update_elem(&lane, 0, &[1; 8], 0);
    assert_eq!(both.run(&lane, update), Ok(()));
}

#[test]
fn an_existing_file_is_never_replaced() {
    let dir = TempDir::new();
    let path = dir.join("map");
    std::fs::write(&path, "mine").unwrap();
    let error = Map::create_file(&path, &attr(MapType::ARRAY, 8, 1)).unwrap_err();
    assert_eq!(error.errno(), bpfarray::Errno::EEXIST);
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
}

#[test]
fn a_pin_is_another_name_of_the_file() {
    let dir = TempDir::new();
    let (path, pin) = (dir.join("map"), dir.join("pin"));
    let map = Map::create_file(&path, &attr(MapType::ARRAY, 8, 1)).unwrap();
    map.pin(&pin).unwrap();
    std::fs::remove_file(&path).unwrap();
    map.update_elem(0, &[7; 8], 0).unwrap();
    drop(map);
    let map = Map::open_file(&pin, HandleMode::ReadOnly).unwrap();
    let mut value = [0; 8];
    map.lookup_elem(0, &mut value, 0).unwrap();
    assert_eq!(value, [7; 8]);
    assert_eq!(map.pin(&pin).unwrap_err().errno(), bpfarray::Errno::EEXIST);

    let private = Map::create(&attr(MapType::ARRAY, 8, 1)).unwrap();
    assert!(matches!(private.pin(dir.join("private")), Err(FileError::Private)));
    assert!(private.as_fd().is_none());
}

#[test]
fn a_read_only_file_shows_what_others_write_and_takes_nothing() {
    let dir = TempDir::new();
    for map_type in TYPES {
        let path = dir.join(map_type.name().unwrap());
        let writer = Map::create_file(&path, &attr(map_type, 8, 2)).unwrap();
        let reader = Map::open_file(&path, HandleMode::ReadOnly).unwrap();
        assert_ne!(reader.id(), writer.id());
        let mut value = vec![0; reader.user_size() as usize];
        for byte in 1..3 {
            writer.update_elem(1, &vec![byte; value.len()], 0).unwrap();
            reader.lookup_elem(1, &mut value, 0).unwrap();
            assert!(value.iter().all(|&b| b == byte), "{map_type}: {value:?}");
        }
        let raised = reader.with_mode(HandleMode::ReadWrite);
        let not_writable = Err(UpdateError::NotWritable);
        assert_eq!(raised.update_elem(1, &value, 0), not_writable);
        assert_eq!(raised.prog_update_elem(&Lane::enter(), 1, &[0; 8], 0), not_writable);
        assert!(raised.regions().iter().all(|region| !region.writable));
        assert_eq!(raised.freeze(), Err(FreezeError::NotWritable));
        assert!(SharedLanes::of([&raised.to_ref()]).is_empty());
        writer.freeze().unwrap();
        assert!(reader.is_frozen());
    }
}

#[test]
fn freezing_is_kept_in_the_file() {
    let dir = TempDir::new();
    let path = dir.join("map");
    let map = Map::create_file(&path, &attr(MapType::ARRAY, 8, 1)).unwrap();
    let array = Array::<u64>::from_map(map.clone()).unwrap();
    assert_eq!(map.freeze(), Err(FreezeError::Busy));
    drop(array);
    assert_eq!(map.freeze(), Ok(()));
    assert_eq!(map.freeze(), Err(FreezeError::NotWritable));
    drop(map);
    let map = Map::open_file(&path, HandleMode::ReadWrite).unwrap();
    assert!(map.is_frozen());
    assert_eq!(map.update_elem(0, &[0; 8], 0), Err(UpdateError::NotWritable));
    let array = Array::<u64>::from_map(map).unwrap();
    assert_eq!(array.set(0, 1), Err(UpdateError::NotWritable));
}

#[test]
fn a_program_in_its_lane_cannot_freeze_its_own_map() {
    let map = Map::create_shared(&attr(MapType::PERCPU_ARRAY, 8, 1)).unwrap();
    let (lane, shared) = (Lane::enter(), SharedLanes::of([&map.to_ref()]));
    assert_eq!(shared.run(&lane, || map.freeze()), Err(FreezeError::Busy));
    assert_eq!(map.freeze(), Ok(()));
}

#[test]
fn memory_files_cannot_shrink_or_grow() {
    let map = Map::create_shared(&attr(MapType::ARRAY, 8, 512)).unwrap();
    let file = File::from(map.as_fd().unwrap().try_clone_to_owned().unwrap());
    let len = file.metadata().unwrap().len();
    for other in [0, len - 1, len + 1] {
        assert_eq!(file.set_len(other).unwrap_err().raw_os_error(), Some(libc::EPERM));
    }
    let again = Map::from_fd(file.into()).unwrap();
    assert_eq!(again.id(), map.id());
}

#[test]
fn a_descriptor_that_may_only_read_makes_a_map_that_may_only_read() {
    let dir = TempDir::new();
    let path = dir.join("map");
    Map::create_file(&path, &attr(MapType::ARRAY, 8, 1)).unwrap();
    let map = Map::from_fd(File::open(&path).unwrap().into()).unwrap();
    assert_eq!(map.mode(), HandleMode::ReadOnly);
    assert!(File::from(map.as_fd().unwrap().try_clone_to_owned().unwrap()).set_len(0).is_err());
}

#[test]
fn btf_travels_with_the_file() {
    let dir = TempDir::new();
    let path = dir.join("map");
    Map::create_file_with_btf(&path, &attr(MapType::ARRAY, 8, 1), b"types").unwrap();
    let map = Map::open_file(&path, HandleMode::ReadOnly).unwrap();
    assert_eq!(map.read_btf().unwrap(), b"types");
}

#[test]
fn attributes_no_map_can_have_make_no_file() {
    let dir = TempDir::new();
    let path = dir.join("map");
    let error = Map::create_file(&path, &attr(MapType::HASH, 8, 1)).unwrap_err();
    assert!(matches!(error, FileError::Header { source: HeaderError::Attr(_), .. }), "{error}");
    assert!(!path.exists());
}

#[test]
fn what_is_no_map_file_is_refused_by_name() {
    let dir = TempDir::new();
    let path = dir.join("map");
    let error = || Map::open_file(&path, HandleMode::ReadWrite).unwrap_err().to_string();
    assert!(error().contains("cannot open"), "{}", error());
    for (bytes, message) in [(0, "too few"), (4095, "too few"), (4096, "magic"), (9999, "magic")] {
        std::fs::write(&path, vec![0; bytes]).unwrap();
        assert!(error().contains(message), "{}", error());
        assert!(error().contains(path.to_str().unwrap()));
    }
    std::fs::remove_file(&path).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    assert!(error().contains("not a regular file"), "{}", error());
    let directory = Map::open_file(dir.join("."), HandleMode::ReadOnly).unwrap_err();
    assert!(directory.to_string().contains("not a regular file"), "{directory}");
}

#[test]
fn a_header_that_changes_later_is_not_believed_again() {
    let dir = TempDir::new();
    for map_type in TYPES {
        let path = dir.join(map_type.name().unwrap());
        let map = Map::create_file(&path, &attr(map_type, 8, 4)).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[0xff; 2048], 0).unwrap();
        let size = map.user_size() as usize;
        assert_eq!((map.value_size(), map.max_entries()), (8, 4));
        assert_eq!(map.update_elem(3, &vec![5; size], 0), Ok(()));
        assert!(map.update_elem(4, &vec![5; size], 0).is_err());
        let values = map.regions().pop().unwrap().memory;
        assert_eq!((values.len(), values.load(24, 1)), (32, Ok(5)));
        assert!(map.as_fd().unwrap().as_fd().try_clone_to_owned().is_ok());
        drop(map);
        let error = Map::open_file(&path, HandleMode::ReadWrite).unwrap_err();
        assert!(error.to_string().contains("magic"), "{error}");
    }
}

#[test]
fn a_truncated_file_reads_as_zeros_and_says_so() {
    let dir = TempDir::new();
    for map_type in TYPES {
        let path = dir.join(map_type.name().unwrap());
        let map = Map::create_file(&path, &attr(map_type, 4096, 16)).unwrap();
        let mut value = vec![1; map.user_size() as usize];
        for index in 0..16 {
            map.update_elem(index, &value, 0).unwrap();
        }
        // The first page of values stays.
        File::options().write(true).open(&path).unwrap().set_len(8192).unwrap();
        assert!(!map.has_lost_pages(), "not before somebody looks");
        map.lookup_elem(15, &mut value, 0).unwrap();
        assert!(value.iter().all(|&byte| byte == 0));
        assert!(map.has_lost_pages());
        map.lookup_elem(0, &mut value, 0).unwrap();
        assert_eq!(value[0], 1);
        let updated = map.update_elem(15, &value, 0);
        assert_eq!(updated, Ok(()), "goes nowhere, but does no harm");
    }
}
