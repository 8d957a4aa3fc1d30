//! Helpers, called by programs. Expected results are those of Linux 6.18.

mod packet;

use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};

use bpfarray::Map;
use bpfarray::attr::{MapFlags, MapType};
use bpfarray_core::insn::{Insn, Reg, alu, size};
use bpfarray_core::{VALUE_OFFSET, helper_id};

use super::cases::{
    Case, R0, R1, R2, R3, R4, R6, R7, R10, call_function, fault, function_addr, map, run_insns,
};
use crate::fault::HelperError;

const R5: Reg = Reg::R5;

/// A program that calls a helper with these numbers and returns what it gives.
fn call(helper: u32, args: [u64; 5]) -> Vec<Insn> {
    let mut insns = Vec::new();
    for (reg, arg) in [R1, R2, R3, R4, R5].into_iter().zip(args) {
        insns.extend(Insn::ld_imm64(reg, R0, arg));
    }
    insns.extend([Insn::call(helper), Insn::exit()]);
    insns
}

/// The context's address stays in r1.
fn call_with_context(helper: u32, args: [u64; 4]) -> Vec<Insn> {
    let [a, b, c, d] = args;
    call(helper, [0, a, b, c, d])[2..].to_vec()
}

/// A map whose value, which programs can use as memory, begins with these bytes.
fn memory(bytes: &[u8]) -> (Map, u64) {
    let map = map(MapType::ARRAY, 256, 1, MapFlags::empty());
    let mut value = bytes.to_vec();
    value.resize(256, 0);
    map.update_elem(0, &value, 0).unwrap();
    let addr = map.addr() + u64::from(VALUE_OFFSET);
    (map, addr)
}

fn value(map: &Map) -> Vec<u8> {
    let mut value = vec![0; map.user_size() as usize];
    map.lookup_elem(0, &mut value, 0).unwrap();
    value
}

fn run_signed(case: &mut Case) -> i64 {
    case.run().unwrap() as i64
}

#[test]
fn map_helpers_return_what_the_kernel_returns() {
    for map_type in [MapType::ARRAY, MapType::PERCPU_ARRAY] {
        let array = map(map_type, 8, 4, MapFlags::empty());
        let (scratch, addr) = memory(&[]);
        let update = |index: u32, flags| {
            let mut bytes = vec![0; 256];
            bytes[..4].copy_from_slice(&index.to_ne_bytes());
            scratch.update_elem(0, &bytes, 0).unwrap();
            let args = [array.addr(), addr, addr + 8, flags, 0];
            let insns = call(helper_id::MAP_UPDATE_ELEM, args);
            run_signed(&mut Case::new(&insns).maps(&[&array, &scratch]))
        };
        for (index, flags, expected) in [
            (0, 0, 0),
            (3, 2, 0),
            (0, 1, -17),
            (0, 3, -22),
            (0, 8, -22),
            (0, 1 << 32, -22),
            (0, 4, -22),
            (4, 0, -7),
            (4, 1, -7),
            (4, 3, -22),
        ] {
            assert_eq!(update(index, flags), expected, "{map_type:?} {index} {flags}");
        }
        let delete = call(helper_id::MAP_DELETE_ELEM, [array.addr(), addr, 0, 0, 0]);
        assert_eq!(run_signed(&mut Case::new(&delete).maps(&[&array, &scratch])), -22);
    }
}

#[test]
fn lookup_percpu_elem_knows_its_cpus() {
    let array = map(MapType::PERCPU_ARRAY, 8, 4, MapFlags::empty());
    let (scratch, addr) = memory(&2_u32.to_ne_bytes());
    let cpus = u64::from(bpfarray::possible_cpus());
    for cpu in [0, cpus - 1, cpus, 0x7fff_ffff, u64::from(u32::MAX)] {
        let insns = call(helper_id::MAP_LOOKUP_PERCPU_ELEM, [array.addr(), addr, cpu, 0, 0]);
        let found = Case::new(&insns).maps(&[&array, &scratch]).run().unwrap();
        assert_eq!(found, array.prog_lookup_percpu_elem(2, cpu as u32).unwrap_or(0));
        assert_eq!(found != 0, cpu < cpus);
    }
}

#[test]
fn arguments_that_are_no_maps_or_keys_fault_by_their_number() {
    let array = map(MapType::ARRAY, 8, 4, MapFlags::empty());
    let text = |args| {
        let insns = call(helper_id::MAP_LOOKUP_ELEM, args);
        Case::new(&insns).maps(&[&array]).run().unwrap_err().to_string()
    };
    assert_eq!(
        text([8, 0, 0, 0, 0]),
        "instruction 10: bpf_map_lookup_elem: argument 1: 0x8 is not the address of a map"
    );
    assert_eq!(
        text([array.addr(), 0, 0, 0, 0]),
        "instruction 10: bpf_map_lookup_elem: argument 2: 4-byte read at 0x0 touches no memory of \
         this program (NULL pointer?)"
    );
}

#[test]
fn a_map_that_is_read_only_for_programs_cannot_be_updated() {
    let array = map(MapType::ARRAY, 8, 1, MapFlags::RDONLY_PROG);
    let (scratch, addr) = memory(&[]);
    let insns = call(helper_id::MAP_UPDATE_ELEM, [array.addr(), addr, addr, 0, 0]);
    let fault = Case::new(&insns).maps(&[&array, &scratch]).run().unwrap_err().to_string();
    assert!(fault.contains("argument 1") && fault.contains("may only read"), "{fault}");
}

/// Calls `helper(r1, callback, r10 - 8, flags)`. The callback adds what its first argument's
/// `load` gives to the number at the context in `ctx_reg`, and stops after `stop` calls.
fn count_up(helper: u32, first: u64, flags: i32, for_each: bool, stop: i32) -> Vec<Insn> {
    let mut insns = Insn::ld_imm64(R1, R0, first).to_vec();
    insns.extend(function_addr(R2, 10));
    insns.extend([
        Insn::st_mem(size::DW, R10, -8, 0),
        Insn::mov64_reg(R3, R10),
        Insn::alu64_imm(alu::ADD, R3, -8),
        Insn::mov64_imm(R4, flags),
        Insn::call(helper),
        Insn::ldx_mem(size::DW, R1, R10, -8),
        Insn::alu64_imm(alu::MUL, R1, 1000),
        Insn::alu64_reg(alu::ADD, R0, R1),
        Insn::exit(),
    ]);
    // Behind: the callback. r1 = index, or for maps the index is behind r2 and the context in r4.
    let (index, context) = match for_each {
        true => (Insn::ldx_mem(size::W, R1, R2, 0), Insn::mov64_reg(R2, R4)),
        false => (Insn::mov64_reg(R1, R1), Insn::mov64_reg(R2, R2)),
    };
    insns.extend([
        index,
        context,
        Insn::ldx_mem(size::DW, R3, R2, 0),
        Insn::alu64_reg(alu::ADD, R3, R1),
        Insn::stx_mem(size::DW, R2, R3, 0),
        Insn::mov64_imm(R0, 0),
        Insn::jmp_imm(bpfarray_core::insn::jmp::JNE, R1, stop, 1),
        Insn::mov64_imm(R0, 1),
        Insn::exit(),
    ]);
    insns
}

#[test]
fn bpf_loop_counts_its_calls() {
    let run = |count, flags, stop| {
        run_insns(&count_up(helper_id::LOOP, count, flags, false, stop)).unwrap() as i64
    };
    assert_eq!(run(5, 0, -1), 5 + 10_000);
    assert_eq!(run(5, 0, 2), 3 + 3000);
    assert_eq!(run(0, 0, -1), 0);
    assert_eq!(run(5, 1, -1), -22);
    assert_eq!(run((1 << 23) + 1, 0, -1), -7);
}

#[test]
fn for_each_map_elem_visits_elements_in_order() {
    let array = map(MapType::ARRAY, 8, 4, MapFlags::empty());
    let run = |flags, stop| {
        let insns = count_up(helper_id::FOR_EACH_MAP_ELEM, array.addr(), flags, true, stop);
        run_signed(&mut Case::new(&insns).maps(&[&array]))
    };
    assert_eq!(run(0, -1), 4 + 6000);
    assert_eq!(run(0, 0), 1);
    assert_eq!(run(0, 1), 2 + 1000);
    assert_eq!(run(1, -1), -22);
}

#[test]
fn a_callback_must_be_a_function_of_the_program() {
    let insns = call(helper_id::LOOP, [1, 0x1234, 0, 0, 0]);
    let expected = "instruction 10: bpf_loop: argument 2: 0x1234 is not the address of a function";
    assert_eq!(fault(&insns), expected);
}

#[test]
fn a_fault_in_a_callback_names_both_instructions() {
    let mut insns = vec![Insn::mov64_imm(R1, 1)];
    insns.extend(function_addr(R2, 4));
    insns.extend([Insn::mov64_imm(R4, 0), Insn::call(helper_id::LOOP), Insn::exit()]);
    insns.extend([call_function(0), Insn::ldx_mem(size::B, R0, R6, 0), Insn::exit()]);
    assert_eq!(
        fault(&insns),
        "instruction 4: bpf_loop: instruction 7: 1-byte read at 0x0 touches no memory of this \
         program (NULL pointer?)"
    );
}

#[test]
fn strncmp_compares_up_to_a_nul() {
    let compare = |left: &[u8], right: &[u8], max| {
        let mut bytes = left.to_vec();
        bytes.resize(64, 0);
        bytes.extend(right);
        let (map, addr) = memory(&bytes);
        let insns = call(helper_id::STRNCMP, [addr, max, addr + 64, 0, 0]);
        run_signed(&mut Case::new(&insns).maps(&[&map]))
    };
    assert_eq!(compare(b"abc", b"abc", 4), 0);
    assert_eq!(compare(b"abc", b"abd", 4), -1);
    assert_eq!(compare(b"abd", b"abc", 4), 1);
    assert_eq!(compare(b"abd", b"abc", 2), 0);
    assert_eq!(compare(b"ab", b"abc", 8), -1);
    assert_eq!(compare(b"\xff", b"a", 8), 1);
}

/// `bpf_snprintf` with a room of 64 bytes.
fn snprintf(fmt: &[u8], args: &[u64]) -> Result<(i64, Vec<u8>), HelperError> {
    let mut bytes = vec![0; 64];
    bytes.extend(fmt);
    bytes.resize(128, 0);
    bytes.extend(args.iter().flat_map(|arg| arg.to_ne_bytes()));
    let (map, addr) = memory(&bytes);
    let args = [addr, 64, addr + 64, addr + 128, 8 * args.len() as u64];
    let returned = run_signed(&mut Case::new(&call(165, args)).maps(&[&map]));
    let text = value(&map).into_iter().take_while(|byte| *byte != 0).collect();
    Ok((returned, text))
}

#[test]
fn formats_are_the_kernels() {
    let minus = -1_i64 as u64;
    for (fmt, args, expected) in [
        ("hi", &[][..], "hi"),
        ("%d", &[5], "5"),
        ("%d", &[1 << 40 | 7], "7"),
        ("%i", &[-3_i64 as u64], "-3"),
        ("%u", &[minus], "4294967295"),
        ("%ld %lld %li", &[minus, minus, minus], "-1 -1 -1"),
        ("%lu", &[minus], "18446744073709551615"),
        ("%lx", &[minus], "ffffffffffffffff"),
        ("%x %X %llX", &[255, 255, 255], "ff FF FF"),
        ("%08x", &[255], "000000ff"),
        ("%8x|%-8x|", &[255, 255], "      ff|ff      |"),
        ("%+d % d %+5d|", &[5, 5, 3], "+5  5    +3|"),
        ("%05d|%5d|%-5d|", &[-42_i64 as u64, 42, 3], "-0042|   42|3    |"),
        ("%p %px", &[0, 0x1234], "0000000000000000 0000000000001234"),
        ("%pS %pI4 %pi4", &[0, 0, 0], "0x0 0.0.0.0 000.000.000.000"),
        ("%c%5c|", &[65, 66], "A    B|"),
        ("%s|%pks", &[0, 0], "|"),
        ("100%%\n\t", &[], "100%\n\t"),
        ("%d", &[1, 2], "1"),
        ("%20d|", &[3], "                   3|"),
    ] {
        let (returned, text) = snprintf(fmt.as_bytes(), args).unwrap();
        assert_eq!(
            (String::from_utf8(text).unwrap(), returned),
            (expected.to_owned(), expected.len() as i64 + 1)
        );
    }
    for fmt in [
        "%#x", "%o", "%", "%5", "%z", "%zu", "%hd", "%.3d", "%*d", "\u{1}x", "\u{7f}", "%lc",
        "%ls", "%l", "%5%", "%pf", "%e", "%lllx", "%d %d",
    ] {
        assert_eq!(snprintf(fmt.as_bytes(), &[1]).unwrap().0, -22, "{fmt:?}");
    }
}

#[test]
fn snprintf_cuts_and_tells_the_whole_length() {
    let (map, addr) = memory(b"hello world");
    let insns = call(165, [addr + 64, 3, addr, 0, 0]);
    assert_eq!(run_signed(&mut Case::new(&insns).maps(&[&map])), 12);
    assert_eq!(value(&map)[64..68], *b"he\0\0");
    let odd = call(165, [addr + 64, 3, addr, addr, 7]);
    assert_eq!(run_signed(&mut Case::new(&odd).maps(&[&map])), -22);
}

#[test]
fn trace_printk_writes_a_line_where_the_host_wants_it() {
    let lines = Arc::new(Mutex::new(String::new()));
    let (map, addr) = memory(b"port %d of %s\0name\0");
    let insns = call(helper_id::TRACE_PRINTK, [addr, 14, 80, addr + 14, 0]);
    let mut case = Case::new(&insns).maps(&[&map]);
    let sink = Arc::clone(&lines);
    case.helpers.set_trace(move |text| sink.lock().unwrap().push_str(text));
    assert_eq!(run_signed(&mut case), 15);
    assert_eq!(*lines.lock().unwrap(), "port 80 of name\n");
    // The format must end inside its size.
    case.insns = call(helper_id::TRACE_PRINTK, [addr, 13, 0, 0, 0]);
    assert_eq!(run_signed(&mut case), -22);
}

#[test]
fn numbers_are_read_from_the_programs_memory_and_written_there() {
    let (map, addr) = memory(b" -0x2ag");
    let run = |helper, base| {
        let insns = call(helper, [addr, 7, base, addr + 64, 0]);
        let returned = run_signed(&mut Case::new(&insns).maps(&[&map]));
        (returned, i64::from_ne_bytes(value(&map)[64..72].try_into().unwrap()))
    };
    assert_eq!(run(105, 0), (6, -42));
    assert_eq!(run(105, 2), (-22, 0));
    assert_eq!(run(105, 16), (6, -42));
    assert_eq!(run(106, 0), (-22, 0));
}

#[test]
fn the_system_is_asked_about_time_and_task() {
    let run = |helper| run_insns(&call(helper, [0; 5])).unwrap();
    let (earlier, later) = (run(helper_id::KTIME_GET_NS), run(helper_id::KTIME_GET_NS));
    assert!(0 < earlier && earlier <= later);
    assert!(run(helper_id::KTIME_GET_BOOT_NS) >= later);
    assert!(run(helper_id::KTIME_GET_COARSE_NS) > 0);
    assert_eq!(run(helper_id::GET_CURRENT_PID_TGID) >> 32, u64::from(std::process::id()));
    let this = std::fs::metadata("/proc/self").unwrap();
    assert_eq!(run(15), u64::from(this.gid()) << 32 | u64::from(this.uid()));
    assert!(run(helper_id::GET_SMP_PROCESSOR_ID) < u64::from(bpfarray::possible_cpus()));
    let random: Vec<u64> = (0..4).map(|_| run(helper_id::GET_PRANDOM_U32)).collect();
    assert!(random.iter().any(|number| *number != random[0]), "{random:?}");
}

#[test]
fn the_tasks_name_is_cut_and_padded() {
    let comm = |size| {
        let (map, addr) = memory(&[0xff; 32]);
        let insns = call(helper_id::GET_CURRENT_COMM, [addr, size, 0, 0, 0]);
        let code = run_signed(&mut Case::new(&insns).maps(&[&map]));
        (code, value(&map)[..32].to_vec())
    };
    let named = std::thread::Builder::new().name("counter".to_owned());
    let (whole, cut, empty) =
        named.spawn(move || (comm(16), comm(4), comm(0))).unwrap().join().unwrap();
    assert_eq!((whole.0, &whole.1[..17]), (0, &b"counter\0\0\0\0\0\0\0\0\0\xff"[..]));
    assert_eq!((cut.0, &cut.1[..5]), (0, &b"cou\0\xff"[..]));
    assert_eq!((empty.0, empty.1[0]), (-22, 0xff));
}

#[test]
fn a_host_can_add_helpers_that_use_the_programs_memory() {
    let (map, addr) = memory(b"abc");
    let mut case = Case::new(&call(4000, [addr, 3, 0, 0, 0])).maps(&[&map]);
    case.helpers.register(4000, "host_reverse", |machine, [addr, len, ..]| {
        let mut bytes = machine.read_vec(addr, len)?;
        bytes.reverse();
        machine.write(addr, &bytes)?;
        Ok(bytes.len() as u64)
    });
    case.helpers.register(4001, "host_refuse", |_, _| Err(HelperError::Host("not today".into())));
    assert_eq!(case.run(), Ok(3));
    assert_eq!(value(&map)[..4], *b"cba\0");
    case.insns = call(4001, [0; 5]);
    assert_eq!(case.run().unwrap_err().to_string(), "instruction 10: host_refuse: not today");
}
