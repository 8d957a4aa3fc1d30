//! What can be wrong with special fields.

use super::MAX_FIELDS;
use crate::errno::Errno;

/// Why a type cannot have the special fields it names.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FieldsError {
    /// A member of a struct, or a variable of a section.
    #[error("BTF: member {index} of type {id}: {defect}")]
    Member {
        /// The struct or section.
        id: u32,
        /// Index of the member.
        index: usize,
        /// What is wrong.
        defect: FieldDefect,
    },
    /// The fields of a type together.
    #[error("BTF: type {id}: {defect}")]
    Type {
        /// The type.
        id: u32,
        /// What is wrong.
        defect: FieldDefect,
    },
}

impl FieldsError {
    /// The error number `BPF_BTF_LOAD` reports.
    pub const fn errno(self) -> Errno {
        match self {
            Self::Member { defect, .. } | Self::Type { defect, .. } => defect.errno(),
        }
    }
}

/// What is wrong with a special field.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FieldDefect {
    /// A bit field that begins within a byte.
    #[error("a bit field that begins within a byte, which excludes special fields")]
    BitOffset,
    /// A second one of what a value can have only one of.
    #[error("a second {0}")]
    Second(&'static str),
    /// More than [`MAX_FIELDS`].
    #[error("more than {MAX_FIELDS} special fields")]
    TooMany,
    /// Structs or arrays in each other, 32 or more levels.
    #[error("too many levels of structs or arrays")]
    TooDeep,
    /// An array of what cannot be repeated.
    #[error("an array of {0}")]
    Array(&'static str),
    /// A tagged pointer with an unknown tag, with two tags, or to anything but a struct.
    #[error(
        "not a pointer to a struct with one of the tags kptr, kptr_untrusted, percpu_kptr and uptr"
    )]
    Pointer,
    /// A list or tree without one declaration tag `contains:STRUCT:MEMBER`.
    #[error("a list or tree needs one declaration tag contains:STRUCT:MEMBER")]
    ContainsTag,
    /// A list or tree of a struct that does not exist.
    #[error("a list or tree of a struct that does not exist")]
    NoSuchStruct,
    /// A list or tree of a struct without the node.
    #[error("a list or tree of a struct that does not have the node")]
    NoSuchNode,
    /// The node is of another type, misaligned, or there are two members of its name.
    #[error("the node of a list or tree is not the one node of its kind and name")]
    WrongNode,
    /// It does not lie within the type.
    #[error("the special field at {0} does not lie within the type")]
    Outside(u32),
    /// It overlaps the one before.
    #[error("the special field at {0} overlaps the one before")]
    Overlap(u32),
    /// `bpf_spin_lock` and `bpf_res_spin_lock` together.
    #[error("bpf_spin_lock and bpf_res_spin_lock exclude each other")]
    TwoLocks,
    /// A list or tree without a lock.
    #[error("a list or tree needs a lock beside it")]
    NoLock,
    /// Nodes of a list and of a tree without a `bpf_refcount`.
    #[error("bpf_list_node and bpf_rb_node together need a bpf_refcount")]
    NoRefcount,
    /// A member of the right type that is misaligned or of the wrong size, and no other special field.
    #[error("no special field, though a member has the type of one")]
    NoField,
    /// A list or tree whose nodes' type has no special fields the program could use.
    #[error("a list or tree of a struct without special fields")]
    NoNodes,
    /// A node that owns further nodes.
    #[error("nodes that hold nodes that hold nodes")]
    Ownership,
}

impl FieldDefect {
    const fn errno(self) -> Errno {
        match self {
            Self::Second(_) | Self::TooMany | Self::TooDeep => Errno::E2BIG,
            Self::NoSuchStruct | Self::NoSuchNode => Errno::ENOENT,
            Self::Overlap(_) => Errno::EEXIST,
            Self::Outside(_) | Self::NoField | Self::NoNodes => Errno::EFAULT,
            Self::Ownership => Errno::from_raw(ELOOP),
            _ => Errno::EINVAL,
        }
    }
}

const ELOOP: i32 = 40;
