//! Programs that link BPF programs to maps, and read what iterators say, under `bpfarray exec`: the kernel gives the same answers.

use super::exec::{is_installed, library};
use super::exec_programs::{here_with, with_the_kernel};
use super::seccomp::{compiled, is_possible};
use super::*;

const ITERATORS: &str = "testdata/progs/map_elem_iter.bpf.o";

/// Whether loaders can find the iterator by its name, of which they need the id.
fn has_types() -> bool {
    let found = std::fs::File::open("/sys/kernel/btf/vmlinux").is_ok();
    if !found {
        eprintln!("SKIPPED: the running kernel has no readable /sys/kernel/btf/vmlinux");
    }
    found
}

/// What a command prints by way of the library, and by way of seccomp, where that is possible.
fn both_ways(name: &str, command: &str) -> Vec<String> {
    let ways = [(library().is_some(), vec!["--"]), (is_possible(), vec!["--seccomp", "--"])];
    let possible = ways.iter().filter(|(is_possible, _)| *is_possible);
    possible
        .map(|(_, options)| here_with(&format!("{name}{}", options.len()), options, command))
        .collect()
}

fn assert_same_lines(found: &str, expected: &str) {
    for (found, expected) in found.lines().zip(expected.lines()) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.lines().count(), expected.lines().count());
}

#[test]
fn a_client_that_links_programs_gets_the_kernels_answers() {
    if !has_types() || !is_installed("python3") {
        eprintln!("SKIPPED: no python3, or no types");
        return;
    }
    let command = "python3 crates/cli/tests/data/links.py";
    let recorded = String::from_utf8(file("crates/cli/tests/data/links.txt")).unwrap();
    for found in both_ways("links", command) {
        assert_same_lines(&found, &recorded);
    }
    if let Some(live) = with_the_kernel(command) {
        assert_same_lines(&recorded, &live);
    }
}

#[test]
fn a_program_on_libbpfs_links_gets_the_kernels_answers() {
    let Some(program) = compiled("links", &["-lbpf"]).filter(|_| has_types()) else { return };
    let command = format!("{program} {ITERATORS}");
    let live = with_the_kernel(&command);
    for found in both_ways("libbpf-links", &command) {
        assert!(
            found.starts_with(
                "open 0\nload 0\nlink 1\niterator ok\n0: 0\n1: 7\n2: 0\n3 elements\n0\n"
            ),
            "{found}"
        );
        assert!(found.ends_with("detach -95 unpin 0\ngone -2 -2\n"), "{found}");
        if let Some(live) = &live {
            assert_same_lines(&found, live);
        }
    }
}

/// Numbers that are ids, or come before a name of one.
fn without_ids(text: &str) -> String {
    let digits = |word: &str| {
        word.trim_end_matches([':', ',', '}', ']'])
            .rsplit(':')
            .next()
            .is_some_and(|id| id.parse::<u32>().is_ok())
    };
    let line = |line: &str| {
        let is_link = line.contains("iter  prog") || line.starts_with("[{");
        let words =
            line.split_inclusive([' ', ',']).filter(|word| !is_link || !digits(word.trim()));
        words.collect::<String>()
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn bpftool_pins_iterators_and_shows_links() {
    if !has_types() || !is_installed("bpftool") {
        eprintln!("SKIPPED: no bpftool, or no types");
        return;
    }
    let command = format!("sh crates/cli/tests/data/links.sh {ITERATORS}");
    let live = with_the_kernel(&command);
    for found in both_ways("bpftool-links", &command) {
        assert!(found.starts_with("0: 0\n1: 7\n2: 0\n3 elements\nread 0: 0\n"), "{found}");
        assert!(found.contains("iter  prog ") && found.ends_with("3 elements\n[]\n"), "{found}");
        if let Some(live) = &live {
            assert_eq!(without_ids(&found), without_ids(live));
        }
    }
}
