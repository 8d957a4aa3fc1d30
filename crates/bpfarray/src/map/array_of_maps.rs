//! The slots of an ARRAY_OF_MAPS, and the way from an address back to the map in which it is.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Weak};

use bpfarray_core::btf::SpecialFields;
use bpfarray_core::map::Kind;
use bpfarray_core::map::array_of_maps::{InnerError, meta_equal};
use bpfarray_core::{Errno, Layout};

use super::MapRef;
use crate::index::Index;
use crate::lane::Lane;
use crate::memory::Memory;
use crate::slot::Slots;
use crate::sync::{Mutex, lock};
use crate::window;

/// Maps in slots. What programs load from the area is the address of the map in the slot, or 0.
pub(crate) struct MapArray {
    template: Layout,
    fields: SpecialFields,
    /// The addresses, for programs.
    addresses: Memory,
    slots: Slots<Held>,
    /// One slot, with the version that readers search.
    ranges: Slots<Ranges>,
    /// How many of the maps are PERCPU_ARRAYs in files.
    percpu_files: AtomicU64,
    writer: Mutex<Writer>,
}

/// Every range of addresses that belongs to a map which some lane may have found here: its length
/// in bytes and the map, by where it begins.
type Ranges = Index<Place, (u64, MapRef)>;

/// Where an address is. Per-CPU values are at the same offset of every window.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Place {
    Window(u64),
    Area(u64),
}

impl Place {
    fn of(addr: u64) -> Self {
        window::offset_of(addr).map_or(Self::Area(addr), Self::Window)
    }

    /// How far behind `start` this place is.
    fn since(self, start: Self) -> Option<u64> {
        match (self, start) {
            (Self::Window(at), Self::Window(start)) | (Self::Area(at), Self::Area(start)) => {
                at.checked_sub(start)
            }
            (Self::Window(_), Self::Area(_)) | (Self::Area(_), Self::Window(_)) => None,
        }
    }
}

struct Writer {
    ranges: Ranges,
    /// How many slots hold a map, or held it when a lane was claimed that has not been left: by
    /// address.
    uses: HashMap<u64, u32>,
}

/// A map in a slot. It is dropped when no lane can see it any more.
struct Held {
    map: MapRef,
    array: Weak<MapArray>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(array) = self.array.upgrade() {
            array.forget(&self.map);
        }
    }
}

/// The ranges of addresses under which programs know a map.
fn ranges(map: &MapRef) -> impl Iterator<Item = (Place, u64)> {
    let area = &map.inner.area;
    let window = area.percpu().first().map(|values| (Place::of(values.addr()), values.len()));
    std::iter::once((Place::Area(area.addr()), area.len()))
        .chain(window)
        .map(|(start, len)| (start, len as u64))
}

fn is_percpu_file(map: &MapRef) -> bool {
    map.layout().kind() == Kind::PercpuArray && map.inner.gate.file().is_some()
}

impl MapArray {
    /// Slots for as many maps of the shape of `template` as there is room for addresses.
    pub(crate) fn new(
        template: Layout,
        fields: SpecialFields,
        addresses: Memory,
    ) -> Result<Arc<Self>, Errno> {
        let len = u32::try_from(addresses.len() / ADDRESS).map_err(|_| Errno::ENOMEM)?;
        let writer = Writer { ranges: Ranges::new(), uses: HashMap::new() };
        Ok(Arc::new(Self {
            template,
            fields,
            addresses,
            slots: Slots::new(len)?,
            ranges: Slots::new(1)?,
            percpu_files: AtomicU64::new(0),
            writer: Mutex::new(writer),
        }))
    }

    pub(crate) fn template(&self) -> &Layout {
        &self.template
    }

    pub(crate) fn template_fields(&self) -> &SpecialFields {
        &self.fields
    }

    /// Whether a map may be put into a slot.
    pub(crate) fn check(&self, map: &MapRef) -> Result<(), InnerError> {
        meta_equal((&self.template, &self.fields), (map.layout(), map.special_fields()))
    }

    /// Puts a map into a slot.
    pub(crate) fn insert(self: &Arc<Self>, index: u32, map: MapRef) -> Result<(), InnerError> {
        self.check(&map)?;
        let mut writer = lock(&self.writer);
        let uses = writer.uses.entry(map.addr()).or_insert(0);
        *uses += 1;
        if *uses == 1 {
            for (start, len) in ranges(&map) {
                writer.ranges.insert(start, (len, map.clone()));
            }
            self.ranges.replace(0, Some(writer.ranges.clone()));
            self.percpu_files.fetch_add(is_percpu_file(&map).into(), Ordering::Relaxed);
        }
        let addr = map.addr();
        // After the ranges: see `map_at`.
        self.publish(index, addr);
        self.slots.replace(index, Some(Held { map, array: Arc::downgrade(self) }));
        Ok(())
    }

    /// Empties a slot; `false` if it was empty.
    pub(crate) fn remove(&self, index: u32) -> bool {
        // Under the lock, so that the address in the area is that of the map in the slot.
        let _writer = lock(&self.writer);
        self.publish(index, 0);
        self.slots.replace(index, None).unwrap_or(false)
    }

    fn publish(&self, index: u32, addr: u64) {
        let stored = self.addresses.store_release(index as usize * ADDRESS, ADDRESS, addr);
        debug_assert!(stored.is_ok(), "the rules let no index past the end through");
    }

    /// All maps that are in slots, and some that were until a moment ago.
    pub(crate) fn maps(&self) -> Vec<MapRef> {
        let writer = lock(&self.writer);
        let areas = writer.ranges.iter().filter(|(place, _)| matches!(place, Place::Area(_)));
        areas.map(|(_, (_, map))| map.clone()).collect()
    }

    /// The PERCPU_ARRAYs among them whose values are in files.
    pub(crate) fn percpu_files(&self) -> Vec<MapRef> {
        if self.percpu_files.load(Ordering::Relaxed) == 0 {
            return Vec::new();
        }
        self.maps().into_iter().filter(is_percpu_file).collect()
    }

    /// One slot less in which a map is, or was.
    fn forget(&self, map: &MapRef) {
        let mut writer = lock(&self.writer);
        let Some(uses) = writer.uses.get_mut(&map.addr()) else { return };
        *uses -= 1;
        if *uses == 0 {
            writer.uses.remove(&map.addr());
            for (start, _) in ranges(map) {
                writer.ranges.remove(start);
            }
            self.ranges.replace(0, Some(writer.ranges.clone()));
            self.percpu_files.fetch_sub(is_percpu_file(map).into(), Ordering::Relaxed);
        }
    }

    /// The map in a slot.
    pub(crate) fn get<'lane>(&'lane self, lane: &'lane Lane, index: u32) -> Option<&'lane MapRef> {
        self.slots.get(lane, index).map(|held| &held.map)
    }

    /// The address of the map in a slot, as inlined lookups load it.
    pub(crate) fn address(&self, index: u32) -> Option<u64> {
        let addr = self.addresses.load(index as usize * ADDRESS, ADDRESS).ok()?;
        (addr != 0).then_some(addr)
    }

    /// The map in which an address is that a program has found in this lane.
    pub(crate) fn map_at<'lane>(
        &'lane self,
        lane: &'lane Lane,
        addr: u64,
    ) -> Option<&'lane MapRef> {
        // What found the address in the area sees the ranges that were published before it. Those,
        // and later ones, have the map until this lane is left.
        fence(Ordering::Acquire);
        let place = Place::of(addr);
        let (start, (len, map)) = self.ranges.get(lane, 0)?.last_up_to(place)?;
        (place.since(*start)? < *len).then_some(map)
    }
}

/// Bytes of an address.
const ADDRESS: usize = size_of::<u64>();

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::attr::{Creator, MapAttr, MapType};
    use crate::map::testing::{ARRAY, PERCPU, create, objects};
    use crate::{HandleMode, Map, Object, possible_cpus, rcu};
    use std::sync::atomic::AtomicBool;

    fn put(outer: &Map, index: u32, inner: &Map) {
        outer.update_object(index, &Object::Map(inner.to_ref()), 0).unwrap();
    }

    /// Weak, to see whether a map is there that nobody should hold.
    fn watch(map: &Map) -> Weak<crate::map::reference::Inner> {
        Arc::downgrade(&map.inner)
    }

    #[test]
    fn a_slot_gives_the_id_to_handles_and_the_address_to_programs() {
        let outer = objects(MapType::ARRAY_OF_MAPS, 4);
        let inner = create(ARRAY);
        put(&outer, 3, &inner);
        put(&outer, 1, &inner);
        let mut id = [0; 4];
        outer.lookup_elem(3, &mut id, 0).unwrap();
        assert_eq!(u32::from_ne_bytes(id), inner.id());
        {
            let lane = Lane::enter();
            assert_eq!(outer.prog_lookup_elem(&lane, 1), Some(inner.addr()));
            assert_eq!(outer.prog_lookup_elem(&lane, 0), None);
            assert_eq!(outer.prog_lookup_elem(&lane, 4), None);
            assert_eq!(outer.regions()[0].memory.load(3 * 8, 8), Ok(inner.addr()));
        }
        outer.delete_elem(3).unwrap();
        assert_eq!(outer.regions()[0].memory.load(3 * 8, 8), Ok(0));
        assert_eq!(outer.delete_elem(3).unwrap_err().errno(), Errno::ENOENT);
        let lane = Lane::enter();
        assert!(outer.inner_map_at(&lane, inner.addr()).is_some(), "still in slot 1");
    }

    #[test]
    fn every_address_of_an_inner_map_leads_to_it() {
        let template = create(PERCPU);
        let attr = MapAttr { map_type: MapType::ARRAY_OF_MAPS, value_size: 4, ..ARRAY };
        let outer = Map::create_with(&attr, &Creator::default(), Some(&template)).unwrap();
        let maps: Vec<Map> = (0..5).map(|_| create(PERCPU)).collect();
        for (index, map) in maps.iter().enumerate() {
            put(&outer, index as u32, map);
        }
        let lane = Lane::enter();
        let found = |addr| outer.inner_map_at(&lane, addr).map(|map| map.id());
        for map in &maps {
            assert_eq!(found(map.addr()), Some(map.id()));
            assert_eq!(found(map.addr() + 4096 + 5 * 8 - 1), Some(map.id()));
            assert_eq!(found(map.addr() + 4096 + 5 * 8), None);
            assert_eq!(found(map.addr() - 1), None);
            for cpu in 0..possible_cpus() {
                let last = map.prog_lookup_percpu_elem(4, cpu).unwrap() + 15;
                assert_eq!((found(last), found(last + 1)), (Some(map.id()), None));
            }
        }
        assert_eq!(found(template.addr()), None);
        assert_eq!(found(0), None);
    }

    #[test]
    fn an_inner_map_lives_in_its_slot_and_goes_when_it_is_replaced() {
        let outer = objects(MapType::ARRAY_OF_MAPS, 2);
        let (first, second) = (create(ARRAY), create(ARRAY));
        put(&outer, 0, &first);
        put(&outer, 1, &first);
        let gone = watch(&first);
        drop(first);
        put(&outer, 0, &second);
        rcu::barrier().unwrap();
        assert!(gone.upgrade().is_some_and(|map| map.id > 0), "held by slot 1");
        put(&outer, 1, &second);
        rcu::barrier().unwrap();
        assert!(gone.upgrade().is_none());
        let (inner_gone, outer_gone) = (watch(&second), watch(&outer));
        drop(second);
        assert!(inner_gone.upgrade().is_some(), "held by both slots");
        drop(outer);
        rcu::barrier().unwrap();
        assert!(inner_gone.upgrade().is_none() && outer_gone.upgrade().is_none());
    }

    #[test]
    fn a_program_keeps_the_old_map_until_it_leaves_its_lane() {
        let outer = objects(MapType::ARRAY_OF_MAPS, 1);
        let (old, new) = (create(ARRAY), create(ARRAY));
        put(&outer, 0, &old);
        let lane = Lane::enter();
        let addr = outer.prog_lookup_elem(&lane, 0).unwrap();
        put(&outer, 0, &new);
        let gone = watch(&old);
        drop(old);
        assert_eq!(outer.prog_lookup_elem(&lane, 0), Some(new.addr()));
        assert_eq!(outer.inner_map_at(&lane, addr).map(|map| map.addr()), Some(addr));
        drop(lane);
        rcu::barrier().unwrap();
        assert!(gone.upgrade().is_none());
        assert!(outer.inner_map_at(&Lane::enter(), addr).is_none());
    }

    #[test]
    fn an_update_waits_for_the_programs_that_have_the_old_map() {
        let outer = objects(MapType::ARRAY_OF_MAPS, 1);
        put(&outer, 0, &create(ARRAY));
        let (in_lane, left) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let lane = Lane::enter();
                in_lane.store(true, Ordering::SeqCst);
                std::thread::sleep(std::time::Duration::from_millis(20));
                left.store(true, Ordering::SeqCst);
                drop(lane);
            });
            while !in_lane.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            assert_eq!(outer.delete_elem(0), Ok(()));
            assert!(left.load(Ordering::SeqCst));
        });
    }

    #[test]
    fn maps_of_another_shape_are_refused_and_the_slot_is_kept() {
        let outer = objects(MapType::ARRAY_OF_MAPS, 4);
        let inner = create(ARRAY);
        put(&outer, 0, &inner);
        let errno =
            |map: &Map| outer.update_object(0, &Object::Map(map.to_ref()), 0).unwrap_err().errno();
        assert_eq!(errno(&create(MapAttr { max_entries: 6, ..ARRAY })), Errno::EINVAL);
        assert_eq!(errno(&outer), Errno::EINVAL);
        let exclusive = MapAttr { excl_prog_hash: Some([0; 32]), max_entries: 6, ..ARRAY };
        assert_eq!(errno(&create(exclusive)), Errno::ENOTSUPP);
        let frozen = create(ARRAY).with_mode(HandleMode::WriteOnly);
        frozen.freeze().unwrap();
        put(&outer, 1, &frozen);
        assert_eq!(outer.prog_lookup_elem(&Lane::enter(), 0), Some(inner.addr()));
    }

    #[test]
    fn readers_find_a_map_at_every_address_they_load_while_it_is_replaced() {
        let outer = objects(MapType::ARRAY_OF_MAPS, 2);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut found = 0_u64;
                    while !done.load(Ordering::Relaxed) {
                        let lane = Lane::enter();
                        for index in 0..2 {
                            let Some(addr) = outer.prog_lookup_elem(&lane, index) else { continue };
                            let map = outer.inner_map_at(&lane, addr + 4096).unwrap();
                            assert_eq!(map.addr(), addr);
                            let value = map.regions()[0].memory.fetch_add(0, 8, 1).unwrap();
                            assert!(value < 1 << 40);
                            found += 1;
                        }
                    }
                    assert!(found > 0);
                });
            }
            for round in 0..500 {
                let (index, kept) = (round % 2, create(ARRAY));
                put(&outer, index, &kept);
                if round % 7 == 0 {
                    outer.delete_elem(index).unwrap();
                }
            }
            put(&outer, 0, &create(ARRAY));
            std::thread::sleep(std::time::Duration::from_millis(5));
            done.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn two_writers_keep_addresses_and_slots_in_step() {
        let outer = objects(MapType::ARRAY_OF_MAPS, 1);
        let maps = [create(ARRAY), create(ARRAY)];
        std::thread::scope(|scope| {
            for map in &maps {
                let outer = &outer;
                scope.spawn(move || (0..300).for_each(|_| put(outer, 0, map)));
            }
        });
        let mut id = [0; 4];
        outer.lookup_elem(0, &mut id, 0).unwrap();
        let map = maps.iter().find(|map| map.id() == u32::from_ne_bytes(id)).unwrap();
        assert_eq!(outer.prog_lookup_elem(&Lane::enter(), 0), Some(map.addr()));
    }
}
