//! Where a program spends its instructions.

/// How often each instruction of a program was executed. One entry for each instruction of [`Program::xlated`](super::Program::xlated).
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Profile {
    pub(super) counts: Vec<u64>,
}

impl Profile {
    /// How often instruction `insn` of [`Program::xlated`](super::Program::xlated) was executed.
    pub fn count(&self, insn: usize) -> u64 {
        self.counts.get(insn).copied().unwrap_or(0)
    }
}
