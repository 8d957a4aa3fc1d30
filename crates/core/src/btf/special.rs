//! The special fields of values: locks, timers, references to objects, lists and trees.
//!
//! The bytes of a special field belong to the subsystem that runs the map. A value that is copied in leaves
//! them alone, and one that is copied out shows them as if they had just been initialised.

use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

use bitflags::bitflags;

use super::find_fields::{Finder, Names};
use super::{Btf, FieldsError};

/// How many special fields a value can have, counting each element of an array.
#[doc(alias = "BTF_FIELDS_MAX")]
pub const MAX_FIELDS: usize = 11;

bitflags! {
    /// A set of kinds of special fields, with the kernel's bits.
    ///
    /// # Kernel
    /// `enum btf_field_type`
    #[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, Default)]
    #[doc(alias = "btf_field_type")]
    pub struct FieldMask: u32 {
        /// `struct bpf_spin_lock`
        const SPIN_LOCK = 1 << 0;
        /// `struct bpf_timer`
        const TIMER = 1 << 1;
        /// Pointer tagged `kptr_untrusted`
        const KPTR_UNREF = 1 << 2;
        /// Pointer tagged `kptr`
        const KPTR_REF = 1 << 3;
        /// Pointer tagged `percpu_kptr`
        const KPTR_PERCPU = 1 << 4;
        /// `struct bpf_list_head`
        const LIST_HEAD = 1 << 5;
        /// `struct bpf_list_node`
        const LIST_NODE = 1 << 6;
        /// `struct bpf_rb_root`
        const RB_ROOT = 1 << 7;
        /// `struct bpf_rb_node`
        const RB_NODE = 1 << 8;
        /// `struct bpf_refcount`
        const REFCOUNT = 1 << 9;
        /// `struct bpf_wq`
        const WORKQUEUE = 1 << 10;
        /// Pointer tagged `uptr`
        const UPTR = 1 << 11;
        /// `struct bpf_res_spin_lock`
        const RES_SPIN_LOCK = 1 << 12;
        /// `struct bpf_task_work`
        const TASK_WORK = 1 << 13;

        /// Pointers to kernel objects.
        const KPTR = Self::KPTR_UNREF.bits() | Self::KPTR_REF.bits() | Self::KPTR_PERCPU.bits();
        /// What holds nodes.
        const GRAPH_ROOT = Self::LIST_HEAD.bits() | Self::RB_ROOT.bits();
        /// What a root holds.
        const GRAPH_NODE = Self::LIST_NODE.bits() | Self::RB_NODE.bits();
    }
}

impl FieldMask {
    /// All that mean something in the value of a map. Nodes do not: they are for objects of a program.
    pub const MAP_VALUE: Self = Self::all().difference(Self::GRAPH_NODE);

    /// Kinds of which a value can have one.
    pub(super) const UNIQUE: Self = Self::SPIN_LOCK
        .union(Self::RES_SPIN_LOCK)
        .union(Self::TIMER)
        .union(Self::WORKQUEUE)
        .union(Self::TASK_WORK);
}

/// What a special field is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FieldKind {
    /// `struct bpf_spin_lock`
    SpinLock,
    /// `struct bpf_res_spin_lock`
    ResSpinLock,
    /// `struct bpf_timer`
    Timer,
    /// `struct bpf_wq`
    Workqueue,
    /// `struct bpf_task_work`
    TaskWork,
    /// `struct bpf_refcount`
    Refcount,
    /// A pointer with a type tag.
    Kptr {
        /// What the tag allows.
        tag: KptrTag,
        /// Name of the struct it points to.
        target: String,
    },
    /// `struct bpf_list_head`
    ListHead(Contains),
    /// `struct bpf_rb_root`
    RbRoot(Contains),
    /// `struct bpf_list_node`, never in the value of a map.
    ListNode,
    /// `struct bpf_rb_node`, never in the value of a map.
    RbNode,
}

/// What the type tag of a pointer allows.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum KptrTag {
    /// `kptr_untrusted`: holds no reference.
    Untrusted,
    /// `kptr`: owns a reference to the object.
    Referenced,
    /// `percpu_kptr`: owns an object that every CPU has a copy of.
    Percpu,
    /// `uptr`: points to memory of the task. No array map allows it.
    User,
}

/// What a list or tree holds, from the declaration tag `contains:STRUCT:MEMBER`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Contains {
    /// Name of the struct.
    pub target: String,
    /// The member of it that is the node.
    pub node: String,
    /// Bytes from the start of the struct to that member.
    pub node_offset: u32,
}

impl FieldKind {
    /// The kind as a set of one.
    pub const fn mask(&self) -> FieldMask {
        match self {
            Self::SpinLock => FieldMask::SPIN_LOCK,
            Self::ResSpinLock => FieldMask::RES_SPIN_LOCK,
            Self::Timer => FieldMask::TIMER,
            Self::Workqueue => FieldMask::WORKQUEUE,
            Self::TaskWork => FieldMask::TASK_WORK,
            Self::Refcount => FieldMask::REFCOUNT,
            Self::Kptr { tag: KptrTag::Untrusted, .. } => FieldMask::KPTR_UNREF,
            Self::Kptr { tag: KptrTag::Referenced, .. } => FieldMask::KPTR_REF,
            Self::Kptr { tag: KptrTag::Percpu, .. } => FieldMask::KPTR_PERCPU,
            Self::Kptr { tag: KptrTag::User, .. } => FieldMask::UPTR,
            Self::ListHead(_) => FieldMask::LIST_HEAD,
            Self::RbRoot(_) => FieldMask::RB_ROOT,
            Self::ListNode => FieldMask::LIST_NODE,
            Self::RbNode => FieldMask::RB_NODE,
        }
    }

    /// Name of the struct, or the tag of the pointer.
    #[doc(alias = "btf_field_type_name")]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::SpinLock => "bpf_spin_lock",
            Self::ResSpinLock => "bpf_res_spin_lock",
            Self::Timer => "bpf_timer",
            Self::Workqueue => "bpf_wq",
            Self::TaskWork => "bpf_task_work",
            Self::Refcount => "bpf_refcount",
            Self::Kptr { tag: KptrTag::Untrusted, .. } => "kptr_untrusted",
            Self::Kptr { tag: KptrTag::Referenced, .. } => "kptr",
            Self::Kptr { tag: KptrTag::Percpu, .. } => "percpu_kptr",
            Self::Kptr { tag: KptrTag::User, .. } => "uptr",
            Self::ListHead(_) => "bpf_list_head",
            Self::RbRoot(_) => "bpf_rb_root",
            Self::ListNode => "bpf_list_node",
            Self::RbNode => "bpf_rb_node",
        }
    }

    /// Bytes.
    #[doc(alias = "btf_field_type_size")]
    pub const fn size(&self) -> u32 {
        match self {
            Self::SpinLock | Self::ResSpinLock | Self::Refcount => 4,
            Self::TaskWork | Self::Kptr { .. } => 8,
            Self::Timer | Self::Workqueue | Self::ListHead(_) | Self::RbRoot(_) => 16,
            Self::ListNode => 24,
            Self::RbNode => 32,
        }
    }

    /// Bytes its offset must be a multiple of.
    #[doc(alias = "btf_field_type_align")]
    pub const fn align(&self) -> u32 {
        match self {
            Self::SpinLock | Self::ResSpinLock | Self::Refcount => 4,
            _ => 8,
        }
    }
}

/// A special field of a value.
///
/// # Kernel
/// `struct btf_field`
#[derive(Clone, PartialEq, Eq, Debug)]
#[doc(alias = "btf_field")]
pub struct SpecialField {
    /// Bytes from the start of the value.
    pub offset: u32,
    /// What it is.
    pub kind: FieldKind,
}

impl SpecialField {
    /// Its bytes in a value.
    pub fn range(&self) -> Range<usize> {
        let start = self.offset as usize;
        start..start + self.kind.size() as usize
    }
}

/// The special fields of a value, by offset. They do not overlap.
///
/// Two records are equal if they have the same fields at the same offsets, pointers and lists with targets
/// of the same name. This is what an inner map must share with its template. (The kernel also wants
/// targets that only the maps' BTF knows to be of one BTF object.)
///
/// ```
/// use bpfarray_core::btf::SpecialFields;
/// # let btf = bpfarray_core::btf::Btf::parse(include_bytes!("../../../../testdata/btf/types.btf"))?;
/// # let id = btf.find_by_name("inner", bpfarray_core::btf::Kind::Struct).ok_or("inner")?;
/// let fields = SpecialFields::of(&btf, id)?;
/// assert!(fields.is_empty() && fields.spin_lock().is_none());
/// assert_eq!(fields.ordinary(8).collect::<Vec<_>>(), [0..8]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Kernel
/// `struct btf_record`; equality is `btf_record_equal`
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[doc(alias = "btf_record")]
#[doc(alias = "btf_record_equal")]
pub struct SpecialFields {
    fields: Vec<SpecialField>,
}

impl SpecialFields {
    /// The special fields of map values of a type.
    ///
    /// Only structs and sections have any, themselves or in structs and arrays they contain; typedefs
    /// and `const` around the whole value do not matter, around a member they hide it. What has the right
    /// name but not the right size or alignment is ordinary bytes.
    ///
    /// # Errors
    /// [`FieldsError`] for the first member that cannot be, then for fields that exclude or need each other.
    /// A bit field that begins within a byte is such a member, even where nothing else is special.
    /// `BPF_MAP_CREATE` takes the values for ordinary bytes then, and so does
    /// [`MapAttr::check_btf`](crate::attr::MapAttr::check_btf).
    ///
    /// # Kernel
    /// `btf_parse_fields`
    #[doc(alias = "btf_parse_fields")]
    pub fn of(btf: &Btf, type_id: u32) -> Result<Self, FieldsError> {
        let names = Names::new(btf);
        Ok(Finder::new(btf, &names, FieldMask::MAP_VALUE).parse(type_id)?.fields)
    }

    /// No special fields.
    pub const fn none() -> Self {
        Self { fields: Vec::new() }
    }

    /// The first special field of which a byte is among `size` bytes at this offset of a value.
    pub fn overlapping(&self, offset: u64, size: u64) -> Option<&SpecialField> {
        let end = offset.saturating_add(size);
        let overlaps = |field: &&SpecialField| {
            let start = u64::from(field.offset);
            offset < start + u64::from(field.kind.size()) && start < end
        };
        self.fields.iter().find(overlaps)
    }

    /// The fields, which must be sorted and lie apart.
    pub(super) fn new(fields: Vec<SpecialField>) -> Self {
        Self { fields }
    }

    /// The fields, by offset.
    pub fn as_slice(&self) -> &[SpecialField] {
        &self.fields
    }

    /// Whether every byte of the value is an ordinary one.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// The kinds there are.
    pub fn mask(&self) -> FieldMask {
        self.fields.iter().fold(FieldMask::empty(), |mask, field| mask | field.kind.mask())
    }

    /// The field that begins at this offset.
    ///
    /// # Kernel
    /// `btf_record_find`
    #[doc(alias = "btf_record_find")]
    pub fn find(&self, offset: u32) -> Option<&SpecialField> {
        let index = self.fields.binary_search_by_key(&offset, |field| field.offset).ok()?;
        self.fields.get(index)
    }

    /// Offset of the `bpf_spin_lock`, which `F_LOCK` needs. A `bpf_res_spin_lock` does not count.
    pub fn spin_lock(&self) -> Option<u32> {
        self.offset_of(FieldMask::SPIN_LOCK)
    }

    /// Offset of the `bpf_timer`.
    pub fn timer(&self) -> Option<u32> {
        self.offset_of(FieldMask::TIMER)
    }

    fn offset_of(&self, mask: FieldMask) -> Option<u32> {
        self.fields.iter().find(|field| field.kind.mask() == mask).map(|field| field.offset)
    }

    /// The ordinary bytes of a value of this size: what lookups and updates copy.
    ///
    /// # Kernel
    /// `bpf_obj_memcpy`
    #[doc(alias = "bpf_obj_memcpy")]
    #[doc(alias = "copy_map_value")]
    pub fn ordinary(&self, value_size: usize) -> impl Iterator<Item = Range<usize>> + '_ {
        let starts = core::iter::once(0).chain(self.fields.iter().map(|field| field.range().end));
        let ends = self.fields.iter().map(|field| field.range().start);
        starts
            .zip(ends.chain(core::iter::once(value_size)))
            .map(move |(start, end)| start..end.min(value_size))
            .filter(|range| !range.is_empty())
    }

    /// Sets the special fields in a copy of a value to what a reader is shown: zeros, and 1 in a
    /// `bpf_refcount`. (The kernel also shows the addresses that an empty list head has in its copy.)
    ///
    /// # Kernel
    /// `check_and_init_map_value`
    #[doc(alias = "check_and_init_map_value")]
    #[doc(alias = "bpf_obj_init")]
    pub fn init(&self, value: &mut [u8]) {
        for field in &self.fields {
            let Some(bytes) = value.get_mut(field.range()) else { continue };
            bytes.fill(0);
            if let (FieldKind::Refcount, Some(first)) = (&field.kind, bytes.first_mut()) {
                *first = 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;

    use super::*;
    use crate::btf::testing::Builder;

    /// A lock at `lock`, a timer at 8, a pointer to `target` at 24, a reference count at 32.
    fn fields(lock: u32, target: &str) -> SpecialFields {
        let mut b = Builder::new();
        let timer = b.opaque("bpf_timer", 16);
        let spin_lock = b.opaque("bpf_spin_lock", 4);
        let refcount = b.opaque("bpf_refcount", 4);
        let kptr = b.tagged("kptr", target);
        let inner = b.structure("inner", 16, &[(kptr, 0), (refcount, 8)]);
        let mut members = [(timer, 8), (inner, 24), (spin_lock, lock)];
        members.sort_by_key(|member| member.1);
        let value = b.structure("v", 48, &members);
        SpecialFields::of(&b.build(), value).unwrap()
    }

    #[test]
    fn fields_are_found_where_they_are() {
        let fields = fields(4, "task");
        let offsets: Vec<_> =
            fields.as_slice().iter().map(|field| (field.offset, field.kind.name())).collect();
        let expected = [(4, "bpf_spin_lock"), (8, "bpf_timer"), (24, "kptr"), (32, "bpf_refcount")];
        assert_eq!(offsets, expected);
        assert_eq!((fields.spin_lock(), fields.timer()), (Some(4), Some(8)));
        assert_eq!(fields.find(24).unwrap().range(), 24..32);
        assert_eq!(fields.find(25), None);
        let kptr = FieldKind::Kptr { tag: KptrTag::Referenced, target: "task".into() };
        assert_eq!(fields.find(24).unwrap().kind, kptr);
        let mask = FieldMask::SPIN_LOCK | FieldMask::TIMER | FieldMask::KPTR_REF;
        assert_eq!(fields.mask(), mask | FieldMask::REFCOUNT);
    }

    #[test]
    fn ordinary_bytes_are_those_between() {
        let fields = fields(4, "task");
        assert_eq!(fields.ordinary(48).collect::<Vec<_>>(), [0..4, 36..48]);
        assert_eq!(fields.ordinary(40).collect::<Vec<_>>(), [0..4, 36..40]);
        assert_eq!(SpecialFields::default().ordinary(0).count(), 0);
    }

    #[test]
    fn a_copy_shows_fields_as_just_initialised() {
        let mut value = vec![0xff; 48];
        fields(4, "task").init(&mut value);
        let mut expected = vec![0xff; 48];
        expected[4..36].fill(0);
        expected[32] = 1;
        assert_eq!(value, expected);
    }

    #[test]
    fn records_of_different_btf_are_equal_if_fields_and_names_are() {
        assert_eq!(fields(4, "task"), fields(4, "task"));
        assert_ne!(fields(4, "task"), fields(0, "task"));
        assert_ne!(fields(4, "task"), fields(4, "cgroup"));
        assert_ne!(fields(4, "task"), SpecialFields::default());
    }

    #[test]
    fn values_that_are_no_structs_have_no_fields() {
        let btf = Builder::new().build();
        for id in [0, 1, 99] {
            assert_eq!(SpecialFields::of(&btf, id), Ok(SpecialFields::default()));
        }
    }
}
