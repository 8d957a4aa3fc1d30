//! Which type, member or enumerator of the target is the counterpart of a local one: libbpf's rules.

use bpfarray_core::btf::{Btf, Composite, Def, Enum, IntEncoding, Kind, Type};

use super::CoreRelocDefect;
use super::spec::{Access, RelocKind, Spec};

/// Steps an object's comparisons may take. Types can be made that multiply them without end; the kernel's,
/// compared with those of large programs, take a small part of this.
const STEPS: u32 = 1 << 24;

/// How deep types are compared; libbpf has the same limit.
const MAX_LEVEL: u32 = 32;

/// A name without its flavour: what precedes the last `___` between two characters other than `_`.
///
/// # Kernel
/// `bpf_core_essential_name_len`
pub(super) fn essence(name: &str) -> &str {
    let is_separator = |window: &[u8]| matches!(window, [before, b'_', b'_', b'_', after] if *before != b'_' && *after != b'_');
    match name.as_bytes().windows(5).rposition(is_separator) {
        Some(at) => name.get(..=at).unwrap_or(name),
        None => name,
    }
}

/// # Kernel
/// `btf_kind_core_compat`
pub(super) fn kinds_are_compat(a: Kind, b: Kind) -> bool {
    let is_enum = |kind| matches!(kind, Kind::Enum | Kind::Enum64);
    a == b || is_enum(a) && is_enum(b)
}

/// Compares types of an object with those of a target.
pub(super) struct Matcher<'a> {
    local: &'a Btf,
    target: &'a Btf,
    pub(super) steps: u32,
}

type Found<T> = Result<T, CoreRelocDefect>;

impl<'a> Matcher<'a> {
    pub(super) const fn new(local: &'a Btf, target: &'a Btf) -> Self {
        Self { local, target, steps: STEPS }
    }

    pub(super) const fn target(&self) -> &'a Btf {
        self.target
    }

    /// The place in `candidate`, a type of the target with the right name, that corresponds to `local`.
    ///
    /// # Kernel
    /// `bpf_core_spec_match`
    pub(super) fn find(
        &mut self,
        local: &Spec<'_>,
        kind: RelocKind,
        candidate: u32,
    ) -> Found<Option<Spec<'a>>> {
        let spec = Spec::new(self.target, candidate);
        let fits = match kind {
            RelocKind::TypeMatches => self.types_match(local.root, candidate, false, MAX_LEVEL)?,
            _ if kind.is_type_based() => self.types_are_compat(local.root, candidate, MAX_LEVEL)?,
            _ if kind.is_enumval_based() => return self.find_enumerator(local, spec),
            _ => return self.find_field(local, spec),
        };
        Ok(fits.then_some(spec))
    }

    fn step(&mut self) -> Found<()> {
        self.steps = self.steps.checked_sub(1).ok_or(CoreRelocDefect::TooComplex)?;
        Ok(())
    }

    fn find_enumerator(&mut self, local: &Spec<'_>, mut spec: Spec<'a>) -> Found<Option<Spec<'a>>> {
        let resolved = self.target.resolve(spec.root)?;
        let (Def::Enum(def), [Access { name: Some(name), .. }]) = (resolved.def, &local.path[..])
        else {
            return Ok(None);
        };
        let mut values = def.values().enumerate();
        let found = values.find(|(_, value)| essence(value.name) == essence(name));
        Ok(found.map(|(index, value)| {
            spec.path.push(Access { ty: resolved.id, index: index as u32, name: Some(value.name) });
            spec
        }))
    }

    fn find_field(&mut self, local: &Spec<'_>, mut spec: Spec<'a>) -> Found<Option<Spec<'a>>> {
        let mut at = spec.root;
        for (depth, access) in local.path.iter().enumerate() {
            let ty = self.target.resolve(at)?;
            if let Some(name) = access.name {
                match self.find_member((access, name), &mut spec, ty)? {
                    Some(next) => at = next,
                    None => return Ok(None),
                }
                continue;
            }
            // The first index is into an array of the root type, which no type says.
            let element = match ty.def {
                _ if depth == 0 => ty.id,
                Def::Array(array) if spec.allows_index(array, access.index) => {
                    self.target.resolve(array.element)?.id
                }
                _ => return Ok(None),
            };
            spec.push_element(element, access.index)?;
            at = element;
        }
        Ok(Some(spec))
    }

    /// Steps into the member with the name, which may be in anonymous structs and unions within `ty`, and
    /// returns its type.
    ///
    /// # Kernel
    /// `bpf_core_match_member`
    fn find_member(
        &mut self,
        (access, name): (&Access<'_>, &str),
        spec: &mut Spec<'a>,
        ty: Type<'a>,
    ) -> Found<Option<u32>> {
        let (Def::Struct(def) | Def::Union(def)) = ty.def else { return Ok(None) };
        for (index, member) in def.members().enumerate() {
            self.step()?;
            let found = if member.name.is_empty() {
                let inner = self.target.resolve(member.ty)?;
                spec.bit_offset += u64::from(member.bit_offset);
                let found = self.find_member((access, name), spec, inner)?;
                if found.is_none() {
                    spec.bit_offset -= u64::from(member.bit_offset);
                }
                found
            } else if member.name == name {
                let local_member = match self.local.get(access.ty)?.def {
                    Def::Struct(def) | Def::Union(def) => def.member(access.index as usize),
                    _ => None,
                };
                let Some(local_member) = local_member else { return Ok(None) };
                if !self.fields_are_compat(local_member.ty, member.ty)? {
                    return Ok(None);
                }
                spec.bit_offset += u64::from(member.bit_offset);
                spec.path.push(Access { ty: ty.id, index: index as u32, name: Some(member.name) });
                Some(member.ty)
            } else {
                None
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Whether code compiled for one field can make sense of the other.
    ///
    /// # Kernel
    /// `bpf_core_fields_are_compat`
    fn fields_are_compat(&self, local: u32, target: u32) -> Found<bool> {
        let (mut local, mut target) = (self.local.resolve(local)?, self.target.resolve(target)?);
        while let (Def::Array(a), Def::Array(b)) = (local.def, target.def) {
            (local, target) = (self.local.resolve(a.element)?, self.target.resolve(b.element)?);
        }
        Ok(match (local.def, target.def) {
            (Def::Struct(_) | Def::Union(_), Def::Struct(_) | Def::Union(_)) => true,
            (Def::Ptr(_), Def::Ptr(_)) | (Def::Float { .. }, Def::Float { .. }) => true,
            (Def::Int(a), Def::Int(b)) => a.offset == 0 && b.offset == 0,
            (Def::Enum(_), Def::Enum(_)) | (Def::Fwd { .. }, Def::Fwd { .. }) => {
                let (a, b) = (essence(local.name), essence(target.name));
                a.is_empty() || b.is_empty() || a == b
            }
            _ => false,
        })
    }

    /// Whether the types are the same as far as "it exists" goes: structs are by their name, pointers,
    /// arrays and functions by what they are made of.
    ///
    /// # Kernel
    /// `bpf_core_types_are_compat`
    fn types_are_compat(&mut self, local: u32, target: u32, level: u32) -> Found<bool> {
        self.step()?;
        let Some(level) = level.checked_sub(1) else { return Ok(false) };
        let (local, target) = (self.local.resolve(local)?, self.target.resolve(target)?);
        match (local.def, target.def) {
            (Def::Ptr(a), Def::Ptr(b)) => self.types_are_compat(a, b, level),
            (Def::Array(a), Def::Array(b)) => self.types_are_compat(a.element, b.element, level),
            (Def::Int(a), Def::Int(b)) => Ok(a.offset == 0 && b.offset == 0),
            (Def::FuncProto(a), Def::FuncProto(b)) => {
                if a.params().len() != b.params().len() {
                    return Ok(false);
                }
                for (a, b) in a.params().zip(b.params()) {
                    if !self.types_are_compat(a.ty, b.ty, level)? {
                        return Ok(false);
                    }
                }
                self.types_are_compat(a.ret, b.ret, level)
            }
            (Def::Void | Def::Struct(_) | Def::Union(_) | Def::Enum(_) | Def::Fwd { .. }, _) => {
                Ok(kinds_are_compat(local.kind(), target.kind()))
            }
            _ => Ok(false),
        }
    }

    /// Whether all the local type says is true of the target's, names included.
    ///
    /// # Kernel
    /// `bpf_core_types_match`
    fn types_match(
        &mut self,
        local: u32,
        target: u32,
        behind_ptr: bool,
        level: u32,
    ) -> Found<bool> {
        self.step()?;
        let Some(level) = level.checked_sub(1) else { return Ok(false) };
        let (local, target) = (self.local.resolve(local)?, self.target.resolve(target)?);
        if essence(local.name) != essence(target.name) {
            return Ok(false);
        }
        match (local.def, target.def) {
            (Def::Void, Def::Void) => Ok(true),
            (Def::Fwd { is_union: a }, Def::Fwd { is_union: b }) => Ok(a == b),
            (Def::Fwd { is_union }, Def::Struct(_)) => Ok(behind_ptr && !is_union),
            (Def::Fwd { is_union }, Def::Union(_)) => Ok(behind_ptr && is_union),
            (Def::Struct(_), Def::Fwd { is_union }) => Ok(behind_ptr && !is_union),
            (Def::Union(_), Def::Fwd { is_union }) => Ok(behind_ptr && is_union),
            (Def::Struct(a), Def::Struct(b)) | (Def::Union(a), Def::Union(b)) => {
                // Behind a pointer the name is all that counts.
                Ok(behind_ptr || self.composites_match(a, b, level)?)
            }
            (Def::Enum(a), Def::Enum(b)) => self.enums_match(a, b),
            (Def::Int(a), Def::Int(b)) => {
                let is_signed = |encoding| encoding == IntEncoding::Signed;
                Ok(a.size == b.size && is_signed(a.encoding) == is_signed(b.encoding))
            }
            (Def::Ptr(a), Def::Ptr(b)) => self.types_match(a, b, true, level),
            (Def::Array(a), Def::Array(b)) => {
                Ok(a.len == b.len && self.types_match(a.element, b.element, behind_ptr, level)?)
            }
            (Def::FuncProto(a), Def::FuncProto(b)) => {
                if a.params().len() != b.params().len() {
                    return Ok(false);
                }
                for (a, b) in a.params().zip(b.params()) {
                    if !self.types_match(a.ty, b.ty, behind_ptr, level)? {
                        return Ok(false);
                    }
                }
                self.types_match(a.ret, b.ret, behind_ptr, level)
            }
            _ => Ok(false),
        }
    }

    fn composites_match(&mut self, a: Composite<'_>, b: Composite<'_>, level: u32) -> Found<bool> {
        if a.members().len() > b.members().len() {
            return Ok(false);
        }
        for member in a.members() {
            let mut found = false;
            for counterpart in b.members() {
                self.step()?;
                if essence(member.name) == essence(counterpart.name)
                    && self.types_match(member.ty, counterpart.ty, false, level)?
                {
                    found = true;
                    break;
                }
            }
            if !found {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn enums_match(&mut self, a: Enum<'_>, b: Enum<'_>) -> Found<bool> {
        if a.size != b.size || a.len() > b.len() {
            return Ok(false);
        }
        for value in a.values() {
            let mut found = false;
            for counterpart in b.values() {
                self.step()?;
                found = essence(value.name) == essence(counterpart.name);
                if found {
                    break;
                }
            }
            if !found {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
