//! Bad input: one line that says what is wrong with which file, and exit status 1.

use std::process::Stdio;

use super::*;

#[test]
fn files_that_are_no_objects_are_named() {
    let missing = "examples/none.bpf.o: No such file or directory";
    assert_eq!(error("run examples/none.bpf.o"), missing);
    assert_eq!(error(&format!("run {PCAP}")), format!("{PCAP}: not an ELF file"));
    assert_eq!(error("run examples"), "examples: Is a directory");
    let empty = temporary("empty.bpf.o", &[]);
    assert_eq!(error(&format!("map show {empty}")), format!("{empty}: not an ELF file"));
    let mut foreign = file(OBJECT);
    // The machine's number: x86-64.
    foreign[18..20].copy_from_slice(&[62, 0]);
    let foreign = temporary("foreign.bpf.o", &foreign);
    assert_eq!(
        error(&format!("prog show {foreign}")),
        format!("{foreign}: not a BPF object: it is for another machine")
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
fn files_without_end_are_given_up() {
    let endless = "/dev/zero: longer than 64 MiB, the limit for such files";
    let packet = temporary("ordinary", &[0; 64]);
    for args in [
        "map show /dev/zero".to_owned(),
        format!("run {OBJECT} --data-in /dev/zero"),
        format!("run {OBJECT} --data-in {packet} --ctx-in /dev/zero"),
        format!("run {OBJECT} --data-in {packet} --btf /dev/zero"),
    ] {
        assert_eq!(error(&args), endless, "{args}");
    }
    let sparse = temporary("sparse.pcap", &file(PCAP));
    std::fs::File::options().write(true).open(&sparse).unwrap().set_len((1 << 30) + 1).unwrap();
    let error = error(&format!("run {OBJECT} --pcap {sparse}"));
    std::fs::remove_file(&sparse).unwrap();
    assert_eq!(error, format!("{sparse}: longer than 1024 MiB, the limit for such files"));
}

#[test]
fn load_verify_and_fault_errors_name_section_program_and_instruction() {
    let place = "section 'xdp', program 'count_packets', ";
    let fault = error(&format!("run {OBJECT} --pcap {PCAP} --fuel 0"));
    assert!(fault.starts_with(&format!("{OBJECT}: {place}packet 1, instruction ")), "{fault}");

    // The first instruction becomes one that does not exist.
    let mut object = file(OBJECT);
    let headers = u64::from_le_bytes(object[40..48].try_into().unwrap()) as usize;
    let word = |at: usize| u64::from_le_bytes(object[at..at + 8].try_into().unwrap()) as usize;
    let is_code = |header: &usize| word(header + 8) & 4 != 0 && word(header + 32) > 0;
    let code = (headers..object.len() - 63).step_by(64).filter(is_code).map(|at| word(at + 24));
    let code: Vec<_> = code.collect();
    object[*code.last().unwrap()] = 0xff;
    let damaged = temporary("opcode.bpf.o", &object);
    let verify = error(&format!("run {damaged} --pcap {PCAP}"));
    let expected = format!("{damaged}: {place}instruction 0: unknown opcode 0xff");
    assert!(verify.starts_with(&expected), "{verify}");

    let load = error("run testdata/elf/externs.bpf.o --prog weak_ksym");
    let expected = "section 'socket', program 'weak_ksym', instruction 1: 'init_task' is ";
    assert!(load.contains(expected), "{load}");
}

#[test]
fn a_fault_behind_a_tail_call_names_the_program_it_was_in() {
    let packet = temporary("tail_packet", &[0; 64]);
    let object = "crates/cli/tests/data/tail_fault.bpf.o";
    let fault = error(&format!("run {object} --prog enter --data-in {packet}"));
    let place = format!("{object}: section 'xdp', program 'target', instruction ");
    assert!(fault.starts_with(&place), "{fault}");
    let line = "/tail_fault.bpf.c:12: return *(volatile int *)8;)";
    assert!(fault.ends_with(line), "{fault}");
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
    assert!(error.contains("section 'xdp', program 'count_packets', packet 1, "), "{error}");
    assert!(error.contains("out of fuel"), "{error}");
}

#[test]
fn wrong_usage_is_told_apart() {
    let both = format!("run {OBJECT} --pcap {PCAP} --data-in {PCAP}");
    let never = format!("run {OBJECT} --pcap {PCAP} --repeat 0");
    for args in ["", "run", "walk", "run a b", "prog dump native x", &both, &never] {
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
    assert!(stderr.eq("bpfarray: cannot write the output: No space left on device\n"), "{stderr}");
}
