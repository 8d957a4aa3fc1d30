//! CO-RE: fitting compiled instructions to the layout types have elsewhere.
//!
//! A compiler leaves, for each access it was told to keep relocatable, a record with the type, a path into it
//! and a question: at which offset, how large, is it there at all. Here the type is looked up by name in a
//! target BTF, the path is followed by member names, and the answer is written into the instruction. An
//! instruction whose question has no answer becomes a call of helper [`POISON_HELPER`], which exists nowhere, so
//! that it matters only to a program that gets there.
//!
//! Without a target BTF each type is its own counterpart, and the object stays as it was compiled.

mod matching;
mod patch;
mod spec;
#[cfg(test)]
mod tests;
mod value;

use std::collections::HashMap;

use bpfarray_core::btf::{Btf, BtfError, CoreRelo, Kind};
use bpfarray_core::insn::{INSN_SIZE, Insn};

use matching::{Matcher, essence, kinds_are_compat};
use spec::{RelocKind, Spec};
use value::Answer;

/// The helper id that stands for an instruction that could not be relocated: it reads "bad relo".
///
/// # Kernel
/// `bpf_core_poison_insn` in libbpf
pub(crate) const POISON_HELPER: u32 = 0x0bad_2310;

/// Why a CO-RE relocation cannot be carried out.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct CoreRelocError {
    /// Index of the instruction in its section.
    pub(crate) insn: usize,
    /// What is wrong.
    pub(crate) defect: CoreRelocDefect,
}

/// What is wrong with a CO-RE relocation.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CoreRelocDefect {
    /// The record is for an instruction the section does not have.
    #[error("there is no such instruction")]
    NoSuchInsn,
    /// A kind of question that is not known.
    #[error("kind {0} is unknown")]
    UnknownKind(u32),
    /// A path that is not a list of numbers, or leads nowhere in the object's own types.
    #[error("its path into type {0} is invalid")]
    BadPath(u32),
    /// A type without a name, which cannot be looked up elsewhere.
    #[error("type {0} has no name to look it up by")]
    Anonymous(u32),
    /// A question that cannot be asked about an array element, or a bit field across 8 bytes.
    #[error("the question does not apply to the field")]
    Inapplicable,
    /// Several types of the target have the name and give different answers.
    #[error("target types {0} and {1} give different answers")]
    Ambiguous(u32, u32),
    /// The instruction does not hold the value the object's own types give.
    #[error("the instruction holds {found:#x} where the object's types say {expected:#x}")]
    Mismatch {
        /// What the types say.
        expected: u64,
        /// What the instruction holds.
        found: u64,
    },
    /// The instruction is of a kind that holds no relocatable value.
    #[error("opcode {0:#04x} cannot be relocated")]
    BadInsn(u8),
    /// The answer does not fit the instruction.
    #[error("the value {0} does not fit the instruction")]
    TooBig(u64),
    /// The field of the target has a size no instruction accesses.
    #[error("no instruction accesses {0} bytes")]
    BadAccessSize(u32),
    /// Comparing the types takes too long to be an honest program's.
    #[error("the types are too complex to compare")]
    TooComplex,
    /// The BTF cannot answer.
    #[error(transparent)]
    Btf(#[from] BtfError),
}

/// Relocates the instructions of one object.
pub(crate) struct CoreReloc<'a> {
    local: &'a Btf,
    target: Option<Target<'a>>,
}

struct Target<'a> {
    /// Types of the target by name, without flavours.
    by_name: HashMap<&'a str, Vec<u32>>,
    matcher: Matcher<'a>,
}

impl<'a> CoreReloc<'a> {
    /// A relocator from `local`, the object's own types, to those of `target`, or of the object itself.
    pub(crate) fn new(local: &'a Btf, target: Option<&'a Btf>) -> Self {
        let target = target.map(|target| {
            let mut by_name = HashMap::<_, Vec<u32>>::new();
            for ty in target.types().filter(|ty| !ty.name.is_empty()) {
                by_name.entry(essence(ty.name)).or_default().push(ty.id);
            }
            Target { by_name, matcher: Matcher::new(local, target) }
        });
        Self { local, target }
    }

    /// Relocates `insns`, the instructions of a whole section, by the records of that section.
    ///
    /// # Errors
    /// The first record that cannot be carried out; `insns` is then half done and not to be used.
    pub(crate) fn apply(
        &mut self,
        insns: &mut [Insn],
        relos: &[CoreRelo],
    ) -> Result<(), CoreRelocError> {
        for relo in relos {
            let insn = relo.insn_off as usize / INSN_SIZE;
            self.apply_one(insns, insn, relo).map_err(|defect| CoreRelocError { insn, defect })?;
        }
        Ok(())
    }

    fn apply_one(
        &mut self,
        insns: &mut [Insn],
        at: usize,
        relo: &CoreRelo,
    ) -> Result<(), CoreRelocDefect> {
        let aligned = (relo.insn_off as usize).is_multiple_of(INSN_SIZE);
        let insns = insns.get_mut(at..).filter(|insns| aligned && !insns.is_empty());
        let insns = insns.ok_or(CoreRelocDefect::NoSuchInsn)?;
        let kind = RelocKind::from_raw(relo.kind)?;
        let path = self.local.string(relo.access_str_off);
        let path = path.ok_or(CoreRelocDefect::BadPath(relo.type_id))?;
        let local = Spec::parse(self.local, relo.type_id, path, kind)?;
        let answer = match &mut self.target {
            Some(target) if kind != RelocKind::TypeIdLocal => target.answer(&local, kind)?,
            _ => Answer::new(kind, &local, Some(&local))?,
        };
        // From which word to load a bit field was the compiler's choice: offset, size and shifts go together.
        if self.target.is_none() && kind.is_field_based() && !answer.validate {
            return Ok(());
        }
        patch::patch(insns, &answer)
    }
}

impl Target<'_> {
    /// The answer on which all types of the target agree that have the name and fit.
    fn answer(&mut self, local: &Spec<'_>, kind: RelocKind) -> Result<Answer, CoreRelocDefect> {
        let root = local.btf.get(local.root)?;
        if root.name.is_empty() || root.kind() == Kind::Void {
            return Err(CoreRelocDefect::Anonymous(local.root));
        }
        let candidates = self.by_name.get(essence(root.name)).map_or(&[][..], Vec::as_slice);
        let mut agreed: Option<(Answer, Spec<'_>)> = None;
        for &candidate in candidates {
            let candidate_kind = self.matcher.target().get(candidate)?.kind();
            if !kinds_are_compat(root.kind(), candidate_kind) {
                continue;
            }
            let Some(spec) = self.matcher.find(local, kind, candidate)? else { continue };
            let answer = Answer::new(kind, local, Some(&spec))?;
            match &agreed {
                Some((first, place)) if *first != answer || place.bit_offset != spec.bit_offset => {
                    return Err(CoreRelocDefect::Ambiguous(place.root, spec.root));
                }
                Some(_) => {}
                None => agreed = Some((answer, spec)),
            }
        }
        match agreed {
            Some((answer, _)) => Ok(answer),
            None => Answer::new(kind, local, None),
        }
    }
}
