//! Running programs on data that the caller gives.

use std::cell::Cell;
use std::time::{Duration, Instant};

use bpfarray::MapRef;
use bpfarray_core::Errno;
use bpfarray_vm::context::ContextError;
use bpfarray_vm::prog_type::AttachType;
use bpfarray_vm::{Context, ProgType, Program};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::attr::{Attr, check_tail};
use crate::kernel::Kernel;
use crate::prog::ProgObject;
use crate::root::errno;

const PROG_FD: usize = 0;
const RETVAL: usize = 4;
const DATA_SIZE_IN: usize = 8;
const DATA_SIZE_OUT: usize = 12;
const DATA_IN: usize = 16;
const DATA_OUT: usize = 24;
const REPEAT: usize = 32;
const DURATION: usize = 36;
const CTX_SIZE_IN: usize = 40;
const CTX_SIZE_OUT: usize = 44;
const CTX_IN: usize = 48;
const CTX_OUT: usize = 56;
const FLAGS: usize = 64;
const CPU: usize = 68;
const BATCH_SIZE: usize = 72;
const END: usize = 76;

/// # Kernel
/// `BPF_F_TEST_RUN_ON_CPU`
const F_RUN_ON_CPU: u32 = 1;

const XDP_MD_SIZE: usize = 24;
const SK_BUFF_SIZE: usize = 192;
const ETH_HLEN: u32 = 14;

/// More than the longest packet with its pieces has: what is longer is refused for the same reason.
const MAX_DATA: u32 = 1 << 20;

/// Most bytes of a tracepoint's arguments.
const MAX_RAW_TP_CTX: u32 = 12 * 8;

/// # Kernel
/// `bpf_prog_test_run`
pub(in super::super) fn test_run(kernel: &Kernel, attr: &Attr) -> Result<(), Errno> {
    attr.ends_at(END)?;
    let is_half = |size: usize, addr: usize| (attr.u32(size) == 0) != attr.pointer(addr).is_null();
    if is_half(CTX_SIZE_IN, CTX_IN) || is_half(CTX_SIZE_OUT, CTX_OUT) {
        return Err(Errno::EINVAL);
    }
    let prog = kernel.prog(attr.fd(PROG_FD))?;
    let run = TestRun { kernel, attr, prog: &prog };
    match ProgType(prog.file.prog_type) {
        ProgType::XDP => run.xdp(),
        ProgType::SOCKET_FILTER | ProgType::SCHED_CLS | ProgType::SCHED_ACT => run.skb(),
        ProgType::RAW_TRACEPOINT => run.raw_tracepoint(),
        ProgType::SYSCALL => run.syscall(),
        ProgType::TRACING => run.tracing(),
        _ => Err(Errno::ENOTSUPP),
    }
}

struct TestRun<'a> {
    kernel: &'a Kernel,
    attr: &'a Attr,
    prog: &'a ProgObject,
}

impl TestRun<'_> {
    /// # Kernel
    /// `bpf_prog_test_run_xdp`
    fn xdp(&self) -> Result<(), Errno> {
        let attach_type = AttachType(self.prog.file.expected_attach_type);
        let is_second = matches!(attach_type, AttachType::XDP_DEVMAP | AttachType::XDP_CPUMAP);
        if is_second || self.is_any_set(&[FLAGS, BATCH_SIZE]) {
            return Err(Errno::EINVAL);
        }
        let ctx = self.ctx_in(XDP_MD_SIZE)?;
        if self.attr.u32(DATA_SIZE_IN) < ETH_HLEN {
            return Err(Errno::EINVAL);
        }
        self.packet(self.context(ctx.as_deref())?, ctx.is_some())
    }

    /// # Kernel
    /// `bpf_prog_test_run_skb`
    fn skb(&self) -> Result<(), Errno> {
        let is_any_set = self.is_any_set(&[FLAGS, CPU, BATCH_SIZE]);
        if is_any_set || self.attr.u32(DATA_SIZE_IN) < ETH_HLEN {
            return Err(Errno::EINVAL);
        }
        // The packet is copied before what goes with it is looked at.
        let plain = self.context(None)?;
        match self.ctx_in(SK_BUFF_SIZE)? {
            Some(ctx) => self.packet(self.context(Some(&ctx))?, true),
            None => self.packet(plain, false),
        }
    }

    /// Whether one of these numbers is not 0.
    fn is_any_set(&self, fields: &[usize]) -> bool {
        fields.iter().any(|&at| self.attr.u32(at) != 0)
    }

    /// The caller's structure, with zeroes where it is shorter than ours; none if it neither gives one nor wants one.
    ///
    /// # Kernel
    /// `bpf_ctx_init`
    fn ctx_in(&self, size: usize) -> Result<Option<Vec<u8>>, Errno> {
        let (addr, given) = (self.attr.pointer(CTX_IN), self.attr.u32(CTX_SIZE_IN));
        if addr.is_null() && self.attr.pointer(CTX_OUT).is_null() {
            return Ok(None);
        }
        let mut ctx = vec![0; size];
        if !addr.is_null() {
            check_tail(&self.kernel.user, addr, given, size)?;
            self.kernel.user.read(addr, &mut ctx[..size.min(given as usize)])?;
        }
        Ok(Some(ctx))
    }

    /// The caller's packet, and what it wants to be known of it.
    fn context(&self, ctx: Option<&[u8]>) -> Result<Context, Errno> {
        let len = self.attr.u32(DATA_SIZE_IN).min(MAX_DATA);
        let mut packet = vec![0; len as usize];
        let data_in = self.attr.pointer(DATA_IN);
        // Sizes are judged before the packet is copied.
        let fault = self.kernel.user.read(data_in, &mut packet);
        let prog_type = ProgType(self.prog.file.prog_type);
        let context = context_for(prog_type, &packet, ctx);
        let context = context.map_err(|error| match (error.errno(), error) {
            // As many pieces are copied as there is room for.
            (Errno::ENOMEM, ContextError::PacketTooLong { max, .. }) => {
                let copied = self.kernel.user.read(data_in, &mut packet[..max]);
                copied.err().unwrap_or(Errno::ENOMEM)
            }
            // The first piece has been copied when these are looked at.
            (errno, ContextError::CtxField("rx_queue_index" | "egress_ifindex")) => {
                let data_end = ctx.and_then(|ctx| ctx.get(4..)?.first_chunk());
                let first = data_end.map_or(0, |end| u32::from_ne_bytes(*end) as usize);
                let first = first.min(packet.len());
                let copied = self.kernel.user.read(data_in, &mut packet[..first]);
                copied.err().unwrap_or(errno)
            }
            (errno, _) => errno,
        })?;
        fault.map(|()| context)
    }

    /// Runs the program on a packet.
    fn packet(&self, mut context: Context, has_ctx: bool) -> Result<(), Errno> {
        let prog_type = ProgType(self.prog.file.prog_type);
        let (retval, duration) = self.run(&mut context, self.attr.u32(REPEAT).max(1))?;
        let ctx_out = context.ctx_out();
        let in_frags = match prog_type {
            ProgType::XDP => {
                let data_end = ctx_out.get(4..8).and_then(|end| end.first_chunk());
                let linear = data_end.map_or(0, |end| u32::from_ne_bytes(*end) as usize);
                context.packet().len().saturating_sub(linear)
            }
            _ => 0,
        };
        self.finish(&context.packet(), in_frags, retval, duration)?;
        if has_ctx {
            self.finish_ctx(&ctx_out)?;
        }
        if self.attr.u32(DATA_SIZE_IN) <= KEPT {
            // Not while the thread ends.
            let _ = CONTEXT.try_with(|kept| kept.set(Some((prog_type, context))));
        }
        Ok(())
    }

    /// Runs the program again and again on the same context; gives the last result, and how long a run took in nanoseconds.
    ///
    /// # Kernel
    /// `bpf_test_run`
    fn run(&self, context: &mut Context, times: u32) -> Result<(u32, u32), Errno> {
        let program = self.prog.program()?;
        look_at_slots(self.kernel, program)?;
        // Makes the code, which is no part of a run.
        program.prepare(times.into());
        let start = Instant::now();
        let mut retval = 0;
        for _ in 0..times {
            retval = run_once(program, context)?;
        }
        let took = start.elapsed();
        count_runs(self.kernel, self.prog, took, times)?;
        let each = took.as_nanos() / u128::from(times);
        Ok((retval, u32::try_from(each).unwrap_or(u32::MAX)))
    }

    /// Hands back the packet, whose last `in_frags` bytes are not in one piece with the others.
    ///
    /// # Kernel
    /// `bpf_test_finish`
    fn finish(
        &self,
        packet: &[u8],
        in_frags: usize,
        retval: u32,
        duration: u32,
    ) -> Result<(), Errno> {
        let (user, attr) = (&self.kernel.user, self.attr);
        let room = attr.u32(DATA_SIZE_OUT) as usize;
        let is_short = room != 0 && packet.len() > room;
        let len = if is_short { room } else { packet.len() };
        let result = if is_short { Err(Errno::ENOSPC) } else { Ok(()) };
        let copied = || {
            let data_out = attr.pointer(DATA_OUT);
            if !data_out.is_null() {
                // What does not fit is taken off the first piece, not the last.
                let linear = len.checked_sub(in_frags).ok_or(Errno::ENOSPC)?;
                let frags = &packet[packet.len() - in_frags..];
                user.write(data_out, &packet[..linear])?;
                user.write(data_out.offset(linear as u64)?, frags)?;
            }
            attr.put_u32(user, DATA_SIZE_OUT, packet.len() as u32)?;
            attr.put_u32(user, RETVAL, retval)?;
            attr.put_u32(user, DURATION, duration)
        };
        // That it is short is said first.
        let copied = copied();
        result.and(copied)
    }

    /// # Kernel
    /// `bpf_ctx_finish`
    fn finish_ctx(&self, ctx: &[u8]) -> Result<(), Errno> {
        let (user, attr) = (&self.kernel.user, self.attr);
        let ctx_out = attr.pointer(CTX_OUT);
        if ctx_out.is_null() {
            return Ok(());
        }
        let room = attr.u32(CTX_SIZE_OUT) as usize;
        let result = if ctx.len() > room { Err(Errno::ENOSPC) } else { Ok(()) };
        let copied = user
            .write(ctx_out, &ctx[..ctx.len().min(room)])
            .and_then(|()| attr.put_u32(user, CTX_SIZE_OUT, ctx.len() as u32));
        result.and(copied)
    }

    /// Iterators have no run without the elements of a map, which the kernel says with this number.
    ///
    /// # Kernel
    /// `bpf_prog_test_run_tracing`
    fn tracing(&self) -> Result<(), Errno> {
        let is_any_set = self.is_any_set(&[FLAGS, CPU, BATCH_SIZE]);
        Err(if is_any_set { Errno::EINVAL } else { Errno::EFAULT })
    }

    /// Whether the caller uses a field that there is not for programs without a packet.
    fn is_any_of_packets_set(&self) -> bool {
        let is_given = |at| !self.attr.pointer(at).is_null();
        let any = [DATA_IN, DATA_OUT, CTX_OUT].into_iter().any(is_given);
        any || self.is_any_set(&[DURATION, REPEAT, BATCH_SIZE])
    }

    /// The caller's context, of which there is at least what the program reaches.
    fn plain_ctx(&self, max: u32) -> Result<Vec<u8>, Errno> {
        let size = self.attr.u32(CTX_SIZE_IN);
        if (size as usize) < self.prog.program()?.max_ctx_offset() || size > max {
            return Err(Errno::EINVAL);
        }
        Ok(vec![0; size as usize])
    }

    /// # Kernel
    /// `bpf_prog_test_run_raw_tp`
    fn raw_tracepoint(&self) -> Result<(), Errno> {
        if self.is_any_of_packets_set() {
            return Err(Errno::EINVAL);
        }
        let mut ctx = self.plain_ctx(MAX_RAW_TP_CTX)?;
        let on_cpu = self.attr.u32(FLAGS) & F_RUN_ON_CPU != 0;
        let cpu = self.attr.u32(CPU);
        if !on_cpu && cpu != 0 {
            return Err(Errno::EINVAL);
        }
        self.kernel.user.read(self.attr.pointer(CTX_IN), &mut ctx)?;
        let mut context = Context::new(ProgType::RAW_TRACEPOINT, &[], Some(&ctx))
            .map_err(|error| error.errno())?;
        let mut run = || self.run(&mut context, 1);
        let (retval, _) = if on_cpu { on_that_cpu(cpu, run)? } else { run()? };
        self.attr.put_u32(&self.kernel.user, RETVAL, retval)
    }

    /// # Kernel
    /// `bpf_prog_test_run_syscall`
    fn syscall(&self) -> Result<(), Errno> {
        if self.is_any_of_packets_set() || self.is_any_set(&[FLAGS]) {
            return Err(Errno::EINVAL);
        }
        let mut ctx = self.plain_ctx(u16::MAX.into())?;
        self.kernel.user.read(self.attr.pointer(CTX_IN), &mut ctx)?;
        let mut context =
            Context::new(ProgType::SYSCALL, &[], Some(&ctx)).map_err(|error| error.errno())?;
        let (retval, _) = self.run(&mut context, 1)?;
        self.attr.put_u32(&self.kernel.user, RETVAL, retval)?;
        self.kernel.user.write(self.attr.pointer(CTX_IN), &context.ctx_out())
    }
}

/// Makes programs leave the slots of maps that nobody uses any more, and finds what is in those of the others. Each run
/// looks again, but then nothing has to be loaded while others wait for the program to end.
pub(in super::super) fn look_at_slots(kernel: &Kernel, program: &Program) -> Result<(), Errno> {
    let is_shared = |map: &&MapRef| map.has_shared_slots();
    if !program.maps().iter().any(|map| is_shared(&map)) {
        return Ok(());
    }
    let locked = kernel.lock()?;
    for map in program.maps().iter().filter(is_shared) {
        if let Some(id) = map.listed_id() {
            locked.empty_if_unused(id)?;
        }
        map.release_events().map_err(|error| errno(&error))?;
        map.refresh_slots().map_err(|error| errno(&error))?;
    }
    Ok(())
}

/// Keeps statistics, if somebody wants them.
pub(in super::super) fn count_runs(
    kernel: &Kernel,
    prog: &ProgObject,
    took: Duration,
    times: u32,
) -> Result<(), Errno> {
    if !kernel.root.is_stats_enabled() {
        return Ok(());
    }
    let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
    kernel.lock()?.add_stats(prog.id, nanoseconds, times.into())
}

/// Packets that are longer than this leave no memory behind.
const KEPT: u32 = 4096;

thread_local! {
    /// The context of the last packet, whose memory the next one takes.
    static CONTEXT: Cell<Option<(ProgType, Context)>> = const { Cell::new(None) };
}

/// A context for a packet.
fn context_for(
    prog_type: ProgType,
    packet: &[u8],
    ctx: Option<&[u8]>,
) -> Result<Context, ContextError> {
    let kept = CONTEXT.try_with(Cell::take).ok().flatten();
    match kept.filter(|(of, _)| *of == prog_type) {
        Some((_, mut context)) => context.reset(packet, ctx).map(|()| context),
        None => Context::new(prog_type, packet, ctx),
    }
}

/// A program that does what it may not is stopped, and the caller told that an address was wrong.
fn run_once(program: &Program, context: &mut Context) -> Result<u32, Errno> {
    match program.run(context) {
        Ok(outcome) => Ok(outcome.retval()),
        Err(_) => Err(Errno::EFAULT),
    }
}

/// Runs `body` on a CPU.
///
/// # Errors
/// ENXIO if the thread cannot run there.
fn on_that_cpu<T>(cpu: u32, body: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    let no_cpu = |_| Errno::from_raw(libc::ENXIO);
    let cpu = cpu as usize;
    if cpu >= CpuSet::MAX_CPU {
        return Err(Errno::from_raw(libc::ENXIO));
    }
    let before = sched_getaffinity(None).map_err(no_cpu)?;
    let mut there = CpuSet::new();
    there.set(cpu);
    sched_setaffinity(None, &there).map_err(no_cpu)?;
    let result = body();
    // The thread could run there before, so it can now.
    let _ = sched_setaffinity(None, &before);
    result
}
