//! The context and the stack of programs with mistakes, and the memory around them.

use std::ops::Range;

use bpfarray_core::helper_id;
use bpfarray_core::insn::{Insn, Reg, alu, class, jmp, pseudo, size};
use bpfarray_vm::fault::FaultKind;
use bpfarray_vm::{Context, Engine, Fault, LoadOptions, ProgType, Program};

use super::monitor::{Violation, text};
use super::watch::{Memory, PAGE, Watched};
use super::world::World;
use crate::create::MapCreate;
use crate::our_program::{Form, OurEngine};
use crate::request::Creator;
use crate::rng::Rng;

/// Bytes of a frame, and of all of them.
const FRAME: usize = 512;
const FRAMES: usize = 8 * FRAME;
/// Bytes of a stack's memory: the frames, as much that nobody uses, and what helpers lend, in whole pages.
const STACK: usize = 2 * FRAMES + PAGE;
/// What helpers lend.
const LOANS: Range<usize> = 2 * FRAMES..2 * FRAMES + 64;
/// Bytes of the context that `syscall` programs are given.
const CTX_LEN: usize = 24;
/// How far packets are moved to fill the room around them.
const AROUND: [i32; 2] = [200, 512];
const PAINT: i32 = 0x5aa5_5aa5;

/// The context of programs of one type, and what belongs to it.
pub(super) struct Stage {
    context: Context,
    ctx_in: Option<[u8; CTX_LEN]>,
    /// Fills what programs of this type must not change.
    painter: Program,
    buffer: Watched,
    stack: Watched,
    /// Where in the stack the first frame ends.
    top: usize,
    packet_len: usize,
}

/// What a run gave, and what it left behind.
#[derive(PartialEq, Debug)]
pub(super) struct Trace {
    pub(super) result: Result<u64, Fault>,
    packet: Vec<u8>,
    ctx: Vec<u8>,
    maps: Vec<Vec<u8>>,
}

impl Stage {
    /// The context of programs of a type; `None` if they cannot be run.
    pub(super) fn new(
        prog_type: ProgType,
        packet: &[u8],
        options: &dyn Fn(Engine) -> LoadOptions,
    ) -> Result<Option<Self>, String> {
        let ctx_in = matches!(prog_type, ProgType::SYSCALL | ProgType::RAW_TRACEPOINT);
        let ctx_in = ctx_in.then(|| std::array::from_fn(|at| at as u8));
        let has_packet =
            matches!(prog_type, ProgType::XDP | ProgType::SCHED_CLS | ProgType::SOCKET_FILTER);
        let packet = if has_packet { packet } else { &[] };
        let ctx = ctx_in.as_ref().map(<[u8; CTX_LEN]>::as_slice);
        let Ok(mut context) = Context::new(prog_type, packet, ctx) else { return Ok(None) };
        // Its own addresses, as a program gets them.
        let engine = OurEngine { form: Form::Interp, creator: Creator::Trusted };
        let notes = engine.make(&[MapCreate::array(MapCreate::ARRAY, 32, 1)], None)?;
        let mut insns = vec![Insn::mov64_reg(Reg::R6, Reg::R1)];
        insns.extend(Insn::ld_imm64(Reg::R9, Reg::new(pseudo::MAP_IDX_VALUE), 0));
        insns.push(Insn::stx_mem(size::DW, Reg::R9, Reg::R10, 0));
        insns.push(Insn::stx_mem(size::DW, Reg::R9, Reg::R6, 8));
        let pointers = match prog_type {
            ProgType::XDP => Some([0, 4]),
            ProgType::SCHED_CLS => Some([76, 80]),
            _ => None,
        };
        for (slot, off) in pointers.into_iter().flatten().enumerate() {
            insns.push(Insn::ldx_mem(size::W, Reg::R1, Reg::R6, off));
            insns.push(Insn::stx_mem(size::DW, Reg::R9, Reg::R1, 16 + 8 * slot as i16));
        }
        insns.extend([Insn::mov64_imm(Reg::R0, 0), Insn::exit()]);
        let interp = options(Engine::Interp);
        let probe = Program::with_options(prog_type, &insns, &notes, &interp).map_err(text)?;
        probe.run(&mut context).map_err(text)?;
        let mut noted = [0; 32];
        notes[0].lookup_elem(0, &mut noted, 0).map_err(text)?;
        let note = |slot: usize| {
            noted[8 * slot..].first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes))
        };
        let (top, base) = (note(0), note(1));
        let packet_at = if pointers.is_some() {
            (note(2) - base) as usize..(note(3) - base) as usize
        } else {
            0..0
        };
        // The native structure, where programs can write it.
        let may_write = match prog_type {
            ProgType::SCHED_CLS | ProgType::SOCKET_FILTER => 0..192,
            ProgType::SYSCALL => 0..CTX_LEN,
            _ => 0..0,
        };
        let len = if has_packet { 2 * PAGE } else { PAGE };
        let mut may_change = vec![may_write];
        if pointers.is_some() {
            may_change.push(packet_at);
        }
        let painter = painter(prog_type, packet.len());
        let fastest = options(Engine::default());
        let painter = Program::with_options(prog_type, &painter, &[], &fastest).map_err(text)?;
        Ok(Some(Self {
            context,
            ctx_in,
            painter,
            buffer: Watched::new("the context", base, len, may_change),
            stack: Watched::new("the stack", top - FRAMES as u64, STACK, Vec::new()),
            top: FRAMES,
            packet_len: packet.len(),
        }))
    }

    /// Runs a program on memory that is as it was the last time.
    pub(super) fn run(
        &mut self,
        world: &mut World,
        memory: &Memory,
        program: &Program,
        insns: &[Insn],
        packet: &[u8],
        seed: u64,
    ) -> Result<Result<Trace, Violation>, String> {
        let rng = &mut Rng::new(seed);
        world.randomize(rng);
        let ctx_in = self.ctx_in.as_ref().map(<[u8; CTX_LEN]>::as_slice);
        self.context.reset(&packet[..self.packet_len], ctx_in).map_err(text)?;
        self.painter.run(&mut self.context).map_err(text)?;
        world.remember(memory)?;
        self.buffer.remember(memory).map_err(text)?;
        self.stack.remember(memory).map_err(text)?;
        let result = program.run(&mut self.context).map(|outcome| outcome.r0);
        let result = result.map_err(|fault| match &fault.kind {
            // Machine code has returned when it is asked for locks, and names its first instruction.
            FaultKind::Locked(what) if **what == *"exit" => Fault { insn: 0, ..fault },
            _ => fault,
        });

        let calls = |helper: u32| insns.contains(&Insn::call(helper));
        let is_function =
            |insn: &Insn| insn.is_ld_imm64() && insn.src.index() == usize::from(pseudo::FUNC);
        let has_functions = insns.iter().any(|insn| insn.is_pseudo_call() || is_function(insn));
        let frames = if has_functions { 0..self.top } else { self.top - FRAME..self.top };
        let is_moved =
            [helper_id::XDP_ADJUST_HEAD, helper_id::XDP_ADJUST_META, helper_id::XDP_ADJUST_TAIL];
        let around = match is_moved.into_iter().any(calls) {
            // The pointers in the structure, and the frame of the packet but for what is the kernel's there.
            true => vec![0..24, PAGE + 40..2 * PAGE - 320],
            false => Vec::new(),
        };
        let mut found = self.stack.look(memory, &[frames, LOANS]).map_err(text)?;
        found = found.or(self.buffer.look(memory, &around).map_err(text)?);
        found = found.or(world.look(memory)?);
        if let Some(what) = found {
            return Ok(Err(Violation(format!("{what}, after {result:x?}"))));
        }
        let mut maps: Vec<Vec<u8>> = vec![self.buffer.now.clone()];
        maps.extend(world.bytes());
        let (packet, ctx) = (self.context.packet(), self.context.ctx_out());
        Ok(Ok(Trace { result, packet, ctx, maps }))
    }
}

impl Trace {
    pub(super) fn difference(&self, other: &Self) -> String {
        if self.result != other.result {
            return format!("{:x?} and {:x?}", self.result, other.result);
        }
        for (index, (mine, others)) in self.maps.iter().zip(&other.maps).enumerate() {
            if let Some(at) = mine.iter().zip(others).position(|(a, b)| a != b) {
                let (mine, others) = (mine[at], others[at]);
                return format!("memory {index}, byte {at}: {mine:#x} and {others:#x}");
            }
        }
        "packet or context".to_owned()
    }
}

/// A program that fills its frames, as deep as they go, and the room around an XDP packet.
fn painter(prog_type: ProgType, packet_len: usize) -> Vec<Insn> {
    let mut insns = Vec::new();
    // Fills from r2 to r3.
    let fill = |insns: &mut Vec<Insn>| {
        insns.extend([
            Insn::st_mem(size::W, Reg::R2, 0, PAINT),
            Insn::alu64_imm(alu::ADD, Reg::R2, 4),
            Insn::new(class::JMP | jmp::JLT | 8, Reg::R2, Reg::R3, -3, 0),
        ]);
    };
    if prog_type == ProgType::XDP {
        let adjust = |insns: &mut Vec<Insn>, helper, by| {
            insns.extend([
                Insn::mov64_reg(Reg::R1, Reg::R6),
                Insn::mov64_imm(Reg::R2, by),
                Insn::call(helper),
            ]);
        };
        let [before, behind] = AROUND;
        insns.push(Insn::mov64_reg(Reg::R6, Reg::R1));
        adjust(&mut insns, helper_id::XDP_ADJUST_HEAD, -before);
        adjust(&mut insns, helper_id::XDP_ADJUST_TAIL, behind);
        insns.extend([
            Insn::ldx_mem(size::W, Reg::R2, Reg::R6, 0),
            Insn::mov64_reg(Reg::R3, Reg::R2),
            Insn::alu64_imm(alu::ADD, Reg::R3, before),
        ]);
        fill(&mut insns);
        insns.extend([
            Insn::alu64_imm(alu::ADD, Reg::R2, packet_len as i32),
            Insn::ldx_mem(size::W, Reg::R3, Reg::R6, 4),
        ]);
        fill(&mut insns);
        adjust(&mut insns, helper_id::XDP_ADJUST_TAIL, -behind);
        adjust(&mut insns, helper_id::XDP_ADJUST_HEAD, before);
    }
    for depth in 0..8 {
        insns.extend([
            Insn::mov64_reg(Reg::R2, Reg::R10),
            Insn::alu64_imm(alu::ADD, Reg::R2, -512),
            Insn::mov64_reg(Reg::R3, Reg::R10),
        ]);
        fill(&mut insns);
        if depth < 7 {
            insns.push(Insn::new(class::JMP | jmp::CALL, Reg::R0, Reg::new(pseudo::CALL), 0, 2));
        } else {
            insns.push(Insn::ja(0));
        }
        insns.extend([Insn::mov64_imm(Reg::R0, 0), Insn::exit()]);
    }
    insns
}
