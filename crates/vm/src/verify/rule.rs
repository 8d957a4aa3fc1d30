//! The rules that strict mode goes by, in the kernel's words.

use bpfarray_core::Errno;

/// A rule of the kernel's that a program breaks, as its log says it.
///
/// # Kernel
/// `kernel/bpf/verifier.c`
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Rule {
    /// A register that nothing was put in, or that a call has left undefined.
    #[error("R{0} !read_ok")]
    Unreadable(usize),
    /// No path leads to the instruction.
    #[error("unreachable insn {0}")]
    UnreachableInsn(usize),
    /// A loop that comes back to the state it started from.
    #[error("infinite loop detected at insn {0}")]
    InfiniteLoop(usize),
    /// More instructions on all paths than the limit allows.
    #[error("BPF program is too large. Processed {0} insn")]
    TooLarge(usize),
    /// More maps than a program may refer to.
    #[error("The total number of maps per program has reached the limit of {0}")]
    TooManyMaps(usize),
    /// Calls that nest too deep.
    #[error("the call stack of {0} frames is too deep !")]
    CallDepth(usize),
    /// Functions that call each other need more stack than there is.
    #[error("combined stack size of {calls} calls is {bytes}. Too large")]
    StackSize {
        /// How many functions run at a time.
        calls: usize,
        /// Bytes of their frames.
        bytes: i64,
    },
    /// A tail call below functions with large frames.
    #[error(
        "tail_calls are not allowed when call stack of previous frames is {0} bytes. Too large"
    )]
    TailCallStack(i64),
    /// An access through something that cannot be accessed.
    #[error("R{reg} invalid mem access '{is}'")]
    MemAccess {
        /// The register.
        reg: usize,
        /// What it holds.
        is: String,
    },
    /// A pointer whose fixed distance takes it out of an object.
    #[error(
        "invalid access to {what}, {context}off={off} size={size}\nR{reg} {side} is outside of the allowed memory range"
    )]
    Outside {
        /// The register.
        reg: usize,
        /// The kind of object.
        what: &'static str,
        /// What the object's size is, and a comma.
        context: String,
        /// Byte offset.
        off: i64,
        /// Bytes.
        size: i64,
        /// Which end of the pointer's range it is.
        side: &'static str,
    },
    /// A pointer that can be moved below its object.
    #[error("R{0} min value is negative, either use unsigned index or do a if (index >=0) check.")]
    MinNegative(usize),
    /// A pointer that nothing bounds.
    #[error("R{0} unbounded memory access, make sure to bounds check any such access")]
    Unbounded(usize),
    /// An access beyond the part of the packet that was compared with its end.
    #[error(
        "invalid access to packet, off={off} size={size}, R{reg}(id={id},off={at},r={range})\nR{reg} offset is outside of the packet"
    )]
    OutsidePacket {
        /// The register.
        reg: usize,
        /// Byte offset.
        off: i64,
        /// Bytes.
        size: i64,
        /// Which unknown part the pointer has.
        id: u32,
        /// Its own offset.
        at: i64,
        /// How far the packet is known to go.
        range: i64,
    },
    /// Programs of this type cannot write packets.
    #[error("cannot write into packet")]
    PacketWrite,
    /// Beyond a stack frame.
    #[error("invalid {access} stack R{reg} off={off} size={size}")]
    Stack {
        /// The register.
        reg: usize,
        /// What is tried, with its preposition.
        access: &'static str,
        /// Byte offset.
        off: i64,
        /// Bytes.
        size: i64,
    },
    /// Beyond a stack frame, by a number that is not known.
    #[error("invalid {access} stack R{reg} var_off={var} size={size}")]
    StackVariable {
        /// The register.
        reg: usize,
        /// What is tried, with its preposition.
        access: &'static str,
        /// The offset's possible bits.
        var: String,
        /// Bytes.
        size: i64,
    },
    /// An access that is not aligned where it has to be.
    #[error("misaligned {what}access off {var}+{at}+{off} size {size}")]
    Misaligned {
        /// The kind of object, and a blank.
        what: &'static str,
        /// The unknown part of the pointer.
        var: String,
        /// Its own offset.
        at: i64,
        /// The instruction's offset.
        off: i16,
        /// Bytes.
        size: i64,
    },
    /// A load of some bytes of a spilled pointer.
    #[error("invalid size of register fill")]
    FillSize,
    /// A pointer of which some bytes are stored.
    #[error("invalid size of register spill")]
    SpillSize,
    /// A stack pointer stored in the frame of a caller.
    #[error("cannot spill pointers to stack into stack frame of the caller")]
    SpillToCaller,
    /// A stack pointer returned.
    #[error("cannot return stack pointer to the caller")]
    ReturnsStack,
    /// Map flags against writing.
    #[error("write into map forbidden{0}")]
    MapWrite(String),
    /// Map flags against reading.
    #[error("read from map forbidden{0}")]
    MapRead(String),
    /// A special field that only helpers may touch.
    #[error("{0} cannot be accessed directly by load/store")]
    SpecialField(&'static str),
    /// A special field in memory that is handed to a helper.
    #[error("{0} cannot be accessed indirectly by helper")]
    SpecialFieldIndirect(&'static str),
    /// A frozen map of several elements, read at a known place. The kernel cannot fold it and gives up.
    #[error("direct value of map '{0}' cannot be read: it has more than one element")]
    FrozenElements(String),
    /// A write to the key of an element.
    #[error("write to change key R{0} not allowed")]
    KeyWrite(usize),
    /// An object of which programs may only read.
    #[error("R{reg} cannot write into {is}")]
    ReadOnly {
        /// The register.
        reg: usize,
        /// What it holds.
        is: String,
    },
    /// A key or value of an iterator's element, before its beginning.
    #[error("R{reg} invalid {what} buffer access: off={off}, size={size}")]
    BufferNegative {
        /// The register.
        reg: usize,
        /// What programs may do with it.
        what: &'static str,
        /// Byte offset.
        off: i64,
        /// Bytes.
        size: i64,
    },
    /// A key or value of an iterator's element, at a place that is not known.
    #[error("R{reg} invalid variable buffer offset: off={off}, var_off={var}")]
    BufferVariable {
        /// The register.
        reg: usize,
        /// What programs may do with it.
        what: &'static str,
        /// The fixed part of the offset.
        off: i64,
        /// The offset's possible bits.
        var: String,
    },
    /// An object of the kernel's that programs cannot write.
    #[error("only read is supported")]
    OnlyRead,
    /// No field of what an iterator tells about itself, or a part of a pointer there.
    #[error("access beyond struct bpf_iter_meta at off {off} size {size}")]
    MetaAccess {
        /// Byte offset.
        off: i64,
        /// Bytes.
        size: i64,
    },
    /// What an iterator tells about itself, at a place that is not known.
    #[error("R is ptr_bpf_iter_meta invalid variable offset: off=0, var_off={0}")]
    MetaVariable(String),
    /// A context that was moved.
    #[error("dereference of modified ctx ptr R{reg} off={off} disallowed")]
    ModifiedCtx {
        /// The register.
        reg: usize,
        /// By how many bytes.
        off: i64,
    },
    /// A context that was moved by a number that is not known.
    #[error("variable ctx access var_off={0} disallowed")]
    VariableCtx(String),
    /// A field that contexts of this type do not have.
    #[error("invalid bpf_context access off={off} size={size}")]
    CtxAccess {
        /// Byte offset.
        off: i64,
        /// Bytes.
        size: i64,
    },
    /// An instruction that accesses the context on one path and other memory on another.
    #[error("same insn cannot be used with different pointers")]
    DifferentPointers,
    /// An atomic operation where there are none.
    #[error("BPF_ATOMIC {access} R{reg} {is} is not allowed")]
    Atomic {
        /// What is tried, with its preposition.
        access: &'static str,
        /// The register.
        reg: usize,
        /// What it holds.
        is: String,
    },
    /// An operation on an address that is no addition or subtraction.
    #[error("R{reg} pointer arithmetic with {op} operator prohibited")]
    PointerOperator {
        /// The register.
        reg: usize,
        /// The operation.
        op: &'static str,
    },
    /// An operation on bits of an address.
    #[error("R{reg} bitwise operator {op} on pointer prohibited")]
    PointerBits {
        /// The register.
        reg: usize,
        /// The operation.
        op: &'static str,
    },
    /// An operation on two addresses.
    #[error("R{reg} pointer {op} pointer prohibited")]
    TwoPointers {
        /// The register.
        reg: usize,
        /// The operation.
        op: &'static str,
    },
    /// An operation on half an address.
    #[error("R{0} 32-bit pointer arithmetic prohibited")]
    PointerHalf(usize),
    /// An address taken from a number.
    #[error("R{0} tried to subtract pointer from scalar")]
    FromScalar(usize),
    /// A number taken from a stack pointer.
    #[error("R{0} subtraction from stack pointer prohibited")]
    FromStack(usize),
    /// An address that may be 0, moved.
    #[error("R{reg} pointer arithmetic on {is} prohibited, null-check it first")]
    ArithmeticOnNull {
        /// The register.
        reg: usize,
        /// What it holds.
        is: String,
    },
    /// An address that cannot be moved.
    #[error("R{reg} pointer arithmetic on {is} prohibited")]
    Arithmetic {
        /// The register.
        reg: usize,
        /// What it holds.
        is: String,
    },
    /// An address moved further than any object is long.
    #[error("math between {is} pointer and {by} is not allowed")]
    FarMove {
        /// What is moved.
        is: &'static str,
        /// By how much.
        by: String,
    },
    /// An argument of the wrong kind.
    #[error("R{reg} type={is} expected={expected}")]
    ArgType {
        /// The register.
        reg: usize,
        /// What it holds.
        is: String,
        /// What the helper takes.
        expected: &'static str,
    },
    /// A helper that does not take addresses in packets.
    #[error("helper access to the packet is not allowed")]
    PacketArg,
    /// A size that may be negative.
    #[error("R{0} min value is negative, either use unsigned or 'var &= const'")]
    SizeNegative(usize),
    /// A size that may be 0.
    #[error("R{0} invalid zero-sized read: u64=[0,{1}]")]
    SizeZero(usize, u64),
    /// A size that nothing bounds.
    #[error("R{0} unbounded memory access, use 'var &= const' or 'if (var < const)'")]
    SizeUnbounded(usize),
    /// A string that is not in a map that never changes.
    #[error("R{reg} {why}")]
    ConstStr {
        /// The register.
        reg: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A helper that programs of this type do not have.
    #[error("program of this type cannot use helper {0}")]
    HelperForType(String),
    /// A helper for programs under the GPL.
    #[error("cannot call GPL-restricted function from non-GPL compatible program")]
    Gpl,
    /// A map that programs which may sleep cannot use.
    #[error("Sleepable programs can only use array, hash, ringbuf and local storage maps")]
    SleepableMap,
    /// A pointer that is not exactly at a special field.
    #[error("off {off} doesn't point to 'struct {field}' that is at {at}")]
    FieldOffset {
        /// The pointer's offset.
        off: i64,
        /// The field's name.
        field: &'static str,
        /// Where it is.
        at: i64,
    },
    /// A pointer to a special field at an offset that is not known.
    #[error("R{0} doesn't have constant offset. {1} has to be at the constant offset")]
    FieldVariable(usize, &'static str),
    /// A map without the special field that a helper works on.
    #[error("map '{map}' has no valid {field}")]
    NoField {
        /// The map's name.
        map: String,
        /// The field's name.
        field: &'static str,
    },
    /// A timer and the map of another one.
    #[error("timer pointer in R1 map and map pointer in R2 map are different")]
    TimerMap,
    /// A second lock.
    #[error("Locking two bpf_spin_locks are not allowed")]
    SecondLock,
    /// An unlock without a lock.
    #[error("bpf_spin_unlock without taking a lock")]
    NoLock,
    /// An unlock of a lock that is not held.
    #[error("bpf_spin_unlock of different lock")]
    OtherLock,
    /// A call of a global function under a lock.
    #[error("global function calls are not allowed while holding a lock")]
    GlobalCallUnderLock,
    /// An address where a global function takes a number.
    #[error("R{0} is not a scalar")]
    GlobalNumber(usize),
    /// A global function that returns no number.
    #[error("Global function {0}() doesn't return scalar. Only those are supported.")]
    GlobalReturn(String),
    /// A global function with an argument that cannot be verified by its type.
    #[error("Arg#{arg} type in {function}() is not supported yet.")]
    GlobalArg {
        /// Which argument.
        arg: usize,
        /// The function's name.
        function: String,
    },
    /// A call under a lock.
    #[error("function calls are not allowed while holding a lock")]
    CallUnderLock,
    /// An end under a lock.
    #[error("{0} cannot be used inside bpf_spin_lock-ed region")]
    EndUnderLock(&'static str),
    /// An object that was taken out and neither put back nor released.
    #[error("Unreleased reference id={0}")]
    Unreleased(u32),
    /// A result that the caller does not know.
    #[error("{what} the register R0 has {range} should have been in [{min}, {max}]")]
    Returned {
        /// Where.
        what: &'static str,
        /// What it may be.
        range: String,
        /// Least result.
        min: i64,
        /// Largest result.
        max: i64,
    },
    /// A result that is an address where the caller needs a number.
    #[error("R0 not a scalar value")]
    ReturnsPointer,
    /// A load of packet bytes in a program of another type.
    #[error("BPF_LD_[ABS|IND] instructions not allowed for this program type")]
    LoadPacketType,
    /// A load of packet bytes without the context in r6.
    #[error("at the time of BPF_LD_ABS|IND R6 != pointer to skb")]
    LoadPacketCtx,
}

impl Rule {
    /// The error number with which the kernel refuses a program that breaks the rule.
    pub fn errno(&self) -> Errno {
        match self {
            Self::TooLarge(_) | Self::TooManyMaps(_) | Self::CallDepth(_) => Errno::E2BIG,
            Self::FrozenElements(_) => Errno::ENOTSUPP,
            Self::UnreachableInsn(_)
            | Self::InfiniteLoop(_)
            | Self::SpillToCaller
            | Self::ReturnsStack
            | Self::DifferentPointers
            | Self::FarMove { .. }
            | Self::HelperForType(_)
            | Self::Gpl
            | Self::SleepableMap
            | Self::FieldOffset { .. }
            | Self::FieldVariable(..)
            | Self::NoField { .. }
            | Self::TimerMap
            | Self::SecondLock
            | Self::NoLock
            | Self::OtherLock
            | Self::CallUnderLock
            | Self::GlobalCallUnderLock
            | Self::GlobalNumber(_)
            | Self::GlobalArg { .. }
            | Self::GlobalReturn(_)
            | Self::EndUnderLock(_)
            | Self::Unreleased(_)
            | Self::Returned { .. }
            | Self::ReturnsPointer
            | Self::LoadPacketType
            | Self::LoadPacketCtx => Errno::EINVAL,
            _ => Errno::EACCES,
        }
    }
}

/// Which bytes of a value are forbidden.
pub(super) fn detail(value_size: u32, off: i64, size: i64) -> String {
    format!(", value_size={value_size} off={off} size={size}")
}
