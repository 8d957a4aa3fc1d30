//! What a kernel developer reads: the instructions of the path that was followed, and what registers held.

use std::fmt::Write;

use bpfarray::MapRef;
use bpfarray_core::disasm::{Disasm, Names};
use bpfarray_core::insn::{Insn, pseudo};

use super::alu::base_name;
use super::call::KEY_SIZE;
use super::live::Regs;
use super::state::{Frame, State};
use super::value::{Base, Pointer, Scalar, Value};
use super::{Environment, KnownMap};

/// Where the remark behind an instruction begins.
const COLUMN: usize = 38;

/// The verifier's log.
///
/// # Kernel
/// `kernel/bpf/log.c`
pub(super) struct Log<'a> {
    text: String,
    insns: &'a [Insn],
    env: &'a Environment<'a>,
    /// Whether what was written about paths that were fine stays.
    keeps_all: bool,
    /// Where the last line begins.
    line: usize,
    source: Option<usize>,
}

struct MapNames<'a>(&'a [MapRef]);

impl Names for MapNames<'_> {
    fn map(&self, kind: u8, imm: i32) -> Option<&str> {
        let by_index = matches!(kind, pseudo::MAP_IDX | pseudo::MAP_IDX_VALUE);
        let map = usize::try_from(imm).ok().and_then(|index| self.0.get(index));
        map.filter(|_| by_index).map(MapRef::name)
    }
}

impl<'a> Log<'a> {
    pub(super) fn new(insns: &'a [Insn], env: &'a Environment<'a>, keeps_all: bool) -> Self {
        Self { text: String::new(), insns, env, keeps_all, line: 0, source: None }
    }

    pub(super) fn len(&self) -> usize {
        self.text.len()
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }

    pub(super) fn say(&mut self, text: impl std::fmt::Display) {
        self.end_line();
        let _ = writeln!(self.text, "{text}");
        self.line = self.text.len();
    }

    fn end_line(&mut self) {
        if self.line != self.text.len() {
            self.text.push('\n');
        }
        self.line = self.text.len();
    }

    /// Forgets what was written since a path branched off.
    pub(super) fn go_back(&mut self, len: usize) {
        self.end_line();
        if !self.keeps_all {
            self.text.truncate(len);
            if !self.text.is_empty() && !self.text.ends_with('\n') {
                self.text.push('\n');
            }
            self.line = self.text.len();
            self.source = None;
        }
    }

    /// A path begins.
    pub(super) fn arrive(&mut self, from: Option<usize>, at: usize, state: &State) {
        let registers = self.state(state, Regs::MAX);
        if let Some(from) = from {
            self.say(format_args!("\nfrom {from} to {at}:{registers}"));
        }
        self.say(format_args!("{at}:{registers}"));
    }

    /// A path ends, as nothing new comes after it.
    pub(super) fn safe(&mut self, at: usize) {
        self.say(format_args!("{at}: safe"));
    }

    /// An instruction is next.
    pub(super) fn insn(&mut self, at: usize) {
        let line = self.env.lines.partition_point(|(first, _)| *first <= at).checked_sub(1);
        if line != self.source
            && let Some((_, line)) = line.and_then(|line| self.env.lines.get(line))
        {
            self.say(format_args!("; {} @ {}:{}", line.text.trim(), line.file, line.line));
        }
        self.source = line;
        self.end_line();
        let end = (at + super::structure::len(self.insns[at])).min(self.insns.len());
        if let Some(text) =
            Disasm::with_names(&self.insns[at..end], &MapNames(self.env.maps)).next()
        {
            let _ = write!(self.text, "{at}: {text}");
        }
    }

    /// What the instruction did; `None` if the path ended or went elsewhere.
    pub(super) fn effect(&mut self, regs: Regs, before: &State, after: Option<&State>) {
        let Some(after) = after else { return self.end_line() };
        let (Some(old), Some(new)) = (before.frames().last(), after.frames().last()) else {
            return;
        };
        let changed = (0..11)
            .filter(|reg| old.regs[*reg] != new.regs[*reg])
            .fold(0, |set, reg| set | 1 << reg);
        let mut text = self.registers(after, new, regs | changed);
        for slot in new.stack.iter().filter(|slot| !old.stack.contains(slot)) {
            let _ = write!(text, " fp{}={}", slot.at, self.value(after, *slot.value));
        }
        if !text.is_empty() {
            let width = COLUMN.saturating_sub(self.text.len() - self.line);
            let _ = write!(self.text, "{:width$};{text}", "");
        }
        self.end_line();
    }

    pub(super) fn call(&mut self, caller: &State, callee: &State) {
        let (caller, callee) = (self.state(caller, Regs::MAX), self.state(callee, Regs::MAX));
        self.say(format_args!("caller:\n{caller}\ncallee:\n{callee}"));
    }

    pub(super) fn ret(&mut self, next: usize, callee: &State, caller: &State) {
        let (callee, caller) = (self.state(callee, Regs::MAX), self.state(caller, Regs::MAX));
        self.say(format_args!("returning from callee:\n{callee}\nto caller at {next}:\n{caller}"));
    }

    /// The innermost function's registers and stack.
    fn state(&self, state: &State, regs: Regs) -> String {
        let Some(frame) = state.frames().last() else { return String::new() };
        let mut text = match state.depth() {
            1 => String::new(),
            depth => format!(" frame{}:", depth - 1),
        };
        text += &self.registers(state, frame, regs);
        for slot in frame.stack.iter().rev() {
            let _ = write!(text, " fp{}={}", slot.at, self.value(state, *slot.value));
        }
        text
    }

    fn registers(&self, state: &State, frame: &Frame, regs: Regs) -> String {
        let mut text = String::new();
        for (reg, value) in frame.regs.iter().enumerate() {
            if regs & 1 << reg != 0 && *value != Value::Unreadable {
                let _ = write!(text, " R{reg}={}", self.value(state, *value));
            }
        }
        text
    }

    /// # Kernel
    /// `print_reg_state`
    fn value(&self, state: &State, value: Value) -> String {
        match value {
            Value::Unreadable => "?".to_owned(),
            Value::Number(Scalar { range, id, delta }) => {
                if range.value().is_some() || id == 0 {
                    return range.to_string();
                }
                let delta = if delta == 0 { String::new() } else { format!("{delta:+}") };
                let details = range.details().to_string();
                let comma = if details.is_empty() { "" } else { "," };
                format!("scalar(id={id}{delta}{comma}{details})")
            }
            Value::Pointer(pointer) => self.pointer(state, &pointer),
        }
    }

    fn pointer(&self, state: &State, pointer: &Pointer) -> String {
        let Pointer { base, off, var, id, maybe_null, range } = *pointer;
        let mut name = match base {
            Base::Stack(frame) if frame + 1 != state.depth() => format!("fp[{frame}]"),
            base => base_name(base).to_owned(),
        };
        if let (Base::Stack(_), Some(place)) = (base, pointer.place()) {
            return format!("{name}{place}");
        }
        if maybe_null {
            name = match base {
                Base::Map(KnownMap::Inner(_)) => "map_value_or_null".to_owned(),
                _ => format!("{name}_or_null"),
            };
        }
        let mut parts = Vec::new();
        if id != 0 {
            parts.push(format!("id={id}"));
        }
        if let Base::Map(map) | Base::Value(map) = base {
            let map_name = map.name(self.env.maps);
            if !map_name.is_empty() {
                parts.push(format!("map={map_name}"));
            }
            if let Some(layout) = map.layout(self.env.maps) {
                parts.push(format!("ks={KEY_SIZE},vs={}", layout.value_size()));
            }
        }
        if off != 0 {
            parts.push(format!("off={off}"));
        }
        if matches!(base, Base::Packet | Base::PacketMeta) {
            parts.push(format!("r={range}"));
        }
        match var.value() {
            Some(0) => {}
            Some(imm) => parts.push(format!("imm={}", imm as i64)),
            None => parts.push(var.details().to_string()),
        }
        format!("{name}({})", parts.join(","))
    }
}
