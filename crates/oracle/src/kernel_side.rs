//! Maps of the live kernel, and its objects of the catalogue.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use bpfarray_core::Errno;
use bpfarray_core::insn::{Insn, Reg, pseudo};
use bpfarray_vm::elf::Object;

use crate::attr::ProgLoad;
use crate::create::MapCreate;
use crate::kernel::{Kernel, Unavailable};
use crate::objects::{self, Thing};
use crate::ops::Mode;
use crate::request::{Created, Request};
use crate::subject::{Handle, Side};
use crate::sys::{LoadError, Map, Prog, perf_event};
use crate::{corpus, kernel_program};

/// A number that is no open file.
const NOTHING: i32 = 0x7fff_fff0;

/// Why the kernel's objects of the catalogue cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    #[error(transparent)]
    Programs(#[from] corpus::Error),
    #[error("program {0}: {1}")]
    Program(&'static str, String),
    #[error("{0}: {1}")]
    Object(&'static str, Errno),
    #[error("{0}: {1}")]
    Cgroup(&'static str, std::io::Error),
}

/// The kernel, with everything that can be put into slots.
pub(crate) struct KernelSide {
    kernel: Kernel,
    descriptors: HashMap<&'static str, Box<dyn AsFd>>,
    /// By whether it is a program, and by id.
    names: HashMap<(bool, u32), &'static str>,
}

impl KernelSide {
    pub(crate) fn new(kernel: Kernel) -> Result<Self, Error> {
        let (descriptors, names) = (HashMap::new(), HashMap::new());
        let mut this = Self { kernel, descriptors, names };
        let programs = objects::programs()?;
        for (name, thing) in objects::catalogue() {
            if let Some(descriptor) = this.open(name, thing, &programs)? {
                this.descriptors.insert(name, descriptor);
            }
        }
        Ok(this)
    }

    fn open(
        &mut self,
        name: &'static str,
        thing: &Thing,
        programs: &Object,
    ) -> Result<Option<Box<dyn AsFd>>, Error> {
        let failed = |errno| Error::Object(name, errno);
        Ok(match thing {
            Thing::Nothing => None,
            Thing::Program => {
                let prog = kernel_program::load(programs, name, &[]);
                let prog = prog.map_err(|why| Error::Program(name, why))?;
                self.names.insert((true, prog.id().map_err(failed)?), name);
                Some(Box::new(prog))
            }
            Thing::Map(request) => {
                let (map, _) = create(self.kernel, request)?.map_err(failed)?;
                self.names.insert((false, map.info().map_err(failed)?.id), name);
                Some(Box::new(map))
            }
            Thing::Event { inherit } => Some(Box::new(perf_event(*inherit).map_err(failed)?)),
            Thing::Cgroup => objects::cgroup_root()
                .map(|root| File::open(root).map(|dir| Box::new(OwnedFd::from(dir)) as _))
                .transpose()
                .map_err(|error| Error::Cgroup(name, error))?,
        })
    }
}

/// Creates a map in the kernel, after its inner map.
pub(crate) fn create(
    kernel: Kernel,
    request: &Request,
) -> Result<Result<(Map, Created), Errno>, Unavailable> {
    let inner = match request.inner.as_deref().map(|inner| create(kernel, inner)).transpose()? {
        Some(Err(errno)) => return Ok(Err(errno)),
        Some(Ok((inner, _))) => Some(inner),
        None => None,
    };
    kernel.run_as(request.creator, || {
        let (create, _btf) = request.create.clone().with_value_type()?;
        let map = Map::create_with(&create, inner.as_ref())?;
        let created = Created { map_flags: map.info()?.map_flags, memlock: map.memlock()? };
        Ok((map, created))
    })
}

impl Side for KernelSide {
    type Handle = Map;

    fn create(&self, request: &Request) -> Result<Result<(Map, Created), Errno>, Unavailable> {
        create(self.kernel, request)
    }

    fn put(&self, map: &Map, key: u32, object: &'static str, flags: u64) -> Result<(), Errno> {
        let fd = self.descriptors.get(object).map_or(NOTHING, |o| o.as_fd().as_raw_fd());
        Map::update(map, &key.to_ne_bytes(), &fd.to_ne_bytes(), flags)
    }

    fn name(&self, map_type: u32, id: u32) -> Option<&'static str> {
        self.names.get(&(map_type == MapCreate::PROG_ARRAY, id)).copied()
    }
}

impl Handle for Map {
    fn lookup(&self, key: u32, flags: u64) -> Result<Vec<u8>, Errno> {
        Self::lookup(self, &key.to_ne_bytes(), flags)
    }

    fn update(&self, key: u32, value: &[u8], flags: u64) -> Result<(), Errno> {
        Self::update(self, &key.to_ne_bytes(), value, flags)
    }

    fn delete(&self, key: u32) -> Result<(), Errno> {
        Self::delete(self, &key.to_ne_bytes())
    }

    fn next_key(&self, key: Option<u32>) -> Result<u32, Errno> {
        let key = key.map(u32::to_ne_bytes);
        let next = Self::next_key(self, key.as_ref().map(<[u8; 4]>::as_slice))?;
        next.try_into().map(u32::from_ne_bytes).map_err(|_| Errno::EPROTO)
    }

    fn freeze(&self) -> Result<(), Errno> {
        Self::freeze(self)
    }

    fn open(&self, mode: Mode) -> Result<Self, Errno> {
        self.with_mode(mode)
    }

    fn refer(&self, prog_type: u32) -> Result<(), Errno> {
        let loaded = Prog::load(&ProgLoad::new(prog_type, &referring_program(), &[self]));
        loaded.map(drop).map_err(|LoadError { errno, .. }| errno)
    }

    fn value_len(&self) -> usize {
        Self::value_len(self)
    }
}

/// A program that refers to the map with index 0 and returns 0.
pub(crate) fn referring_program() -> Vec<Insn> {
    let mut insns = Insn::ld_imm64(Reg::R1, Reg::new(pseudo::MAP_IDX), 0).to_vec();
    insns.extend([Insn::mov64_imm(Reg::R0, 0), Insn::exit()]);
    insns
}
