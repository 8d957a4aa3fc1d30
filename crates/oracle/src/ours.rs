//! Maps of our crates, and our objects of the catalogue.

use std::collections::HashMap;
use std::sync::Arc;

use bpfarray::perf::PerfEventAttr;
use bpfarray::{Cgroup, CgroupError, HandleMode, Map, Object, ProgramObject};
use bpfarray_core::Errno;
use bpfarray_core::attr::Creator;
use bpfarray_vm::{LoadOptions, ProgType, Program, ProgramError};

use crate::create::MapCreate;
use crate::events::our_counter;
use crate::kernel::Unavailable;
use crate::kernel_side::referring_program;
use crate::objects::{self, Thing};
use crate::ops::Mode;
use crate::request::{Created, Request};
use crate::subject::{Handle, Side};
use crate::{corpus, value_type};

/// Why our objects of the catalogue cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Corpus(#[from] corpus::Error),
    #[error("programs: {0}")]
    Programs(#[from] bpfarray_vm::LoadObjectError),
    #[error("program {0}: {1}")]
    Program(&'static str, ProgramError),
    #[error("{0}: {1}")]
    Map(&'static str, Errno),
    #[error("{0}: {1}")]
    Cgroup(&'static str, CgroupError),
}

/// Our crates, with everything that can be put into slots.
pub(crate) struct OurSide {
    /// For how many CPUs memory is charged.
    possible_cpus: usize,
    objects: HashMap<&'static str, Object>,
    /// By whether it is a program, and by id.
    names: HashMap<(bool, u32), &'static str>,
}

impl OurSide {
    pub(crate) fn new(possible_cpus: usize) -> Result<Self, Error> {
        let programs = objects::programs()?.load(&LoadOptions::default())?;
        let (mut all, mut names) = (HashMap::new(), HashMap::new());
        for &(name, ref thing) in objects::catalogue() {
            let object = match thing {
                Thing::Nothing => continue,
                Thing::Program => {
                    let program = programs.program(name).map_err(|e| Error::Program(name, e))?;
                    names.insert((true, ProgramObject::id(&program)), name);
                    Object::Program(Arc::new(program))
                }
                Thing::Map(request) => {
                    let (map, _) =
                        create(request, possible_cpus).map_err(|e| Error::Map(name, e))?;
                    names.insert((false, map.id()), name);
                    Object::Map(map.to_ref())
                }
                Thing::Event { inherit } => {
                    let attr = PerfEventAttr::software_of_thread(PerfEventAttr::SW_CPU_CLOCK);
                    our_counter(&PerfEventAttr { inherit: *inherit, ..attr })
                }
                Thing::Cgroup => match objects::cgroup_root() {
                    Some(root) => {
                        Object::Cgroup(Cgroup::open(root).map_err(|e| Error::Cgroup(name, e))?)
                    }
                    None => continue,
                },
            };
            all.insert(name, object);
        }
        Ok(Self { possible_cpus, objects: all, names })
    }
}

/// Creates a map, after its inner map; its memory charge is given for a machine with `possible_cpus`.
pub(crate) fn create(request: &Request, possible_cpus: usize) -> Result<(Map, Created), Errno> {
    let inner = request.inner.as_deref().map(|inner| create(inner, possible_cpus)).transpose()?;
    let inner = inner.map(|(map, _)| map.to_ref());
    let btf = request.create.value_type.and(value_type::BTF.as_ref());
    let (attr, creator) = (request.create.to_core(), Creator { btf, ..request.creator.to_core() });
    let map = Map::create_with(&attr, &creator, inner.as_ref()).map_err(|e| e.errno())?;
    let created = Created {
        map_flags: map.map_flags().bits(),
        memlock: map.layout().mem_usage(possible_cpus as u32),
    };
    Ok((map, created))
}

impl Side for OurSide {
    type Handle = Map;

    fn create(&self, request: &Request) -> Result<Result<(Map, Created), Errno>, Unavailable> {
        Ok(create(request, self.possible_cpus))
    }

    fn put(&self, map: &Map, key: u32, object: &'static str, flags: u64) -> Result<(), Errno> {
        match self.objects.get(object) {
            Some(object) => map.update_object(key, object, flags),
            // To us, bytes never name an object.
            None => map.update_elem(key, &[0xff; 4], flags),
        }
        .map_err(|e| e.errno())
    }

    fn name(&self, map_type: u32, id: u32) -> Option<&'static str> {
        self.names.get(&(map_type == MapCreate::PROG_ARRAY, id)).copied()
    }
}

impl Handle for Map {
    fn lookup(&self, key: u32, flags: u64) -> Result<Vec<u8>, Errno> {
        let mut value = vec![0; self.value_len()];
        self.lookup_elem(key, &mut value, flags).map(|()| value).map_err(|e| e.errno())
    }

    fn update(&self, key: u32, value: &[u8], flags: u64) -> Result<(), Errno> {
        self.update_elem(key, value, flags).map_err(|e| e.errno())
    }

    fn delete(&self, key: u32) -> Result<(), Errno> {
        self.delete_elem(key).map_err(|e| e.errno())
    }

    fn next_key(&self, key: Option<u32>) -> Result<u32, Errno> {
        self.get_next_key(key).map_err(|e| e.errno())
    }

    fn freeze(&self) -> Result<(), Errno> {
        Self::freeze(self).map_err(|e| e.errno())
    }

    fn open(&self, mode: Mode) -> Result<Self, Errno> {
        Ok(self.with_mode(match mode {
            Mode::Created => HandleMode::ReadWrite,
            Mode::ReadOnly => HandleMode::ReadOnly,
            Mode::WriteOnly => HandleMode::WriteOnly,
        }))
    }

    fn refer(&self, prog_type: u32) -> Result<(), Errno> {
        let maps = std::slice::from_ref(self);
        let program = Program::from_insns(ProgType(prog_type), &referring_program(), maps);
        program.map(drop).map_err(|error| match error {
            ProgramError::Owner { error, .. } => error.errno(),
            _ => Errno::EPROTO,
        })
    }

    fn value_len(&self) -> usize {
        self.user_size() as usize
    }
}
