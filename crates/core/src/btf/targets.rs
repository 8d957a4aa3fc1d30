//! What pointers with a tag point to, and what lists and trees hold.

use super::special::{FieldKind, FieldMask, KptrTag};
use super::{Btf, Def, FieldDefect, Type};

impl Btf {
    /// What values of the type are, below modifiers and as a variable's value; `None` if it does not exist.
    pub(super) fn value_type(&self, id: u32) -> Option<Type<'_>> {
        let ty = self.resolve(id).ok()?;
        match ty.def {
            Def::Var { ty, .. } => self.resolve(ty).ok(),
            _ => Some(ty),
        }
    }

    /// The special field that a pointer is, if it has a tag and that kind is asked for.
    ///
    /// # Kernel
    /// `btf_find_kptr`
    pub(super) fn kptr(
        &self,
        ty: &Type<'_>,
        mask: FieldMask,
    ) -> Result<Option<FieldKind>, FieldDefect> {
        let get = |id| self.get(id).map_err(|_| FieldDefect::Pointer);
        let pointer = match ty.def {
            Def::Volatile(of) => get(of)?,
            _ => *ty,
        };
        let Def::Ptr(to) = pointer.def else { return Ok(None) };
        let tagged = get(to)?;
        let Def::TypeTag(of) = tagged.def else { return Ok(None) };
        if self.is_attribute(tagged.id) {
            return Ok(None);
        }
        if matches!(get(of)?.def, Def::TypeTag(_)) {
            return Err(FieldDefect::Pointer);
        }
        let tag = match tagged.name {
            "kptr_untrusted" => KptrTag::Untrusted,
            "kptr" => KptrTag::Referenced,
            "percpu_kptr" => KptrTag::Percpu,
            "uptr" => KptrTag::User,
            _ => return Err(FieldDefect::Pointer),
        };
        let target = self.resolve(of).map_err(|_| FieldDefect::Pointer)?;
        let kind = FieldKind::Kptr { tag, target: target.name.into() };
        match target.def {
            _ if !mask.contains(kind.mask()) => Ok(None),
            Def::Struct(_) => Ok(Some(kind)),
            _ => Err(FieldDefect::Pointer),
        }
    }

    /// Whether a type tag has the kind flag: then it stands for another attribute of C.
    fn is_attribute(&self, id: u32) -> bool {
        let info = self.start(id).ok().and_then(|start| self.words.get(start + 1));
        info.is_some_and(|info| info >> 31 != 0)
    }

    /// Finds the node that a list or tree links, and notes its offset.
    ///
    /// # Kernel
    /// `btf_parse_graph_root`
    pub(super) fn find_node(&self, id: u32, root: &mut FieldKind) -> Result<(), FieldDefect> {
        let (contains, name) = match root {
            FieldKind::ListHead(contains) => (contains, FieldKind::ListNode.name()),
            FieldKind::RbRoot(contains) => (contains, FieldKind::RbNode.name()),
            _ => return Ok(()),
        };
        let Ok(Def::Struct(def)) = self.get(id).map(|ty| ty.def) else {
            return Err(FieldDefect::NoSuchStruct);
        };
        let mut nodes = def.members().filter(|member| member.name == contains.node);
        let node = nodes.next().ok_or(FieldDefect::NoSuchNode)?;
        let ty = self.get(node.ty).map_err(|_| FieldDefect::WrongNode)?;
        let right = matches!(ty.def, Def::Struct(_)) && ty.name == name;
        if !right || !node.bit_offset.is_multiple_of(64) || nodes.next().is_some() {
            return Err(FieldDefect::WrongNode);
        }
        contains.node_offset = node.bit_offset / 8;
        Ok(())
    }
}
