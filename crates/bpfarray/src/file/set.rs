//! The shared lanes that one program run needs.

use std::fmt;
use std::sync::Arc;

use super::MapFile;
use crate::lane::Lane;
use crate::map::MapRef;

/// The per-CPU map files among some maps, whose lanes can be held together.
///
/// A [`Lane`] keeps other threads of this process from a CPU's values. Where a PERCPU_ARRAY is
/// shared with other processes, its lane in the file keeps them off, too. Operations of
/// [`Map`](crate::Map) and [`PercpuArray`](crate::PercpuArray) take it themselves; whoever changes values by
/// their addresses, as programs do, runs inside [`SharedLanes::run`].
///
/// ```
/// use bpfarray::attr::{MapAttr, MapType};
/// use bpfarray::{Lane, Map, SharedLanes};
/// let sizes = MapAttr { key_size: 4, value_size: 8, max_entries: 1, ..MapAttr::default() };
/// let map = Map::create_shared(&MapAttr { map_type: MapType::PERCPU_ARRAY, ..sizes })?;
/// let shared = SharedLanes::of([&map.to_ref()]);
/// let lane = Lane::enter();
/// shared.run(&lane, || map.prog_update_elem(&lane, 0, &7u64.to_ne_bytes(), 0))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct SharedLanes {
    /// In an order that is the same in all processes, so that they don't wait for each other in a
    /// circle.
    files: Box<[Arc<MapFile>]>,
}

impl SharedLanes {
    /// Finds the per-CPU map files that can be written to among `maps`.
    pub fn of<'a>(maps: impl IntoIterator<Item = &'a MapRef>) -> Self {
        let mut files: Vec<_> = maps
            .into_iter()
            .filter(|map| !map.inner.area.percpu().is_empty())
            .filter_map(|map| map.inner.gate.file())
            .filter(|file| !file.is_read_only())
            .cloned()
            .collect();
        files.sort_by_key(|file| file.key);
        files.dedup_by_key(|file| file.key);
        Self { files: files.into() }
    }

    /// Whether there are none, so that [`SharedLanes::run`] does nothing but run.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Runs `body` with the lanes of `lane`'s CPU held in all files.
    ///
    /// # Concurrency
    /// Waits while another process holds one of them, unless it died. Don't call it from inside
    /// another set's `run`: two processes could wait for each other.
    #[inline]
    pub fn run<R>(&self, lane: &Lane, body: impl FnOnce() -> R) -> R {
        run_in(&self.files, lane.cpu(), body)
    }
}

impl fmt::Debug for SharedLanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedLanes({})", self.files.len())
    }
}

#[inline]
fn run_in<R>(files: &[Arc<MapFile>], cpu: u32, body: impl FnOnce() -> R) -> R {
    match files {
        [] => body(),
        [first, rest @ ..] => {
            let _held = first.claim(cpu);
            run_in(rest, cpu, body)
        }
    }
}
