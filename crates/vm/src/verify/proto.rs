//! What the helpers of Linux take and give.

use bpfarray_core::helper_id as id;

use crate::prog_type::{AttachType, ProgType};

/// What a helper takes in a register.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Arg {
    /// Anything that can be read.
    Anything,
    Ctx,
    Map,
    /// As many bytes as a key of the map has.
    Key,
    /// As many bytes as a value of the map has.
    Value,
    /// Bytes that are read, as many as the next argument says.
    Mem,
    /// Likewise; 0 if there are none.
    MemOrNull,
    /// Bytes that are written, as many as the next argument says.
    Fill,
    /// Likewise; 0 if there are none.
    FillOrNull,
    /// Eight bytes that are written.
    Long,
    Size,
    SizeOrZero,
    Function,
    /// Something on the stack, for a callback; or 0.
    StackOrNull,
    Lock,
    Timer,
    /// Where a kptr is.
    Kptr,
    /// What a kptr holds; or 0.
    ObjectOrNull,
    /// What an iterator writes to.
    Seq,
    ConstStr,
}

/// What a helper gives.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Ret {
    Number,
    /// Nothing; r0 cannot be read.
    Void,
    ElementOrNull,
    ObjectOrNull,
}

/// Which programs have a helper.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum On {
    All,
    Xdp,
    /// Classifiers and actions.
    Tc,
    /// They and socket filters.
    Skb,
    /// Classifiers, actions and XDP.
    TcXdp,
    /// All three.
    Net,
    /// Iterators.
    Iter,
}

impl On {
    pub(super) fn has(self, prog_type: ProgType, attach_type: AttachType) -> bool {
        let tc = matches!(prog_type, ProgType::SCHED_CLS | ProgType::SCHED_ACT);
        let (xdp, filter) = (prog_type == ProgType::XDP, prog_type == ProgType::SOCKET_FILTER);
        match self {
            Self::All => true,
            Self::Xdp => xdp,
            Self::Tc => tc,
            Self::Skb => tc || filter,
            Self::TcXdp => tc || xdp,
            Self::Net => tc || xdp || filter,
            Self::Iter => attach_type == AttachType::TRACE_ITER,
        }
    }
}

/// A helper's prototype.
///
/// # Kernel
/// `struct bpf_func_proto`
#[derive(Copy, Clone, Debug)]
pub(super) struct Proto {
    pub(super) args: &'static [Arg],
    pub(super) ret: Ret,
    pub(super) on: On,
    /// Only for programs under a license that is compatible with the GPL.
    pub(super) gpl_only: bool,
    /// Whether memory may be in the packet.
    pub(super) takes_packet: bool,
    /// Whether the packet may be elsewhere afterwards.
    pub(super) moves_packet: bool,
}

impl Proto {
    const fn gpl(self) -> Self {
        Self { gpl_only: true, ..self }
    }

    const fn packet(self) -> Self {
        Self { takes_packet: true, ..self }
    }

    const fn moves(self) -> Self {
        Self { moves_packet: true, ..self }
    }

    const fn on(self, on: On) -> Self {
        Self { on, ..self }
    }

    const fn ret(self, ret: Ret) -> Self {
        Self { ret, ..self }
    }
}

const fn takes(args: &'static [Arg]) -> Proto {
    Proto {
        args,
        ret: Ret::Number,
        on: On::All,
        gpl_only: false,
        takes_packet: false,
        moves_packet: false,
    }
}

/// The prototype of a helper of Linux that can be had here.
pub(super) fn proto(helper: u32) -> Option<Proto> {
    use Arg::{
        Anything, ConstStr, Ctx, Fill, FillOrNull, Function, Key, Kptr, Lock, Long, Map, Mem,
        MemOrNull, ObjectOrNull, Seq, Size, SizeOrZero, StackOrNull, Timer, Value,
    };
    Some(match helper {
        id::MAP_LOOKUP_ELEM => takes(&[Map, Key]).packet().ret(Ret::ElementOrNull),
        id::MAP_LOOKUP_PERCPU_ELEM => takes(&[Map, Key, Anything]).packet().ret(Ret::ElementOrNull),
        id::MAP_UPDATE_ELEM => takes(&[Map, Key, Value, Anything]).packet(),
        id::MAP_DELETE_ELEM => takes(&[Map, Key]).packet(),
        id::KTIME_GET_NS
        | id::KTIME_GET_BOOT_NS
        | id::KTIME_GET_TAI_NS
        | id::JIFFIES64
        | id::GET_PRANDOM_U32
        | id::GET_SMP_PROCESSOR_ID
        | id::GET_CURRENT_PID_TGID
        | id::GET_CURRENT_UID_GID => takes(&[]),
        id::KTIME_GET_COARSE_NS => takes(&[]).on(On::Net),
        id::SET_HASH_INVALID => takes(&[Ctx]).on(On::Tc),
        id::GET_CURRENT_COMM => takes(&[Fill, Size]),
        id::TRACE_PRINTK => takes(&[Mem, Size]).gpl(),
        id::TRACE_VPRINTK => takes(&[Mem, Size, MemOrNull, SizeOrZero]).gpl(),
        id::TAIL_CALL => takes(&[Ctx, Map, Anything]).ret(Ret::Void).moves(),
        id::FOR_EACH_MAP_ELEM => takes(&[Map, Function, StackOrNull, Anything]),
        id::LOOP => takes(&[Anything, Function, StackOrNull, Anything]),
        id::CURRENT_TASK_UNDER_CGROUP => takes(&[Map, Anything]),
        id::PERF_EVENT_READ => takes(&[Map, Anything]).gpl(),
        id::PERF_EVENT_OUTPUT => takes(&[Ctx, Map, Anything, Mem, SizeOrZero]).gpl(),
        id::PERF_EVENT_READ_VALUE => takes(&[Map, Anything, Fill, Size]).gpl(),
        id::SPIN_LOCK | id::SPIN_UNLOCK => takes(&[Lock]).ret(Ret::Void),
        id::TIMER_INIT => takes(&[Timer, Map, Anything]).gpl(),
        id::TIMER_SET_CALLBACK => takes(&[Timer, Function]).gpl(),
        id::TIMER_START => takes(&[Timer, Anything, Anything]).gpl(),
        id::TIMER_CANCEL => takes(&[Timer]).gpl(),
        id::KPTR_XCHG => takes(&[Kptr, ObjectOrNull]).ret(Ret::ObjectOrNull),
        id::STRTOL | id::STRTOUL => takes(&[Mem, Size, Anything, Long]),
        id::STRNCMP => takes(&[Mem, Size, ConstStr]),
        id::SNPRINTF => takes(&[FillOrNull, SizeOrZero, ConstStr, MemOrNull, SizeOrZero]).gpl(),
        id::SEQ_PRINTF => takes(&[Seq, Mem, Size, MemOrNull, SizeOrZero]).gpl().on(On::Iter),
        id::SEQ_WRITE => takes(&[Seq, Mem, SizeOrZero]).gpl().on(On::Iter),
        id::CSUM_DIFF => {
            takes(&[MemOrNull, SizeOrZero, MemOrNull, SizeOrZero, Anything]).packet().on(On::TcXdp)
        }
        id::CSUM_UPDATE | id::CSUM_LEVEL | id::SET_HASH => takes(&[Ctx, Anything]).on(On::Tc),
        id::REDIRECT => takes(&[Anything, Anything]).on(On::TcXdp),
        id::REDIRECT_PEER => takes(&[Anything, Anything]).on(On::Tc),
        id::REDIRECT_NEIGH => takes(&[Anything, MemOrNull, SizeOrZero, Anything]).on(On::Tc),
        id::SKB_LOAD_BYTES => takes(&[Ctx, Anything, Fill, Size]).on(On::Skb),
        id::SKB_LOAD_BYTES_RELATIVE => takes(&[Ctx, Anything, Fill, Size, Anything]).on(On::Skb),
        id::SKB_STORE_BYTES => takes(&[Ctx, Anything, Mem, Size, Anything]).moves().on(On::Tc),
        id::SKB_PULL_DATA => takes(&[Ctx, Anything]).moves().on(On::Tc),
        id::XDP_ADJUST_HEAD | id::XDP_ADJUST_META | id::XDP_ADJUST_TAIL => {
            takes(&[Ctx, Anything]).moves().on(On::Xdp)
        }
        id::XDP_GET_BUFF_LEN => takes(&[Ctx]).on(On::Xdp),
        id::XDP_LOAD_BYTES => takes(&[Ctx, Anything, Fill, Size]).on(On::Xdp),
        id::XDP_STORE_BYTES => takes(&[Ctx, Anything, Mem, Size]).on(On::Xdp),
        _ => return None,
    })
}
