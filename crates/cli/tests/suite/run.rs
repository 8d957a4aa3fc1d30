//! `bpfarray run` on good input.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;

/// The bytes of the packets in a little-endian pcap file, in the simplest way there is.
fn packets(pcap: &[u8]) -> Vec<&[u8]> {
    let mut rest = &pcap[24..];
    let mut packets = Vec::new();
    while let Some((header, after)) = rest.split_first_chunk::<16>() {
        let len = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        let (packet, after) = after.split_at(len as usize);
        packets.push(packet);
        rest = after;
    }
    packets
}

fn formatted<'a>(run: &'a Value, map: &str) -> Vec<&'a Value> {
    let elements = run["maps"][map]["elements"].as_array().unwrap();
    elements.iter().map(|element| &element["formatted"]).collect()
}

/// What all CPUs have counted in a field of a per-CPU element.
fn sum(element: &Value, field: &str) -> u64 {
    let values = element["values"].as_array().unwrap();
    values.iter().map(|value| value["value"][field].as_u64().unwrap()).sum()
}

#[test]
fn every_packet_of_a_capture_is_counted_once() {
    let capture = file(PCAP);
    let packets = packets(&capture);
    let run = json(&format!("run {OBJECT} --pcap {PCAP} --json"));
    assert_eq!(run["runs"], packets.len());

    let retvals: BTreeMap<_, _> = run["retvals"]
        .as_array()
        .unwrap()
        .iter()
        .map(|retval| (retval["name"].as_str().unwrap(), retval["count"].as_u64().unwrap()))
        .collect();
    assert_eq!(retvals.values().sum::<u64>(), packets.len() as u64);

    let counted: u64 =
        formatted(&run, "packets_by_protocol").iter().map(|element| sum(element, "packets")).sum();
    assert_eq!(counted, retvals["XDP_PASS"]);
    let bss = &formatted(&run, ".bss")[0]["value"][".bss"][0]["dropped"];
    let dropped = bss["too_long"].as_u64().unwrap() + bss["malformed"].as_u64().unwrap();
    assert_eq!(dropped, retvals["XDP_DROP"]);
    assert_eq!(bss["too_long"], packets.iter().filter(|packet| packet.len() > 1522).count());
}

#[test]
fn counters_agree_with_a_count_by_other_means() {
    let capture = file(PCAP);
    let is_arp = |packet: &&&[u8]| {
        matches!(
            packet[12..],
            [8, 6, ..] | [0x81, 0, _, _, 8, 6, ..] | [0x88, 0xa8, _, _, 8, 6, ..]
        )
    };
    let packets = packets(&capture);
    let arp: Vec<_> = packets.iter().filter(is_arp).collect();
    assert!(!arp.is_empty());
    let run = json(&format!("run {OBJECT} --pcap {PCAP} --json"));
    let counted = formatted(&run, "packets_by_protocol")[5];
    assert_eq!(sum(counted, "packets"), arp.len() as u64);
    assert_eq!(sum(counted, "bytes"), arp.iter().map(|packet| packet.len() as u64).sum::<u64>());
}

#[test]
fn events_are_counted_by_map() {
    let object = "examples/perf_buffer.bpf.o";
    let run = json(&format!("run {object} --pcap {PCAP} --json --repeat 2"));
    let runs = run["runs"].as_u64().unwrap();
    // 8 bytes, 14 of the packet, and 6 of padding: with the length before it a multiple of 8.
    let expected = json!({ "records": runs, "bytes": 28 * runs, "lost": 0 });
    assert_eq!(run["maps"]["events"]["events"], expected);
    assert_eq!(run["maps"][".bss"].get("events"), None);
    let packet = temporary("told.bin", &[0; 64]);
    let text = stdout(&format!("run {object} --data-in {packet}"));
    assert!(text.contains("\n  1 event with 28 bytes of data, 0 lost\n"), "{text}");
}

#[test]
fn rings_are_read_between_runs() {
    let ctx = temporary("flood.ctx", &[300_u64.to_ne_bytes(), [0; 8]].concat());
    let object = "testdata/progs/perf.bpf.o";
    // 30,000 records of 24 bytes are more than fit in a ring.
    let run = json(&format!("run {object} --prog full --ctx-in {ctx} --json --repeat 100"));
    let expected = json!({ "records": 30_000, "bytes": 30_000 * 12, "lost": 0 });
    assert_eq!(run["maps"]["rings"]["events"], expected);
    assert_eq!(run["maps"]["empty"]["events"]["records"], 0);
}

#[test]
fn repeating_multiplies_what_is_counted() {
    let once = json(&format!("run {OBJECT} --pcap {PCAP} --json"));
    let thrice = json(&format!("run {OBJECT} --pcap {PCAP} --json --repeat 3"));
    assert_eq!(thrice["runs"].as_u64().unwrap(), 3 * once["runs"].as_u64().unwrap());
    let ports = |run| -> Vec<_> {
        let elements = formatted(run, "packets_by_port_class").into_iter();
        elements.map(|element| element["value"].as_u64().unwrap()).collect()
    };
    let expected: Vec<_> = ports(&once).into_iter().map(|count| 3 * count).collect();
    assert_eq!(ports(&thrice), expected);
    assert!(expected.iter().all(|count| *count > 0));
}

#[test]
fn the_report_has_the_documented_members_in_their_order() {
    let report = stdout(&format!("run {OBJECT} --pcap {PCAP} --json"));
    assert_eq!(report.matches('\n').count(), 1);
    let run: Value = serde_json::from_str(&report).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&run), ["program", "type", "engine", "runs", "retvals", "ns_per_run", "maps"]);
    assert_eq!(run["program"], "count_packets");
    assert_eq!(run["type"], "xdp");
    assert_eq!(run["engine"], bpfarray_vm::Engine::default().to_string());
    assert!(run["ns_per_run"].as_f64().unwrap() > 0.0);
    assert_eq!(keys(&run["retvals"][0]), ["value", "name", "count"]);
    let maps = ["packets_by_protocol", "packets_by_port_class", ".rodata", ".data", ".bss"];
    assert_eq!(keys(&run["maps"]), maps);

    let ports = &run["maps"]["packets_by_port_class"];
    assert_eq!(keys(ports), ["type", "key_size", "value_size", "max_entries", "elements"]);
    assert_eq!(ports["type"], "array");
    assert_eq!(
        (&ports["key_size"], &ports["value_size"], &ports["max_entries"]),
        (&json!(4), &json!(8), &json!(3))
    );
    assert_eq!(keys(&ports["elements"][2]), ["key", "value", "formatted"]);
    assert_eq!(ports["elements"][2]["key"], json!(["0x02", "0x00", "0x00", "0x00"]));
    assert_eq!(ports["elements"].as_array().unwrap().len(), 3);

    let protocols = &run["maps"]["packets_by_protocol"]["elements"];
    assert_eq!(keys(&protocols[0]), ["key", "values", "formatted"]);
    assert_eq!(keys(&protocols[0]["values"][0]), ["cpu", "value"]);
    assert_eq!(protocols[0]["values"][0]["value"].as_array().unwrap().len(), 16);
}

#[test]
fn pretty_json_says_the_same_on_several_lines() {
    let mut compact = json(&format!("run {OBJECT} --pcap {PCAP} --json"));
    let pretty = stdout(&format!("run {OBJECT} --pcap {PCAP} --pretty"));
    assert!(pretty.lines().count() > 100);
    let mut pretty: Value = serde_json::from_str(&pretty).unwrap();
    for run in [&mut compact, &mut pretty] {
        run["ns_per_run"].take();
        run["maps"]["packets_by_protocol"].take();
    }
    assert_eq!(compact, pretty);
}

#[test]
fn tables_show_members_sums_and_names() {
    let table = stdout(&format!("run {OBJECT} --pcap {PCAP}"));
    let run = json(&format!("run {OBJECT} --pcap {PCAP} --json"));
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let lines: Vec<_> = table.lines().map(words).collect();
    assert!(table.starts_with("count_packets (xdp): "), "{table}");
    assert!(lines.contains(&words("key cpu packets bytes")), "{table}");
    for (key, element) in formatted(&run, "packets_by_protocol").into_iter().enumerate() {
        let (packets, bytes) = (sum(element, "packets"), sum(element, "bytes"));
        let row = words(&format!("{key} sum {packets} {bytes}"));
        assert!(lines.contains(&row), "{row:?} in {table}");
    }
    let pass = run["retvals"].as_array().unwrap().iter().find(|r| r["name"] == "XDP_PASS");
    let row = words(&format!("2 XDP_PASS {}", pass.unwrap()["count"]));
    assert!(lines.contains(&row), "{row:?} in {table}");
    assert!(lines.contains(&words("max_frame_bytes 1522")), "{table}");
}

#[test]
fn elements_that_are_all_zero_are_left_out_of_tables_unless_asked_for() {
    let packet = temporary("arp", &[&[2; 12][..], &[8, 6], &[0; 46]].concat());
    let some = stdout(&format!("run {OBJECT} --data-in {packet}"));
    assert!(some.contains("  … 6 zero elements (--all shows them)\n"), "{some}");
    let all = stdout(&format!("run {OBJECT} --data-in {packet} --all"));
    assert!(!all.contains("zero element"), "{all}");
    let sums = |table: &str| table.lines().filter(|line| line.contains(" sum ")).count();
    assert_eq!((sums(&some), sums(&all)), (1, 7));
}

#[test]
fn frames_that_no_program_could_see_are_skipped_and_counted() {
    let mut capture = file(PCAP);
    for len in [13_u32, 80_000] {
        for field in [0, 0, len, len] {
            capture.extend_from_slice(&field.to_le_bytes());
        }
        capture.resize(capture.len() + len as usize, 0);
    }
    let capture = temporary("frames.pcap", &capture);
    let whole = json(&format!("run {OBJECT} --pcap {PCAP} --json"));
    let run = json(&format!("run {OBJECT} --pcap {capture} --json"));
    assert_eq!(run["packets_skipped"], 2);
    assert_eq!(run["runs"], whole["runs"]);
    let table = stdout(&format!("run {OBJECT} --pcap {capture}"));
    assert!(table.contains("\n2 packets skipped: "), "{table}");
}

#[test]
fn a_capture_without_packets_runs_nothing() {
    let capture = temporary("empty.pcap", &file(PCAP)[..24]);
    let run = json(&format!("run {OBJECT} --pcap {capture} --json"));
    assert_eq!(run["runs"], 0);
    assert_eq!(run["retvals"], json!([]));
    assert_eq!(run["ns_per_run"], 0.0);
}

#[test]
fn a_program_without_packets_runs_on_the_context_it_is_given() {
    let context =
        temporary("args", &[[7_u8, 0, 0, 0, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0, 0, 0]].concat());
    let object = "testdata/progs/alu64.bpf.o";
    let run = json(&format!("run {object} --prog div_mod --ctx-in {context} --json"));
    assert_eq!(run["type"], "raw_tracepoint");
    assert_eq!(run["retvals"], json!([{ "value": 2, "name": null, "count": 1 }]));
    let out = &run["maps"][".bss"]["elements"][0]["formatted"]["value"][".bss"][0]["out"];
    assert_eq!((&out[0], &out[1]), (&json!(2), &json!(1)));
    let repeated = json(&format!("run {object} --prog div_mod --repeat 5 --json"));
    assert_eq!(repeated["retvals"], json!([{ "value": 0, "name": null, "count": 5 }]));
}

#[test]
fn what_socket_filters_and_classifiers_return_is_explained() {
    let length = stdout(&format!("run testdata/progs/socket.bpf.o --prog length --pcap {PCAP}"));
    assert!(length.contains(" bytes kept "), "{length}");
    let packet = json(&format!("run testdata/progs/tc.bpf.o --prog packet --pcap {PCAP} --json"));
    assert_eq!(packet["type"], "sched_cls");
}
