//! What programs are for that name it by the BTF of the running kernel: here, to be called for the elements of a map.

use std::fs;
use std::sync::OnceLock;

use bpfarray_core::Errno;
use bpfarray_core::btf::{Btf, Kind};
use bpfarray_vm::ProgType;
use bpfarray_vm::prog_type::AttachType;

use super::maps::Refused;
use crate::link::ITER_TARGET;
use crate::prog_file::ProgFile;

/// Loaders look for names in the BTF of the kernel on which they run, and hand in what they find: so it is that BTF which says
/// what an id means.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// # Kernel
/// `BTF_MAX_TYPE`
const MAX_TYPE: u32 = 0xf_ffff;

/// Refuses ids where a program cannot have one.
///
/// # Kernel
/// `bpf_prog_load_check_attach`
pub(super) fn check_id(prog_type: ProgType, btf_id: u32) -> Result<(), Errno> {
    use ProgType as P;
    let has_id = matches!(prog_type, P::TRACING | P::LSM | P::STRUCT_OPS | P::EXT);
    if btf_id == 0 || has_id && btf_id <= MAX_TYPE { Ok(()) } else { Err(Errno::EINVAL) }
}

/// # Kernel
/// `check_attach_btf_id`, `bpf_check_attach_target`, `bpf_iter_prog_supported`
pub(super) fn check(file: &ProgFile) -> Result<(), Refused> {
    let refused = |why: String| Err((Errno::EINVAL, why));
    let id = file.attach_btf_id;
    if id == 0 {
        return refused("Tracing programs must provide btf_id".to_owned());
    }
    let attach_type = AttachType(file.expected_attach_type);
    let is_iter = ProgType(file.prog_type) == ProgType::TRACING;
    if !is_iter || attach_type != AttachType::TRACE_ITER {
        return refused("programs cannot be attached to functions of the kernel".to_owned());
    }
    match iter_id() {
        Some(known) if known == id => Ok(()),
        Some(known) => refused(format!(
            "attach_btf_id {id} is not {known}, that of bpf_iter_{ITER_TARGET}: there are no iterators over anything else"
        )),
        None => refused(format!("{VMLINUX} does not tell the id of bpf_iter_{ITER_TARGET}")),
    }
}

/// The id of the function that stands for iterators over the elements of a map.
fn iter_id() -> Option<u32> {
    static ID: OnceLock<Option<u32>> = OnceLock::new();
    *ID.get_or_init(|| {
        let name = format!("bpf_iter_{ITER_TARGET}");
        Btf::find_in(&fs::read(VMLINUX).ok()?, &name, Kind::Func).ok()?
    })
}
