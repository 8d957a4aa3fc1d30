//! A map that operations are applied to: in the kernel or in our crates.

use bpfarray_core::Errno;

use crate::create::MapCreate;
use crate::kernel::Unavailable;
use crate::ops::{Answer, Case, Mode, Op, Output, Step, to_text, value};
use crate::request::{Created, Request};

/// The element operations of a handle.
pub(crate) trait Handle: Sized {
    fn lookup(&self, key: u32, flags: u64) -> Result<Vec<u8>, Errno>;
    fn update(&self, key: u32, value: &[u8], flags: u64) -> Result<(), Errno>;
    fn delete(&self, key: u32) -> Result<(), Errno>;
    fn next_key(&self, key: Option<u32>) -> Result<u32, Errno>;
    fn freeze(&self) -> Result<(), Errno>;
    /// Another handle to the same map.
    fn open(&self, mode: Mode) -> Result<Self, Errno>;
    /// Loads a program that refers to the map.
    fn refer(&self, prog_type: u32) -> Result<(), Errno>;
    /// Bytes of a value as `lookup` and `update` copy it.
    fn value_len(&self) -> usize;
}

/// Where maps are made, and the objects of the catalogue there.
pub(crate) trait Side {
    type Handle: Handle;

    fn create(
        &self,
        request: &Request,
    ) -> Result<Result<(Self::Handle, Created), Errno>, Unavailable>;
    /// Puts what has this name into a slot.
    fn put(
        &self,
        handle: &Self::Handle,
        key: u32,
        object: &'static str,
        flags: u64,
    ) -> Result<(), Errno>;
    /// The name of what a lookup in a map of this type found by its id.
    fn name(&self, map_type: u32, id: u32) -> Option<&'static str>;
}

/// A map with handles for every mode.
pub(crate) struct Subject<'a, S: Side> {
    side: &'a S,
    create: MapCreate,
    handles: [S::Handle; Mode::ALL.len()],
    /// Bytes of values that answers have, at most.
    value_len: usize,
}

impl<'a, S: Side> Subject<'a, S> {
    /// Creates the map. Values in answers are those of the first `cpus` CPUs.
    pub(crate) fn new(
        side: &'a S,
        request: &Request,
        cpus: usize,
    ) -> Result<Result<(Self, Created), Errno>, Unavailable> {
        let subject = |(handle, created): (S::Handle, Created)| {
            let (reader, writer) = (handle.open(Mode::ReadOnly)?, handle.open(Mode::WriteOnly)?);
            let value_len = request.create.value_len(cpus);
            let (create, handles) = (request.create.clone(), [handle, reader, writer]);
            Ok((Self { side, create, handles, value_len }, created))
        };
        Ok(side.create(request)?.and_then(subject))
    }

    /// Whether values here are as long as those of a machine with this many CPUs, or longer.
    pub(crate) fn has_values_of(&self, cpus: usize) -> bool {
        self.create.value_len(cpus) <= self.handles[0].value_len()
    }

    /// Applies one operation.
    pub(crate) fn apply(&mut self, step: &Step) -> Answer {
        let handle = &self.handles[step.mode as usize];
        match step.op {
            Op::Lookup { key, flags } => {
                let mut value = handle.lookup(key, flags)?;
                if !self.create.holds_objects() {
                    value.truncate(self.value_len);
                    return Ok(Output::Value(value));
                }
                let id = value.as_slice().try_into().map(u32::from_ne_bytes);
                let name = id.ok().and_then(|id| self.side.name(self.create.map_type, id));
                name.map(Output::Object).ok_or(Errno::EPROTO)
            }
            Op::Update { key, flags, seed } => {
                handle.update(key, &value(seed, handle.value_len()), flags)?;
                Ok(Output::Done)
            }
            Op::Put { key, flags, object } => {
                self.side.put(handle, key, object, flags).map(|()| Output::Done)
            }
            Op::Delete { key } => handle.delete(key).map(|()| Output::Done),
            Op::NextKey { key } => handle.next_key(key).map(Output::Key),
            Op::Freeze => handle.freeze().map(|()| Output::Done),
            Op::Reopen => {
                self.handles[step.mode as usize] = handle.open(step.mode)?;
                Ok(Output::Done)
            }
            Op::Refer { prog_type } => handle.refer(prog_type).map(|()| Output::Done),
        }
    }
}

/// The answers of a side to the creation of the case's map and to its steps, in order.
pub(crate) fn answers<S: Side>(
    side: &S,
    case: &Case,
    cpus: usize,
) -> Result<Vec<String>, Unavailable> {
    let created = Subject::new(side, &case.request, cpus)?;
    let mut answers = vec![to_text(&created.as_ref().map(|(_, c)| *c).map_err(|errno| *errno))];
    if let Ok((mut subject, _)) = created {
        answers.extend(case.steps.iter().map(|step| to_text(&subject.apply(step))));
    }
    Ok(answers)
}
