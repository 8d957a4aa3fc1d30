//! The same questions, answered by our crates.

use bpfarray::Map;
use bpfarray_core::Errno;

use crate::create::{Created, Request};
use crate::ops::{Answer, Elements, Op, Output, value};

/// Creates the map; its memory charge is given for a machine with `possible_cpus`.
pub(crate) fn create(request: &Request, possible_cpus: usize) -> Result<(Map, Created), Errno> {
    let attr = request.create.to_core();
    let map = Map::create_as(&attr, &request.creator.to_core()).map_err(|e| e.errno())?;
    let created = Created {
        map_flags: map.map_flags().bits(),
        memlock: map.layout().mem_usage(possible_cpus as u32),
    };
    Ok((map, created))
}

impl Elements for Map {
    fn apply(&self, op: &Op) -> Answer {
        let mut buffer = vec![0; self.user_size() as usize];
        match *op {
            Op::Lookup { key, flags } => {
                self.lookup_elem(key, &mut buffer, flags).map_err(|e| e.errno())?;
                Ok(Output::Value(buffer))
            }
            Op::Update { key, flags, seed } => self
                .update_elem(key, &value(seed, buffer.len()), flags)
                .map(|()| Output::Done)
                .map_err(|e| e.errno()),
            Op::Delete { key } => {
                self.delete_elem(key).map(|()| Output::Done).map_err(|e| e.errno())
            }
            Op::NextKey { key } => self.get_next_key(key).map(Output::Key).map_err(|e| e.errno()),
            Op::Freeze => self.freeze().map(|()| Output::Done).map_err(|e| e.errno()),
        }
    }
}
