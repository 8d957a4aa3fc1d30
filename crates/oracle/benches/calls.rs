//! What single calls of bpf(2) cost, here, in the live kernel, and in another process whose calls come through seccomp, in one
//! run. The preload library adds a test of the call's number.
//!
//! **Invariant.** Addresses in blocks are of the buffers beside them, which are as long as a key or a value.
//!
//! `cargo bench -p oracle --bench calls` prints one table; `-- --quick` a rough one.

#![allow(unsafe_code)]
#![allow(
    clippy::expect_used,
    reason = "a benchmark that cannot run has nothing better to do than stop"
)]

use std::hint::black_box;
use std::io::{self, Read, Write};
use std::process::{Child, Command, Stdio};

use bpfarray_core::insn::{Insn, Reg, alu, pseudo, size};
use bpfarray_syscall::{Kernel as Door, Root, seccomp};
use oracle::Kernel;
use oracle::measure::{Rounds, line};

/// Elements of the maps.
const ENTRIES: u64 = 1024;

/// A call of bpf(2).
trait Call {
    /// # Safety
    /// What the command writes to must be the caller's.
    unsafe fn bpf(&self, cmd: u32, block: &mut [u64], size: u32) -> i64;
}

struct Live;

impl Call for Live {
    unsafe fn bpf(&self, cmd: u32, block: &mut [u64], size: u32) -> i64 {
        // SAFETY: the caller's promise.
        unsafe { libc::syscall(libc::SYS_bpf, cmd, block.as_mut_ptr(), size) }
    }
}

impl Call for Door {
    unsafe fn bpf(&self, cmd: u32, block: &mut [u64], size: u32) -> i64 {
        let at = block.as_mut_ptr().expose_provenance() as u64;
        // SAFETY: the caller's promise.
        unsafe { Self::bpf(self, cmd, at, size) }.map_or(-1, i64::from)
    }
}

/// Creates an array of 8-byte values.
fn create(side: &impl Call, max_entries: u64) -> u64 {
    const ARRAY: u64 = 2;
    // SAFETY: the command writes to no address.
    let fd = unsafe { side.bpf(0, &mut [ARRAY | 4 << 32, 8 | max_entries << 32, 0, 0], 16) };
    u64::try_from(fd).expect("BPF_MAP_CREATE")
}

/// Calls a command on element after element.
fn run(side: &impl Call, cmd: u32, fd: u64, value: &mut u64, count: u64) {
    for number in 0..count {
        let key = (number % ENTRIES) as u32;
        let key_at = (&raw const key).expose_provenance() as u64;
        let value_at = (&raw mut *value).expose_provenance() as u64;
        // SAFETY: the command writes at most a value of 8 bytes, to `value`.
        let result = unsafe { side.bpf(cmd, &mut black_box([fd, key_at, value_at, 0]), 32) };
        assert_eq!(result, 0);
    }
}

/// Loads an XDP program that adds 1 to the value of a map.
fn load(side: &impl Call) -> u64 {
    const XDP: u64 = 6;
    let map = create(side, 1);
    let [lo, hi] = Insn::ld_imm64(Reg::R1, Reg::new(pseudo::MAP_VALUE), map);
    let insns = [
        lo,
        hi,
        Insn::ldx_mem(size::DW, Reg::R2, Reg::R1, 0),
        Insn::alu64_imm(alu::ADD, Reg::R2, 1),
        Insn::stx_mem(size::DW, Reg::R1, Reg::R2, 0),
        Insn::mov64_imm(Reg::R0, 2),
        Insn::exit(),
    ]
    .map(Insn::encode);
    let [insns_at, license_at] =
        [insns.as_ptr().expose_provenance(), c"GPL".as_ptr().expose_provenance()];
    let mut block = [0; 20];
    block[..3].copy_from_slice(&[
        XDP | (insns.len() as u64) << 32,
        insns_at as u64,
        license_at as u64,
    ]);
    // SAFETY: the command writes to no address but that of the block, without a log.
    let fd = unsafe { side.bpf(5, &mut block, 152) };
    u64::try_from(fd).expect("BPF_PROG_LOAD")
}

/// Runs a program on a packet in each of `count` calls, `repeat` times.
fn test_run(side: &impl Call, prog: u64, repeat: u32, count: u64) {
    let packet = [0_u64; 8];
    let packet_at = packet.as_ptr().expose_provenance() as u64;
    for _ in 0..count {
        let mut block = black_box([
            prog,
            size_of_val(&packet) as u64,
            packet_at,
            0,
            repeat.into(),
            0,
            0,
            0,
            0,
            0,
        ]);
        // SAFETY: the command writes results into the block alone.
        let result = unsafe { side.bpf(10, &mut block, 80) };
        assert_eq!(result, 0);
        assert_eq!(black_box(block)[0] >> 32, 2, "XDP_PASS");
    }
}

/// Tells this program that it is the other process.
const CALLED: &str = "--called";

/// A process whose calls are answered here: makes as many as it is asked for.
struct Caller(Child);

impl Caller {
    /// Why there is none, the kernel says.
    fn start(root: Root) -> Result<Self, seccomp::SpawnError> {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.arg(CALLED).stdin(Stdio::piped()).stdout(Stdio::piped());
        let (child, listener) = seccomp::spawn(command)?;
        std::thread::spawn(move || listener.serve(root, false));
        Ok(Self(child))
    }

    fn run(&mut self, cmd: u32, count: u64) {
        let (input, output) = (self.0.stdin.as_mut(), self.0.stdout.as_mut());
        let (input, output) = input.zip(output).expect("both are pipes");
        input.write_all(&u64::from(cmd).to_ne_bytes()).expect("the caller reads");
        input.write_all(&count.to_ne_bytes()).expect("the caller reads");
        output.read_exact(&mut [0]).expect("the caller is done");
    }

    /// What the other process does.
    fn called() {
        let (fd, mut value, mut asked) = (create(&Live, ENTRIES), 0, [0; 16]);
        while io::stdin().read_exact(&mut asked).is_ok() {
            let [cmd, count] = [0, 8]
                .map(|at| asked[at..].first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes)));
            run(&Live, cmd as u32, fd, &mut value, count);
            io::stdout()
                .write_all(&[0])
                .and_then(|()| io::stdout().flush())
                .expect("who asked reads");
        }
    }
}

fn main() {
    if std::env::args().any(|arg| arg == CALLED) {
        return Caller::called();
    }
    let rounds = Rounds::from_args();
    let directory = std::env::temp_dir().join(format!("bpfarray-calls-{}", std::process::id()));
    let door = Door::new(Root::open(&directory).expect("root directory"));
    let ours = create(&door, ENTRIES);
    let kernel = Kernel::available();
    if let Err(why) = &kernel {
        println!("no live kernel to compare with: {why}");
    }
    let theirs = kernel.is_ok().then(|| create(&Live, ENTRIES));
    let mut on_stack = [0_u64; 2];
    // So large that it is no part of the heap, and each copy takes a system call.
    let mut mapped = vec![0_u64; 1 << 20];
    for (cmd, what, is_mapped) in [
        (1, "LOOKUP_ELEM", false),
        (2, "UPDATE_ELEM", false),
        (1, "LOOKUP_ELEM, value in mapped memory", true),
        (2, "UPDATE_ELEM, value in mapped memory", true),
    ] {
        let place = if is_mapped { &mut mapped[..] } else { &mut on_stack[..] };
        let (here, there) = place.split_at_mut(1);
        let [ns, kernels] =
            rounds.compare([&mut |n| run(&door, cmd, ours, &mut here[0], n), &mut |n| {
                if let Some(fd) = theirs {
                    run(&Live, cmd, fd, &mut there[0], n);
                }
            }]);
        line(what, ns, "slower: the kernel", kernels / ns, "");
    }
    let our_prog = load(&door);
    let their_prog = theirs.is_some().then(|| load(&Live));
    for (repeat, what) in [(1, "PROG_TEST_RUN, once"), (100_000, "PROG_TEST_RUN, 100,000 times")] {
        let each = f64::from(repeat);
        let [ns, kernels] =
            rounds.compare([&mut |n| test_run(&door, our_prog, repeat, n), &mut |n| {
                if let Some(prog) = their_prog {
                    test_run(&Live, prog, repeat, n);
                }
            }]);
        line(what, ns / each, "slower: the kernel", kernels / ns, "");
    }
    match Caller::start(Root::open(&directory).expect("root directory")) {
        Ok(mut caller) => {
            for (cmd, what) in
                [(1, "LOOKUP_ELEM, through seccomp"), (2, "UPDATE_ELEM, through seccomp")]
            {
                let [ns, kernels] = rounds.compare([&mut |n| caller.run(cmd, n), &mut |n| {
                    if let Some(fd) = theirs {
                        run(&Live, cmd, fd, &mut on_stack[0], n);
                    }
                }]);
                line(what, ns, "slower: the kernel", kernels / ns, "(target 12 us)");
            }
            // At the end of its input it ends.
            drop(caller.0.stdin.take());
            let _ = caller.0.wait();
        }
        Err(why) => println!("no calls through seccomp: {why}"),
    }
    let _ = std::fs::remove_dir_all(directory);
}
