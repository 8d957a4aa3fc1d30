//! Loading programs.

use std::fs;
use std::sync::Arc;

use bpfarray::ProgramObject;
use bpfarray_core::Errno;
use bpfarray_core::attr::object_name;
use bpfarray_core::btf::Btf;
use bpfarray_core::insn::{INSN_SIZE, Insn};
use bpfarray_core::map::HandleMode;
use bpfarray_vm::prog_type::AttachType;
use bpfarray_vm::{LogLevel, ProgType, Program, ProgramError, prog_hash};
use rustix::time::{ClockId, clock_gettime};

use super::super::log::Log;
use super::attach;
use super::info::made;
use super::maps::{Refused, UsedMaps};
use super::records::{self, FUNC_INFO, LINE_INFO};
use crate::attr::{ATTR_SIZE, Attr};
use crate::file::{MapObject, Object};
use crate::kernel::Kernel;
use crate::prog::{self, F_SLEEPABLE, ProgObject};
use crate::prog_file::{LICENSE_LEN, MAX_INSNS, Made, NAME_LEN, ProgFile};
use crate::root::Kind;

const PROG_TYPE: usize = 0;
const INSN_CNT: usize = 4;
const INSNS: usize = 8;
const LICENSE: usize = 16;
const LOG_LEVEL: usize = 24;
const LOG_SIZE: usize = 28;
const LOG_BUF: usize = 32;
const PROG_FLAGS: usize = 44;
const PROG_NAME: usize = 48;
const PROG_IFINDEX: usize = 64;
const EXPECTED_ATTACH_TYPE: usize = 68;
const PROG_BTF_FD: usize = 72;
const ATTACH_BTF_ID: usize = 108;
const ATTACH_PROG_FD: usize = 112;
const CORE_RELO_CNT: usize = 116;
const FD_ARRAY: usize = 120;
const LOG_TRUE_SIZE: usize = 140;
const FD_ARRAY_CNT: usize = 148;
const SIGNATURE: usize = 152;

/// `BPF_F_STRICT_ALIGNMENT` to `BPF_F_TEST_REG_INVARIANTS`.
const FLAGS: u32 = 0xff;

/// # Kernel
/// `bpf_prog_load`
pub(in super::super) fn load(kernel: &Kernel, attr: &Attr) -> Result<i32, Errno> {
    attr.ends_at(ATTR_SIZE)?;
    let prog_flags = attr.u32(PROG_FLAGS);
    if prog_flags & !FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    let count = attr.u32(INSN_CNT);
    if count == 0 || count > MAX_INSNS {
        return Err(Errno::E2BIG);
    }
    let prog_type = ProgType(attr.u32(PROG_TYPE));
    let attach_type = attach_type(prog_type, AttachType(attr.u32(EXPECTED_ATTACH_TYPE)))?;
    // There is nothing to extend, and no module with BTF of its own.
    if attr.u32(ATTACH_PROG_FD) != 0 {
        return Err(Errno::EINVAL);
    }
    attach::check_id(prog_type, attr.u32(ATTACH_BTF_ID))?;
    let mut bytes = vec![0; count as usize * INSN_SIZE];
    kernel.user.read(attr.pointer(INSNS), &mut bytes)?;
    let insns: Vec<_> = bytes.as_chunks().0.iter().map(|insn| Insn::decode(*insn)).collect();
    let license = license(kernel, attr)?;
    // Neither keys nor devices are here; nor are there relocations for the kernel to do.
    if attr.u64(SIGNATURE) != 0 || attr.u32(PROG_IFINDEX) != 0 || prog_type.name().is_none() {
        return Err(Errno::EINVAL);
    }
    let now = clock_gettime(ClockId::Boottime);
    let file = ProgFile {
        prog_type: prog_type.0,
        expected_attach_type: attach_type.0,
        prog_flags,
        uid: rustix::process::getuid().as_raw(),
        name: name(attr.field(PROG_NAME))?,
        load_time: (now.tv_sec as u64).wrapping_mul(1_000_000_000) + now.tv_nsec as u64,
        hash: prog_hash(&insns),
        license,
        btf_id: 0,
        attach_btf_id: attr.u32(ATTACH_BTF_ID),
        insns,
        func_info: Vec::new(),
        line_info: Vec::new(),
        made: Made::default(),
        maps: Vec::new(),
    };
    let (buf, size) = (attr.pointer(LOG_BUF), attr.u32(LOG_SIZE));
    let log = Log::new(buf, size, attr.u32(LOG_LEVEL), LOG_TRUE_SIZE)?;
    let checked = check(kernel, attr, file, log.level());
    let said = match &checked {
        Ok(checked) => checked.said(log.level()),
        Err((_, why)) if why.is_empty() => processed(0),
        // The verifier's log ends with how much it looked at.
        Err((_, why)) if why.ends_with('\n') => why.clone(),
        Err((_, why)) => format!("{why}\n{}", processed(0)),
    };
    log.write(kernel, attr, &said)?;
    let checked = checked.map_err(|(errno, _)| errno)?;
    // Also those that are only listed. A log for which there is no room comes before.
    let owner = checked.program.owner();
    let mut maps = checked.maps.iter();
    maps.try_for_each(|map| map.to_ref().claim_owner(&owner)).map_err(|error| error.errno())?;
    checked.install(kernel)
}

/// # Kernel
/// `print_verification_stats`
fn processed(insns: u32) -> String {
    format!(
        "processed {insns} insns (limit {MAX_INSNS}) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0\n"
    )
}

/// A program that was found legal.
struct Checked {
    file: ProgFile,
    maps: Vec<Arc<MapObject>>,
    program: Program,
}

/// # Kernel
/// `bpf_check`
fn check(
    kernel: &Kernel,
    attr: &Attr,
    mut file: ProgFile,
    log: LogLevel,
) -> Result<Checked, Refused> {
    let used = UsedMaps::new(kernel, attr.pointer(FD_ARRAY), attr.u32(FD_ARRAY_CNT), file.hash)?;
    let mut btf = None;
    if FUNC_INFO.count(attr) != 0 || LINE_INFO.count(attr) != 0 {
        let found = kernel.with_object(attr.fd(PROG_BTF_FD), |object| match object {
            Object::Btf(btf) => Ok(Arc::clone(btf)),
            Object::Map(_) | Object::Prog(_) | Object::Link(_) => Err(Errno::EINVAL),
        });
        let found = found.map_err(|errno| (errno, String::new()))?;
        let types = Btf::parse(&found.bytes).map_err(|_| (Errno::EINVAL, String::new()))?;
        if FUNC_INFO.count(attr) != 0 {
            file.func_info = records::func_info(kernel, attr, &types)?;
        }
        file.btf_id = found.id;
        btf = Some(types);
    }
    let functions = records::functions(&file.insns);
    records::check_bounds(&file.insns, &functions)?;
    if let Some(types) = &btf {
        records::check_functions(&file.func_info, &functions)?;
        file.line_info = records::line_info(kernel, attr, types, &file.insns, &functions)?;
        if attr.u32(CORE_RELO_CNT) != 0 {
            let why = "relocations are done by the loader";
            return Err((Errno::EINVAL, why.to_owned()));
        }
    }
    let maps = used.resolve(&mut file.insns)?;
    file.maps = maps.iter().map(|map| map.id).collect();
    check_kind(&file)?;
    let refs = maps.iter().map(|map| map.to_ref()).collect();
    let program = prog::build(&file, refs, btf.as_ref(), log).map_err(|error| {
        let errno = error.errno();
        match error {
            ProgramError::Verify { log, .. } if !log.is_empty() => (errno, log),
            error => (errno, error.to_string()),
        }
    })?;
    file.made = made(&file, &program);
    Ok(Checked { file, maps, program })
}

/// What programs of some types must be.
///
/// # Kernel
/// `check_attach_btf_id`
fn check_kind(file: &ProgFile) -> Result<(), Refused> {
    let is_sleepable = file.prog_flags & F_SLEEPABLE != 0;
    let why = match ProgType(file.prog_type) {
        ProgType::SYSCALL if is_sleepable => return Ok(()),
        ProgType::SYSCALL => "Syscall programs can only be sleepable",
        ProgType::TRACING | ProgType::LSM | ProgType::EXT => return attach::check(file),
        ProgType::STRUCT_OPS => "struct_ops programs need a kernel's BTF",
        ProgType::KPROBE => return Ok(()),
        _ if is_sleepable => {
            "Only fentry/fexit/fmod_ret, lsm, iter, uprobe, and struct_ops programs can be sleepable"
        }
        _ => return Ok(()),
    };
    Err((Errno::EINVAL, why.to_owned()))
}

impl Checked {
    /// What the log of a program says that is not refused: only with all paths more than how much was looked at.
    fn said(&self, level: LogLevel) -> String {
        let log = self.program.verifier_log();
        match log.lines().last() {
            Some(_) if level == LogLevel::All => log.to_owned(),
            Some(last) if last.starts_with("processed ") => format!("{last}\n"),
            _ => processed(self.file.verified_insns()),
        }
    }

    /// Makes the program one of the root directory.
    fn install(self, kernel: &Kernel) -> Result<i32, Errno> {
        let Self { file, maps, program } = self;
        let locked = kernel.lock()?;
        let id = locked.next_id(Kind::Prog)?;
        let opened = locked
            .create_prog(id, &file)
            .and_then(|()| locked.open_new(Kind::Prog, id, HandleMode::ReadWrite));
        let opened = opened.inspect_err(|_| {
            // Without a reference, it would be swept later anyway.
            let _ = fs::remove_file(kernel.root.object(Kind::Prog, id));
        })?;
        drop(locked);
        let object = Object::Prog(ProgObject::loaded(id, file, maps, program));
        Ok(kernel.install(opened, Some(object)))
    }
}

/// # Kernel
/// `bpf_prog_load_fixup_attach_type`, `bpf_prog_load_check_attach`
fn attach_type(prog_type: ProgType, attach_type: AttachType) -> Result<AttachType, Errno> {
    use {AttachType as A, ProgType as P};
    let attach_type = match (prog_type, attach_type) {
        (P::CGROUP_SOCK, A(0)) => A::CGROUP_INET_SOCK_CREATE,
        (P::SK_REUSEPORT, A(0)) => A::SK_REUSEPORT_SELECT,
        (_, attach_type) => attach_type,
    };
    let allowed: &[A] = match prog_type {
        P::CGROUP_SOCK => &[
            A::CGROUP_INET_SOCK_CREATE,
            A::CGROUP_INET_SOCK_RELEASE,
            A::CGROUP_INET4_POST_BIND,
            A::CGROUP_INET6_POST_BIND,
        ],
        P::CGROUP_SOCK_ADDR => &[
            A::CGROUP_INET4_BIND,
            A::CGROUP_INET6_BIND,
            A::CGROUP_INET4_CONNECT,
            A::CGROUP_INET6_CONNECT,
            A::CGROUP_UNIX_CONNECT,
            A::CGROUP_INET4_GETPEERNAME,
            A::CGROUP_INET6_GETPEERNAME,
            A::CGROUP_UNIX_GETPEERNAME,
            A::CGROUP_INET4_GETSOCKNAME,
            A::CGROUP_INET6_GETSOCKNAME,
            A::CGROUP_UNIX_GETSOCKNAME,
            A::CGROUP_UDP4_SENDMSG,
            A::CGROUP_UDP6_SENDMSG,
            A::CGROUP_UNIX_SENDMSG,
            A::CGROUP_UDP4_RECVMSG,
            A::CGROUP_UDP6_RECVMSG,
            A::CGROUP_UNIX_RECVMSG,
        ],
        P::CGROUP_SKB => &[A::CGROUP_INET_INGRESS, A::CGROUP_INET_EGRESS],
        P::CGROUP_SOCKOPT => &[A::CGROUP_SETSOCKOPT, A::CGROUP_GETSOCKOPT],
        P::SK_LOOKUP => &[A::SK_LOOKUP],
        P::SK_REUSEPORT => &[A::SK_REUSEPORT_SELECT, A::SK_REUSEPORT_SELECT_OR_MIGRATE],
        P::NETFILTER => &[A::NETFILTER],
        P::SYSCALL | P::EXT => &[A(0)],
        _ => return Ok(attach_type),
    };
    if allowed.contains(&attach_type) { Ok(attach_type) } else { Err(Errno::EINVAL) }
}

/// A license, cut off after 127 bytes.
fn license(kernel: &Kernel, attr: &Attr) -> Result<Vec<u8>, Errno> {
    let addr = attr.pointer(LICENSE);
    match kernel.user.read_string(addr, LICENSE_LEN - 1, Errno::E2BIG) {
        Err(Errno::E2BIG) => {
            let mut start = vec![0; LICENSE_LEN - 1];
            kernel.user.read(addr, &mut start).map(|()| start)
        }
        other => other,
    }
}

fn name(given: [u8; NAME_LEN]) -> Result<[u8; NAME_LEN], Errno> {
    let allowed = object_name(&given).ok_or(Errno::EINVAL)?;
    let mut name = [0; NAME_LEN];
    name[..allowed.len()].copy_from_slice(allowed);
    Ok(name)
}
