//! Programs that read what BPF programs write to perf events, under `bpfarray exec`: the kernel gives them the same.

use super::exec::{is_installed, library};
use super::exec_programs::{here, with_the_kernel};
use super::*;

/// Compares line by line, so that a difference is seen in what was done.
fn compare(found: &str, command: &str) {
    let Some(expected) = with_the_kernel(command) else { return };
    for (found, expected) in found.lines().zip(expected.lines()) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.lines().count(), expected.lines().count());
}

#[test]
fn a_program_that_maps_rings_by_hand_finds_the_kernels_records() {
    let Some(_) = library().filter(|_| is_installed("python3")) else {
        eprintln!("SKIPPED: no python3, or no library");
        return;
    };
    let bpftool = if is_installed("bpftool") { " bpftool" } else { "" };
    let command = &format!("python3 crates/cli/tests/data/rings.py{bpftool}");
    let found = here("rings", command);
    assert!(found.contains("\nepoll once for three [[1], []]\n"), "{found}");
    assert!(found.contains("\nby another process 72 [[1], []]\n"), "{found}");
    let last = if bpftool.is_empty() { "kept 0 0 None 0 144" } else { "bpftool is gone -2" };
    assert!(found.ends_with(&format!("\n{last}\n")), "{found}");
    compare(&found, command);
}

#[test]
fn perf_buffers_of_libbpf_get_the_kernels_records() {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rings");
    let built = Command::new("cc")
        .args(["-O1", "-o"])
        .arg(&program)
        .args(["crates/cli/tests/data/rings.c", "-lbpf"])
        .current_dir(root())
        .stderr(std::process::Stdio::null())
        .status();
    if library().is_none() || !built.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: no C compiler with libbpf, or no library");
        return;
    }
    let command = format!("{} testdata/progs/perf.bpf.o", program.display());
    let found = here("perf_buffer", &command);
    assert!(found.contains("\nsample pages 0 12: 88 77 66 55 44 33 22 11\n"), "{found}");
    assert!(found.contains("\nlost pages 0 130\n"), "{found}");
    assert!(found.contains("\npoll 1 and again 0\n") && found.contains("\nfreed -2\n"), "{found}");
    assert_eq!(found.matches("\nof a child 1 0\n").count(), 3, "{found}");
    compare(&found, &command);
}
