//! The conformance runner, driven as suites of the instruction set drive it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test in functions")]

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use bpfarray_core::insn::{Insn, Reg, alu, size};
use bpfarray_vm::Engine;

/// `cargo test` builds examples first, unless it is told which tests to run.
fn runner() -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.join("examples/conformance")
}

/// What the runner prints, and whether it succeeds.
fn run(insns: &[Insn], args: &[&str]) -> (String, bool) {
    let bytes = insns.iter().flat_map(|insn| insn.encode());
    let text: Vec<_> = bytes.map(|byte| format!("{byte:02x}")).collect();
    let mut child = Command::new(runner())
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("`cargo build -p bpfarray-vm --example conformance` makes the runner");
    child.stdin.take().unwrap().write_all(text.join(" ").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (String::from_utf8(output.stdout).unwrap().trim().to_owned(), output.status.success())
}

#[test]
fn programs_get_memory_and_give_their_whole_result() {
    let engines: &[&str] =
        if Engine::Jit.is_available() { &["--interp", "--jit"] } else { &["--interp"] };
    for engine in engines {
        let sum = [
            Insn::ldx_mem(size::W, Reg::R0, Reg::R1, 4),
            Insn::alu64_reg(alu::ADD, Reg::R0, Reg::R2),
            Insn::alu64_imm(alu::MUL, Reg::R0, -1),
            Insn::exit(),
        ];
        let result = run(&sum, &["00 00 00 00 05 00 00 00", engine]);
        assert_eq!(result, ("fffffffffffffff3".to_owned(), true));
        let (text, passed) = run(
            &[Insn::ldx_mem(size::B, Reg::R0, Reg::R1, 8), Insn::exit()],
            &["0000000000000000", engine],
        );
        assert!(!passed && text.contains("1-byte read"), "{text}");
        let (text, passed) = run(&[Insn::new(0xff, Reg::R0, Reg::R0, 0, 0)], &[engine]);
        assert!(!passed && text.contains("opcode"), "{text}");
    }
}
