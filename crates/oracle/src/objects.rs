//! What can be put into slots, by name: programs of several types, maps of several shapes, events,
//! a control group, and nothing.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use bpfarray_vm::elf::Object;

use crate::corpus::{self, read_object};
use crate::create::MapCreate;
use crate::request::{Creator, Request};
use crate::rng::Rng;
use crate::vectors::testdata;

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Thing {
    /// A number that is no open file.
    Nothing,
    /// A program of testdata/progs/kinds.bpf.o.
    Program,
    /// A map.
    Map(Request),
    /// A software perf event.
    Event {
        /// Whether children inherit it.
        inherit: bool,
    },
    /// The root of the cgroup v2 hierarchy.
    Cgroup,
}

/// Name of the object file with the programs, each of which has the name of its thing.
const KINDS: &str = "kinds";

/// The thing that not every machine has.
const CGROUP: &str = "cgroup";

const PROGRAMS: [&str; 6] =
    ["socket_one", "socket_two", "xdp_plain", "xdp_frags", "ingress", "egress"];

/// Maps of values: name, type, value size, number of elements, flags.
const MAPS: [(&str, u32, u32, u32, u32); 15] = [
    ("array", MapCreate::ARRAY, 8, 4, 0),
    ("array_too", MapCreate::ARRAY, 8, 4, 0),
    ("array_longer", MapCreate::ARRAY, 8, 5, 0),
    ("array_narrower", MapCreate::ARRAY, 5, 4, 0),
    ("array_read_only", MapCreate::ARRAY, 8, 4, 0x8),
    ("array_rdonly_prog", MapCreate::ARRAY, 8, 4, 0x80),
    ("array_mmapable", MapCreate::ARRAY, 8, 4, 0x400),
    ("array_inner", MapCreate::ARRAY, 8, 4, 0x1000),
    ("array_inner_longer", MapCreate::ARRAY, 8, 9, 0x1000),
    ("percpu", MapCreate::PERCPU_ARRAY, 8, 4, 0),
    ("percpu_longer", MapCreate::PERCPU_ARRAY, 8, 9, 0),
    ("events", MapCreate::PERF_EVENT_ARRAY, 4, 4, 0),
    ("events_preserved", MapCreate::PERF_EVENT_ARRAY, 4, 4, 0x800),
    ("cgroups", MapCreate::CGROUP_ARRAY, 4, 4, 0),
    ("cgroups_longer", MapCreate::CGROUP_ARRAY, 4, 9, 0),
];

/// Arrays whose values have a type: name, struct and number of elements. What can be put beside them is the others, and
/// `array`, which has values as long as those of one of them.
const TYPED: [(&str, &str, u32); 8] = [
    ("typed_locked", "locked", 4),
    ("typed_locked_too", "locked", 4),
    ("typed_locked_longer", "locked", 5),
    ("typed_late_lock", "late_lock", 4),
    ("typed_timed", "timed", 4),
    ("typed_worker", "worker", 4),
    ("typed_counted", "counted", 4),
    ("typed_plain", "plain", 4),
];

/// All things by name.
pub fn catalogue() -> &'static [(&'static str, Thing)] {
    static CATALOGUE: LazyLock<Vec<(&str, Thing)>> = LazyLock::new(all);
    &CATALOGUE
}

fn all() -> Vec<(&'static str, Thing)> {
    let trusted = |create| Request::new(Creator::Trusted, create);
    let shape = |&(_, map_type, value_size, max_entries, map_flags): &(_, u32, u32, u32, u32)| {
        trusted(MapCreate { map_flags, ..MapCreate::array(map_type, value_size, max_entries) })
    };
    let array = shape(&MAPS[0]);
    let masked = Request { creator: Creator::Masked, ..array.clone() };
    let exclusive = trusted(MapCreate { exclusive: true, ..array.create.clone() });
    let programs = trusted(MapCreate::array(MapCreate::PROG_ARRAY, 4, 4));
    let maps = trusted(MapCreate::array(MapCreate::ARRAY_OF_MAPS, 4, 4)).with_inner(array);
    let mut all = vec![
        ("nothing", Thing::Nothing),
        ("event", Thing::Event { inherit: false }),
        ("event_inherited", Thing::Event { inherit: true }),
        (CGROUP, Thing::Cgroup),
        ("array_masked", Thing::Map(masked)),
        ("array_exclusive", Thing::Map(exclusive)),
        ("programs", Thing::Map(programs)),
        ("maps", Thing::Map(maps)),
    ];
    all.extend(PROGRAMS.map(|name| (name, Thing::Program)));
    all.extend(MAPS.iter().map(|map| (map.0, Thing::Map(shape(map)))));
    all.extend(TYPED.map(|(name, value_type, max_entries)| {
        let create = MapCreate::typed(MapCreate::ARRAY, value_type, max_entries);
        (name, Thing::Map(trusted(create)))
    }));
    all
}

/// A thing of [`TYPED`].
fn is_typed(name: &str) -> bool {
    TYPED.iter().any(|(typed, _, _)| *typed == name)
}

/// A map that can be the template of others with typed values, and what can be tried in its slots.
pub(crate) fn random_typed_template(rng: &mut Rng) -> (Request, Vec<&'static str>) {
    let (_, value_type, max_entries) = rng.pick(&TYPED);
    let create = MapCreate::typed(MapCreate::ARRAY, value_type, max_entries);
    let names = TYPED.iter().map(|(name, _, _)| *name).chain(["array"]).collect();
    (Request::new(Creator::Trusted, create), names)
}

/// The name as it is in the catalogue.
pub(crate) fn parse(name: &str) -> Option<&'static str> {
    catalogue().iter().map(|(known, _)| *known).find(|known| *known == name)
}

/// Things that can be in the slots of the same map. Some may have another length than those of an
/// ARRAY_OF_MAPS.
pub(crate) fn fitting(rng: &mut Rng, request: &Request) -> Vec<&'static str> {
    let shape = |create: &MapCreate| (create.map_type, create.value_size, create.map_flags & !0x8);
    let template = request.inner.as_ref().map(|inner| shape(&inner.create));
    match request.create.map_type {
        MapCreate::PROG_ARRAY => {
            PROGRAMS.chunks(2).nth(rng.below(3) as usize).unwrap_or(&[]).into()
        }
        MapCreate::PERF_EVENT_ARRAY => vec!["event"],
        MapCreate::CGROUP_ARRAY => vec![CGROUP],
        _ => {
            let fits = |name: &str, thing: &Thing| match thing {
                Thing::Map(request) => !is_typed(name) && Some(shape(&request.create)) == template,
                _ => false,
            };
            let fitting = catalogue().iter().filter(|(name, thing)| fits(name, thing));
            fitting.map(|(name, _)| *name).collect()
        }
    }
}

/// Something to put into a map of this type: mostly what it holds.
pub(crate) fn random(rng: &mut Rng, map_type: u32, fitting: &[&'static str]) -> &'static str {
    let holds = |thing: &Thing| match thing {
        Thing::Nothing => false,
        Thing::Program => map_type == MapCreate::PROG_ARRAY,
        Thing::Map(_) => map_type == MapCreate::ARRAY_OF_MAPS,
        Thing::Event { .. } => map_type == MapCreate::PERF_EVENT_ARRAY,
        Thing::Cgroup => map_type == MapCreate::CGROUP_ARRAY,
    };
    let any = match rng.below(10) {
        0..7 => return rng.pick(fitting),
        choice => choice == 7,
    };
    let untyped = catalogue().iter().filter(|(name, _)| !is_typed(name));
    let choices = untyped.filter(|(_, thing)| any || holds(thing));
    rng.pick(&choices.map(|(name, _)| *name).collect::<Vec<_>>())
}

/// A map that can be a template, of the shape of one that can be put into a slot.
pub(crate) fn random_template(rng: &mut Rng) -> Request {
    let (_, map_type, value_size, max_entries, map_flags) = rng.pick(&MAPS);
    let create = MapCreate { map_flags, ..MapCreate::array(map_type, value_size, max_entries) };
    Request::new(rng.pick(&[Creator::Trusted, Creator::Masked]), create)
}

/// The programs of the catalogue.
pub(crate) fn programs() -> Result<Object, corpus::Error> {
    read_object(&testdata().join("progs"), KINDS)
}

/// The directory that [`Thing::Cgroup`] stands for, where there is one.
pub fn cgroup_root() -> Option<&'static Path> {
    static ROOT: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        mounts.lines().find_map(|mount| match mount.split(' ').collect::<Vec<_>>()[..] {
            [_, path, "cgroup2", ..] => Some(path.into()),
            _ => None,
        })
    });
    ROOT.as_deref()
}

/// Whether a thing is not to be had on this machine.
pub(crate) fn is_missing(name: &str) -> bool {
    name == CGROUP && cgroup_root().is_none()
}
