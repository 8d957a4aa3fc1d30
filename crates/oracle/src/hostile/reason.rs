//! Why the kernel's verifier refused a program, by the last line it wrote.

/// What kind of thing was wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Reason {
    /// Whether the program would touch memory that it must not, or could.
    pub is_memory: bool,
    /// A few words.
    pub name: &'static str,
}

/// Parts of the line that all have to be there, and what they say; the first that fits counts.
const MEMORY: &[(&[&str], &str)] = &[
    (&["cannot be accessed"], "a special field"),
    (&["special field"], "a special field"),
    (&["has to be at", "off"], "a special field"),
    (&["access not allowed", "kptr"], "a special field"),
    (&["!read_ok"], "a register without a value"),
    (&["invalid mem access"], "an access through what is no pointer"),
    (&["invalid bpf_context access"], "a field the context does not have"),
    (&["ctx ptr"], "a changed pointer to the context"),
    (&["variable ctx access"], "a changed pointer to the context"),
    (&["ctx", "disallowed"], "a changed pointer to the context"),
    (&["invalid access to packet"], "the packet's bounds"),
    (&["outside of the packet"], "the packet's bounds"),
    (&["outside of the allowed memory range"], "the bounds of a value or packet"),
    (&["invalid access to map value"], "the bounds of a value or packet"),
    (&["invalid access to memory"], "the bounds of a value or packet"),
    (&["min value is negative"], "a number without a lower bound"),
    (&["unbounded memory access"], "a number without an upper bound"),
    (&["unbounded min value"], "a number without a lower bound"),
    (&["invalid zero-sized"], "a length"),
    (&["invalid zero size"], "a length"),
    (&["subtraction from stack pointer"], "arithmetic with pointers"),
    (&["stack"], "the stack's bounds"),
    (&["corrupt spilled"], "a pointer on the stack, partly overwritten"),
    (&["register spill"], "a pointer on the stack, partly overwritten"),
    (&["register fill"], "a pointer on the stack, partly overwritten"),
    (&["partial copy of pointer"], "a pointer on the stack, partly overwritten"),
    (&["misaligned"], "an unaligned access"),
    (&["map forbidden"], "a map that is read-only or write-only"),
    (&["cannot write into"], "memory that is read-only"),
    (&["BPF_ATOMIC"], "an atomic operation on such memory"),
    (&["type=", "expected="], "an argument of another type"),
    (&["must be a known constant"], "an argument that is not known"),
    (&["not a known constant"], "an argument that is not known"),
    (&["must point to"], "an argument of another type"),
    (&["doesn't point to"], "an argument of another type"),
    (&["pointer arithmetic"], "arithmetic with pointers"),
    (&["pointer operation prohibited"], "arithmetic with pointers"),
    (&["pointer addition"], "arithmetic with pointers"),
    (&["pointer subtraction"], "arithmetic with pointers"),
    (&["tried to subtract"], "arithmetic with pointers"),
    (&["tried to add"], "arithmetic with pointers"),
    (&["bitwise operator"], "arithmetic with pointers"),
    (&["pointer comparison prohibited"], "arithmetic with pointers"),
    (&["pointer be out of bounds"], "arithmetic with pointers"),
    (&["pointer offset"], "arithmetic with pointers"),
    (&["value", "makes", "pointer"], "arithmetic with pointers"),
    (&["math between"], "arithmetic with pointers"),
    (&["pointer ", "= pointer prohibited"], "arithmetic with pointers"),
    (&["timer pointer"], "an argument of another type"),
    (&["has no valid bpf_"], "an argument of another type"),
    (&["negative offset", "ptr", "disallowed"], "arithmetic with pointers"),
    (&["access beyond", "struct bpf_"], "an access to a map itself"),
    (&["invalid negative access"], "an access to a map itself"),
    (&["cannot access ptr member"], "an access to a map itself"),
    (&["BPF_LD_ABS", "pointer to skb"], "an argument of another type"),
    (&["read from bpf_array is supported"], "an access to a map itself"),
    (&["does not point to"], "an argument of another type"),
    (&["helper access to the packet"], "an argument of another type"),
    (&["fixed offset"], "a pointer with an offset"),
    (&["same insn cannot be used"], "an access through pointers of two kinds"),
    (&["leaks addr"], "an address that leaks"),
];

const OTHER: &[(&[&str], &str)] = &[
    (&["combined stack size"], "too much stack"),
    (&["call stack"], "calls too deep"),
    (&["stack frame"], "calls too deep"),
    (&["unreachable insn"], "an instruction that is never reached"),
    (&["infinite loop"], "a loop without end"),
    (&["back-edge"], "a loop without end"),
    (&["too large"], "too complex"),
    (&["too complex"], "too complex"),
    (&["too many states"], "too complex"),
    (&["iteration"], "too complex"),
    (&["At program exit the register R0"], "the value returned"),
    (&["At callback return the register R0"], "the value returned by a callback"),
    (&["R0 not a scalar value"], "the value returned by a callback"),
    (&["verifier bug"], "a bug of the verifier"),
    (&["should have been in"], "the value returned"),
    (&["leads to invalid memory access"], "an address that leaks"),
    (&["lock"], "a lock"),
    (&["Unreleased reference"], "a reference that is kept"),
    (&["reference has not been acquired"], "a reference that is not held"),
    (&["unknown func"], "a helper that does not exist"),
    (&["invalid func"], "a helper that does not exist"),
    (&["cannot use helper"], "a helper for other programs"),
    (&["cannot call"], "a helper for other programs"),
    (&["cannot pass map_type"], "a helper for other maps"),
    (&["not allowed for map"], "a helper for other maps"),
    (&["Unsupported map type"], "a helper for other maps"),
    (&["only for"], "a helper for other programs"),
    (&["unknown opcode"], "the form of an instruction"),
    (&["reserved field"], "the form of an instruction"),
    (&["invalid BPF_"], "the form of an instruction"),
    (&["unrecognized"], "the form of an instruction"),
    (&["invalid bpf_ld_imm64"], "the form of an instruction"),
    (&["is invalid"], "the form of an instruction"),
    (&["division by zero"], "the form of an instruction"),
    (&["div by zero"], "the form of an instruction"),
    (&["invalid shift"], "the form of an instruction"),
    (&["frame pointer is read only"], "the form of an instruction"),
    (&["not an exit or jmp"], "the form of an instruction"),
    (&["jump out of range"], "a jump"),
    (&["jump into the middle"], "a jump"),
    (&["subprog"], "a function"),
    (&["invalid destination"], "a jump"),
    (&["btf_id"], "the form of an instruction"),
    (&["module BTF"], "the form of an instruction"),
    (&["atomic operand size"], "the form of an instruction"),
    (&["direct value offset"], "the form of an instruction"),
    (&["expected prog array map"], "a helper for other maps"),
    (&["no direct value access"], "a helper for other maps"),
    (&["Sleepable programs"], "a map for other programs"),
    (&["tracing progs cannot"], "a map for other programs"),
    (&["socket filter progs cannot"], "a map for other programs"),
    (&["addr_space_cast"], "the form of an instruction"),
    (&["fd_idx"], "a map that does not exist"),
    (&["fd_array"], "a map that does not exist"),
    (&["is not pointing to valid bpf_map"], "a map that does not exist"),
];

/// The line that says why, and what kind of reason that is; `None` for a line that nobody knows yet.
pub fn reason(log: &str) -> (&str, Option<Reason>) {
    // One message lacks its line's end, so the summary is told by its words.
    let said = log.rfind("processed ").map_or(log, |summary| &log[..summary]);
    let is_said = |line: &&str| !line.trim().is_empty() && !line.contains(" state: ");
    let line = said.lines().rev().find(is_said).unwrap_or_default();
    let fits = |(parts, _): &&(&[&str], &str)| parts.iter().all(|part| line.contains(part));
    // What is said of the stack as a whole is no access to it.
    let early = OTHER.iter().take(3).find(fits).map(|(_, name)| (false, *name));
    let memory = || MEMORY.iter().find(fits).map(|(_, name)| (true, *name));
    let other = || OTHER.iter().find(fits).map(|(_, name)| (false, *name));
    let found = early.or_else(memory).or_else(other);
    (line, found.map(|(is_memory, name)| Reason { is_memory, name }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_before_the_summary_tells_the_reason() {
        let log = "0: R1=ctx() R10=fp0\n3: (61) r1 = *(u32 *)(r2 +0)\nR2 invalid mem access 'scalar'\n\
                   processed 4 insns (limit 1000000) max_states_per_insn 0\n";
        let (line, why) = reason(log);
        assert_eq!(line, "R2 invalid mem access 'scalar'");
        assert!(why.is_some_and(|why| why.is_memory));
        let is_memory = |line| reason(line).1.map(|why| why.is_memory);
        assert_eq!(is_memory("combined stack size of 2 calls is 1024. Too large"), Some(false));
        assert_eq!(is_memory("invalid write to stack R10 off=-520 size=8"), Some(true));
        assert_eq!(is_memory("what is this"), None);
    }
}
