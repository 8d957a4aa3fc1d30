//! A program that comes from no object file: what a loader hands to the kernel.

use std::sync::Arc;

use bpfarray::MapRef;
use bpfarray_core::btf::Btf;
use bpfarray_core::insn::Insn;
use bpfarray_core::map::prog_array::Owner;

use crate::elf::{Function, Line, ProgramCode};
use crate::loaded::LoadOptions;
use crate::prog_type::{AttachType, ProgType};
use crate::program::{Mode, Program, ProgramError, Source, owner};

/// What a loader says about a program besides its instructions and maps.
///
/// ```
/// use bpfarray_core::insn::{Insn, Reg};
/// use bpfarray_vm::{LoadOptions, ProgType, ProgramSource};
/// let source = ProgramSource { name: "answer", ..ProgramSource::new(ProgType::XDP) };
/// let insns = [Insn::mov64_imm(Reg::R0, 42), Insn::exit()];
/// let program = source.build(&insns, Vec::new(), &LoadOptions::default())?;
/// assert_eq!(program.name(), "answer");
/// # Ok::<(), bpfarray_vm::ProgramError>(())
/// ```
///
/// # Kernel
/// The part of `union bpf_attr` that `BPF_PROG_LOAD` uses
#[derive(Copy, Clone, Debug)]
pub struct ProgramSource<'a> {
    /// The program's name.
    pub name: &'a str,
    /// The program's type.
    pub prog_type: ProgType,
    /// How it expects to be attached, or 0.
    pub expected_attach_type: AttachType,
    /// Whether an XDP program accepts packets in several buffers.
    pub xdp_has_frags: bool,
    /// Whether its license lets it call helpers for programs under the GPL.
    pub gpl_compatible: bool,
    /// Whether it may sleep.
    pub sleepable: bool,
    /// What [`prog_hash`](crate::prog_hash) makes of the instructions as they were handed in, if maps were named in another way there than
    /// by their index, or the indices were others. It decides about exclusive maps.
    pub hash: Option<[u8; 32]>,
    /// Where its functions begin, in ascending order, if `btf` describes them.
    pub functions: &'a [Function],
    /// From which source lines the instructions come, in ascending order.
    pub lines: &'a [Line],
    /// What `functions` and `lines` refer to.
    pub btf: Option<&'a Btf>,
}

impl ProgramSource<'_> {
    /// A program of this type of which nothing else is said.
    pub const fn new(prog_type: ProgType) -> Self {
        Self {
            name: "",
            prog_type,
            expected_attach_type: AttachType(0),
            xdp_has_frags: false,
            gpl_compatible: true,
            sleepable: false,
            hash: None,
            functions: &[],
            lines: &[],
            btf: None,
        }
    }

    /// Verifies the instructions, which refer to maps by their index in `maps` (`pseudo::MAP_IDX`, `pseudo::MAP_IDX_VALUE`), and
    /// makes the program. Whoever hands it to others lets it own its PROG_ARRAYs before, with [`MapRef::claim_owner`].
    ///
    /// # Errors
    /// [`ProgramError::Verify`], [`ProgramError::Exclusive`], [`ProgramError::Xlate`].
    pub fn build(
        &self,
        insns: &[Insn],
        maps: Vec<MapRef>,
        options: &LoadOptions,
    ) -> Result<Program, ProgramError> {
        let (functions, lines) = (self.functions.to_vec(), self.lines.to_vec());
        let code = ProgramCode { insns: insns.to_vec(), functions, lines };
        let owner = Owner {
            xdp_has_frags: self.xdp_has_frags,
            ..owner(self.prog_type, self.expected_attach_type.0)
        };
        let source = Source {
            name: self.name,
            code: &code,
            btf: self.btf,
            gpl_compatible: self.gpl_compatible,
            sleepable: self.sleepable,
            hash: self.hash,
        };
        let helpers = Arc::new(options.helpers.clone());
        Program::build(source, owner, maps, &helpers, Mode::of(options))
    }
}
