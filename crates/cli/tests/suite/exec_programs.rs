//! Programs that load BPF programs, under `bpfarray exec`: the kernel gives the same answers.

use super::exec::{exec, is_installed, library, objects, text};
use super::*;

/// What a command prints with the live kernel, in a mount namespace with a bpffs that nobody else sees; `None` where programs cannot
/// be loaded.
pub(super) fn with_the_kernel(command: &str) -> Option<String> {
    let script = format!("mount -t bpf bpf /sys/fs/bpf && exec {command}");
    let mut kernel = Command::new("unshare");
    kernel.args(["-m", "sh", "-c", &script]).current_dir(root());
    let found = kernel.output().ok().filter(|output| output.status.success());
    if found.is_none() {
        eprintln!("SKIPPED: the comparison with the live kernel, for it refuses programs");
    }
    found.map(|output| text(&output).0)
}

/// What a command prints here.
pub(super) fn here(name: &str, command: &str) -> String {
    here_with(name, &["--"], command)
}

/// What a command prints under `bpfarray exec` with these options.
pub(super) fn here_with(name: &str, options: &[&str], command: &str) -> String {
    let path = objects(name);
    let words: Vec<_> = options.iter().copied().chain(command.split_whitespace()).collect();
    let output = exec(&path, &words).output().unwrap();
    let (found, errors) = text(&output);
    assert!(output.status.success() && errors.is_empty(), "{found}{errors}");
    std::fs::remove_dir_all(path).unwrap();
    found
}

#[test]
fn a_client_that_loads_and_runs_programs_gets_the_kernels_answers() {
    let Some(_) = library().filter(|_| is_installed("python3")) else {
        eprintln!("SKIPPED: no python3, or no library");
        return;
    };
    let command = "python3 crates/cli/tests/data/programs.py";
    let found = here("programs", command);
    assert!(found.ends_with("counted True 5\noff again 5\n"), "{found}");
    assert!(found.contains("\nbind 0 0 -22 -22 -22 -9 -9\n"), "{found}");
    if let Some(expected) = with_the_kernel(command) {
        for (found, expected) in found.lines().zip(expected.lines()) {
            assert_eq!(found, expected);
        }
        assert_eq!(found.lines().count(), expected.lines().count());
    }
}

#[test]
fn a_program_on_libbpfs_objects_gets_the_kernels_answers() {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("object");
    let built = Command::new("cc")
        .args(["-O1", "-o"])
        .arg(&program)
        .args(["crates/cli/tests/data/object.c", "-lbpf"])
        .current_dir(root())
        .stderr(std::process::Stdio::null())
        .status();
    if library().is_none() || !built.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: no C compiler with libbpf, or no library");
        return;
    }
    let command = format!("{} {OBJECT}", program.display());
    let found = here("object", &command);
    assert!(
        found.starts_with("open 0\nload 0\nrun 0 1, too long 1000\nrun 0 2, too long 1000\n"),
        "{found}"
    );
    assert!(found.ends_with("by id 0 2\ngone -2\n"), "{found}");
    if let Some(expected) = with_the_kernel(&command) {
        assert_eq!(found, expected);
    }
}

#[test]
fn a_loader_on_aya_gets_the_kernels_answers() {
    // A workspace of its own, which `.ci/run` builds beside the command.
    let program = Path::new(env!("CARGO_BIN_EXE_bpfarray")).with_file_name("aya-client");
    if library().is_none() || !program.exists() {
        eprintln!("SKIPPED: the loader on aya was not built, or no library");
        return;
    }
    let command = format!("{} {OBJECT}", program.display());
    let found = here("aya", &command);
    assert!(found.contains("\nports: [3, 3, 3], 3 of them\n"), "{found}");
    assert!(found.ends_with("gone: Some(\"No such file or directory (os error 2)\")\n"), "{found}");
    if let Some(expected) = with_the_kernel(&command) {
        for (found, expected) in found.lines().zip(expected.lines()) {
            assert_eq!(found, expected);
        }
        assert_eq!(found.lines().count(), expected.lines().count());
    }
}

/// What does not depend on ids, times and machine code.
fn lasting(line: &str) -> String {
    let Ok(answer) = serde_json::from_str::<Value>(line) else { return line.to_owned() };
    let fields = ["type", "name", "tag", "gpl_compatible", "retval", "data_out"];
    let shown = fields.map(|field| answer[field].to_string()).join(" ");
    let maps = answer["map_ids"].as_array().map_or(0, Vec::len);
    format!("{shown} {maps} {}", answer["btf_id"].is_number())
}

#[test]
fn bpftool_loads_shows_dumps_and_runs_programs() {
    let Some(_) = library().filter(|_| is_installed("bpftool")) else {
        eprintln!("SKIPPED: no bpftool, or no library");
        return;
    };
    let packet = temporary("bpftool_packet", &std::array::from_fn::<u8, 64, _>(|at| at as u8));
    let objects = ["xdp_packet", "socket", "globals", "calls", "tc"];
    let objects = objects.map(|name| format!("testdata/progs/{name}.bpf.o")).join(" ");
    let command = format!("sh crates/cli/tests/data/programs.sh {packet} {objects} {OBJECT}");
    let lines = |text: &str| text.lines().map(lasting).collect::<Vec<_>>();
    let found = here("bpftool_programs", &command);
    assert!(found.contains("dumped count_packets\n"), "{found}");
    if let Some(expected) = with_the_kernel(&command) {
        assert_eq!(lines(&found), lines(&expected));
    }
}

#[test]
fn bpftool_shows_types_and_values_by_their_types() {
    let Some(_) = library().filter(|_| is_installed("bpftool")) else {
        eprintln!("SKIPPED: no bpftool, or no library");
        return;
    };
    let packet = temporary("bpftool_types_packet", &[0; 64]);
    let values = "crates/cli/tests/data/values.bpf.o";
    let objects = ["globals", "spin_lock", "xdp_packet"];
    let objects = objects.map(|name| format!("testdata/progs/{name}.bpf.o")).join(" ");
    let command = format!("sh crates/cli/tests/data/btf.sh {packet} {OBJECT} {values} {objects}");
    let found = here("bpftool_types", &command);
    assert!(
        found.contains(r#""formatted":{"value":{".bss":[{"dropped":{"too_long":0,"#),
        "{found}"
    );
    assert!(found.contains("\nstruct traffic {\n\t__u64 packets;\n"), "{found}");
    assert!(found.lines().count() > 1000, "{found}");
    if let Some(expected) = with_the_kernel(&command) {
        for (found, expected) in found.lines().zip(expected.lines()) {
            assert_eq!(found, expected);
        }
        assert_eq!(found.lines().count(), expected.lines().count());
    }
}
