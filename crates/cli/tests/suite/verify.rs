//! `bpfarray prog verify`, `prog profile` and `run --strict`.

use super::*;

/// A program of which the kernel would not take an access.
const UNPROVEN: &str = "crates/cli/tests/data/tail_fault.bpf.o";

#[test]
fn a_program_that_the_kernel_takes_is_accepted_with_all_its_accesses_proven() {
    let table = stdout(&format!("prog verify --strict {OBJECT}"));
    let words: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(words[..3], ["count_packets", "xdp", "accepted"]);
    assert_eq!(words[5], "0", "{table}");
    let verdicts = json(&format!("prog verify {OBJECT} --json"));
    assert_eq!(verdicts[0]["verdict"], "accepted");
    assert!(verdicts[0]["proven"].as_u64().unwrap() > 30);
}

#[test]
fn a_program_that_the_kernel_refuses_is_refused_with_its_log() {
    assert!(stdout(&format!("prog verify {UNPROVEN}")).contains("accepted"));
    let Output { status, stdout, stderr } =
        command(&format!("prog verify --strict {UNPROVEN} --json")).output().unwrap();
    assert_eq!(status.code(), Some(1));
    let stderr = String::from_utf8(stderr).unwrap();
    assert!(stderr.contains("programs refused"), "{stderr}");
    let verdicts: Value = serde_json::from_slice(&stdout).unwrap();
    let refused =
        verdicts.as_array().unwrap().iter().find(|one| one["verdict"] == "refused").unwrap();
    assert_eq!(refused["errno"], 13);
    let log = refused["log"].as_str().unwrap();
    assert!(log.starts_with("0: R1=ctx() R10=fp0\n"), "{log}");
    assert!(log.contains(" @ ") && log.contains("processed "), "{log}");
    assert!(log.contains("R1 invalid mem access 'scalar'"), "{log}");
    let error = error(&format!("run --strict {UNPROVEN} --prog enter --data-in {PCAP}"));
    assert!(error.contains("tail_fault.bpf.c:12: "), "{error}");
}

#[test]
fn the_log_of_all_paths_is_printed_if_asked_for() {
    let log = stdout(&format!("prog verify --strict --log=all {OBJECT}"));
    assert!(log.starts_with("-- log of program 'count_packets'\n0: R1=ctx() R10=fp0\n; "), "{log}");
    assert!(log.contains("R0=map_value(map=packets_by"), "{log}");
}

#[test]
fn a_profile_tells_which_lines_were_executed_and_how_often() {
    let profile = json(&format!("prog profile {OBJECT} --pcap {PCAP} --json"));
    assert_eq!(profile["runs"], 4000);
    let line = |text: &str| {
        let lines = profile["lines"].as_array().unwrap();
        lines.iter().find(|line| line["text"] == text).unwrap()["insns"].as_u64().unwrap()
    };
    // Load, addition and store.
    let counted = line("traffic->packets++;");
    assert!(counted.is_multiple_of(3) && counted > 3 * 3000, "{counted}");
    let per_run = |what: &str| profile[what].as_f64().unwrap();
    assert!(per_run("insns_per_run") > per_run("proven_per_run"));
    let table = stdout(&format!("prog profile {OBJECT} --pcap {PCAP}"));
    assert!(table.contains(": 4000 runs, "), "{table}");
    assert!(table.contains("packet_count.bpf.c:"), "{table}");
}
