//! Programs: loading, running, binding maps.

mod attach;
mod info;
mod load;
mod maps;
mod records;
mod run;

use bpfarray_core::Errno;

pub(super) use info::prog_info;
pub(super) use load::load;
pub(super) use run::{count_runs, look_at_slots, test_run};

use crate::attr::Attr;
use crate::file::Object;
use crate::kernel::Kernel;

/// # Kernel
/// `bpf_prog_bind_map`
pub(super) fn bind_map(kernel: &Kernel, attr: &Attr) -> Result<(), Errno> {
    const PROG_FD: usize = 0;
    const MAP_FD: usize = 4;
    const FLAGS: usize = 8;
    const END: usize = 12;
    attr.ends_at(END)?;
    if attr.u32(FLAGS) != 0 {
        return Err(Errno::EINVAL);
    }
    let prog = kernel.prog(attr.fd(PROG_FD))?;
    let map = kernel.with_map(attr.fd(MAP_FD), |map| Ok(map.object.id))?;
    kernel.lock()?.bind(prog.id, map)
}

/// # Kernel
/// `bpf_enable_stats`
pub(super) fn enable_stats(kernel: &Kernel, attr: &Attr) -> Result<i32, Errno> {
    const TYPE: usize = 0;
    const END: usize = 4;
    /// `BPF_STATS_RUN_TIME`
    const RUN_TIME: u32 = 0;
    attr.ends_at(END)?;
    if attr.u32(TYPE) != RUN_TIME {
        return Err(Errno::EINVAL);
    }
    let file = kernel.root.enable_stats()?;
    Ok(kernel.install(file, None::<Object>))
}
