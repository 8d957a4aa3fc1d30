//! `bpfarray prog` and `bpfarray map`.

use serde_json::json;

use super::*;

#[test]
fn maps_are_listed_with_their_types() {
    let table = stdout(&format!("map show {OBJECT}"));
    let line = table.lines().find(|line| line.contains("packets_by_protocol")).unwrap();
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(
        words[..9].join(" "),
        "packets_by_protocol percpu_array __u32 (4 B) struct traffic (16 B)"
    );
    let maps = json(&format!("map show {OBJECT} --json"));
    assert_eq!(maps[1]["name"], "packets_by_port_class");
    assert_eq!(maps[1]["bytes_value"], 8);
    assert_eq!(maps[1]["max_entries"], 3);
    assert_eq!(maps[2]["frozen"], 1);
}

#[test]
fn programs_are_listed_even_if_they_cannot_run() {
    let programs = json("prog show testdata/progs/calls.bpf.o --json");
    assert!(programs.as_array().unwrap().len() > 1);
    let table = stdout("prog show testdata/progs/calls.bpf.o");
    for program in programs.as_array().unwrap() {
        assert!(table.contains(program["name"].as_str().unwrap()), "{table}");
    }
}

#[test]
fn the_dump_shows_inlined_lookups_with_their_source() {
    let dump = stdout(&format!("prog dump xlated {OBJECT}"));
    assert!(dump.starts_with("int count_packets(struct xdp_md * ctx):\n; "), "{dump}");
    assert!(dump.contains("(18) r1 = map[packets_by_protocol]\n"), "{dump}");
    assert!(dump.contains("r0 = &(void __percpu *)(r0)\n"), "{dump}");
    assert!(!dump.contains("call bpf_map_lookup_elem"), "{dump}");
    assert!(dump.contains("; traffic->packets++;\n"), "{dump}");
}

#[test]
fn the_dump_in_json_has_the_members_bpftool_gives_it() {
    let dump = json(&format!("prog dump xlated {OBJECT} --prog count_packets --opcodes --json"));
    let insns = dump.as_array().unwrap();
    let text = stdout(&format!("prog dump xlated {OBJECT}"));
    for insn in insns {
        assert!(text.contains(insn["disasm"].as_str().unwrap()));
    }
    assert_eq!(insns[0]["proto"], "int count_packets(struct xdp_md * ctx)");
    let load = insns.iter().find(|insn| insn["disasm"].as_str().unwrap().contains("map[.data]"));
    let opcodes = &load.unwrap()["opcodes"];
    assert_eq!(opcodes["code"], "0x18");
    assert_eq!(opcodes["src_reg"], "0x2");
    assert_eq!(opcodes["off"], json!(["0x00", "0x00"]));
    assert_eq!(opcodes["imm"].as_array().unwrap().len(), 12);
}

#[test]
fn several_programs_are_dumped_with_their_names() {
    let dump = json("prog dump xlated testdata/progs/calls.bpf.o --json");
    let programs = json("prog show testdata/progs/calls.bpf.o --json");
    let names = |list: &Value| -> Vec<_> {
        list.as_array().unwrap().iter().map(|program| program["name"].clone()).collect()
    };
    assert_eq!(names(&dump), names(&programs));
    assert!(dump[0]["insns"][0]["disasm"].is_string());
}

#[test]
fn a_single_program_is_listed_like_several_unless_it_is_named() {
    let all = json(&format!("prog dump xlated {OBJECT} --json"));
    let named = json(&format!("prog dump xlated {OBJECT} --json --prog count_packets"));
    assert_eq!(all, json!([{ "name": "count_packets", "type": "xdp", "insns": named }]));
}

#[test]
fn programs_that_cannot_be_made_do_not_stop_the_others() {
    let externs = "testdata/elf/externs.bpf.o";
    let kconfig = "section 'socket', program 'kconfig', instruction 0: 'LINUX_KERNEL_VERSION' is a \
                   kernel configuration value (__kconfig); there is no kernel here";
    let text = stdout(&format!("prog dump xlated {externs}"));
    assert!(text.starts_with(&format!("skipped: {kconfig}\n\n")), "{text}");
    assert_eq!(text.matches("skipped: ").count(), 5);
    let dump = json(&format!("prog dump xlated {externs} --json"));
    assert_eq!(dump[0], json!({ "name": "kconfig", "type": "socket_filter", "error": kconfig }));
    assert!(dump[5]["insns"].is_array() && dump[5].get("error").is_none(), "{dump}");
    assert_eq!(
        error(&format!("prog dump xlated {externs} --prog kconfig")),
        format!("{externs}: {kconfig}")
    );

    let unknown = json("prog dump xlated testdata/elf/functions.bpf.o --json");
    assert_eq!(unknown[3]["type"], Value::Null);
    assert!(unknown[3]["error"].as_str().unwrap().starts_with("section 'socket/no_such_type', "));
}

#[test]
fn an_object_of_which_no_program_can_be_made_is_an_error() {
    let mut object = file(OBJECT);
    let is_name = |at: &usize| object[*at..].starts_with(b"xdp\0");
    for at in (0..object.len()).filter(is_name).collect::<Vec<_>>() {
        object[at] = b'y';
    }
    let object = temporary("no_type.bpf.o", &object);
    let error = error(&format!("prog dump xlated {object}"));
    assert!(error.contains("program 'count_packets': the section's name"), "{error}");
}

#[test]
fn functions_are_named_where_they_begin_and_where_they_are_called() {
    let name = json("prog show testdata/progs/calls.bpf.o --json")[0]["name"].clone();
    let dump = stdout(&format!(
        "prog dump xlated testdata/progs/calls.bpf.o --prog {}",
        name.as_str().unwrap()
    ));
    let call = dump.lines().find_map(|line| line.split_once("call pc")).unwrap().1;
    let (_, callee) = call.split_once('#').unwrap();
    assert!(
        dump.lines().any(|line| line.contains(&format!(" {callee}(")) && line.ends_with(':')),
        "{dump}"
    );
}

#[test]
fn completions_and_the_manual_name_the_commands() {
    for args in ["completions bash", "completions fish", "man"] {
        let text = stdout(args);
        assert!(text.contains("run") && text.contains("map"), "{args}");
    }
}
