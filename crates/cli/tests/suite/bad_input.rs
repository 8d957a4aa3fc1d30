//! Bad input: one line that says what is wrong with which file, and exit status 1.

use std::process::Stdio;

use super::*;

#[test]
fn files_that_are_no_objects_are_named() {
    assert!(error("run examples/none.bpf.o").starts_with("examples/none.bpf.o: No such file"));
    assert_eq!(error(&format!("run {PCAP}")), format!("{PCAP}: not an ELF file"));
    assert!(error("run examples").starts_with("examples: "));
    let empty = temporary("empty.bpf.o", &[]);
    assert_eq!(error(&format!("map show {empty}")), format!("{empty}: not an ELF file"));
    let foreign = env!("CARGO_BIN_EXE_bpfarray");
    assert!(
        error(&format!("prog show {foreign}")).starts_with(&format!("{foreign}: not a BPF object"))
    );
}

#[test]
fn an_object_cut_anywhere_is_an_error_or_all_there() {
    let object = file(OBJECT);
    for len in (0..object.len()).step_by(97) {
        let cut = temporary("cut.bpf.o", &object[..len]);
        let error =
            in_process(&["bpfarray", "run", &cut, "--pcap", "none"]).unwrap_err().to_string();
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn an_object_without_types_says_how_to_compile_it() {
    let object = file(OBJECT);
    let at = object.windows(5).position(|bytes| bytes == b".BTF\0").unwrap();
    let mut stripped = object.clone();
    stripped[at + 1] = b'X';
    let stripped = temporary("stripped.bpf.o", &stripped);
    assert!(error(&format!("map show {stripped}")).contains("compile with -g"));
}

#[test]
fn a_wrong_program_name_lists_the_right_ones() {
    assert_eq!(
        error(&format!("run {OBJECT} --prog main --pcap {PCAP}")),
        format!("{OBJECT}: there is no program 'main' in it, only 'count_packets'")
    );
    let several = error("run testdata/progs/calls.bpf.o");
    assert!(several.contains("choose one of its programs with --prog: '"), "{several}");
}

#[test]
fn a_program_for_packets_says_how_to_give_them() {
    let error = error(&format!("run {OBJECT}"));
    assert!(
        error.ends_with("is of type xdp and needs packets: give --pcap or --data-in"),
        "{error}"
    );
}

#[test]
fn a_capture_cut_in_the_middle_is_named_with_the_packet() {
    let capture = file(PCAP);
    let cut = temporary("cut.pcap", &capture[..capture.len() - 1]);
    let count = json(&format!("run {OBJECT} --pcap {PCAP} --json"))["runs"].clone();
    assert_eq!(
        error(&format!("run {OBJECT} --pcap {cut}")),
        format!("{cut}: the file is cut off in packet {count}")
    );
}

#[test]
fn captures_of_something_else_are_refused() {
    let mut capture = file(PCAP);
    capture[20] = 113;
    let cooked = temporary("cooked.pcap", &capture);
    assert!(error(&format!("run {OBJECT} --pcap {cooked}")).contains("link type LINUX_SLL"));
    assert_eq!(
        error(&format!("run {OBJECT} --pcap {OBJECT}")),
        format!("{OBJECT}: neither a pcap nor a pcapng file")
    );
}

#[test]
fn a_packet_without_its_header_is_an_error_if_it_is_the_only_one() {
    let packet = temporary("short", &[0; 13]);
    assert!(error(&format!("run {OBJECT} --data-in {packet}")).starts_with(&packet));
}

#[test]
fn a_context_of_the_wrong_size_is_an_error_of_its_file() {
    let packet = temporary("packet", &[0; 64]);
    let context = temporary("context", &[0; 3]);
    let error = error(&format!("run {OBJECT} --data-in {packet} --ctx-in {context}"));
    assert!(error.starts_with(&context), "{error}");
}

#[test]
fn a_run_that_takes_too_long_is_ended() {
    let error = error(&format!("run {OBJECT} --pcap {PCAP} --fuel 0"));
    assert!(error.contains("section 'xdp', program 'count_packets', packet "), "{error}");
    assert!(error.contains("out of fuel"), "{error}");
}

#[test]
fn wrong_usage_is_told_apart() {
    let both = format!("run {OBJECT} --pcap {PCAP} --data-in {PCAP}");
    let never = format!("run {OBJECT} --pcap {PCAP} --repeat 0");
    for args in ["", "run", "walk", "run a b", "prog dump jited x", &both, &never] {
        let output = command(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "bpfarray {args}");
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "bpfarray {args}");
    }
    let help = stdout("--help");
    assert!(help.contains("Exit status: 0 if all went well"), "{help}");
    assert!(stdout("--version").starts_with("bpfarray 0."));
}

#[test]
fn a_reader_that_left_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = command(&format!("run {OBJECT} --pcap {PCAP} --json"))
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    assert_eq!((output.status.code(), &output.stderr[..]), (Some(0), &b""[..]));
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = command(&format!("map show {OBJECT}")).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.starts_with("bpfarray: cannot write the output: No space left"), "{stderr}");
}
