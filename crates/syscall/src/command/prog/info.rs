//! What can be told about a program.

use std::sync::atomic::Ordering;

use bpfarray_core::Errno;
use bpfarray_core::insn::INSN_SIZE;
use bpfarray_vm::Program;

use super::super::info::Info;
use crate::attr::Attr;
use crate::kernel::Kernel;
use crate::prog::ProgObject;
use crate::prog_file::{FuncInfo, LineInfo, Made, ProgFile};

/// Bytes of `struct bpf_prog_info`.
const SIZE: usize = 232;

const JITED_PROG_LEN: usize = 16;
const XLATED_PROG_LEN: usize = 20;
const JITED_PROG_INSNS: usize = 24;
const XLATED_PROG_INSNS: usize = 32;
const NR_MAP_IDS: usize = 52;
const MAP_IDS: usize = 56;
const NR_JITED_KSYMS: usize = 104;
const NR_JITED_FUNC_LENS: usize = 108;
const JITED_KSYMS: usize = 112;
const JITED_FUNC_LENS: usize = 120;
const FUNC_INFO_REC_SIZE: usize = 132;
const FUNC_INFO: usize = 136;
const NR_FUNC_INFO: usize = 144;
const NR_LINE_INFO: usize = 148;
const LINE_INFO: usize = 152;
const NR_JITED_LINE_INFO: usize = 168;
const LINE_INFO_REC_SIZE: usize = 172;
const JITED_LINE_INFO_REC_SIZE: usize = 176;
const NR_PROG_TAGS: usize = 180;
const PROG_TAGS: usize = 184;

/// # Kernel
/// `bpf_prog_get_info_by_fd`
pub(in super::super) fn prog_info(
    kernel: &Kernel,
    attr: &Attr,
    prog: &ProgObject,
) -> Result<(), Errno> {
    let asked = Info::<SIZE>::read(kernel, attr)?;
    let mut told = Told { kernel, info: asked };
    let file = &prog.file;
    told.info.put_u32(0, file.prog_type);
    told.info.put_u32(4, prog.id);
    told.info.put(8, &file.tag());
    told.info.put(40, &file.load_time.to_ne_bytes());
    told.info.put_u32(48, file.uid);
    told.info.put(64, &file.name);
    told.info.put_u32(84, file.is_gpl_compatible().into());
    let maps = kernel.root.maps_of(prog.id)?;
    let maps: Vec<u8> = maps.iter().flat_map(|id| id.to_ne_bytes()).collect();
    told.records(NR_MAP_IDS, MAP_IDS, 4, &maps)?;
    kernel.told.store(prog.id, Ordering::Relaxed);
    let sizes = [
        (FUNC_INFO_REC_SIZE, &[NR_FUNC_INFO][..], FuncInfo::LEN),
        (LINE_INFO_REC_SIZE, &[NR_LINE_INFO], LineInfo::LEN),
        (JITED_LINE_INFO_REC_SIZE, &[NR_JITED_LINE_INFO], size_of::<u64>()),
    ];
    for (rec_size, counts, size) in sizes {
        let is_asked = counts.iter().chain([&rec_size]).any(|&at| told.info.u32(at) != 0);
        if is_asked && told.info.u32(rec_size) != size as u32 {
            return Err(Errno::EINVAL);
        }
        told.info.put_u32(rec_size, size as u32);
    }
    let (run_time_ns, run_cnt) = kernel.root.stats_of(prog.id);
    told.info.put(192, &run_time_ns.to_ne_bytes());
    told.info.put(200, &run_cnt.to_ne_bytes());
    told.info.put(208, &[0; 8]);
    told.info.put_u32(216, file.verified_insns());
    told.info.put_u32(128, file.btf_id);
    // The kernel's BTF is none of the objects here.
    told.info.put_u32(220, 0);
    told.info.put_u32(224, file.attach_btf_id);
    // Which machine code is a line's, nobody keeps.
    told.info.put_u32(NR_JITED_LINE_INFO, 0);
    told.records(NR_PROG_TAGS, PROG_TAGS, 8, &file.tag())?;
    let counts = counts(&file.made);
    if counts.iter().any(|(at, _)| told.info.u32(*at) != 0) {
        told.program(file, prog.program()?)?;
    } else {
        counts.into_iter().for_each(|(at, count)| told.info.put_u32(at, count));
    }
    told.info.write(kernel, attr)
}

/// How much there is of what nobody can tell who has not made the program: where that is said, and the number.
fn counts(made: &Made) -> [(usize, u32); 6] {
    [
        (XLATED_PROG_LEN, made.xlated),
        (JITED_PROG_LEN, made.jited),
        (NR_JITED_KSYMS, 1),
        (NR_JITED_FUNC_LENS, 1),
        (NR_FUNC_INFO, made.func_info),
        (NR_LINE_INFO, made.line_info),
    ]
}

/// What a program that was just made is known by.
pub(super) fn made(file: &ProgFile, program: &Program) -> Made {
    let places = Places::of(program);
    Made {
        xlated: (program.xlated().len() * INSN_SIZE) as u32,
        jited: program.jited().map_or(0, <[u8]>::len) as u32,
        func_info: places.moved(&file.func_info, |info| &mut info.insn_off).len() as u32,
        line_info: places.moved(&file.line_info, |info| &mut info.insn_off).len() as u32,
    }
}

/// Where instructions are after the translation.
struct Places(Vec<usize>);

impl Places {
    fn of(program: &Program) -> Self {
        Self((0..program.xlated().len()).map(|insn| program.origin(insn)).collect())
    }

    /// Records at their instructions' new places. Of those whose instructions were removed the last one remains, if what follows
    /// has none of its own.
    ///
    /// # Kernel
    /// `bpf_adj_linfo_after_remove`
    fn moved<T: Copy>(&self, records: &[T], insn_off: impl Fn(&mut T) -> &mut u32) -> Vec<T> {
        let mut moved: Vec<T> = Vec::with_capacity(records.len());
        for &(mut record) in records {
            let loaded = *insn_off(&mut record) as usize;
            let place = self.0.partition_point(|&origin| origin < loaded);
            if place == self.0.len() {
                break;
            }
            *insn_off(&mut record) = place as u32;
            if moved.last_mut().is_some_and(|last| *insn_off(last) == place as u32) {
                moved.pop();
            }
            moved.push(record);
        }
        moved
    }
}

/// The caller's structure, while it is filled in.
struct Told<'a> {
    kernel: &'a Kernel,
    info: Info<SIZE>,
}

impl Told<'_> {
    /// What is in a program, as much of each as the caller has room for.
    fn program(&mut self, file: &ProgFile, program: &Program) -> Result<(), Errno> {
        let xlated: Vec<u8> = program.xlated().iter().flat_map(|insn| insn.encode()).collect();
        self.records(XLATED_PROG_LEN, XLATED_PROG_INSNS, 1, &xlated)?;
        // The interpreter has no machine code, and so none of its functions either.
        let jited = program.jited().unwrap_or_default();
        // Addresses may be longer here than where it was loaded; callers have room for what they were told first.
        let jited = &jited[..jited.len().min(file.made.jited as usize)];
        self.records(JITED_PROG_LEN, JITED_PROG_INSNS, 1, jited)?;
        let start = (jited.as_ptr().addr() as u64).to_ne_bytes();
        self.records(NR_JITED_KSYMS, JITED_KSYMS, 8, &start)?;
        let len = (jited.len() as u32).to_ne_bytes();
        self.records(NR_JITED_FUNC_LENS, JITED_FUNC_LENS, 4, &len)?;
        let places = Places::of(program);
        let functions = places.moved(&file.func_info, |info| &mut info.insn_off);
        let functions: Vec<u8> = functions.into_iter().flat_map(FuncInfo::encode).collect();
        self.records(NR_FUNC_INFO, FUNC_INFO, FuncInfo::LEN, &functions)?;
        let lines = places.moved(&file.line_info, |info| &mut info.insn_off);
        let lines: Vec<u8> = lines.into_iter().flat_map(LineInfo::encode).collect();
        self.records(NR_LINE_INFO, LINE_INFO, LineInfo::LEN, &lines)
    }

    /// Copies as many records as the caller has room for, and says how many there are.
    fn records(
        &mut self,
        count: usize,
        addr: usize,
        size: usize,
        records: &[u8],
    ) -> Result<(), Errno> {
        let room = (self.info.u32(count) as usize).saturating_mul(size).min(records.len());
        if room != 0 {
            self.kernel.user.write(self.info.pointer(addr), &records[..room])?;
        }
        self.info.put_u32(count, (records.len() / size) as u32);
        Ok(())
    }
}
