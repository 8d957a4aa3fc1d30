//! A program of the root directory in this process: its file, and the executable that is made from it when it is needed.

use std::sync::{Arc, OnceLock};

use bpfarray::MapRef;
use bpfarray_core::Errno;
use bpfarray_core::btf::Btf;
use bpfarray_vm::elf::{Function, Line};
use bpfarray_vm::prog_type::AttachType;
use bpfarray_vm::{LoadOptions, LogLevel, ProgType, Program, ProgramError, ProgramSource};

use crate::file::MapObject;
use crate::prog_file::{FuncInfo, LineInfo, ProgFile};

/// # Kernel
/// `BPF_F_SLEEPABLE`
pub(crate) const F_SLEEPABLE: u32 = 1 << 4;

/// # Kernel
/// `BPF_F_XDP_HAS_FRAGS`
pub(crate) const F_XDP_HAS_FRAGS: u32 = 1 << 5;

/// A program of the root directory in this process.
pub(crate) struct ProgObject {
    pub(crate) id: u32,
    pub(crate) file: ProgFile,
    /// Those that the file named when it was read, in its order.
    maps: Vec<Arc<MapObject>>,
    btf: Option<Btf>,
    program: OnceLock<Result<Program, Errno>>,
}

impl ProgObject {
    /// A program whose file has just been read.
    pub(crate) fn new(
        id: u32,
        file: ProgFile,
        maps: Vec<Arc<MapObject>>,
        btf: Option<Btf>,
    ) -> Arc<Self> {
        Arc::new(Self { id, file, maps, btf, program: OnceLock::new() })
    }

    /// A program that has just been made.
    pub(crate) fn loaded(
        id: u32,
        file: ProgFile,
        maps: Vec<Arc<MapObject>>,
        program: Program,
    ) -> Arc<Self> {
        // The program has what it needs of the types.
        let program = OnceLock::from(Ok(program.with_id(id)));
        Arc::new(Self { id, file, maps, btf: None, program })
    }

    /// The executable. Whoever asks first makes it.
    ///
    /// # Errors
    /// Those of the verifier, for a file that somebody changed.
    pub(crate) fn program(&self) -> Result<&Program, Errno> {
        let make = || {
            let maps = self.maps.iter().map(|map| map.to_ref()).collect();
            let program = build(&self.file, maps, self.btf.as_ref(), LogLevel::None);
            program.map(|program| program.with_id(self.id)).map_err(|error| error.errno())
        };
        self.program.get_or_init(make).as_ref().map_err(|errno| *errno)
    }
}

/// Verifies and compiles a program.
pub(crate) fn build(
    file: &ProgFile,
    maps: Vec<MapRef>,
    btf: Option<&Btf>,
    log: LogLevel,
) -> Result<Program, ProgramError> {
    let line = |info: &LineInfo| Line {
        insn: info.insn_off as usize,
        file_name_off: info.file_name_off,
        line_off: info.line_off,
        line: info.line_col >> 10,
        column: info.line_col & 0x3ff,
    };
    let lines: Vec<_> = file.line_info.iter().map(line).collect();
    let name = |type_id| {
        let name = btf.and_then(|btf| btf.get(type_id).ok()).map(|found| found.name);
        name.unwrap_or_default().into()
    };
    let function = |info: &FuncInfo| Function {
        insn: info.insn_off as usize,
        name: name(info.type_id),
        type_id: info.type_id,
    };
    let functions: Vec<_> = file.func_info.iter().map(function).collect();
    let source = ProgramSource {
        name: file.name(),
        prog_type: ProgType(file.prog_type),
        expected_attach_type: AttachType(file.expected_attach_type),
        xdp_has_frags: file.prog_flags & F_XDP_HAS_FRAGS != 0,
        gpl_compatible: file.is_gpl_compatible(),
        sleepable: file.prog_flags & F_SLEEPABLE != 0,
        hash: Some(file.hash),
        functions: &functions,
        lines: &lines,
        btf,
    };
    source.build(&file.insns, maps, &options(log))
}

/// How programs of bpf(2) are verified and run: what the kernel refuses is refused.
fn options(log: LogLevel) -> LoadOptions {
    LoadOptions { strict: true, log, ..LoadOptions::default() }
}
