//! Files of maps of objects, with a directory that this test makes up.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests, and what they share, fail by panicking"
)]

mod common;

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, Weak};

use bpfarray::attr::{Creator, MapAttr, MapType};
use bpfarray::btf::{self, Btf};
use bpfarray::{
    Directory, Errno, FileError, HandleMode, Kind, Lane, Map, MapRef, Object, Owner, ProgramObject,
    SharedLanes, slots_of_file,
};
use common::{TempDir, attr};

/// Lists maps as files, and programs of this process.
struct Listing {
    dir: TempDir,
    programs: Mutex<HashMap<u64, Arc<dyn ProgramObject>>>,
    open_files: AtomicI32,
    this: Weak<Self>,
}

impl Listing {
    fn new() -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            dir: TempDir::new(),
            programs: Mutex::default(),
            open_files: AtomicI32::new(0),
            this: this.clone(),
        })
    }

    fn path(&self, id: u32) -> PathBuf {
        self.dir.join(&id.to_string())
    }

    fn directory(&self) -> Arc<dyn Directory> {
        self.this.upgrade().unwrap()
    }

    fn create(&self, id: u32, map_type: MapType, inner: Option<&MapRef>) -> Map {
        let attr = attr(map_type, 4, 5);
        Map::create_in(&self.directory(), self.path(id), id, &attr, &[], inner).unwrap()
    }

    fn open(&self, id: u32) -> Map {
        Map::open_in(&self.directory(), self.path(id), HandleMode::ReadWrite).unwrap()
    }

    fn add(&self, id: u32, prog_type: u32) -> Object {
        let program: Arc<dyn ProgramObject> = Arc::new(Program { id, prog_type });
        self.programs.lock().unwrap().insert(id.into(), Arc::clone(&program));
        Object::Program(program)
    }
}

impl Directory for Listing {
    fn object(&self, holder: Kind, id: u64) -> Option<Object> {
        match holder {
            Kind::ProgArray => self.programs.lock().unwrap().get(&id).cloned().map(Object::Program),
            Kind::ArrayOfMaps => {
                let path = self.path(u32::try_from(id).ok()?);
                let map = Map::open_in(&self.directory(), path, HandleMode::ReadWrite).ok()?;
                Some(Object::Map(map.to_ref()))
            }
            _ => None,
        }
    }

    fn opened(&self, _: BorrowedFd<'_>) {
        self.open_files.fetch_add(1, Ordering::Relaxed);
    }

    fn closing(&self, _: BorrowedFd<'_>) {
        self.open_files.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Program {
    id: u32,
    prog_type: u32,
}

impl ProgramObject for Program {
    fn id(&self) -> u32 {
        self.id
    }

    fn owner(&self) -> Owner {
        let prog_type = self.prog_type;
        Owner { prog_type, jited: false, xdp_has_frags: false, expected_attach_type: 0 }
    }
}

/// Changes a slot as another process does, which maps the file itself.
fn write_slot(listing: &Listing, map: u32, index: u64, id: u64) {
    const SLOT_CHANGES: u64 = 2064;
    let file = File::options().read(true).write(true).open(listing.path(map)).unwrap();
    let mut changes = [0; 8];
    file.read_exact_at(&mut changes, SLOT_CHANGES).unwrap();
    file.write_all_at(&id.to_le_bytes(), 4096 + 8 * index).unwrap();
    let changes = u64::from_le_bytes(changes) + 2;
    file.write_all_at(&changes.to_le_bytes(), SLOT_CHANGES).unwrap();
}

#[test]
fn slots_lie_in_the_file_where_the_format_says() {
    let listing = Listing::new();
    let inner = listing.create(1, MapType::ARRAY, None);
    let outer = listing.create(2, MapType::ARRAY_OF_MAPS, Some(&inner));
    assert_eq!((inner.listed_id(), outer.listed_id()), (Some(1), Some(2)));
    let object = Object::Map(inner.to_ref());
    outer.update_object(3, &object, 0).unwrap();
    let file = File::open(listing.path(2)).unwrap();
    let number = |offset| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, offset).unwrap();
        u64::from_le_bytes(bytes)
    };
    assert_eq!(number(4096 + 8 * 3), 1);
    assert_eq!(number(144), 2 | 4 << 32, "the template's map_type and key_size");
    assert_eq!(number(2064), 2, "slot_changes");
    let slots = slots_of_file(&file).unwrap();
    assert_eq!((slots.kind, slots.filled), (Kind::ArrayOfMaps, vec![(3, 1)]));
    assert!(slots_of_file(&File::open(listing.path(1)).unwrap()).unwrap().filled.is_empty());
    outer.delete_elem(3).unwrap();
    assert_eq!((number(4096 + 8 * 3), number(2064)), (0, 4));
    outer.freeze().unwrap();
    assert_eq!(outer.update_object(3, &object, 0).unwrap_err().errno(), Errno::EPERM);
}

#[test]
fn a_directory_hears_of_every_file_that_is_opened_and_closed() {
    let listing = Listing::new();
    let inner = listing.create(1, MapType::ARRAY, None);
    let outer = listing.create(2, MapType::ARRAY_OF_MAPS, Some(&inner));
    outer.update_object(0, &Object::Map(inner.to_ref()), 0).unwrap();
    drop(inner);
    assert_eq!(listing.open_files.load(Ordering::Relaxed), 1);
    outer.refresh_slots().unwrap();
    assert_eq!(listing.open_files.load(Ordering::Relaxed), 2, "for programs");
    drop(outer);
    bpfarray::rcu::barrier().unwrap();
    assert_eq!(listing.open_files.load(Ordering::Relaxed), 0);
}

#[test]
fn only_a_directory_makes_and_opens_maps_of_objects() {
    let listing = Listing::new();
    let inner = listing.create(1, MapType::ARRAY, None);
    listing.create(2, MapType::ARRAY_OF_MAPS, Some(&inner));
    let error = Map::open_file(listing.path(2), HandleMode::ReadWrite).unwrap_err();
    assert!(matches!(error, FileError::NoDirectory(_)), "{error}");
    for map_type in [MapType::PROG_ARRAY, MapType::CGROUP_ARRAY] {
        let error = Map::create_file(listing.path(3), &attr(map_type, 4, 1)).unwrap_err();
        assert!(matches!(error, FileError::NoDirectory(_)), "{error}");
        assert!(Map::create_shared(&attr(map_type, 4, 1)).is_err());
        assert!(!listing.path(3).exists());
    }
    let private = Map::create(&attr(MapType::ARRAY, 4, 5)).unwrap();
    let error = listing.open(2).update_object(0, &Object::Map(private.to_ref()), 0).unwrap_err();
    assert_eq!(error.errno(), Errno::EINVAL, "nobody else could find it");
}

#[test]
fn whatever_others_write_into_slots_is_an_empty_slot_or_an_object_that_fits() {
    let listing = Listing::new();
    let inner = listing.create(1, MapType::ARRAY, None);
    listing.create(2, MapType::PERCPU_ARRAY, None);
    let outer = listing.create(3, MapType::ARRAY_OF_MAPS, Some(&inner));
    let lane = Lane::enter();
    let shared = SharedLanes::of([&outer.to_ref()]);
    let address = || shared.run(&lane, || outer.prog_lookup_elem(&lane, 4));
    let ids =
        [(1, true), (2, false), (3, false), (9, false), (u64::MAX, false), (1, true), (0, false)];
    for (id, fits) in ids {
        write_slot(&listing, 3, 4, id);
        assert_eq!(address(), fits.then(|| inner.addr()), "{id}");
    }
}

#[test]
fn the_file_knows_the_special_fields_of_the_maps_that_fit() {
    let bytes = include_bytes!("../../../testdata/btf/fields.btf");
    let btf = Btf::parse(bytes).unwrap();
    let plain = attr(MapType::ARRAY, 16, 5);
    let locked = MapAttr {
        btf_key_type_id: btf.find_by_name("int", btf::Kind::Int).unwrap(),
        btf_value_type_id: btf.find_by_name("locked", btf::Kind::Struct).unwrap(),
        ..plain
    };
    let listing = Listing::new();
    let create = |id, attr: &MapAttr, btf: &[u8]| {
        Map::create_in(&listing.directory(), listing.path(id), id, attr, btf, None).unwrap()
    };
    let (with, without) = (create(1, &locked, bytes), create(2, &plain, &[]));
    drop(listing.create(3, MapType::ARRAY_OF_MAPS, Some(&with)));
    let outer = listing.open(3);
    assert_eq!(outer.inner_fields(), Some(with.special_fields()));
    let put = |map: &Map| outer.update_object(0, &Object::Map(map.to_ref()), 0);
    assert_eq!(put(&with), Ok(()));
    assert_eq!(put(&without).unwrap_err().errno(), Errno::EINVAL);
    let private = Map::create_as(&locked, &Creator { btf: Some(&btf), ..Creator::default() });
    let (directory, path) = (listing.directory(), listing.path(4));
    let outer = attr(MapType::ARRAY_OF_MAPS, 4, 5);
    let error = Map::create_in(&directory, path, 4, &outer, &[], Some(&private.unwrap()));
    assert!(matches!(error, Err(FileError::Private)), "its BTF is nowhere");
}

#[test]
fn an_object_that_was_not_there_is_looked_for_again() {
    let listing = Listing::new();
    let programs = listing.create(1, MapType::PROG_ARRAY, None);
    write_slot(&listing, 1, 2, 7);
    let id = || {
        programs.refresh_slots().unwrap();
        programs.tail_call(&Lane::enter(), 2, 0).map(|program| program.id())
    };
    assert_eq!(id(), None);
    listing.add(7, 6);
    assert_eq!(id(), Some(7));
}

#[test]
fn programs_in_a_file_are_of_one_kind_for_all_processes() {
    let listing = Listing::new();
    let map = listing.create(1, MapType::PROG_ARRAY, None);
    let (xdp, other) = (listing.add(7, 6), listing.add(8, 1));
    assert_eq!(map.owner(), None);
    map.update_object(3, &xdp, 0).unwrap();
    assert_eq!(map.update_object(3, &other, 0).unwrap_err().errno(), Errno::EINVAL);
    let mut id = [0; 4];
    map.lookup_elem(3, &mut id, 0).unwrap();
    assert_eq!(u32::from_ne_bytes(id), 7);
    map.delete_elem(3).unwrap();
    drop(map);
    let map = listing.open(1);
    assert_eq!(map.owner().map(|owner| owner.prog_type), Some(6), "the file knows");
    assert_eq!(map.update_object(3, &other, 0).unwrap_err().errno(), Errno::EINVAL);
    map.update_object(2, &xdp, 0).unwrap();
    let program = map.to_ref();
    // Other processes may be users of the map.
    drop(map);
    program.refresh_slots().unwrap();
    assert_eq!(program.tail_call(&Lane::enter(), 2, 0).map(|program| program.id()), Some(7));
    write_slot(&listing, 1, 2, 8);
    program.refresh_slots().unwrap();
    assert!(program.tail_call(&Lane::enter(), 2, 0).is_none(), "of another kind");
}

#[test]
fn a_run_holds_the_lanes_of_per_cpu_maps_in_slots() {
    let listing = Listing::new();
    let inner = listing.create(1, MapType::PERCPU_ARRAY, None);
    let outer = listing.create(2, MapType::ARRAY_OF_MAPS, Some(&inner));
    outer.update_object(0, &Object::Map(inner.to_ref()), 0).unwrap();
    let shared = SharedLanes::of([&outer.to_ref()]);
    let freeze = || {
        let lane = Lane::enter();
        shared.run(&lane, || inner.freeze().map_err(|error| error.errno()))
    };
    // Freezing waits for all lanes of the file, and refuses to wait for one of its own thread.
    assert_eq!(freeze(), Err(Errno::EBUSY));
    outer.delete_elem(0).unwrap();
    bpfarray::rcu::barrier().unwrap();
    assert_eq!(freeze(), Ok(()), "it is in no slot any more");
}
