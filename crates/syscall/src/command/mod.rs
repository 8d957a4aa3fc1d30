//! Commands, one file for what belongs together.

mod batch;
mod btf;
mod create;
mod elem;
mod id;
mod info;
mod iter;
mod link;
mod log;
mod object;
mod pin;
mod prog;

use bpfarray_core::Errno;

use crate::attr::Attr;
use crate::kernel::Kernel;

/// Numbers of commands, as in `enum bpf_cmd`.
macro_rules! commands {
    ($($value:literal $name:ident,)*) => {
        $(const $name: u32 = $value;)*

        /// The name of a command without its `BPF_`, such as `MAP_CREATE`; `None` for a number that Linux 6.18 doesn't know.
        pub const fn command_name(cmd: u32) -> Option<&'static str> {
            match cmd {
                $($value => Some(stringify!($name)),)*
                8 => Some("PROG_ATTACH"),
                9 => Some("PROG_DETACH"),
                16 => Some("PROG_QUERY"),
                17 => Some("RAW_TRACEPOINT_OPEN"),
                20 => Some("TASK_FD_QUERY"),
                36 => Some("TOKEN_CREATE"),
                37 => Some("PROG_STREAM_READ_BY_FD"),
                _ => None,
            }
        }
    };
}

commands! {
    0 MAP_CREATE,
    1 MAP_LOOKUP_ELEM,
    2 MAP_UPDATE_ELEM,
    3 MAP_DELETE_ELEM,
    4 MAP_GET_NEXT_KEY,
    5 PROG_LOAD,
    6 OBJ_PIN,
    7 OBJ_GET,
    10 PROG_TEST_RUN,
    11 PROG_GET_NEXT_ID,
    12 MAP_GET_NEXT_ID,
    13 PROG_GET_FD_BY_ID,
    14 MAP_GET_FD_BY_ID,
    15 OBJ_GET_INFO_BY_FD,
    18 BTF_LOAD,
    19 BTF_GET_FD_BY_ID,
    21 MAP_LOOKUP_AND_DELETE_ELEM,
    22 MAP_FREEZE,
    23 BTF_GET_NEXT_ID,
    24 MAP_LOOKUP_BATCH,
    25 MAP_LOOKUP_AND_DELETE_BATCH,
    26 MAP_UPDATE_BATCH,
    27 MAP_DELETE_BATCH,
    28 LINK_CREATE,
    29 LINK_UPDATE,
    30 LINK_GET_FD_BY_ID,
    31 LINK_GET_NEXT_ID,
    32 ENABLE_STATS,
    33 ITER_CREATE,
    34 LINK_DETACH,
    35 PROG_BIND_MAP,
}

/// Whether a command copies no more than an element, and need not wait. Only updates of slots, and those with a lock, may have to,
/// for a process that is about to change the directory or holds that lock.
pub(crate) const fn is_quick(cmd: u32) -> bool {
    matches!(cmd, MAP_LOOKUP_ELEM | MAP_UPDATE_ELEM | MAP_GET_NEXT_KEY)
}

/// # Kernel
/// `__sys_bpf`
#[inline]
pub(crate) fn dispatch(kernel: &Kernel, cmd: u32, attr: &Attr) -> Result<i32, Errno> {
    let done = |result: Result<(), Errno>| result.map(|()| 0);
    match cmd {
        MAP_LOOKUP_ELEM => done(elem::lookup(kernel, attr)),
        MAP_UPDATE_ELEM => done(elem::update(kernel, attr)),
        MAP_DELETE_ELEM => done(elem::delete(kernel, attr)),
        MAP_GET_NEXT_KEY => done(elem::get_next_key(kernel, attr)),
        MAP_LOOKUP_AND_DELETE_ELEM => done(elem::lookup_and_delete(kernel, attr)),
        MAP_FREEZE => done(elem::freeze(kernel, attr)),
        MAP_LOOKUP_BATCH => done(batch::lookup(kernel, attr)),
        MAP_UPDATE_BATCH => done(batch::update(kernel, attr)),
        MAP_DELETE_BATCH => done(batch::delete(kernel, attr)),
        MAP_LOOKUP_AND_DELETE_BATCH => done(batch::lookup_and_delete(kernel, attr)),
        MAP_CREATE => create::map(kernel, attr),
        BTF_LOAD => btf::load(kernel, attr),
        OBJ_PIN => done(pin::pin(kernel, attr)),
        OBJ_GET => pin::get(kernel, attr),
        OBJ_GET_INFO_BY_FD => done(info::by_fd(kernel, attr)),
        MAP_GET_NEXT_ID => done(id::next_map(kernel, attr)),
        BTF_GET_NEXT_ID => done(id::next_btf(kernel, attr)),
        MAP_GET_FD_BY_ID => id::map_fd(kernel, attr),
        BTF_GET_FD_BY_ID => id::btf_fd(kernel, attr),
        PROG_LOAD => prog::load(kernel, attr),
        PROG_TEST_RUN => done(prog::test_run(kernel, attr)),
        PROG_BIND_MAP => done(prog::bind_map(kernel, attr)),
        PROG_GET_NEXT_ID => done(id::next_prog(kernel, attr)),
        PROG_GET_FD_BY_ID => id::prog_fd(kernel, attr),
        ENABLE_STATS => prog::enable_stats(kernel, attr),
        LINK_CREATE => link::create(kernel, attr),
        LINK_UPDATE => done(link::update(kernel, attr)),
        LINK_DETACH => done(link::detach(kernel, attr)),
        LINK_GET_NEXT_ID => done(id::next_link(kernel, attr)),
        LINK_GET_FD_BY_ID => id::link_fd(kernel, attr),
        ITER_CREATE => iter::create(kernel, attr),
        // What attaches programs to other things, and what no kernel knows.
        _ => Err(Errno::EINVAL),
    }
}
