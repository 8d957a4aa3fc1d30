//! `bpfarray run`: a program on packets, then what it returned and what is in its maps.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use bpfarray_vm::context::{Context, ContextError};
use bpfarray_vm::elf::ProgramSpec;
use bpfarray_vm::fault::Fault;
use bpfarray_vm::{Loaded, Outcome, Program};

use crate::args::RunArgs;
use crate::error::{Error, InFile, Kind};
use crate::events::Events;
use crate::input::{self, CAPTURE_LIMIT, FILE_LIMIT};
use crate::packets::Packets;
use crate::progress::Progress;
use crate::report::Run;
use crate::{object, report};

/// Runs a program and prints what there is to say about it.
///
/// # Errors
/// [`Error::File`] about the object, then the packets, the context, and the run; [`Error::Output`].
pub(crate) fn run(args: &RunArgs, out: &mut dyn Write) -> Result<(), Error> {
    let loaded = object::load(&args.object, args.btf.as_deref(), &args.options())?;
    let spec = object::choose(loaded.programs(), args.prog.as_deref(), &args.object)?;
    let program = object::program(&loaded, spec, &args.object)?.with_fuel(args.fuel);
    let input = Input::read(args, &program)?;
    let mut events = Events::attach(&loaded)
        .map_err(|(map, error)| Kind::Rings { map, error })
        .in_file(&args.object)?;
    let run = execute(args, &loaded, spec, &program, &input, &mut |context| {
        let outcome = program.run(context);
        events.read();
        outcome
    })?;
    let maps: Vec<_> = object::views(&loaded)
        .into_iter()
        .map(|view| {
            let received = events.received(view.name);
            view.with_events(received)
        })
        .collect();
    if args.output.is_json() {
        report::json::write_run(out, &run, &maps, args.all, args.output.pretty)
    } else {
        report::text::write_run(out, &run, &maps, args.all)
    }
    .map_err(Error::Output)
}

/// What a program runs on.
pub(crate) struct Input<'a> {
    /// A single empty one for programs that take no packets.
    packets: Packets,
    ctx_in: Option<Vec<u8>>,
    /// Where packets come from.
    path: Option<&'a Path>,
    is_capture: bool,
}

impl<'a> Input<'a> {
    pub(crate) fn read(args: &'a RunArgs, program: &Program) -> Result<Self, Error> {
        let ctx_in = args.ctx_in.as_deref();
        let ctx_in = ctx_in.map(|path| input::read(path, FILE_LIMIT)).transpose()?;
        let (pcap, data_in) = (args.input.pcap.as_deref(), args.input.data_in.as_deref());
        let path = pcap.or(data_in);
        check(program, path.is_some(), &args.object)?;
        let packets = match path {
            Some(path) if pcap.is_some() => {
                Packets::capture(&input::read(path, CAPTURE_LIMIT)?).in_file(path)?
            }
            Some(path) => Packets::single(&input::read(path, FILE_LIMIT)?),
            None => Packets::single(&[]),
        };
        Ok(Self { packets, ctx_in, path, is_capture: pcap.is_some() })
    }
}

/// Whether packets are given to a program if, and only if, it takes them.
fn check(program: &Program, has_packets: bool, object: &Path) -> Result<(), Error> {
    let (name, prog_type) = (program.name().to_owned(), program.prog_type());
    match Context::new(prog_type, &[], None) {
        Err(ContextError::PacketTooShort { .. }) if has_packets => Ok(()),
        Err(ContextError::PacketTooShort { .. }) => {
            Err(Kind::NeedsPacket { program: name, prog_type }).in_file(object)
        }
        Ok(_) if has_packets => {
            Err(Kind::TakesNoPacket { program: name, prog_type }).in_file(object)
        }
        other => other.map(drop).in_file(object),
    }
}

/// Runs a program on all there is, as `run` does it once.
///
/// # Errors
/// [`Error::File`] about the first packet or context it cannot run on, or the first run that faults.
pub(crate) fn execute<'a>(
    args: &RunArgs,
    loaded: &Loaded,
    spec: &'a ProgramSpec,
    program: &Program,
    input: &Input<'_>,
    run_once: &mut dyn FnMut(&mut Context) -> Result<Outcome, Fault>,
) -> Result<Run<'a>, Error> {
    let mut run = Run::new(spec, program);
    let mut context = None;
    let total = args.repeat.saturating_mul(input.packets.len() as u64);
    let progress = Progress::new(total);
    program.prepare(total);
    let started = Instant::now();
    for _ in 0..args.repeat {
        for (index, packet) in input.packets.iter().enumerate() {
            match input.context(&mut context, program, packet) {
                Ok(context) => {
                    let outcome = run_once(context).map_err(|fault| {
                        let packet = input.is_capture.then_some(index + 1);
                        Kind::fault(loaded, program, packet, fault)
                    });
                    run.count(outcome.in_file(&args.object)?.retval());
                }
                Err(error) if input.is_capture && is_about_length(&error) => run.skipped += 1,
                Err(error) => {
                    let about_packet = input.path.filter(|_| is_about_length(&error));
                    let path = about_packet.or(args.ctx_in.as_deref()).unwrap_or(&args.object);
                    return Err(error).in_file(path);
                }
            }
            progress.update(run.runs + run.skipped);
        }
    }
    run.time = started.elapsed();
    Ok(run)
}

impl Input<'_> {
    /// The context for a packet, in the memory of the last one.
    fn context<'c>(
        &self,
        last: &'c mut Option<Context>,
        program: &Program,
        packet: &[u8],
    ) -> Result<&'c mut Context, ContextError> {
        let ctx_in = self.ctx_in.as_deref();
        match last {
            Some(context) => {
                context.reset(packet, ctx_in)?;
                Ok(context)
            }
            None => Ok(last.insert(Context::new(program.prog_type(), packet, ctx_in)?)),
        }
    }
}

/// Captures do hold frames that no driver would hand to a program: cut ones, and those that were
/// put together from several.
fn is_about_length(error: &ContextError) -> bool {
    matches!(error, ContextError::PacketTooShort { .. } | ContextError::PacketTooLong { .. })
}
