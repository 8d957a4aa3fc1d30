//! What a loader says about the functions and source lines of a program.

use bpfarray_core::Errno;
use bpfarray_core::btf::{Btf, Def};
use bpfarray_core::insn::{Insn, class, jmp, pseudo};

use crate::attr::{Attr, check_tail};
use crate::kernel::Kernel;
use crate::prog_file::{FuncInfo, LineInfo};

use super::maps::Refused;

/// Longest record a loader may have.
///
/// # Kernel
/// `MAX_FUNCINFO_REC_SIZE`, `MAX_LINEINFO_REC_SIZE`
const MAX_REC_SIZE: u32 = 252;

/// Where an attribute block describes an array of records.
pub(super) struct Place {
    rec_size: usize,
    records: usize,
    count: usize,
    what: &'static str,
    /// What the kernel says of more records than it would make room for.
    too_many: Errno,
}

pub(super) const FUNC_INFO: Place =
    Place { rec_size: 76, records: 80, count: 88, what: "func info", too_many: Errno::ENOMEM };
pub(super) const LINE_INFO: Place =
    Place { rec_size: 92, records: 96, count: 104, what: "line_info", too_many: Errno::EINVAL };

fn invalid<T>(why: String) -> Result<T, Refused> {
    Err((Errno::EINVAL, why))
}

impl Place {
    pub(super) fn count(&self, attr: &Attr) -> u32 {
        attr.u32(self.count)
    }

    /// Copies the records and has each judged by `check`, which gets those before it.
    fn read<T, const N: usize>(
        &self,
        kernel: &Kernel,
        attr: &Attr,
        decode: impl Fn([u8; N]) -> T,
        mut check: impl FnMut(&[T], &T) -> Result<(), Refused>,
    ) -> Result<Vec<T>, Refused> {
        let fault = |errno| (errno, String::new());
        let (count, rec_size) = (self.count(attr), attr.u32(self.rec_size));
        if !(N as u32..=MAX_REC_SIZE).contains(&rec_size) || !rec_size.is_multiple_of(4) {
            return invalid(format!("invalid {} rec size {rec_size}", self.what));
        }
        if u64::from(count) * N as u64 > i32::MAX as u64 {
            return Err((self.too_many, String::new()));
        }
        // What the caller promises need not be there.
        let mut records = Vec::new();
        let mut addr = attr.pointer(self.records);
        for _ in 0..count {
            if let Err(errno) = check_tail(&kernel.user, addr, rec_size, N) {
                if errno == Errno::E2BIG {
                    // What a loader has to cut its records to.
                    attr.put_u32(&kernel.user, self.rec_size, N as u32).map_err(fault)?;
                }
                return Err((errno, format!("nonzero tailing record in {}", self.what)));
            }
            let mut bytes = [0; N];
            kernel.user.read(addr, &mut bytes).map_err(fault)?;
            let record = decode(bytes);
            check(&records, &record)?;
            records.push(record);
            addr = addr.offset(rec_size.into()).map_err(fault)?;
        }
        Ok(records)
    }
}

/// # Kernel
/// `check_btf_func_early`
pub(super) fn func_info(kernel: &Kernel, attr: &Attr, btf: &Btf) -> Result<Vec<FuncInfo>, Refused> {
    FUNC_INFO.read(kernel, attr, FuncInfo::decode, |before, info: &FuncInfo| {
        let offset = info.insn_off;
        match before.last() {
            None if offset != 0 => {
                return invalid(format!(
                    "nonzero insn_off {offset} for the first func info record"
                ));
            }
            Some(last) if offset <= last.insn_off => {
                return invalid(format!(
                    "same or smaller insn offset ({offset}) than previous func info record ({})",
                    last.insn_off
                ));
            }
            _ => {}
        }
        match btf.get(info.type_id).map(|found| found.def) {
            Ok(Def::Func { .. }) => Ok(()),
            _ => invalid(format!("invalid type id {} in func info", info.type_id)),
        }
    })
}

/// Whether there is a record for each function of the program.
///
/// # Kernel
/// `check_btf_func`
pub(super) fn check_functions(infos: &[FuncInfo], functions: &[u32]) -> Result<(), Refused> {
    if infos.is_empty() {
        return Ok(());
    }
    if infos.len() != functions.len() {
        let why = "number of funcs in func_info doesn't match number of subprogs";
        return invalid(why.to_owned());
    }
    if infos.iter().zip(functions).any(|(info, &start)| info.insn_off != start) {
        let why = "func_info BTF section doesn't match subprog layout in BPF program";
        return invalid(why.to_owned());
    }
    Ok(())
}

/// # Kernel
/// `check_btf_line`
pub(super) fn line_info(
    kernel: &Kernel,
    attr: &Attr,
    btf: &Btf,
    insns: &[Insn],
    functions: &[u32],
) -> Result<Vec<LineInfo>, Refused> {
    if LINE_INFO.count(attr) == 0 {
        return Ok(Vec::new());
    }
    let mut seen = 0;
    let lines = LINE_INFO.read(kernel, attr, LineInfo::decode, |before, info: &LineInfo| {
        let (number, offset) = (before.len(), info.insn_off);
        let last = before.last().map(|line| line.insn_off);
        let insn = insns.get(offset as usize);
        if last.is_some_and(|last| offset <= last) || insn.is_none() {
            return invalid(format!(
                "Invalid line_info[{number}].insn_off:{offset} (prev_offset:{} prog->len:{})",
                last.unwrap_or(0),
                insns.len()
            ));
        }
        if insn.is_some_and(|insn| insn.code == 0) {
            return invalid(format!("Invalid insn code at line_info[{number}].insn_off"));
        }
        if btf.string(info.line_off).is_none() || btf.string(info.file_name_off).is_none() {
            return invalid(format!("Invalid line_info[{number}].line_off or .file_name_off"));
        }
        match functions.get(seen) {
            Some(&start) if start == offset => seen += 1,
            Some(&start) if start < offset => {
                return invalid(format!("missing bpf_line_info for func#{seen}"));
            }
            _ => {}
        }
        Ok(())
    })?;
    if seen != functions.len() {
        let missing = functions.len() - seen;
        return invalid(format!(
            "missing bpf_line_info for {missing} funcs starting from func#{seen}"
        ));
    }
    Ok(lines)
}

/// Where functions begin, by what refers to them.
///
/// # Kernel
/// `add_subprog_and_kfunc`
pub(super) fn functions(insns: &[Insn]) -> Vec<u32> {
    let target = |(at, insn): (usize, &Insn)| {
        let is_function = insn.is_ld_imm64() && insn.src.index() as u8 == pseudo::FUNC;
        let refers = is_function || insn.is_pseudo_call();
        let target = (at as i64).checked_add(i64::from(insn.imm))?.checked_add(1)?;
        // Where else a call leads, the verifier says.
        u32::try_from(target).ok().filter(|&target| refers && (target as usize) < insns.len())
    };
    let mut functions: Vec<u32> = insns.iter().enumerate().filter_map(target).collect();
    functions.push(0);
    functions.sort_unstable();
    functions.dedup();
    functions
}

/// Whether jumps stay in their function, and none falls off its end: looked at before lines and maps are.
///
/// # Kernel
/// `check_subprogs`
pub(super) fn check_bounds(insns: &[Insn], functions: &[u32]) -> Result<(), Refused> {
    let ends = functions.iter().skip(1).map(|&end| end as usize).chain([insns.len()]);
    for (&start, end) in functions.iter().zip(ends) {
        let start = start as usize;
        for (at, insn) in insns.iter().enumerate().take(end).skip(start) {
            let is_jump = matches!(insn.class(), class::JMP | class::JMP32);
            let by = match (insn.class(), insn.op()) {
                (_, jmp::EXIT | jmp::CALL) => None,
                (class::JMP32, jmp::JA) => Some(i64::from(insn.imm)),
                _ => Some(i64::from(insn.off)),
            };
            let target = by.filter(|_| is_jump).map(|by| at as i64 + by + 1);
            if let Some(target) = target.filter(|to| !(start as i64..end as i64).contains(to)) {
                return invalid(format!("jump out of range from insn {at} to {target}"));
            }
            let is_end = is_jump && matches!(insn.op(), jmp::EXIT | jmp::JA);
            if at + 1 == end && !is_end {
                return invalid("last insn is not an exit or jmp".to_owned());
            }
        }
    }
    Ok(())
}
