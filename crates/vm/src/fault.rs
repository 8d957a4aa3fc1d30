//! Why a run ended before its program did.

use std::sync::Arc;

use bpfarray_core::helper_id;

use crate::prog_type::ProgType;

/// The end of a run by something the program may not do.
///
/// ```
/// use bpfarray_vm::fault::{AccessError, AccessReason, Fault, FaultKind};
/// let access = AccessError { addr: 0, size: 8, write: false, reason: AccessReason::Null };
/// let fault = Fault { program: None, insn: 12, kind: FaultKind::Access(access) };
/// assert_eq!(
///     fault.to_string(),
///     "instruction 12: 8-byte read at 0x0 touches no memory of this program (NULL pointer?)"
/// );
/// ```
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}instruction {insn}: {kind}", in_program(.program))]
pub struct Fault {
    /// The program it was in, if a tail call led there from the one that the host ran.
    pub program: Option<Arc<str>>,
    /// Index of the instruction, among those that ran.
    pub insn: usize,
    /// What it did.
    pub kind: FaultKind,
}

/// What an instruction did that it may not.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FaultKind {
    /// A load, store or atomic operation outside the program's memory.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// A helper could not do its work.
    #[error("{name}: {}{error}", argument(*.arg))]
    Helper {
        /// The helper's name.
        name: Arc<str>,
        /// The argument that was wrong, counted from 1, where it was an argument.
        arg: Option<usize>,
        /// What was wrong.
        error: HelperError,
    },
    /// Something that must not happen while a `bpf_spin_lock` is held: a call of a helper, a tail call or the
    /// program's exit.
    #[error("{0} while a bpf_spin_lock is held")]
    Locked(Arc<str>),
    /// A call of a helper that does not exist.
    #[error("call of {}", missing_helper(*.0))]
    UnknownHelper(u32),
    /// The run took more instructions than it was given.
    #[error("out of fuel")]
    OutOfFuel,
    /// More calls within calls than there are stack frames.
    #[error("calls are nested more than 8 frames deep")]
    CallDepth,
    /// A legacy packet load without a packet, or with something else than the context in r6.
    #[error("packet load without the context of a packet in r6")]
    NoPacket,
    /// An opcode that does not exist.
    #[error("unknown opcode {0:#04x}")]
    IllegalOpcode(u8),
    /// Control ran or jumped out of the program.
    #[error("control left the program")]
    PastEnd,
    /// The context is one of another program type.
    #[error("a program of type {0} was given the context of another type")]
    ContextType(ProgType),
    /// There was no memory for the program's stack.
    #[error("no memory for the stack")]
    NoStack,
}

/// An access to memory that a program may not make.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{size}-byte {} at {addr:#x} {reason}", if *.write { "write" } else { "read" })]
pub struct AccessError {
    /// Address of the first byte.
    pub addr: u64,
    /// Bytes accessed.
    pub size: u64,
    /// Whether it was to be written.
    pub write: bool,
    /// Why not.
    pub reason: AccessReason,
}

impl AccessError {
    /// Says so where the address is next to NULL.
    pub(crate) fn or_null(self) -> Self {
        let is_null = self.addr < NULL_PAGE && self.reason == AccessReason::Nowhere;
        Self { reason: if is_null { AccessReason::Null } else { self.reason }, ..self }
    }
}

/// Addresses below this are an offset from NULL, for all a person cares.
const NULL_PAGE: u64 = 4096;

/// Why memory may not be accessed.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AccessReason {
    /// Not in any memory of the program.
    #[error("touches no memory of this program")]
    Nowhere,
    /// Next to address 0.
    #[error("touches no memory of this program (NULL pointer?)")]
    Null,
    /// On the stack, but below the running function's frame.
    #[error("is outside the stack frames in use")]
    Stack,
    /// Outside the context, or a field of it that is read only.
    #[error("is not an access the context allows")]
    Context,
    /// In the packet's buffer, but outside the packet.
    #[error("is outside the packet")]
    Packet,
    /// In the packet or a map, which may not be written.
    #[error("is to memory that programs may only read")]
    ReadOnly,
    /// In a map with `BPF_F_WRONLY_PROG`.
    #[error("is to memory that programs may only write")]
    WriteOnly,
    /// Across the end of a map's value.
    #[error("leaves the value it starts in")]
    PastValue,
    /// In a special field of a map's value, which is for helpers only.
    #[error("touches the {0} in a map's value")]
    Field(&'static str),
    /// An atomic operation at an address that is no multiple of its size.
    #[error("is a misaligned atomic operation")]
    Misaligned,
}

/// Why a helper could not do its work.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HelperError {
    /// Memory that an argument points to.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// An argument that must be a map.
    #[error("{0:#x} is not the address of a map")]
    NotAMap(u64),
    /// An argument that must be a function whose address the program took.
    #[error("{0:#x} is not the address of a function")]
    NotAFunction(u64),
    /// An argument that must be the context of the run.
    #[error("{0:#x} is not the address of the context")]
    NotTheContext(u64),
    /// An argument that must be the output of the run, `seq` of the context's `meta`.
    #[error("{0:#x} is not the address of the output")]
    NotTheOutput(u64),
    /// A helper that this type of program does not have.
    #[error("this type of program has no such helper")]
    WrongContext,
    /// An argument that must be the address of a special field.
    #[error("there is no {name} at {addr:#x}")]
    NoField {
        /// The argument.
        addr: u64,
        /// Name of the field.
        name: &'static str,
    },
    /// An argument that must be the map in which the timer is.
    #[error("{0:#x} is not the map that the timer is in")]
    OtherMap(u64),
    /// A `bpf_spin_lock` while one is held.
    #[error("a bpf_spin_lock is held already")]
    SecondLock,
    /// A lock that is to be released, but is not held.
    #[error("the bpf_spin_lock at {0:#x} is not held")]
    NotLocked(u64),
    /// An object that the program did not take out of a kptr.
    #[error("{0:#x} is no object that the program owns")]
    NotOwned(u64),
    /// A function that was called back ended the run.
    #[error("{0}")]
    Callback(Box<Fault>),
    /// A packet load without a packet.
    #[error("there is no packet")]
    NoPacket,
    /// The run took more instructions than it was given.
    #[error("out of fuel")]
    OutOfFuel,
    /// What a helper of the host says.
    #[error("{0}")]
    Host(String),
}

impl HelperError {
    /// The argument's value that was wrong.
    fn culprit(&self) -> Option<u64> {
        match self {
            Self::Access(access) => Some(access.addr),
            Self::NotAMap(addr)
            | Self::NotAFunction(addr)
            | Self::NotTheContext(addr)
            | Self::NotTheOutput(addr)
            | Self::NoField { addr, .. }
            | Self::OtherMap(addr)
            | Self::NotLocked(addr)
            | Self::NotOwned(addr) => Some(*addr),
            _ => None,
        }
    }
}

impl FaultKind {
    /// The fault of a helper that was called with these arguments.
    pub(crate) fn helper(name: &Arc<str>, args: &[u64; 5], error: HelperError) -> Self {
        match error {
            HelperError::OutOfFuel => return Self::OutOfFuel,
            HelperError::NoPacket => return Self::NoPacket,
            _ => {}
        }
        let arg = error.culprit().and_then(|bad| args.iter().position(|arg| *arg == bad));
        Self::Helper { name: Arc::clone(name), arg: arg.map(|arg| arg + 1), error }
    }
}

fn in_program(program: &Option<Arc<str>>) -> String {
    program.as_ref().map(|name| format!("program '{name}', ")).unwrap_or_default()
}

fn argument(arg: Option<usize>) -> String {
    arg.map_or_else(String::new, |arg| format!("argument {arg}: "))
}

/// What to say of a helper that programs cannot call: Linux's has a name, others may not exist at all.
pub(crate) fn missing_helper(id: u32) -> String {
    match helper_id::name(id) {
        Some(name) => format!("helper {name}#{id}, which is not available here"),
        None => format!("unknown helper #{id}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helpers_fault_names_helper_and_argument() {
        let access =
            AccessError { addr: 0, size: 4, write: false, reason: AccessReason::Nowhere }.or_null();
        let name: Arc<str> = "bpf_map_update_elem".into();
        let args = [0x7000_0000_1000, 0, 0x7000_0000_2000, 0, 0];
        let kind = FaultKind::helper(&name, &args, access.into());
        assert_eq!(
            Fault { program: None, insn: 7, kind }.to_string(),
            "instruction 7: bpf_map_update_elem: argument 2: 4-byte read at 0x0 touches no memory of \
             this program (NULL pointer?)"
        );
    }

    #[test]
    fn a_helper_that_is_not_here_is_named_where_linux_has_it() {
        assert_eq!(
            FaultKind::UnknownHelper(12).to_string(),
            "call of helper bpf_tail_call#12, which is not available here"
        );
        assert_eq!(FaultKind::UnknownHelper(9999).to_string(), "call of unknown helper #9999");
    }
}
