//! The rules for structs with special fields that loading BTF checks, whether or not a map has such values.

use alloc::collections::{BTreeMap, BTreeSet};

use super::find_fields::{Finder, Names, Parsed};
use super::special::FieldMask;
use super::{Btf, Def, FieldDefect, FieldsError};

/// Structs whose name makes whatever directly contains them subject to the rules.
const NAMES: [&str; 6] = [
    "bpf_spin_lock",
    "bpf_list_head",
    "bpf_list_node",
    "bpf_rb_root",
    "bpf_rb_node",
    "bpf_refcount",
];

/// The fields that objects a program allocates can have.
const OBJECT: FieldMask = FieldMask::SPIN_LOCK
    .union(FieldMask::RES_SPIN_LOCK)
    .union(FieldMask::GRAPH_ROOT)
    .union(FieldMask::GRAPH_NODE)
    .union(FieldMask::REFCOUNT)
    .union(FieldMask::KPTR);

impl Btf {
    /// Checks every struct that directly contains a lock, a list, a tree, a node, a reference count or a
    /// kptr, as `BPF_BTF_LOAD` does.
    ///
    /// Structs with only timers, work or task work are not looked at. (For a kptr the kernel also demands that it
    /// can release objects of that type; here that is for the host to say.)
    ///
    /// # Errors
    /// [`FieldsError`], for the first struct whose fields cannot be, then for the first whose lists and trees
    /// cannot.
    ///
    /// # Kernel
    /// `btf_parse_struct_metas`
    #[doc(alias = "btf_parse_struct_metas")]
    pub fn check_special_structs(&self) -> Result<(), FieldsError> {
        let names = Names::new(self);
        let mut special: BTreeSet<u32> =
            NAMES.iter().filter_map(|name| names.find_struct(name)).collect();
        special.extend(self.types().filter_map(|ty| {
            let kptr = self.kptr(&ty, FieldMask::KPTR);
            matches!(kptr, Ok(Some(_))).then_some(ty.id)
        }));
        let mut metas = BTreeMap::new();
        for ty in self.types() {
            let Def::Struct(def) = ty.def else { continue };
            if !def.members().any(|member| special.contains(&member.ty)) {
                continue;
            }
            let parsed = Finder::new(self, &names, OBJECT).parse(ty.id)?;
            if parsed.fields.is_empty() {
                return Err(FieldsError::Type { id: ty.id, defect: FieldDefect::NoField });
            }
            metas.insert(ty.id, parsed);
        }
        metas.iter().try_for_each(|(id, parsed)| {
            check_roots(parsed, &metas).map_err(|defect| FieldsError::Type { id: *id, defect })
        })
    }
}

/// Nodes must be of structs with special fields, and ownership must end after two levels.
///
/// # Kernel
/// `btf_check_and_fixup_fields`
fn check_roots(parsed: &Parsed, metas: &BTreeMap<u32, Parsed>) -> Result<(), FieldDefect> {
    let is_node = parsed.fields.mask().intersects(FieldMask::GRAPH_NODE);
    for id in &parsed.contained {
        let target = metas.get(id).ok_or(FieldDefect::NoNodes)?;
        if is_node && target.fields.mask().intersects(FieldMask::GRAPH_ROOT) {
            return Err(FieldDefect::Ownership);
        }
    }
    Ok(())
}
