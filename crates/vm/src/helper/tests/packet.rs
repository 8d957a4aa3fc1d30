//! Helpers on packets.

use super::*;
use crate::context::Context;
use crate::prog_type::ProgType;

#[test]
fn xdp_helpers_move_the_program_s_packet() {
    let packet: Vec<u8> = (0..64).collect();
    let context = || Context::new(ProgType::XDP, &packet, None).unwrap();
    let insns = [
        Insn::mov64_reg(R6, R1),
        Insn::mov64_imm(R2, 4),
        Insn::call(helper_id::XDP_ADJUST_HEAD),
        Insn::ldx_mem(size::DW, R7, R6, 0),
        Insn::ldx_mem(size::B, R0, R7, 0),
        Insn::exit(),
    ];
    let mut case = Case::with_context(&insns, context());
    assert_eq!(case.run(), Ok(4));
    assert_eq!(case.context.packet(), packet[4..]);
    for (delta, expected) in [(51, -22), (-217, -22), (50, 0)] {
        let insns = call_with_context(helper_id::XDP_ADJUST_HEAD, [delta as u64, 0, 0, 0]);
        assert_eq!(run_signed(&mut Case::with_context(&insns, context())), expected);
    }
    let len = call_with_context(helper_id::XDP_GET_BUFF_LEN, [0; 4]);
    assert_eq!(run_signed(&mut Case::with_context(&len, context())), 64);
    let (map, addr) = memory(&[]);
    for (offset, len, expected) in [
        (60, 4, 0),
        (61, 4, -22),
        (64, 1, -22),
        (u32::MAX, 1, -14),
        (0xffff, 1, -22),
        (0x10000, 1, -14),
    ] {
        for helper in [helper_id::XDP_LOAD_BYTES, helper_id::XDP_STORE_BYTES] {
            let insns = call_with_context(helper, [offset.into(), addr, len, 0]);
            let mut case = Case::with_context(&insns, context()).maps(&[&map]);
            assert_eq!(run_signed(&mut case), expected, "{helper} {offset} {len}");
        }
    }
    assert_eq!(value(&map)[..4], packet[60..]);
}

#[test]
fn skb_helpers_copy_and_give_zeroes_where_they_cannot() {
    let packet: Vec<u8> = (0..64).collect();
    let run = |insns: &[Insn], map: &Map| {
        let context = Context::new(ProgType::SCHED_CLS, &packet, None).unwrap();
        let mut case = Case::with_context(insns, context).maps(&[map]);
        (run_signed(&mut case), case.context.packet())
    };
    for (offset, len, expected) in [
        (0_u32, 4, 0),
        (60, 4, 0),
        (61, 4, -14),
        (64, 1, -14),
        (u32::MAX, 1, -14),
        (0x10000, 1, -14),
    ] {
        let (map, addr) = memory(&[0xff; 8]);
        let insns = call_with_context(helper_id::SKB_LOAD_BYTES, [offset.into(), addr, len, 0]);
        assert_eq!(run(&insns, &map).0, expected, "{offset} {len}");
        let mut bytes = [0xff; 8];
        let from = offset as usize;
        bytes[..len as usize].fill(0);
        if expected == 0 {
            bytes[..len as usize].copy_from_slice(&packet[from..from + len as usize]);
        }
        assert_eq!(value(&map)[..8], bytes);
    }
    let (map, addr) = memory(&[9; 8]);
    for (start, offset, expected) in
        [(0, 0, 0), (1, 46, 0), (1, 47, -14), (2, 0, -14), (0, 0x10000, -14)]
    {
        let args = [offset, addr, 4, start];
        let insns = call_with_context(helper_id::SKB_LOAD_BYTES_RELATIVE, args);
        assert_eq!(run(&insns, &map).0, expected, "{start} {offset}");
    }
    for (offset, flags, expected) in
        [(0, 0, 0), (0, 3, 0), (0, 4, -22), (60, 0, 0), (61, 0, -14), (u32::MAX.into(), 0, -14)]
    {
        let insns = call_with_context(helper_id::SKB_STORE_BYTES, [offset, addr, 4, flags]);
        let (returned, changed) = run(&insns, &map);
        assert_eq!((returned, changed != packet), (expected, expected == 0), "{offset} {flags}");
    }
    for (len, expected) in [(0, 0), (64, 0), (65, -12), (u64::from(u32::MAX), -12)] {
        let insns = call_with_context(helper_id::SKB_PULL_DATA, [len, 0, 0, 0]);
        assert_eq!(run(&insns, &map).0, expected, "{len}");
    }
}

#[test]
fn checksums_are_replaced_as_in_the_kernel() {
    let mut packet = [[2; 6], [4; 6]].concat();
    packet.extend([8, 0, 0x45, 0, 0, 50, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    packet.extend(0..30);
    let run = |helper, args| {
        let context = Context::new(ProgType::SCHED_CLS, &packet, None).unwrap();
        let mut case = Case::with_context(&call_with_context(helper, args), context);
        (run_signed(&mut case), case.context.packet())
    };
    for (offset, from, to, flags, expected) in [
        (24, 0, 0x1234, 2, 0),
        (24, 1, 2, 0, -22),
        (24, 1, 2, 1, -22),
        (24, 1, 2, 0x12, -22),
        (62, 1, 2, 2, 0),
        (63, 1, 2, 2, -14),
        (0x10000, 1, 2, 2, -14),
    ] {
        assert_eq!(run(10, [offset, from, to, flags]).0, expected, "{offset} {flags:#x}");
    }
    assert_eq!(run(10, [24, 0, 0x1234, 2]).1[24..26], [0xcb, 0xed]);
    for (offset, from, to, flags, expected, sum) in [
        (40, 0, 0x1234, 2, 0, [0xd1, 0xf4]),
        (40, 1, 2, 0x82, 0, [5, 7]),
        (40, 1, 2, 0x100, -22, [6, 7]),
        (24, 0, 7, 0x22, 0, [0, 0]),
        (24, 0, 7, 0x02, 0, [0xf8, 0xff]),
        (24, 7, 7, 0x10, -22, [0, 0]),
    ] {
        let (returned, changed) = run(11, [offset, from, to, flags]);
        let at = offset as usize;
        assert_eq!((returned, &changed[at..at + 2]), (expected, &sum[..]), "{offset} {flags:#x}");
    }
}

/// A classifier that keeps its context in r6 and calls helpers with it and another argument each. Gives the
/// last result.
fn classified(calls: &[(u32, i32)], and_then: &[Insn]) -> i64 {
    let mut insns = vec![Insn::mov64_reg(R6, R1)];
    for (helper, arg) in calls {
        insns.extend([Insn::mov64_reg(R1, R6), Insn::mov64_imm(R2, *arg), Insn::call(*helper)]);
    }
    insns.extend(and_then);
    insns.push(Insn::exit());
    let context = Context::new(ProgType::SCHED_CLS, &[0; 64], None).unwrap();
    run_signed(&mut Case::with_context(&insns, context))
}

#[test]
fn checksum_levels_count_from_none_to_three() {
    const QUERY: i32 = 0;
    const INC: i32 = 1;
    const DEC: i32 = 2;
    const RESET: i32 = 3;
    for (operations, level) in [
        (&[][..], -13),
        (&[INC], 0),
        (&[INC, INC], 1),
        (&[INC, INC, INC, INC], 3),
        (&[INC, INC, INC, INC, INC], 3),
        (&[INC, DEC], -13),
        (&[INC, INC, DEC], 0),
        (&[INC, INC, RESET], -13),
        (&[RESET], -13),
        (&[DEC], -13),
        (&[INC, INC, RESET, INC], 0),
    ] {
        let calls: Vec<_> = operations.iter().chain([&QUERY]).map(|at| (135, *at)).collect();
        assert_eq!(classified(&calls, &[]), level, "{operations:?}");
    }
    assert_eq!(classified(&[(135, INC)], &[]), 0);
    assert_eq!(classified(&[(135, 4)], &[]), -22);
    assert_eq!(classified(&[(135, INC), (40, 5)], &[]), -524);
}

#[test]
fn a_packets_hash_is_what_the_program_made_it() {
    let hash = Insn::ldx_mem(size::W, R0, R6, 68);
    assert_eq!(classified(&[(48, 7)], &[]), 0);
    assert_eq!(classified(&[(48, 7)], &[hash]), 7);
    assert_eq!(classified(&[(48, 7), (41, 0)], &[hash]), 0);
    // bpf_skb_store_bytes(skb, 0, &stack, 1, flags), with which the hash goes or stays.
    for (flags, expected) in [(0, 7), (1, 7), (2, 0), (4, 7)] {
        let store = [
            Insn::st_mem(size::B, R10, -8, 9),
            Insn::mov64_reg(R1, R6),
            Insn::mov64_imm(R2, 0),
            Insn::mov64_reg(R3, R10),
            Insn::alu64_imm(alu::ADD, R3, -8),
            Insn::mov64_imm(R4, 1),
            Insn::mov64_imm(R5, flags),
            Insn::call(helper_id::SKB_STORE_BYTES),
            hash,
        ];
        assert_eq!(classified(&[(48, 7)], &store), expected, "{flags}");
    }
}

#[test]
fn redirecting_returns_what_the_kernel_returns() {
    let run = |prog_type, helper, args| {
        let context = Context::new(prog_type, &[0; 64], None).unwrap();
        Case::with_context(&call(helper, args), context).run()
    };
    for (ifindex, flags, xdp, tc, peer) in [
        (0, 0, 4, 7, 7),
        (u64::from(u32::MAX), 0, 4, 7, 7),
        (1, 1, 0, 7, 2),
        (1, 2, 0, 2, 2),
        (1, 3, 0, 2, 2),
        (1, 1 << 32, 0, 2, 2),
    ] {
        let args = [ifindex, flags, 0, 0, 0];
        assert_eq!(run(ProgType::XDP, 23, args), Ok(xdp), "{ifindex} {flags}");
        for prog_type in [ProgType::SCHED_CLS, ProgType::SCHED_ACT] {
            assert_eq!(run(prog_type, 23, args), Ok(tc), "{ifindex} {flags}");
            assert_eq!(run(prog_type, 155, args), Ok(peer), "{ifindex} {flags}");
        }
        for (prog_type, helper) in
            [(ProgType::SOCKET_FILTER, 23), (ProgType::XDP, 155), (ProgType::XDP, 152)]
        {
            let fault = run(prog_type, helper, args).unwrap_err().to_string();
            assert!(fault.ends_with("this type of program has no such helper"), "{fault}");
        }
    }
    let (map, addr) = memory(&[]);
    for (params, size, flags, expected) in [
        (0, 0, 0, 7),
        (addr, 20, 0, 7),
        (addr, 32, 0, 7),
        (addr, 19, 0, 2),
        (addr, 20, 1, 2),
        (0, 0, 1, 2),
    ] {
        let context = Context::new(ProgType::SCHED_CLS, &[0; 64], None).unwrap();
        let insns = call(152, [1, params, size, flags, 0]);
        let returned = Case::with_context(&insns, context).maps(&[&map]).run();
        assert_eq!(returned, Ok(expected), "{size} {flags}");
    }
}

#[test]
fn csum_diff_reads_both_buffers() {
    let words = |from: u32| (0..8).flat_map(move |i| (0x0102_0304 * (from + 4 * i)).to_le_bytes());
    let (map, addr) = memory(&words(1).chain(words(33)).collect::<Vec<u8>>());
    for (from_size, to_size, seed, expected) in [
        (0, 0, 5, 5),
        (4, 0, 0, 0xfbf9),
        (0, 4, 0, 0x84c6),
        (4, 4, 0, 0x80c0),
        (8, 4, 0, 0x6ca2),
        (4, 8, 0x1234, 0x27d3),
        (3, 0, 0, 0xfcf9),
        (0, 32, 0x10000, 0xe8d6),
        (16, 0, u64::MAX, 0x8f57),
    ] {
        let insns = call(helper_id::CSUM_DIFF, [addr, from_size, addr + 32, to_size, seed]);
        assert_eq!(Case::new(&insns).maps(&[&map]).run(), Ok(expected), "{from_size} {to_size}");
    }
}

#[test]
fn packet_helpers_need_their_context() {
    let insns = call_with_context(helper_id::XDP_ADJUST_HEAD, [0; 4]);
    assert_eq!(
        fault(&insns),
        "instruction 8: bpf_xdp_adjust_head: this type of program has no such helper"
    );
    let context = Context::new(ProgType::XDP, &[0; 64], None).unwrap();
    let insns = call(helper_id::XDP_ADJUST_HEAD, [64, 0, 0, 0, 0]);
    let fault = Case::with_context(&insns, context).run().unwrap_err().to_string();
    assert!(fault.ends_with("argument 1: 0x40 is not the address of the context"), "{fault}");
}
