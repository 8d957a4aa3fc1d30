//! What types must say of each other: references lead somewhere, nothing contains itself, and members lie
//! within their struct.

use alloc::vec;
use alloc::vec::Vec;

use super::{Btf, BtfError, Composite, Def, Defect, Kind, MAX_DEPTH};

impl Btf {
    /// Checks all types; [`Btf::get`] cannot fail afterwards, and recursion over contained types ends.
    pub(super) fn check(&self) -> Result<(), BtfError> {
        for id in 1..self.len() {
            let record = self.record(id)?;
            if let Some(offset) = record.strings().find(|offset| self.string(*offset).is_none()) {
                return Err(Defect::BadString(offset).of(id));
            }
            if let Some(target) = record.references().find(|target| *target >= self.len()) {
                return Err(Defect::BadReference(target).of(id));
            }
            self.get(id)?;
        }
        let mut heights = vec![0; self.len() as usize];
        for id in 1..self.len() {
            self.measure(id, MAX_DEPTH, &mut heights)?;
        }
        self.types().try_for_each(|ty| match ty.def {
            Def::Struct(def) | Def::Union(def) => self.check_members(ty.id, def),
            Def::Func { proto, .. } => match self.get(proto)?.def {
                Def::FuncProto(_) => Ok(()),
                _ => Err(Defect::WrongReference(proto).of(ty.id)),
            },
            Def::Datasec(def) => {
                let is_var = |id| {
                    matches!(self.get(id).map(|ty| ty.def), Ok(Def::Var { .. } | Def::Func { .. }))
                };
                match def.vars().find(|var| !is_var(var.var)) {
                    Some(var) => Err(Defect::WrongReference(var.var).of(ty.id)),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        })
    }

    /// Checks that sections have a size and hold variables one behind the other. Compilers leave sizes and offsets open, so only
    /// who is given types for use can ask for it; see [`Btf::fix_datasec`].
    ///
    /// # Errors
    /// [`BtfError::BadType`], [`BtfError::VarOutside`].
    ///
    /// # Kernel
    /// `btf_datasec_check_meta`, `btf_datasec_resolve`
    pub fn check_sections(&self) -> Result<(), BtfError> {
        self.types().try_for_each(|section| {
            let Def::Datasec(def) = section.def else { return Ok(()) };
            if def.size == 0 {
                return Err(Defect::BadSize(Kind::Datasec, 0).of(section.id));
            }
            let mut end = 0;
            for (index, var) in def.vars().enumerate() {
                let Def::Var { ty, .. } = self.get(var.var)?.def else {
                    return Err(Defect::WrongReference(var.var).of(section.id));
                };
                let is_inside = var.offset >= end && var.offset < def.size;
                let rest = def.size.saturating_sub(var.offset);
                let takes = self.size_of(ty)?;
                if !is_inside || var.size == 0 || var.size > rest || var.size < takes {
                    return Err(BtfError::VarOutside { id: section.id, index });
                }
                end = var.offset + var.size;
            }
            Ok(())
        })
    }

    /// How many levels of types `id` contains, itself included, if that is at most `room`.
    ///
    /// Recursion is bounded by `room`; `heights` remembers answers, so each type is walked once.
    fn measure(&self, id: u32, room: u8, heights: &mut Vec<u8>) -> Result<u8, BtfError> {
        let known = heights.get(id as usize).copied().unwrap_or(0);
        if known > room || room == 0 {
            return Err(Defect::TooDeep.of(id));
        }
        if known != 0 {
            return Ok(known);
        }
        let mut below = 0;
        let mut contain = |inner| -> Result<(), BtfError> {
            below = below.max(self.measure(inner, room - 1, heights)?);
            Ok(())
        };
        match self.get(id)?.def {
            Def::Typedef(ty) | Def::Volatile(ty) | Def::Const(ty) => contain(ty)?,
            Def::Restrict(ty) | Def::TypeTag(ty) | Def::Var { ty, .. } => contain(ty)?,
            Def::Array(array) => contain(array.element)?,
            Def::Struct(def) | Def::Union(def) => {
                def.members().try_for_each(|member| contain(member.ty))?;
            }
            Def::Datasec(def) => def.vars().try_for_each(|var| contain(var.var))?,
            _ => {}
        }
        if let Some(height) = heights.get_mut(id as usize) {
            *height = below + 1;
        }
        Ok(below + 1)
    }

    fn check_members(&self, id: u32, def: Composite<'_>) -> Result<(), BtfError> {
        let struct_bits = u64::from(def.size) * 8;
        for (index, member) in def.members().enumerate() {
            let bits = match (self.resolve(member.ty)?.def, member.bitfield_size) {
                (Def::Int(_) | Def::Enum(_), Some(bits)) => u64::from(bits),
                (Def::Int(int), None) => u64::from(int.bits),
                (Def::Var { .. } | Def::Datasec(_), _) | (_, Some(_)) => {
                    return Err(Defect::WrongReference(member.ty).of(id));
                }
                _ => match self.size_of(member.ty) {
                    Ok(size) => u64::from(size) * 8,
                    Err(_) => return Err(Defect::WrongReference(member.ty).of(id)),
                },
            };
            if u64::from(member.bit_offset) + bits > struct_bits {
                return Err(Defect::MemberOutside(index as u32).of(id));
            }
        }
        Ok(())
    }
}
