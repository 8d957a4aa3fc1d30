//! What one program run needs of the maps that it shares with other processes.

use std::fmt;
use std::sync::Arc;

use bpfarray_core::map::Kind;

use super::MapFile;
use crate::lane::Lane;
use crate::map::{Contents, MapRef};

/// The per-CPU map files among some maps, whose lanes can be held together.
///
/// A [`Lane`] keeps other threads of this process from a CPU's values. Where a PERCPU_ARRAY is
/// shared with other processes, its lane in the file keeps them off, too. Operations of
/// [`Map`](crate::Map) and [`PercpuArray`](crate::PercpuArray) take it themselves; whoever changes values by
/// their addresses, as programs do, runs inside [`SharedLanes::run`]. That also [refreshes](MapRef::refresh_slots) slots which
/// other processes may have filled, and holds the lanes of PERCPU_ARRAYs that are in the slots of an ARRAY_OF_MAPS then.
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
    /// Maps in whose slots there may be something new.
    slots: Box<[MapRef]>,
}

impl SharedLanes {
    /// Finds the per-CPU map files that can be written to among `maps`, and slots that others can fill.
    pub fn of<'a>(maps: impl IntoIterator<Item = &'a MapRef>) -> Self {
        let (mut files, mut slots) = (Vec::new(), Vec::new());
        for map in maps {
            files.extend(percpu_file(map));
            if map.has_shared_slots() || has_percpu_maps(map) {
                slots.push(map.clone());
            }
        }
        Self { files: in_order(files), slots: slots.into() }
    }

    /// Whether there are none, so that [`SharedLanes::run`] does nothing but run.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.slots.is_empty()
    }

    /// Runs `body` with the lanes of `lane`'s CPU held in all files.
    ///
    /// # Concurrency
    /// Waits while another process holds one of them, unless it died. Don't call it from inside
    /// another set's `run`: two processes could wait for each other.
    #[inline]
    pub fn run<R>(&self, lane: &Lane, body: impl FnOnce() -> R) -> R {
        if self.is_empty() { body() } else { self.run_with_lanes(lane, body) }
    }

    #[inline(never)]
    fn run_with_lanes<R>(&self, lane: &Lane, body: impl FnOnce() -> R) -> R {
        if self.slots.is_empty() {
            return run_in(&self.files, lane.cpu(), body);
        }
        let mut files = self.files.to_vec();
        for map in &self.slots {
            // A program finds what was there before; the next run tries again.
            let _ = map.refresh_slots();
            if let Contents::Maps(maps) = &map.inner.contents {
                files.extend(maps.percpu_files().iter().filter_map(percpu_file));
            }
        }
        run_in(&in_order(files), lane.cpu(), body)
    }
}

/// The file of a PERCPU_ARRAY whose values can be changed.
fn percpu_file(map: &MapRef) -> Option<Arc<MapFile>> {
    let file = map.inner.gate.file().filter(|file| !file.is_read_only())?;
    (!map.inner.area.percpu().is_empty()).then(|| Arc::clone(file))
}

fn has_percpu_maps(map: &MapRef) -> bool {
    map.inner_template().is_some_and(|template| template.kind() == Kind::PercpuArray)
}

fn in_order(mut files: Vec<Arc<MapFile>>) -> Box<[Arc<MapFile>]> {
    files.sort_by_key(|file| file.key);
    files.dedup_by_key(|file| file.key);
    files.into()
}

impl fmt::Debug for SharedLanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedLanes({})", self.files.len())
    }
}

fn run_in<R>(files: &[Arc<MapFile>], cpu: u32, body: impl FnOnce() -> R) -> R {
    match files {
        [] => body(),
        [first, rest @ ..] => {
            let _held = first.claim(cpu);
            run_in(rest, cpu, body)
        }
    }
}
