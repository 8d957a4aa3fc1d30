//! The walk through a value's type that finds its special fields.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use super::special::{Contains, FieldKind, FieldMask, MAX_FIELDS, SpecialField};
use super::{
    Btf, Composite, Datasec, Def, FieldDefect, FieldsError, POINTER_SIZE, SpecialFields, Type,
};

/// Levels of structs, or of arrays, that are looked into.
const MAX_RESOLVE_DEPTH: u32 = 32;

/// What the walk must find by name: structs, and the declaration tags of lists and trees.
pub(super) struct Names<'a> {
    structs: BTreeMap<&'a str, u32>,
    /// What follows `contains:`, or `None` where there are several such tags.
    contains: BTreeMap<(u32, Option<u32>), Option<&'a str>>,
}

impl<'a> Names<'a> {
    pub(super) fn new(btf: &'a Btf) -> Self {
        let mut names = Self { structs: BTreeMap::new(), contains: BTreeMap::new() };
        for ty in btf.types() {
            match ty.def {
                Def::Struct(_) => {
                    names.structs.entry(ty.name).or_insert(ty.id);
                }
                Def::DeclTag { ty: of, component } => {
                    let Some(text) = ty.name.strip_prefix("contains:") else { continue };
                    let entry = names.contains.entry((of, component));
                    entry.and_modify(|tag| *tag = None).or_insert(Some(text));
                }
                _ => {}
            }
        }
        names
    }

    /// The first struct of this name.
    pub(super) fn find_struct(&self, name: &str) -> Option<u32> {
        self.structs.get(name).copied()
    }
}

/// The special fields of a type, and the struct that each list or tree among them holds.
pub(super) struct Parsed {
    pub(super) fields: SpecialFields,
    pub(super) contained: Vec<u32>,
}

struct Found {
    field: SpecialField,
    /// Of a list or tree, the struct it holds.
    contained: Option<u32>,
}

pub(super) struct Finder<'a> {
    btf: &'a Btf,
    names: &'a Names<'a>,
    mask: FieldMask,
    found: Vec<Found>,
    /// Structs that have no special fields, with the deepest level they were walked at: walking them
    /// again for each of their places could take forever.
    barren: BTreeMap<u32, u32>,
}

/// A member of a struct or variable of a section, and where it stands.
#[derive(Copy, Clone)]
struct Place {
    owner: u32,
    index: usize,
    /// What a declaration tag would be attached to.
    tagged: (u32, Option<u32>),
    /// Bytes from the start of the value to the owner.
    base: u32,
    /// Bytes from the start of the owner.
    offset: u32,
    /// Bytes the field must have, if anyone said so.
    size: Option<u32>,
}

impl Place {
    const fn error(self, defect: FieldDefect) -> FieldsError {
        FieldsError::Member { id: self.owner, index: self.index, defect }
    }

    /// Whether `count` fields can be here; if not, it is ordinary bytes.
    fn fits(self, size: u32, align: u32, count: u32) -> bool {
        self.offset.is_multiple_of(align)
            && self.size.is_none_or(|expected| expected == size.saturating_mul(count))
    }
}

impl<'a> Finder<'a> {
    pub(super) fn new(btf: &'a Btf, names: &'a Names<'a>, mask: FieldMask) -> Self {
        Self { btf, names, mask, found: Vec::new(), barren: BTreeMap::new() }
    }

    /// # Kernel
    /// `btf_parse_fields`
    pub(super) fn parse(mut self, id: u32) -> Result<Parsed, FieldsError> {
        match self.btf.value_type(id).map(|ty| (ty.id, ty.def)) {
            Some((id, Def::Struct(def))) => {
                self.structure(id, def, 0, 0)?;
                self.record(id, def.size)
            }
            Some((id, Def::Datasec(def))) => {
                self.section(id, def)?;
                self.record(id, def.size)
            }
            _ => self.record(id, 0),
        }
    }

    /// # Kernel
    /// `btf_find_datasec_var`
    fn section(&mut self, id: u32, def: Datasec<'a>) -> Result<(), FieldsError> {
        let mut seen = FieldMask::empty();
        for (index, var) in def.vars().enumerate() {
            let Ok(Def::Var { ty, .. }) = self.btf.get(var.var).map(|ty| ty.def) else { continue };
            let (tagged, offset) = ((var.var, None), var.offset);
            let size = (var.size != 0).then_some(var.size);
            let place = Place { owner: id, index, tagged, base: 0, offset, size };
            self.field(place, ty, 0, &mut seen)?;
        }
        Ok(())
    }

    /// # Kernel
    /// `btf_find_struct_field`
    fn structure(
        &mut self,
        id: u32,
        def: Composite<'a>,
        base: u32,
        level: u32,
    ) -> Result<(), FieldsError> {
        if self.barren.get(&id).is_some_and(|walked| level <= *walked) {
            return Ok(());
        }
        let before = self.found.len();
        let mut seen = FieldMask::empty();
        for (index, member) in def.members().enumerate() {
            let tagged = (id, Some(index as u32));
            let offset = member.bit_offset / 8;
            let place = Place { owner: id, index, tagged, base, offset, size: None };
            if member.bit_offset % 8 != 0 {
                return Err(place.error(FieldDefect::BitOffset));
            }
            self.field(place, member.ty, level, &mut seen)?;
        }
        if self.found.len() == before {
            self.barren.insert(id, level);
        }
        Ok(())
    }

    /// # Kernel
    /// `btf_find_field_one`
    fn field(
        &mut self,
        place: Place,
        type_id: u32,
        level: u32,
        seen: &mut FieldMask,
    ) -> Result<(), FieldsError> {
        let element = self.element(type_id).map_err(|defect| place.error(defect))?;
        let Some((ty, count)) = element else { return Ok(()) };
        let start = self.found.len();
        let size = match (self.named(&ty), ty.def) {
            (Some(kind), def) => {
                // A wrong one counts, too.
                if FieldMask::UNIQUE.contains(kind.mask()) && seen.contains(kind.mask()) {
                    return Err(place.error(FieldDefect::Second(kind.name())));
                }
                seen.insert(kind.mask());
                let size = kind.size();
                let right = matches!(def, Def::Struct(def) if def.size == size);
                if !right || !place.fits(size, kind.align(), count) {
                    return Ok(());
                }
                self.push(place, kind).map_err(|defect| place.error(defect))?;
                size
            }
            (None, Def::Struct(def)) => {
                if place.size.is_some_and(|size| size != def.size.saturating_mul(count)) {
                    return Ok(());
                }
                if level + 1 >= MAX_RESOLVE_DEPTH {
                    return Err(place.error(FieldDefect::TooDeep));
                }
                let base = place.base.saturating_add(place.offset);
                self.structure(ty.id, def, base, level + 1)?;
                def.size
            }
            (None, _) => {
                if !place.fits(POINTER_SIZE, POINTER_SIZE, count) {
                    return Ok(());
                }
                let kind = self.btf.kptr(&ty, self.mask).map_err(|defect| place.error(defect))?;
                let Some(kind) = kind else { return Ok(()) };
                self.push(place, kind).map_err(|defect| place.error(defect))?;
                POINTER_SIZE
            }
        };
        self.repeat(start, count, size).map_err(|defect| place.error(defect))
    }

    /// What the elements of an array of arrays are, and how many; any other type is one element.
    fn element(&self, id: u32) -> Result<Option<(Type<'a>, u32)>, FieldDefect> {
        let (mut at, mut count) = (id, 1_u32);
        for _ in 0..MAX_RESOLVE_DEPTH {
            let Ok(ty) = self.btf.get(at) else { return Ok(None) };
            let Def::Array(array) = ty.def else {
                return Ok((count != 0).then_some((ty, count)));
            };
            count = count.saturating_mul(array.len);
            at = array.element;
        }
        Err(FieldDefect::TooDeep)
    }

    /// The special field that types of this name are, if it is asked for.
    ///
    /// # Kernel
    /// `btf_get_field_type`
    fn named(&self, ty: &Type<'_>) -> Option<FieldKind> {
        let nothing = || Contains { target: String::new(), node: String::new(), node_offset: 0 };
        let kind = match ty.name {
            "bpf_spin_lock" => FieldKind::SpinLock,
            "bpf_res_spin_lock" => FieldKind::ResSpinLock,
            "bpf_timer" => FieldKind::Timer,
            "bpf_wq" => FieldKind::Workqueue,
            "bpf_task_work" => FieldKind::TaskWork,
            "bpf_refcount" => FieldKind::Refcount,
            "bpf_list_head" => FieldKind::ListHead(nothing()),
            "bpf_rb_root" => FieldKind::RbRoot(nothing()),
            "bpf_list_node" => FieldKind::ListNode,
            "bpf_rb_node" => FieldKind::RbNode,
            _ => return None,
        };
        self.mask.contains(kind.mask()).then_some(kind)
    }

    fn push(&mut self, place: Place, mut kind: FieldKind) -> Result<(), FieldDefect> {
        let mut contained = None;
        if let FieldKind::ListHead(contains) | FieldKind::RbRoot(contains) = &mut kind {
            contained = Some(self.contains(place, contains)?);
        }
        if self.found.len() == MAX_FIELDS {
            return Err(FieldDefect::TooMany);
        }
        let offset = place.base.saturating_add(place.offset);
        self.found.push(Found { field: SpecialField { offset, kind }, contained });
        Ok(())
    }

    /// Reads the declaration tag of a list or tree, and gives the struct it holds.
    ///
    /// # Kernel
    /// `btf_find_graph_root`
    fn contains(&self, place: Place, contains: &mut Contains) -> Result<u32, FieldDefect> {
        let tag = self.names.contains.get(&place.tagged).copied().flatten();
        let parts = tag.and_then(|tag| tag.split_once(':'));
        let (target, node) = parts.ok_or(FieldDefect::ContainsTag)?;
        let id = self.names.find_struct(target).ok_or(FieldDefect::NoSuchStruct)?;
        if node.is_empty() {
            return Err(FieldDefect::ContainsTag);
        }
        *contains = Contains { target: target.into(), node: node.into(), node_offset: 0 };
        Ok(id)
    }

    /// Copies the fields from `start` on, those of an array's first element, to its other elements.
    ///
    /// # Kernel
    /// `btf_repeat_fields`
    fn repeat(&mut self, start: usize, count: u32, size: u32) -> Result<(), FieldDefect> {
        const REPEATABLE: FieldMask =
            FieldMask::KPTR.union(FieldMask::UPTR).union(FieldMask::GRAPH_ROOT);
        let once = self.found.len() - start;
        if count <= 1 || once == 0 {
            return Ok(());
        }
        let mut kinds = self.found[start..].iter().map(|found| &found.field.kind);
        if let Some(kind) = kinds.find(|kind| !REPEATABLE.contains(kind.mask())) {
            return Err(FieldDefect::Array(kind.name()));
        }
        if (MAX_FIELDS - start) / once < count as usize {
            return Err(FieldDefect::TooMany);
        }
        for element in 1..count {
            for index in start..start + once {
                let Found { field, contained } = &self.found[index];
                let offset = field.offset.saturating_add(element.saturating_mul(size));
                let field = SpecialField { offset, kind: field.kind.clone() };
                self.found.push(Found { field, contained: *contained });
            }
        }
        Ok(())
    }

    /// What was found, after the checks of the fields as a whole.
    fn record(self, id: u32, size: u32) -> Result<Parsed, FieldsError> {
        let error = |defect| FieldsError::Type { id, defect };
        let mut contained = Vec::new();
        let mut fields = Vec::with_capacity(self.found.len());
        let (mut end, mut mask) = (0, FieldMask::empty());
        for Found { mut field, contained: holds } in self.found {
            let field_end = field.offset.saturating_add(field.kind.size());
            if field_end > size {
                return Err(error(FieldDefect::Outside(field.offset)));
            }
            if field.offset < end {
                return Err(error(FieldDefect::Overlap(field.offset)));
            }
            end = field_end;
            // Two in different structs make the kernel warn of a bug of its own and go on with the last.
            if FieldMask::UNIQUE.contains(field.kind.mask()) && mask.contains(field.kind.mask()) {
                return Err(error(FieldDefect::Second(field.kind.name())));
            }
            mask |= field.kind.mask();
            if let Some(holds) = holds {
                self.btf.find_node(holds, &mut field.kind).map_err(error)?;
                contained.push(holds);
            }
            fields.push(field);
        }
        let locks = mask & (FieldMask::SPIN_LOCK | FieldMask::RES_SPIN_LOCK);
        if locks.bits().count_ones() == 2 {
            return Err(error(FieldDefect::TwoLocks));
        }
        if mask.intersects(FieldMask::GRAPH_ROOT) && locks.is_empty() {
            return Err(error(FieldDefect::NoLock));
        }
        if mask.contains(FieldMask::GRAPH_NODE) && !mask.contains(FieldMask::REFCOUNT) {
            return Err(error(FieldDefect::NoRefcount));
        }
        Ok(Parsed { fields: SpecialFields::new(fields), contained })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::btf::Kind;
    use crate::btf::testing::Builder;

    #[test]
    fn the_member_that_cannot_be_is_named() {
        let mut b = Builder::new();
        let timer = b.opaque("bpf_timer", 16);
        let inner = b.structure("inner", 40, &[(1, 0), (timer, 8), (timer, 24)]);
        let value = b.structure("v", 40, &[(inner, 0)]);
        let defect = FieldDefect::Second("bpf_timer");
        let error = FieldsError::Member { id: inner, index: 2, defect };
        assert_eq!(SpecialFields::of(&b.build(), value), Err(error));
    }

    #[test]
    fn two_locks_in_different_structs_are_too_many() {
        let mut b = Builder::new();
        let lock = b.opaque("bpf_spin_lock", 4);
        let inner = b.structure("inner", 4, &[(lock, 0)]);
        let value = b.structure("v", 8, &[(inner, 0), (lock, 4)]);
        let error = FieldsError::Type { id: value, defect: FieldDefect::Second("bpf_spin_lock") };
        assert_eq!(SpecialFields::of(&b.build(), value), Err(error));
    }

    #[test]
    fn a_list_knows_what_it_holds() {
        let mut b = Builder::new();
        let head = b.opaque("bpf_list_head", 16);
        let node = b.opaque("bpf_list_node", 24);
        let lock = b.opaque("bpf_spin_lock", 4);
        b.structure("item", 32, &[(1, 0), (node, 8)]);
        let value = b.structure("v", 24, &[(head, 0), (lock, 16)]);
        b.ty("contains:item:m1", Kind::DeclTag, 0, value, &[0]);
        let contains = Contains { target: "item".into(), node: "m1".into(), node_offset: 8 };
        let fields = SpecialFields::of(&b.build(), value).unwrap();
        assert_eq!(fields.find(0).unwrap().kind, FieldKind::ListHead(contains));
        assert_eq!(b.build().check_special_structs(), Ok(()));
    }

    #[test]
    fn structs_that_double_at_each_level_are_walked_once() {
        let mut b = Builder::new();
        let mut at = b.structure("s", 0, &[]);
        for _ in 0..31 {
            at = b.structure("s", 0, &[(at, 0), (at, 0)]);
        }
        assert_eq!(SpecialFields::of(&b.build(), at), Ok(SpecialFields::default()));
    }

    #[test]
    fn a_variable_outside_its_section_is_refused() {
        let mut b = Builder::new();
        let lock = b.opaque("bpf_spin_lock", 4);
        let var = b.ty("lock", Kind::Var, 0, lock, &[1]);
        let section = b.ty(".data", Kind::Datasec, 1, 4, &[var, u32::MAX - 3, 4]);
        let error = FieldsError::Type { id: section, defect: FieldDefect::Outside(u32::MAX - 3) };
        assert_eq!(SpecialFields::of(&b.build(), section), Err(error));
    }
}
