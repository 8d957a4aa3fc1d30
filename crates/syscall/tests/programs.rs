//! Programs of a root directory: what they keep, and who can run them.
#![allow(unsafe_code, clippy::unwrap_used, clippy::panic)]

use std::fs::{self, File};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use bpfarray_core::helper_id;
use bpfarray_core::insn::{Insn, Reg, X, alu, class, jmp, pseudo, size};
use bpfarray_syscall::{Errno, Kernel, Root};
use bpfarray_vm::prog_hash;

const MAP_CREATE: u32 = 0;
const LOOKUP: u32 = 1;
const PROG_LOAD: u32 = 5;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const TEST_RUN: u32 = 10;
const PROG_NEXT_ID: u32 = 11;
const MAP_NEXT_ID: u32 = 12;
const MAP_FD_BY_ID: u32 = 14;
const INFO: u32 = 15;
const BIND_MAP: u32 = 35;

const XDP: u64 = 6;

/// Bytes before the instructions in the file of a program.
const HEADER: u64 = 272;

/// A root directory of one test, as one process sees it.
struct Fixture {
    kernel: Kernel,
    path: PathBuf,
    /// Whether the directory goes with it.
    is_first: bool,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if self.is_first {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn fixture(name: &str) -> Fixture {
    let path = std::env::temp_dir().join(format!("bpfarray-prog-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&path);
    Fixture { kernel: Kernel::new(Root::open(&path).unwrap()), path, is_first: true }
}

/// Fields of a block, by their offsets.
fn block(words: &[(usize, u64, usize)]) -> Vec<u8> {
    let mut block = vec![0; 168];
    for &(at, value, len) in words {
        block[at..at + len].copy_from_slice(&value.to_ne_bytes()[..len]);
    }
    block
}

fn address<T: ?Sized>(at: *const T) -> u64 {
    at.cast::<u8>().expose_provenance() as u64
}

/// Adds 1 to the first value of the map behind a descriptor, and returns 2.
fn counting(map: i32) -> Vec<Insn> {
    let value = Insn::ld_imm64(Reg::R1, Reg::new(pseudo::MAP_VALUE), map as u64);
    let add = [
        Insn::mov64_imm(Reg::R2, 1),
        Insn::atomic(size::DW, 0, Reg::R1, Reg::R2, 0),
        Insn::mov64_imm(Reg::R0, 2),
        Insn::exit(),
    ];
    value.into_iter().chain(add).collect()
}

impl Fixture {
    /// What another process makes of the same directory.
    fn other_process(&self) -> Self {
        let kernel = Kernel::new(Root::open(&self.path).unwrap());
        Self { kernel, path: self.path.clone(), is_first: false }
    }

    fn call(&self, cmd: u32, block: &mut [u8]) -> Result<i32, Errno> {
        // SAFETY: the tests point to buffers that are long enough.
        unsafe { self.kernel.bpf(cmd, address(block.as_mut_ptr()), block.len() as u32) }
    }

    fn map(&self) -> i32 {
        let words = [(0, 2, 4), (4, 4, 4), (8, 8, 4), (12, 1, 4)];
        self.call(MAP_CREATE, &mut block(&words)).unwrap()
    }

    fn load(&self, insns: &[Insn]) -> Result<i32, Errno> {
        let bytes: Vec<u8> = insns.iter().flat_map(|insn| insn.encode()).collect();
        let license = c"GPL";
        let pointers = [address(bytes.as_ptr()), address(license.as_ptr())];
        let words =
            [(0, XDP, 4), (4, insns.len() as u64, 4), (8, pointers[0], 8), (16, pointers[1], 8)];
        self.call(PROG_LOAD, &mut block(&words))
    }

    fn run(&self, prog: i32) -> Result<u32, Errno> {
        let packet = [0_u8; 64];
        let words = [(0, prog as u64, 4), (8, 64, 4), (16, address(packet.as_ptr()), 8)];
        let mut block = block(&words);
        // The block ends with the fields of this command.
        self.call(TEST_RUN, &mut block[..80])?;
        Ok(u32::from_ne_bytes(block[4..8].try_into().unwrap()))
    }

    fn lookup(&self, map: i32) -> u64 {
        let (key, mut value) = (0_u32, 0_u64);
        let at = [address(&raw const key), address(&raw mut value)];
        let words = [(0, map as u64, 4), (8, at[0], 8), (16, at[1], 8)];
        self.call(LOOKUP, &mut block(&words)).unwrap();
        value
    }

    fn close(&self, fd: i32) {
        self.kernel.forget(fd);
        // SAFETY: the descriptor came from a command, and nothing else owns it.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }

    fn next_id(&self, cmd: u32) -> Result<u32, Errno> {
        let mut block = block(&[]);
        self.call(cmd, &mut block)?;
        Ok(u32::from_ne_bytes(block[4..8].try_into().unwrap()))
    }

    fn path(&self, cmd: u32, path: &str, fd: i32) -> Result<i32, Errno> {
        let path = std::ffi::CString::new(path).unwrap();
        self.call(cmd, &mut block(&[(0, address(path.as_ptr()), 8), (8, fd as u64, 4)]))
    }

    /// How many instructions a program has, and how many maps.
    fn lengths(&self, prog: i32) -> (u32, u32) {
        let mut info = [0_u8; 232];
        let at = address(info.as_mut_ptr());
        self.call(INFO, &mut block(&[(0, prog as u64, 4), (4, 232, 4), (8, at, 8)])).unwrap();
        let word = |at: usize| u32::from_ne_bytes(info[at..at + 4].try_into().unwrap());
        (word(20) / 8, word(52))
    }

    fn bind(&self, prog: i32, map: i32) -> Result<i32, Errno> {
        self.call(BIND_MAP, &mut block(&[(0, prog as u64, 4), (4, map as u64, 4)]))
    }
}

#[test]
fn a_program_keeps_its_maps_until_it_is_gone_itself() {
    let test = fixture("keeps");
    let (used, bound) = (test.map(), test.map());
    let prog = test.load(&counting(used)).unwrap();
    assert_eq!((test.bind(prog, bound), test.bind(prog, used)), (Ok(0), Ok(0)));
    for map in [used, bound] {
        test.close(map);
    }
    let by_id = |id| test.call(MAP_FD_BY_ID, &mut block(&[(0, id, 4)]));
    test.run(prog).unwrap();
    let (used, bound) = (by_id(1).unwrap(), by_id(2).unwrap());
    assert_eq!((test.lookup(used), test.lookup(bound)), (1, 0));
    for fd in [used, bound, prog] {
        test.close(fd);
    }
    // Nobody has looked at the program meanwhile.
    assert_eq!((by_id(1), by_id(2)), (Err(Errno::ENOENT), Err(Errno::ENOENT)));
    assert_eq!(test.next_id(PROG_NEXT_ID), Err(Errno::ENOENT));
    for directory in ["bpf-map", "bpf-prog"] {
        assert_eq!(fs::read_dir(test.path.join(directory)).unwrap().count(), 0, "{directory}");
    }
}

#[test]
fn a_pinned_program_runs_for_every_process_and_counts_in_the_same_map() {
    let test = fixture("pinned");
    let (map, more) = (test.map(), test.map());
    let prog = test.load(&counting(map)).unwrap();
    assert_eq!(test.run(prog), Ok(2));
    test.bind(prog, more).unwrap();
    let lengths = test.lengths(prog);
    assert_eq!(lengths, (6, 2));
    assert_eq!(test.path(OBJ_PIN, "/sys/fs/bpf/x", prog), Ok(0));
    for fd in [map, more, prog] {
        test.close(fd);
    }
    let other = test.other_process();
    let prog = other.path(OBJ_GET, "/sys/fs/bpf/x", 0).unwrap();
    assert_eq!((other.run(prog), other.lengths(prog)), (Ok(2), lengths));
    let map = other.call(MAP_FD_BY_ID, &mut block(&[(0, 1, 4)])).unwrap();
    assert_eq!(other.lookup(map), 2);
    for fd in [map, prog] {
        other.close(fd);
    }
    fs::remove_file(test.kernel.root().pins().join("x")).unwrap();
    assert_eq!(test.next_id(PROG_NEXT_ID), Err(Errno::ENOENT));
    assert_eq!(test.next_id(MAP_NEXT_ID), Err(Errno::ENOENT));
}

/// The numbers that `struct bpf_prog_info` has at some offsets, with room for `xlated` bytes of instructions.
fn info(test: &Fixture, prog: i32, xlated: &mut [u8]) -> [u32; 5] {
    let mut info = [0_u8; 232];
    info[20..24].copy_from_slice(&(xlated.len() as u32).to_ne_bytes());
    info[32..40].copy_from_slice(&address(xlated.as_mut_ptr()).to_ne_bytes());
    let at = address(info.as_mut_ptr());
    test.call(INFO, &mut block(&[(0, prog as u64, 4), (4, 232, 4), (8, at, 8)])).unwrap();
    [16, 20, 52, 144, 148].map(|at| u32::from_ne_bytes(info[at..at + 4].try_into().unwrap()))
}

#[test]
fn lengths_are_told_without_making_the_program_and_are_those_of_what_is_made() {
    let test = fixture("lengths");
    let map = test.map();
    let prog = test.load(&counting(map)).unwrap();
    test.path(OBJ_PIN, "/sys/fs/bpf/x", prog).unwrap();
    let here = info(&test, prog, &mut []);
    assert_eq!(here[1..], [6 * 8, 1, 0, 0]);
    let other = test.other_process();
    let prog = other.path(OBJ_GET, "/sys/fs/bpf/x", 0).unwrap();
    assert_eq!(info(&other, prog, &mut []), here);
    let mut xlated = [0; 6 * 8];
    assert_eq!(info(&other, prog, &mut xlated), here);
    assert_eq!(xlated[40..], Insn::exit().encode());
    // Nobody had to verify it: instructions that cannot be made are still told by their lengths.
    let pinned = test.kernel.root().pins().join("x");
    let file = File::options().write(true).open(pinned).unwrap();
    file.write_all_at(&[0xff], HEADER + 8 * 2).unwrap();
    let third = test.other_process();
    let prog = third.path(OBJ_GET, "/sys/fs/bpf/x", 0).unwrap();
    assert_eq!(info(&third, prog, &mut []), here);
    assert!(third.run(prog).is_err());
}

#[test]
fn maps_that_a_program_was_told_to_have_are_found_only_as_long_as_it_has_them() {
    let test = fixture("told");
    let map = test.map();
    let prog = test.load(&counting(map)).unwrap();
    test.close(map);
    let fd_by_id = |id: u32| test.call(MAP_FD_BY_ID, &mut block(&[(0, id.into(), 4)])[..12]);
    info(&test, prog, &mut []);
    test.close(fd_by_id(1).unwrap());
    assert_eq!(fd_by_id(2), Err(Errno::ENOENT));
    test.close(prog);
    assert_eq!(fd_by_id(1), Err(Errno::ENOENT));
}

#[test]
fn ids_that_are_far_apart_are_all_listed() {
    let test = fixture("far");
    let maps: Vec<_> = (0..200).map(|_| test.map()).collect();
    for (id, &map) in (1..).zip(&maps) {
        if ![1, 2, 150, 190].contains(&id) {
            test.close(map);
        }
    }
    let (mut listed, mut last) = (Vec::new(), 0_u32);
    loop {
        let mut block = block(&[(0, last.into(), 4)]);
        match test.call(MAP_NEXT_ID, &mut block) {
            Ok(_) => last = u32::from_ne_bytes(block[4..8].try_into().unwrap()),
            Err(errno) => break assert_eq!(errno, Errno::ENOENT),
        }
        listed.push(last);
    }
    assert_eq!(listed, [1, 2, 150, 190]);
}

#[test]
fn runs_on_one_thread_know_nothing_of_each_others_packets() {
    let test = fixture("packets");
    // Gives the first byte, and puts 8 bytes in front of the packet.
    let insns = [
        Insn::mov64_reg(Reg::R6, Reg::R1),
        Insn::mov64_imm(Reg::R0, 0),
        Insn::ldx_mem(size::W, Reg::R2, Reg::R1, 0),
        Insn::ldx_mem(size::W, Reg::R3, Reg::R1, 4),
        Insn::mov64_reg(Reg::R4, Reg::R2),
        Insn::alu64_imm(alu::ADD, Reg::R4, 1),
        Insn::new(class::JMP | jmp::JGT | X, Reg::R4, Reg::R3, 5, 0),
        Insn::ldx_mem(size::B, Reg::R7, Reg::R2, 0),
        Insn::mov64_reg(Reg::R1, Reg::R6),
        Insn::mov64_imm(Reg::R2, -8),
        Insn::call(helper_id::XDP_ADJUST_HEAD),
        Insn::mov64_reg(Reg::R0, Reg::R7),
        Insn::exit(),
    ];
    let prog = test.load(&insns).unwrap();
    for (byte, len) in [(1_u8, 100_usize), (2, 20), (3, 5000), (4, 20), (5, 64)] {
        let (packet, mut out) = (vec![byte; len], vec![0xff; len + 8]);
        let at = [address(packet.as_ptr()), address(out.as_mut_ptr())];
        let words = [
            (0, prog as u64, 4),
            (8, len as u64, 4),
            (12, out.len() as u64, 4),
            (16, at[0], 8),
            (24, at[1], 8),
        ];
        let mut block = block(&words);
        test.call(TEST_RUN, &mut block[..80]).unwrap();
        assert_eq!(block[4], byte);
        assert_eq!(out, [vec![0; 8], packet].concat());
    }
}

#[test]
fn an_exclusive_map_is_for_its_program_in_every_process() {
    let test = fixture("exclusive");
    // By a place in a list of descriptors, which counts in the hash as it is.
    let mut insns = counting(0);
    insns[0] = Insn { src: Reg::new(pseudo::MAP_IDX_VALUE), imm: 1, ..insns[0] };
    let hash = prog_hash(&insns);
    let words =
        [(0, 2, 4), (4, 4, 4), (8, 8, 4), (12, 1, 4), (80, address(hash.as_ptr()), 8), (88, 32, 4)];
    let map = test.call(MAP_CREATE, &mut block(&words)).unwrap();
    assert_eq!(test.load(&counting(map)), Err(Errno::EACCES), "it is another one by descriptor");
    let list = [0, map];
    let bytes: Vec<u8> = insns.iter().flat_map(|insn| insn.encode()).collect();
    let words = [
        (0, XDP, 4),
        (4, insns.len() as u64, 4),
        (8, address(bytes.as_ptr()), 8),
        (16, address(c"GPL".as_ptr()), 8),
        (120, address(list.as_ptr()), 8),
    ];
    let prog = test.call(PROG_LOAD, &mut block(&words)).unwrap();
    test.path(OBJ_PIN, "/sys/fs/bpf/x", prog).unwrap();
    assert_eq!(test.run(prog), Ok(2));
    let other = test.other_process();
    let pinned = other.path(OBJ_GET, "/sys/fs/bpf/x", 0).unwrap();
    assert_eq!((other.run(pinned), test.lookup(map)), (Ok(2), 2));
    let there = other.call(MAP_FD_BY_ID, &mut block(&[(0, 1, 4)])).unwrap();
    assert_eq!(other.load(&counting(there)), Err(Errno::EACCES));
}

#[test]
fn a_program_file_that_somebody_changed_is_verified_or_refused() {
    let test = fixture("changed");
    let map = test.map();
    let prog = test.load(&counting(map)).unwrap();
    test.path(OBJ_PIN, "/sys/fs/bpf/x", prog).unwrap();
    test.close(prog);
    let file =
        File::options().read(true).write(true).open(test.kernel.root().pins().join("x")).unwrap();
    let mut original = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut original, 0).unwrap();
    // After the header: an unknown opcode, a map that is not in the list, a jump out of the program.
    let insn = |at: usize| HEADER as usize + 8 * at;
    let changes: [(usize, &[u8]); 5] = [
        (insn(2), &[0xff]),
        (insn(0) + 4, &[1]),
        (insn(2), &Insn::ja(100).encode()),
        (68, &[0xff; 4]),
        (68, &[0; 4]),
    ];
    for (at, bytes) in changes {
        file.write_all_at(&original, 0).unwrap();
        file.write_all_at(bytes, at as u64).unwrap();
        let other = test.other_process();
        let prog = other.path(OBJ_GET, "/sys/fs/bpf/x", 0).unwrap();
        assert!(other.run(prog).is_err(), "changed at {at}");
        other.close(prog);
    }
    file.write_all_at(&original, 0).unwrap();
    let other = test.other_process();
    let prog = other.path(OBJ_GET, "/sys/fs/bpf/x", 0).unwrap();
    assert_eq!(other.run(prog), Ok(2), "as it was, it runs");
    other.close(prog);
}

#[test]
fn statistics_are_kept_while_somebody_wants_them_whoever_runs_the_program() {
    let test = fixture("statistics");
    let prog = test.load(&[Insn::mov64_imm(Reg::R0, 2), Insn::exit()]).unwrap();
    test.path(OBJ_PIN, "/sys/fs/bpf/x", prog).unwrap();
    let runs = || {
        let lines = test.kernel.fdinfo(prog).unwrap();
        let count = lines.lines().find_map(|line| line.strip_prefix("run_cnt:\t"));
        count.unwrap().parse::<u64>().unwrap()
    };
    test.run(prog).unwrap();
    assert_eq!(runs(), 0);
    let wanted = test.call(32, &mut block(&[])).unwrap();
    let other = test.other_process();
    let pinned = other.path(OBJ_GET, "/sys/fs/bpf/x", 0).unwrap();
    other.run(pinned).unwrap();
    test.run(prog).unwrap();
    assert_eq!(runs(), 2);
    test.close(wanted);
    test.run(prog).unwrap();
    assert_eq!(runs(), 2);
    other.close(pinned);
}

#[test]
fn a_program_is_refused_where_the_kernel_refuses_it_and_the_log_says_why() {
    let test = fixture("refused");
    assert_eq!(test.load(&[Insn::exit()]), Err(Errno::EACCES), "r0 is not set");
    let wild = [Insn::ldx_mem(size::DW, Reg::R0, Reg::R1, 8), Insn::exit()];
    assert_eq!(test.load(&wild), Err(Errno::EACCES));
    let bytes = Insn::exit().encode();
    let (license, mut log) = (c"GPL", [0_u8; 4096]);
    let words = [
        (0, XDP, 4),
        (4, 1, 4),
        (8, address(bytes.as_ptr()), 8),
        (16, address(license.as_ptr()), 8),
        (24, 1, 4),
        (28, 4096, 4),
        (32, address(log.as_mut_ptr()), 8),
    ];
    assert_eq!(test.call(PROG_LOAD, &mut block(&words)), Err(Errno::EACCES));
    let log = std::ffi::CStr::from_bytes_until_nul(&log).unwrap().to_str().unwrap();
    assert!(log.contains("R0 !read_ok\nprocessed 1 insns (limit 1000000)"), "{log}");
    assert_eq!(test.next_id(PROG_NEXT_ID), Err(Errno::ENOENT));
}
