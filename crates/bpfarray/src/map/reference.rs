//! Maps as programs and slots hold them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use bpfarray_core::attr::{CreateError, Creator, MapAttr, MapFlags, MapType};
use bpfarray_core::btf::SpecialFields;
use bpfarray_core::map::prog_array::{Owner, OwnerError};
use bpfarray_core::map::{HandleMode, Kind, UpdateError};
use bpfarray_core::{Errno, Layout};

use super::array_of_maps::MapArray;
use super::prog_array::ProgArray;
use super::shared::SharedSlots;
use super::{File, Map};
use crate::area::Area;
use crate::cgroup::Cgroup;
use crate::cpu::possible_cpus;
use crate::fields::{Kptrs, Timers};
use crate::file::MapFile;
use crate::gate::WriteGate;
use crate::perf::EventObject;
use crate::rcu;
use crate::slot::Slots;

/// A reference to a map that is no handle: what programs and the slots of other maps hold. It keeps
/// the map, but not the programs in a PROG_ARRAY.
///
/// # Kernel
/// `struct bpf_map`, and a reference counted by `bpf_map_inc`
#[derive(Clone)]
#[doc(alias = "bpf_map")]
pub struct MapRef {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(super) id: u32,
    pub(super) name: String,
    pub(crate) attr: MapAttr,
    pub(crate) layout: Layout,
    pub(crate) area: Area,
    pub(crate) contents: Contents,
    /// What the slots of a map that processes share were last seen to hold.
    pub(super) shared: Option<SharedSlots>,
    pub(crate) gate: WriteGate,
    pub(crate) fields: SpecialFields,
    pub(crate) timers: Timers,
    pub(crate) kptrs: Kptrs,
    /// How many open files there are.
    users: AtomicU64,
}

/// What elements are made of, by map type.
pub(crate) enum Contents {
    Array,
    PercpuArray,
    Programs(ProgArray),
    Events(Slots<Event>),
    Cgroups(Slots<Cgroup>),
    Maps(Arc<MapArray>),
}

/// What maps in the slots of an ARRAY_OF_MAPS have in common.
pub(crate) struct InSlots {
    pub(crate) layout: Layout,
    pub(crate) fields: SpecialFields,
}

/// A perf event, and the open file through which it came.
pub(crate) struct Event {
    pub(crate) event: Arc<dyn EventObject>,
    pub(crate) file: u64,
}

impl Inner {
    pub(super) fn create(
        attr: &MapAttr,
        layout: Layout,
        creator: &Creator<'_>,
        inner: Option<&MapRef>,
    ) -> Result<Self, CreateError> {
        let needed = layout.window_len().saturating_mul(u64::from(possible_cpus()));
        let no_memory = CreateError::NoMemory(needed.saturating_add(layout.payload_len()));
        let area = Area::allocate(&layout).map_err(|_| no_memory)?;
        let inner = inner.map(|inner| InSlots {
            layout: *inner.layout(),
            fields: inner.special_fields().clone(),
        });
        let mut map = Self::assemble(attr, layout, area, inner, None)?;
        if attr.btf_value_type_id != 0 {
            map.fields = attr.check_btf(creator, creator.btf.ok_or(CreateError::NoBtf)?)?;
        }
        Ok(map)
    }

    /// A map from its parts.
    fn assemble(
        attr: &MapAttr,
        layout: Layout,
        area: Area,
        inner: Option<InSlots>,
        file: Option<Arc<MapFile>>,
    ) -> Result<Self, CreateError> {
        static LAST_ID: AtomicU32 = AtomicU32::new(0);
        let no_memory = CreateError::NoMemory(layout.payload_len());
        if let Some(node) = attr.preferred_node() {
            area.prefer_node(node);
        }
        let contents = Contents::create(&layout, &area, inner).map_err(|_| no_memory)?;
        // Bytes from 0x80 on that are allowed in a name are Latin-1 letters.
        let name = attr.check_name()?.iter().map(|&byte| char::from(byte)).collect();
        let id = LAST_ID
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| last.checked_add(1))
            .map_err(|_| no_memory)?
            + 1;
        let shared = file.as_ref().and_then(SharedSlots::of);
        let (gate, users) = (WriteGate::new(file), AtomicU64::new(0));
        let (fields, timers, kptrs) = (SpecialFields::none(), Timers::default(), Kptrs::default());
        let attr = *attr;
        Ok(Self {
            id,
            name,
            attr,
            layout,
            area,
            contents,
            shared,
            gate,
            fields,
            timers,
            kptrs,
            users,
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        rcu::poll();
    }
}

impl Contents {
    fn create(layout: &Layout, area: &Area, inner: Option<InSlots>) -> Result<Self, Errno> {
        let len = layout.max_entries();
        Ok(match layout.kind() {
            Kind::Array => Self::Array,
            Kind::PercpuArray => Self::PercpuArray,
            Kind::ProgArray => Self::Programs(ProgArray::new(len)?),
            Kind::PerfEventArray => Self::Events(Slots::new(len)?),
            Kind::CgroupArray => Self::Cgroups(Slots::new(len)?),
            Kind::ArrayOfMaps => {
                let InSlots { layout, fields } = inner.ok_or(Errno::EBADF)?;
                Self::Maps(MapArray::new(layout, fields, area.payload().clone())?)
            }
        })
    }
}

impl MapRef {
    pub(super) fn new(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    /// A map over memory that a file has.
    pub(crate) fn over_file(
        attr: &MapAttr,
        layout: Layout,
        area: Area,
        fields: SpecialFields,
        inner: Option<InSlots>,
        file: Arc<MapFile>,
    ) -> Result<Self, CreateError> {
        let mut map = Inner::assemble(attr, layout, area, inner, Some(file))?;
        map.fields = fields;
        Ok(Self::new(map))
    }

    /// A new handle to the map, with a mode of its own. It is a user again, also of a map that had none
    /// left.
    ///
    /// # Kernel
    /// `BPF_MAP_GET_FD_BY_ID` with `open_flags`
    #[doc(alias = "bpf_map_inc_with_uref")]
    #[must_use]
    pub fn with_mode(&self, mode: HandleMode) -> Map {
        static LAST_FILE: AtomicU64 = AtomicU64::new(0);
        self.inner.users.fetch_add(1, Ordering::Relaxed);
        let id = LAST_FILE.fetch_add(1, Ordering::Relaxed);
        Map { file: Arc::new(File { map: self.clone(), mode, id }) }
    }

    /// An open file goes.
    ///
    /// # Kernel
    /// `bpf_map_release`: `map_release` of the map type, then `bpf_map_put_with_uref`
    pub(super) fn release(&self, file: u64) {
        let last = self.inner.users.fetch_sub(1, Ordering::AcqRel) == 1;
        match &self.inner.contents {
            Contents::Events(events) if !self.map_flags().contains(MapFlags::PRESERVE_ELEMS) => {
                events.clear_where(|event| event.file == file);
            }
            // Other processes may be users, too, and say what is in the slots. But the table of this process must not
            // keep programs that keep the map.
            Contents::Programs(_) if last && self.has_shared_slots() => self.forget_slots(),
            Contents::Programs(programs) if last => programs.clear(),
            Contents::Array if last => self.inner.last_user_left(),
            Contents::Array
            | Contents::PercpuArray
            | Contents::Programs(_)
            | Contents::Events(_)
            | Contents::Cgroups(_)
            | Contents::Maps(_) => return,
        }
        rcu::poll();
    }

    /// The map's id: positive, and never used again in this process.
    pub fn id(&self) -> u32 {
        self.inner.id
    }

    /// The id under which a [`Directory`](crate::Directory) lists the map's file; `None` for other maps.
    pub fn listed_id(&self) -> Option<u32> {
        self.inner.gate.file()?.listed_id()
    }

    /// The map's name, at most 15 characters.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The map's type.
    pub fn map_type(&self) -> MapType {
        self.layout().kind().map_type()
    }

    /// Bytes of a key, always 4.
    pub fn key_size(&self) -> u32 {
        size_of::<u32>() as u32
    }

    /// Bytes of a value.
    pub fn value_size(&self) -> u32 {
        self.layout().value_size()
    }

    /// Number of elements.
    pub fn max_entries(&self) -> u32 {
        self.layout().max_entries()
    }

    /// Flags of the map, without those of the handle.
    pub fn map_flags(&self) -> MapFlags {
        self.layout().map_flags()
    }

    /// All sizes of the map.
    pub fn layout(&self) -> &Layout {
        &self.inner.layout
    }

    /// The layout that maps in the slots of an ARRAY_OF_MAPS share; `None` for other maps.
    ///
    /// # Kernel
    /// `inner_map_meta`
    #[doc(alias = "inner_map_meta")]
    pub fn inner_template(&self) -> Option<&Layout> {
        match &self.inner.contents {
            Contents::Maps(maps) => Some(maps.template()),
            Contents::Array
            | Contents::PercpuArray
            | Contents::Programs(_)
            | Contents::Events(_)
            | Contents::Cgroups(_) => None,
        }
    }

    /// The special fields that values of maps in the slots of an ARRAY_OF_MAPS have; `None` for other maps.
    pub fn inner_fields(&self) -> Option<&SpecialFields> {
        match &self.inner.contents {
            Contents::Maps(maps) => Some(maps.template_fields()),
            Contents::Array
            | Contents::PercpuArray
            | Contents::Programs(_)
            | Contents::Events(_)
            | Contents::Cgroups(_) => None,
        }
    }

    /// Whether handles can no longer write.
    pub fn is_frozen(&self) -> bool {
        self.inner.gate.is_frozen()
    }

    /// Whether other processes may have the map, too, whose memory nothing they write is kept out of.
    pub fn is_shared(&self) -> bool {
        self.inner.gate.file().is_some()
    }

    /// Whether there is no handle, so that only programs and slots hold the map.
    pub fn is_without_handles(&self) -> bool {
        self.inner.users.load(Ordering::Relaxed) == 0
    }

    /// Bytes the kernel would account to such a map. What is used here is less, until all values
    /// are written.
    ///
    /// # Kernel
    /// `array_map_mem_usage`
    #[doc(alias = "array_map_mem_usage")]
    pub fn mem_usage(&self) -> u64 {
        self.layout().mem_usage(possible_cpus())
    }

    /// Bytes that [`Map::lookup_elem`] and [`Map::update_elem`] move: the value, or for a
    /// PERCPU_ARRAY one value, rounded up to 8 bytes, for each possible CPU.
    ///
    /// # Kernel
    /// `bpf_map_value_size`
    #[doc(alias = "bpf_map_value_size")]
    pub fn user_size(&self) -> u64 {
        self.layout().user_size(possible_cpus())
    }

    /// What the programs of a PROG_ARRAY have in common; `None` as long as there was none, and for
    /// other maps.
    #[doc(alias = "bpf_map_owner")]
    pub fn owner(&self) -> Option<Owner> {
        if let Some(shared) = &self.inner.shared {
            return shared.file().owner();
        }
        match &self.inner.contents {
            Contents::Programs(programs) => programs.owner(),
            Contents::Array
            | Contents::PercpuArray
            | Contents::Events(_)
            | Contents::Cgroups(_)
            | Contents::Maps(_) => None,
        }
    }

    /// Judges whether a program that is being loaded may refer to the map. The first one makes a PROG_ARRAY
    /// its own kind's.
    ///
    /// # Errors
    /// [`OwnerError`] for a PROG_ARRAY of other programs.
    ///
    /// # Kernel
    /// `bpf_prog_map_compatible`
    #[doc(alias = "bpf_prog_map_compatible")]
    pub fn claim_owner(&self, program: &Owner) -> Result<(), OwnerError> {
        if let Some(shared) = &self.inner.shared
            && shared.kind() == Kind::ProgArray
        {
            shared.file().claim_owner(program)?;
        }
        // Programs of this process rely on their own table, whatever others write to the file.
        match &self.inner.contents {
            Contents::Programs(programs) => programs.claim(program),
            Contents::Array
            | Contents::PercpuArray
            | Contents::Events(_)
            | Contents::Cgroups(_)
            | Contents::Maps(_) => Ok(()),
        }
    }

    /// Whether a program with this SHA-256 may refer to the map: any, unless the map is exclusive. The
    /// kernel's loader answers EACCES to others.
    #[doc(alias = "excl_prog_sha")]
    pub fn may_be_used_by(&self, prog_hash: &[u8; 32]) -> bool {
        self.inner.attr.excl_prog_hash.is_none_or(|only| only == *prog_hash)
    }

    pub(crate) fn no_index(&self, index: u32) -> UpdateError {
        UpdateError::Index { index, max_entries: self.max_entries() }
    }
}

impl fmt::Debug for MapRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapRef")
            .field("id", &self.id())
            .field("name", &self.name())
            .field("layout", self.layout())
            .finish_non_exhaustive()
    }
}
